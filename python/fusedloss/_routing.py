"""Decides how a call reaches the compiled ops; every function of :mod:`fusedloss.functional` ends here.

``_C.NAME`` and ``torch.ops.fusedloss.NAME`` are the same op. The first is a plain C function, the cheapest way in; the
second is what ``torch.compile`` and ``torch.export`` can see. Everything else (autograd, forward-mode AD,
``torch.func``, autocast, fake tensors) is decided by torch's dispatcher below both.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fusedloss import _C

_REDUCTIONS = {"none": 0, "mean": 1, "sum": 2, "batchmean": 3, "rowmean": 4, "_mean_or_zero": 5, "mean_nonzero": 6}
_MININGS = {"batch_hard": 0, "semi_hard": 1, "all": 2}


# What follows is a tenth of a small loss's forward pass, so the arguments are written out: a call with *arguments takes
# three times as long. And is_dynamo_compiling() is cheaper than is_compiling(): all other kinds of tracing see the op
# through the dispatcher.
_is_compiling = torch.compiler.is_dynamo_compiling


def _pointwise(name: str) -> _C._Pointwise:
    direct, traced = getattr(_C, name), getattr(torch.ops.fusedloss, name).default

    def loss(
        input: Tensor,
        target: Tensor,
        extra: Tensor | None,
        weight: Tensor | None,
        parameters: tuple[float, ...],
        reduction: str,
    ) -> Any:
        if _is_compiling():
            return traced(input, target, extra, weight, parameters, _number(name, reduction))
        return direct(input, target, extra, weight, parameters, reduction)

    return loss


def _rows(name: str, traced_name: str = "") -> _C._Rows:
    direct, traced = getattr(_C, name), getattr(torch.ops.fusedloss, traced_name or name).default

    def loss(
        input: Tensor,
        target: Tensor,
        weight: Tensor | None,
        sample_weight: Tensor | None,
        parameters: tuple[float, ...],
        axis: int,
        ignore_index: int,
        reduction: str,
    ) -> Any:
        if _is_compiling():
            number = _number(name, reduction)
            return traced(input, target, weight, sample_weight, parameters, axis, ignore_index, number)
        return direct(input, target, weight, sample_weight, parameters, axis, ignore_index, reduction)

    return loss


def _lattice(name: str) -> _C._Lattice:
    direct, traced = getattr(_C, name), getattr(torch.ops.fusedloss, name).default

    def loss(
        log_probs: Tensor,
        targets: Tensor,
        input_lengths: Tensor,
        target_lengths: Tensor,
        blank: int,
        zero_infinity: bool,
        from_logits: bool,
        reduction: str,
    ) -> Any:
        if _is_compiling():
            number = _number(name, reduction)
            return traced(log_probs, targets, input_lengths, target_lengths, blank, zero_infinity, from_logits, number)
        return direct(log_probs, targets, input_lengths, target_lengths, blank, zero_infinity, from_logits, reduction)

    return loss


def _vectors(name: str) -> _C._Vectors:
    direct, traced = getattr(_C, name), getattr(torch.ops.fusedloss, name).default

    def loss(
        first: Tensor,
        second: Tensor,
        third: Tensor,
        weight: Tensor | None,
        parameters: tuple[float, ...],
        normalize: bool,
        reduction: str,
    ) -> Any:
        if _is_compiling():
            return traced(first, second, third, weight, parameters, normalize, _number(name, reduction))
        return direct(first, second, third, weight, parameters, normalize, reduction)

    return loss


def _pairs(name: str) -> _C._Pairs:
    direct, traced = getattr(_C, name), getattr(torch.ops.fusedloss, name).default

    def loss(
        first: Tensor,
        second: Tensor | None,
        positive: Tensor | None,
        scale: Tensor | float,
        bias: Tensor | float,
        labels: Tensor | None,
        symmetric: bool,
        normalize: bool,
        reduction: str,
    ) -> Any:
        if _is_compiling():
            tensors, parameters = _apart(scale, bias)
            number = _number(name, reduction)
            return traced(first, second, positive, *tensors, labels, parameters, None, symmetric, normalize, number)
        return direct(first, second, positive, scale, bias, labels, symmetric, normalize, reduction)

    return loss


def _apart(scale: Tensor | float, bias: Tensor | float) -> tuple[tuple[Tensor | None, Tensor | None], list[float]]:
    """What multiplies products and what is added to them as the op takes them: tensors, and numbers otherwise."""
    tensors = tuple(x if isinstance(x, Tensor) else None for x in (scale, bias))
    numbers = [other if isinstance(x, Tensor) else float(x) for x, other in ((scale, 1.0), (bias, 0.0))]
    return tensors, numbers  # type: ignore[return-value]


def pairs_of_rows(
    name: str,
    rows: Tensor,
    columns: Tensor,
    scale: Tensor | float,
    bias: Tensor | float,
    offset: int,
    normalize: bool,
    reduction: str,
) -> Tensor:
    """The loss of some rows, whose columns begin at `offset`, of float32 at least: other ranks' is added to it."""
    tensors, numbers = _apart(scale, bias)
    wide = torch.promote_types(rows.dtype, torch.float32)
    op = getattr(torch.ops.fusedloss, name).default
    number = _number(name, reduction)
    result: Tensor = op(rows, columns, None, *tensors, None, numbers, offset, False, normalize, number, dtype=wide)
    return result


