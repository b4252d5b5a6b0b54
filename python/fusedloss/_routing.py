"""Decides how a call reaches the compiled ops; every function of :mod:`fusedloss.functional` ends here.

``_C.NAME`` and ``torch.ops.fusedloss.NAME`` are the same op. The first is a plain C function, the cheapest way in; the
second is what ``torch.compile`` and ``torch.export`` can see. Everything else (autograd, forward-mode AD,
``torch.func``, autocast, fake tensors) is decided by torch's dispatcher below both.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fusedloss import _C

_Loss = Callable[[Tensor, Tensor, Tensor | None, Tensor | None, tuple[float, ...], str], Tensor]
_RowsLoss = Callable[[Tensor, Tensor, Tensor | None, Tensor | None, tuple[float, ...], int, int, str], Tensor]

_REDUCTIONS = {"none": 0, "mean": 1, "sum": 2, "batchmean": 3, "rowmean": 4, "_mean_or_zero": 5}


def _route(name: str) -> _Loss:
    direct: _Loss = getattr(_C, name)
    traced = getattr(torch.ops.fusedloss, name).default
    is_compiling = torch.compiler.is_compiling

    def loss(
        input: Tensor,
        target: Tensor,
        extra: Tensor | None,
        weight: Tensor | None,
        parameters: tuple[float, ...],
        reduction: str,
    ) -> Tensor:
        if is_compiling():
            result: Tensor = traced(input, target, extra, weight, parameters, _number(name, reduction))
            return result
        return direct(input, target, extra, weight, parameters, reduction)

    return loss


def _route_rows(name: str) -> _RowsLoss:
    direct: _RowsLoss = getattr(_C, name)
    traced = getattr(torch.ops.fusedloss, name).default
    is_compiling = torch.compiler.is_compiling

    def loss(
        input: Tensor,
        target: Tensor,
        weight: Tensor | None,
        sample_weight: Tensor | None,
        parameters: tuple[float, ...],
        axis: int,
        ignore_index: int,
        reduction: str,
    ) -> Tensor:
        if is_compiling():
            number = _number(name, reduction)
            result: Tensor = traced(input, target, weight, sample_weight, parameters, axis, ignore_index, number)
            return result
        return direct(input, target, weight, sample_weight, parameters, axis, ignore_index, reduction)

    return loss


def _number(name: str, reduction: str) -> int:
    if reduction not in _REDUCTIONS:
        raise ValueError(f"{name}: reduction must be 'none', 'mean' or 'sum', got {reduction!r}")
    return _REDUCTIONS[reduction]


mse_loss = _route("mse_loss")
l1_loss = _route("l1_loss")
huber_loss = _route("huber_loss")
smooth_l1_loss = _route("smooth_l1_loss")
log_cosh_loss = _route("log_cosh_loss")
quantile_loss = _route("quantile_loss")
mean_squared_log_error = _route("mean_squared_log_error")
mean_absolute_percentage_error = _route("mean_absolute_percentage_error")
poisson_nll_loss = _route("poisson_nll_loss")
gaussian_nll_loss = _route("gaussian_nll_loss")
binary_cross_entropy = _route("binary_cross_entropy")
binary_cross_entropy_with_logits = _route("binary_cross_entropy_with_logits")
sigmoid_focal_loss = _route("sigmoid_focal_loss")
hinge_loss = _route("hinge_loss")
squared_hinge_loss = _route("squared_hinge_loss")
soft_margin_loss = _route("soft_margin_loss")
hinge_embedding_loss = _route("hinge_embedding_loss")
margin_ranking_loss = _route("margin_ranking_loss")
kl_div = _route("kl_div")
gaussian_kl = _route("gaussian_kl")

cross_entropy = _route_rows("cross_entropy")
nll_loss = _route_rows("nll_loss")
categorical_cross_entropy = _route_rows("categorical_cross_entropy")
softmax_focal_loss = _route_rows("softmax_focal_loss")
categorical_hinge_loss = _route_rows("categorical_hinge_loss")
multi_margin_loss = _route_rows("multi_margin_loss")
multilabel_margin_loss = _route_rows("multilabel_margin_loss")
multilabel_soft_margin_loss = _route_rows("multilabel_soft_margin_loss")
kl_divergence = _route_rows("kl_divergence")
kl_divergence_with_logits = _route_rows("kl_divergence_with_logits")
js_divergence = _route_rows("js_divergence")
js_divergence_with_logits = _route_rows("js_divergence_with_logits")


def cross_entropy_inplace(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    parameters: tuple[float, ...],
    axis: int,
    ignore_index: int,
    reduction: str,
) -> Tensor:
    """cross_entropy whose backward pass overwrites input with its gradient; what is traced is the plain one."""
    arguments = input, target, weight, sample_weight, parameters, axis, ignore_index, reduction
    return cross_entropy(*arguments) if torch.compiler.is_compiling() else _C.cross_entropy_inplace(*arguments)
