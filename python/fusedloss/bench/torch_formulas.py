"""The losses that torch.nn.functional lacks, written in torch's operations as one would without fusedloss.

The training example and the benchmarks compare with these; where torch has the loss, they compare with torch's own.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def log_cosh_loss(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    r = input - target
    return _reduce(r + F.softplus(-2.0 * r) - math.log(2.0), reduction)


def quantile_loss(input: Tensor, target: Tensor, q: float | Tensor = 0.5, reduction: str = "mean") -> Tensor:
    if isinstance(q, Tensor):
        target = target.unsqueeze(-1)
    d = target - input
    return _reduce(torch.maximum(q * d, (q - 1.0) * d), reduction)


def mean_squared_log_error(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    return _reduce((input.clamp(min=1e-7).log1p() - target.clamp(min=1e-7).log1p()).square(), reduction)


def mean_absolute_percentage_error(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    return _reduce(100.0 * ((target - input) / target.abs().clamp(min=1e-7)).abs(), reduction)


def sigmoid_focal_loss(
    input: Tensor, target: Tensor, alpha: float = 0.25, gamma: float = 2.0, reduction: str = "none"
) -> Tensor:
    p = torch.sigmoid(input)
    bce = F.binary_cross_entropy_with_logits(input, target, reduction="none")
    p_t = p * target + (1.0 - p) * (1.0 - target)
    alpha_t = alpha * target + (1.0 - alpha) * (1.0 - target)
    return _reduce(alpha_t * bce * (1.0 - p_t) ** gamma, reduction)


def hinge_loss(input: Tensor, target: Tensor, target_01: bool = False, reduction: str = "mean") -> Tensor:
    return _reduce(_shortfall(input, target, target_01), reduction)


def squared_hinge_loss(input: Tensor, target: Tensor, target_01: bool = False, reduction: str = "mean") -> Tensor:
    return _reduce(_shortfall(input, target, target_01).square(), reduction)


def gaussian_kl(mean: Tensor, log_var: Tensor, reduction: str = "batchmean") -> Tensor:
    rows = -0.5 * (1.0 + log_var - mean.square() - log_var.exp()).sum(dim=-1)
    return _reduce(rows, reduction)


def softmax_focal_loss(input: Tensor, target: Tensor, gamma: float = 2.0, reduction: str = "mean") -> Tensor:
    log_p = F.log_softmax(input, 1).gather(1, target.unsqueeze(1)).squeeze(1)
    return _reduce(-((1.0 - log_p.exp()) ** gamma) * log_p, reduction)


def categorical_cross_entropy(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    p = (input / input.sum(-1, keepdim=True)).clamp(1e-7, 1.0 - 1e-7)
    return _reduce(-(target * p.log()).sum(-1), reduction)


def categorical_hinge_loss(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    own = input.gather(1, target.unsqueeze(1)).squeeze(1)
    others = input.scatter(1, target.unsqueeze(1), -math.inf).amax(1)
    return _reduce(F.relu(1.0 + others - own), reduction)


def kl_divergence(
    p: Tensor, q: Tensor, from_logits: bool = False, temperature: float = 1.0, reduction: str = "batchmean"
) -> Tensor:
    log_p = F.log_softmax(p / temperature, 1) if from_logits else p.log()
    log_q = F.log_softmax(q / temperature, 1) if from_logits else q.log()
    return F.kl_div(log_q, log_p, reduction=reduction, log_target=True)


def js_divergence(p: Tensor, q: Tensor, from_logits: bool = False, reduction: str = "batchmean") -> Tensor:
    if from_logits:
        p, q = p.softmax(1), q.softmax(1)
    m = ((p + q) / 2).log()
    return (F.kl_div(m, p, reduction=reduction) + F.kl_div(m, q, reduction=reduction)) / 2


def ctc_loss(
    logits: Tensor, targets: Tensor, input_lengths: Tensor, target_lengths: Tensor, reduction: str = "mean"
) -> Tensor:
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()  # torch's CTC knows no half types
    return F.ctc_loss(logits.log_softmax(-1), targets, input_lengths, target_lengths, reduction=reduction)


def _shortfall(input: Tensor, target: Tensor, target_01: bool) -> Tensor:
    """How far each score is from the margin of 1 on the right side."""
    sign = 2.0 * target - 1.0 if target_01 else target
    return F.relu(1.0 - sign * input)


def _reduce(values: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return values
    return values.sum() if reduction == "sum" else values.mean()