def _triplets(name: str) -> _C._Triplets:
    direct, traced = getattr(_C, name), getattr(torch.ops.fusedloss, name).default

    def loss(
        embeddings: Tensor,
        labels: Tensor,
        margin: float,
        mining: str,
        squared: bool,
        normalize: bool,
        reduction: str,
    ) -> Any:
        if _is_compiling():
            if mining not in _MININGS:
                raise ValueError(f"{name}: mining must be 'batch_hard', 'semi_hard' or 'all', got {mining!r}")
            number = _number(name, reduction)
            return traced(embeddings, labels, margin, _MININGS[mining], squared, normalize, number)
        return direct(embeddings, labels, margin, mining, squared, normalize, reduction)

    return loss


def _number(name: str, reduction: str) -> int:
    if reduction not in _REDUCTIONS:
        raise ValueError(f"{name}: reduction must be 'none', 'mean' or 'sum', got {reduction!r}")
    return _REDUCTIONS[reduction]


mse_loss = _pointwise("mse_loss")
l1_loss = _pointwise("l1_loss")
huber_loss = _pointwise("huber_loss")
smooth_l1_loss = _pointwise("smooth_l1_loss")
log_cosh_loss = _pointwise("log_cosh_loss")
quantile_loss = _pointwise("quantile_loss")
mean_squared_log_error = _pointwise("mean_squared_log_error")
mean_absolute_percentage_error = _pointwise("mean_absolute_percentage_error")
poisson_nll_loss = _pointwise("poisson_nll_loss")
gaussian_nll_loss = _pointwise("gaussian_nll_loss")
binary_cross_entropy = _pointwise("binary_cross_entropy")
binary_cross_entropy_with_logits = _pointwise("binary_cross_entropy_with_logits")
sigmoid_focal_loss = _pointwise("sigmoid_focal_loss")
hinge_loss = _pointwise("hinge_loss")
squared_hinge_loss = _pointwise("squared_hinge_loss")
soft_margin_loss = _pointwise("soft_margin_loss")
hinge_embedding_loss = _pointwise("hinge_embedding_loss")
margin_ranking_loss = _pointwise("margin_ranking_loss")
kl_div = _pointwise("kl_div")
gaussian_kl = _pointwise("gaussian_kl")

cross_entropy = _rows("cross_entropy")
nll_loss = _rows("nll_loss")
categorical_cross_entropy = _rows("categorical_cross_entropy")
softmax_focal_loss = _rows("softmax_focal_loss")
categorical_hinge_loss = _rows("categorical_hinge_loss")
multi_margin_loss = _rows("multi_margin_loss")
multilabel_margin_loss = _rows("multilabel_margin_loss")
multilabel_soft_margin_loss = _rows("multilabel_soft_margin_loss")
kl_divergence = _rows("kl_divergence")
kl_divergence_with_logits = _rows("kl_divergence_with_logits")
js_divergence = _rows("js_divergence")
js_divergence_with_logits = _rows("js_divergence_with_logits")
# Its backward pass overwrites the input with its gradient; what is traced is the plain one.
cross_entropy_inplace = _rows("cross_entropy_inplace", traced_name="cross_entropy")

ctc_loss = _lattice("ctc_loss")

contrastive_loss = _vectors("contrastive_loss")
cosine_embedding_loss = _vectors("cosine_embedding_loss")
triplet_margin_loss = _vectors("triplet_margin_loss")
triplet_margin_with_distance_loss = _vectors("triplet_margin_with_distance_loss")

info_nce_loss = _pairs("info_nce_loss")
clip_loss = _pairs("clip_loss")
siglip_loss = _pairs("siglip_loss")
supervised_contrastive_loss = _pairs("supervised_contrastive_loss")

triplet_mining_loss = _triplets("triplet_mining_loss")
