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


def contrastive_loss(
    input1: Tensor, input2: Tensor, target: Tensor, margin: float = 1.0, reduction: str = "mean"
) -> Tensor:
    d = torch.linalg.vector_norm(input1 - input2, dim=-1)
    return _reduce(target * d.square() + (1 - target) * F.relu(margin - d).square(), reduction)


def cosine_distance(x1: Tensor, x2: Tensor) -> Tensor:
    return 1.0 - F.cosine_similarity(x1, x2, dim=-1)


def triplet_mining_loss(
    embeddings: Tensor, labels: Tensor, margin: float = 1.0, mining: str = "batch_hard", reduction: str = "mean"
) -> Tensor:
    mine = {"batch_hard": _batch_hard, "semi_hard": _semi_hard, "all": _all_triplets}[mining]
    values, count = mine(torch.cdist(embeddings, embeddings), *_likeness(labels), margin)
    return _reduce_counted(values, count, reduction)


def batch_hard_mined_first(embeddings: Tensor, labels: Tensor, margin: float = 1.0, reduction: str = "mean") -> Tensor:
    """The triplets are chosen without a gradient, and only their distances are computed again with one."""
    positive, negative = _likeness(labels)
    with torch.no_grad():
        d = torch.cdist(embeddings, embeddings)
        farthest = d.masked_fill(~positive, -math.inf).argmax(1)
        nearest = d.masked_fill(~negative, math.inf).argmin(1)
    norms = [torch.linalg.vector_norm(embeddings - embeddings[other], dim=1) for other in (farthest, nearest)]
    anchors = positive.any(1) & negative.any(1)
    return _reduce_counted(F.relu(norms[0] - norms[1] + margin) * anchors, anchors.sum(), reduction)


def info_nce_loss(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None = None,
    temperature: float = 0.1,
    symmetric: bool = False,
    reduction: str = "mean",
) -> Tensor:
    if negatives is None:
        logits = query @ key.t() / temperature
        own = torch.arange(len(query), device=query.device)
        values = F.cross_entropy(logits, own, reduction=reduction)
        return (values + F.cross_entropy(logits.t(), own, reduction=reduction)) / 2 if symmetric else values
    positive = (query * key).sum(-1, keepdim=True)
    others = query @ negatives.t() if negatives.dim() == 2 else (negatives @ query.unsqueeze(-1)).squeeze(-1)
    logits = torch.cat([positive, others], 1) / temperature
    return F.cross_entropy(logits, torch.zeros_like(logits[:, 0], dtype=torch.long), reduction=reduction)


def supervised_contrastive_loss(
    embeddings: Tensor, labels: Tensor, temperature: float = 0.1, reduction: str = "mean"
) -> Tensor:
    positive, _ = _likeness(labels)
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    logits = embeddings @ embeddings.t() / temperature
    log_p = logits.masked_fill(itself, -math.inf).log_softmax(1)
    partners = positive.sum(1)
    values = -log_p.masked_fill(~positive, 0.0).sum(1) / partners.clamp(min=1)
    return _reduce_counted(values, (partners > 0).sum(), reduction)


def clip_loss(image: Tensor, text: Tensor, logit_scale: Tensor, reduction: str = "mean") -> Tensor:
    logits = logit_scale * image @ text.t()
    return _both_directions(logits, logits.t(), reduction)


def clip_loss_of_two_products(image: Tensor, text: Tensor, logit_scale: Tensor, reduction: str = "mean") -> Tensor:
    """The same as open_clip writes it: each direction's logits lie row by row."""
    return _both_directions(logit_scale * image @ text.t(), logit_scale * text @ image.t(), reduction)


def siglip_loss(
    image: Tensor, text: Tensor, logit_scale: Tensor, logit_bias: Tensor, reduction: str = "mean"
) -> Tensor:
    z = logit_scale * image @ text.t() + logit_bias
    signs = 2.0 * torch.eye(len(z), dtype=z.dtype, device=z.device) - 1.0
    return _reduce(-F.logsigmoid(signs * z).sum(1), reduction)


def _both_directions(per_image: Tensor, per_text: Tensor, reduction: str) -> Tensor:
    own = torch.arange(len(per_image), device=per_image.device)
    return (
        F.cross_entropy(per_image, own, reduction=reduction) + F.cross_entropy(per_text, own, reduction=reduction)
    ) / 2


def _likeness(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Which two rows are an anchor and its positive, and which an anchor and its negative."""
    alike = labels.unsqueeze(1) == labels
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    return alike & ~itself, ~alike


def _batch_hard(d: Tensor, positive: Tensor, negative: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    farthest = d.masked_fill(~positive, -math.inf).max(1).values
    nearest = d.masked_fill(~negative, math.inf).min(1).values
    return F.relu(farthest - nearest + margin), (positive.any(1) & negative.any(1)).sum()


def _semi_hard(d: Tensor, positive: Tensor, negative: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """Looks the negatives up in each anchor's sorted distances: to compare all triplets would take N x N x N bytes."""
    ordered = d.masked_fill(~negative, math.inf).sort(dim=1, stable=True).values
    negatives = negative.sum(1, keepdim=True)
    next_farther = torch.searchsorted(ordered.detach(), d.detach(), right=True)
    farthest = ordered.detach().gather(1, (negatives - 1).clamp(min=0))
    first_farthest = torch.searchsorted(ordered.detach(), farthest)  # of equals the one with the lowest index
    chosen = ordered.gather(1, torch.minimum(next_farther, first_farthest))
    pairs = positive & (negatives > 0)
    return (F.relu(d - chosen + margin) * pairs).sum(1), pairs.sum()


def _all_triplets(d: Tensor, positive: Tensor, negative: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    valid = positive.unsqueeze(2) & negative.unsqueeze(1)
    return (F.relu(d.unsqueeze(2) - d.unsqueeze(1) + margin) * valid).sum((1, 2)), valid.sum()


def _shortfall(input: Tensor, target: Tensor, target_01: bool) -> Tensor:
    """How far each score is from the margin of 1 on the right side."""
    sign = 2.0 * target - 1.0 if target_01 else target
    return F.relu(1.0 - sign * input)


def _reduce(values: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return values
    return values.sum() if reduction == "sum" else values.mean()


def _reduce_counted(values: Tensor, count: Tensor, reduction: str) -> Tensor:
    """The mean is over what was found, not over the values; without anything it is 0."""
    return values.sum() / count.clamp(min=1) if reduction == "mean" else _reduce(values, reduction)
