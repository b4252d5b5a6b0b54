"""The losses over rows of classes in torch's ops, as a user would write them.

They stand for torch where it has no such loss, no such argument, or no derivative by one of the arguments.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def class_axis(input: Tensor, axis: int = 1) -> int:
    return 0 if input.dim() == 1 else axis % input.dim()


def every_class(weight: Tensor, input: Tensor, axis: int) -> Tensor:
    """A number for every class, to be multiplied by input."""
    return weight.view([-1 if d == axis else 1 for d in range(input.dim())])


def one_hot(labels: Tensor, input: Tensor, axis: int) -> Tensor:
    """Of input's dtype and shape; a label that is none has no class."""
    classes = torch.arange(input.shape[axis])
    return (labels.long().unsqueeze(axis) == every_class(classes, input, axis)).to(input.dtype)


def mean_or_sum(rows: Tensor, reduction: str, denominator: Tensor | float | None = None) -> Tensor:
    if reduction in ("none", "sum"):
        return rows if reduction == "none" else rows.sum()
    return rows.mean() if denominator is None else rows.sum() / denominator


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    sample_weight: Tensor | None = None,
    z_loss: float = 0.0,
    softcap: float | None = None,
    reduction: str = "mean",
) -> Tensor:
    axis = class_axis(input)
    x = input if softcap is None else softcap * torch.tanh(input / softcap)
    counts = (target.argmax(axis) if target.is_floating_point() else target) != ignore_index
    q = target if target.is_floating_point() else one_hot(target, x, axis)
    w = torch.ones_like(q) if weight is None else every_class(weight, x, axis)
    share = counts.to(x.dtype) if target.is_floating_point() else (q * w).sum(axis).masked_fill(~counts, 0)
    smooth = (1 - label_smoothing) * q + label_smoothing / x.shape[axis]
    rows = -(w * smooth * x.log_softmax(axis).masked_fill(smooth == 0, 0)).sum(axis)
    rows = (rows + z_loss * x.logsumexp(axis) ** 2).masked_fill(~counts, 0)
    if sample_weight is not None:
        rows, share = rows * sample_weight, share * sample_weight
    return mean_or_sum(rows, reduction, share.sum())


def nll_loss(
    input: Tensor, target: Tensor, weight: Tensor | None = None, ignore_index: int = -100, reduction: str = "mean"
) -> Tensor:
    axis = class_axis(input)
    label = one_hot(target, input, axis)
    share = label if weight is None else label * every_class(weight, input, axis)
    return mean_or_sum(-(share * input).sum(axis), reduction, share.sum())


def categorical_cross_entropy(
    input: Tensor,
    target: Tensor,
    from_logits: bool = False,
    label_smoothing: float = 0.0,
    axis: int = -1,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    axis = class_axis(input, axis)
    if from_logits:
        log_p = input.log_softmax(axis)
    else:
        log_p = (input / input.sum(axis, keepdim=True)).clamp(1e-7, 1 - 1e-7).log()
    q = (1 - label_smoothing) * target + label_smoothing / input.shape[axis]
    terms = q * log_p if weight is None else every_class(weight, input, axis) * q * log_p
    return mean_or_sum(-terms.sum(axis), reduction)


def sparse_categorical_cross_entropy(
    input: Tensor,
    target: Tensor,
    from_logits: bool = False,
    ignore_class: int | None = None,
    axis: int = -1,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    axis = class_axis(input, axis)
    counts = torch.ones_like(target, dtype=torch.bool) if ignore_class is None else target != ignore_class
    label = one_hot(target, input, axis) * counts.unsqueeze(axis)
    rows = categorical_cross_entropy(input, label, from_logits, 0.0, axis, weight, "none")
    return mean_or_sum(rows, reduction, counts.sum().clamp(min=1))


def softmax_focal_loss(
    input: Tensor,
    target: Tensor,
    alpha: Tensor | None = None,
    gamma: float = 2.0,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    axis = class_axis(input)
    counts = (target.argmax(axis) if target.is_floating_point() else target) != ignore_index
    q = (target if target.is_floating_point() else one_hot(target, input, axis)) * counts.unsqueeze(axis)
    log_p = input.log_softmax(axis)
    terms = q * (1 - log_p.exp()) ** gamma * log_p
    terms = terms if alpha is None else every_class(alpha, input, axis) * terms
    return mean_or_sum(-terms.sum(axis), reduction, counts.sum())


def categorical_hinge_loss(
    input: Tensor, target: Tensor, weight: Tensor | None = None, reduction: str = "mean"
) -> Tensor:
    axis = class_axis(input)
    if target.is_floating_point():
        hits, rivals = (target * input).sum(axis), (1 - target) * input
    else:
        label = one_hot(target, input, axis)
        hits, rivals = (label * input).sum(axis), input.masked_fill(label == 1, -torch.inf)
    rows = F.relu(1 + rivals.amax(axis) - hits)
    if weight is not None:
        rows = rows * (label * every_class(weight, input, axis)).sum(axis)
    return mean_or_sum(rows, reduction)


def multi_margin_loss(
    input: Tensor,
    target: Tensor,
    p: int = 1,
    margin: float = 1.0,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    axis = class_axis(input)
    label = one_hot(target, input, axis)
    gap = F.relu(margin - (label * input).sum(axis, keepdim=True) + input) ** p
    rows = (gap * (1 - label)).sum(axis) / input.shape[axis]
    if weight is not None:
        rows = rows * (label * every_class(weight, input, axis)).sum(axis)
    return mean_or_sum(rows, reduction)


def multilabel_margin_loss(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    axis, classes = class_axis(input), input.shape[-1]
    listed = ((target >= 0).long().cumprod(axis) == 1).to(input.dtype)
    listed = listed[..., : int(listed.sum(axis).max())]  # without what no one reads
    labels = target[..., : listed.shape[axis]].clamp(min=0)
    false = 1 - torch.zeros_like(input).scatter_reduce(axis, labels, listed, "amax")
    gap = F.relu(1 - input.gather(axis, labels).unsqueeze(-1) + input.unsqueeze(-2))
    rows = (gap * listed.unsqueeze(-1) * false.unsqueeze(-2)).sum((-1, -2)) / classes
    return mean_or_sum(rows, reduction)


def kl_divergence(
    p: Tensor,
    q: Tensor,
    from_logits: bool = False,
    temperature: float | Tensor = 1.0,
    weight: Tensor | None = None,
    reduction: str = "batchmean",
) -> Tensor:
    axis = class_axis(p)
    if from_logits:
        log_p, log_q = (p / temperature).log_softmax(axis), (q / temperature).log_softmax(axis)
        rows = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(axis)
    else:
        rows = F.kl_div(q.log(), p, reduction="none").sum(axis)
    return mean_or_sum(rows if weight is None else weight * rows, reduction)


def js_divergence(
    p: Tensor,
    q: Tensor,
    beta: float = 0.5,
    from_logits: bool = False,
    weight: Tensor | None = None,
    reduction: str = "batchmean",
) -> Tensor:
    axis = class_axis(p)
    if from_logits:
        logs = p.log_softmax(axis), q.log_softmax(axis)
        log_m = torch.logaddexp(logs[0] + math.log(beta), logs[1] + math.log(1 - beta))
    else:
        logs, log_m = (p, q), (beta * p + (1 - beta) * q).log()
    one, other = (F.kl_div(log_m, x, reduction="none", log_target=from_logits).sum(axis) for x in logs)
    rows = beta * one + (1 - beta) * other
    return mean_or_sum(rows if weight is None else weight * rows, reduction)
