"""Decides how a call reaches the compiled ops; every function of :mod:`fusedloss.functional` ends here.

``_C.NAME`` and ``torch.ops.fusedloss.NAME`` are the same op. The first is a plain C function, the cheapest way in; the
second is what ``torch.compile`` and ``torch.export`` can see. Everything else (autograd, forward-mode AD,
``torch.func``, autocast, fake tensors) is decided by torch's dispatcher below both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fusedloss import _C

_Loss = Callable[[Tensor, Tensor, Tensor | None, Tensor | None, tuple[float, ...], str], Tensor]
_RowsLoss = Callable[[Tensor, Tensor, Tensor | None, Tensor | None, tuple[float, ...], int, int, str], Tensor]

_REDUCTIONS = {"none": 0, "mean": 1, "sum": 2, "batchmean": 3, "rowmean": 4, "_mean_or_zero": 5}


def _route(name: str, traced_name: str = "") -> Callable[..., Tensor]:
    """Returns the op as a function of its arguments by position, of which the reduction is the last, and a string."""
    direct: Callable[..., Tensor] = getattr(_C, name)
    traced = getattr(torch.ops.fusedloss, traced_name or name).default
    is_compiling = torch.compiler.is_compiling

    def loss(*arguments: Any) -> Tensor:
        if is_compiling():
            result: Tensor = traced(*arguments[:-1], _number(name, arguments[-1]))
            return result
        return direct(*arguments)

    return loss


def _number(name: str, reduction: str) -> int:
    if reduction not in _REDUCTIONS:
        raise ValueError(f"{name}: reduction must be 'none', 'mean' or 'sum', got {reduction!r}")
    return _REDUCTIONS[reduction]


mse_loss: _Loss = _route("mse_loss")
l1_loss: _Loss = _route("l1_loss")
huber_loss: _Loss = _route("huber_loss")
smooth_l1_loss: _Loss = _route("smooth_l1_loss")
log_cosh_loss: _Loss = _route("log_cosh_loss")
quantile_loss: _Loss = _route("quantile_loss")
mean_squared_log_error: _Loss = _route("mean_squared_log_error")
mean_absolute_percentage_error: _Loss = _route("mean_absolute_percentage_error")
poisson_nll_loss: _Loss = _route("poisson_nll_loss")
gaussian_nll_loss: _Loss = _route("gaussian_nll_loss")
binary_cross_entropy: _Loss = _route("binary_cross_entropy")
binary_cross_entropy_with_logits: _Loss = _route("binary_cross_entropy_with_logits")
sigmoid_focal_loss: _Loss = _route("sigmoid_focal_loss")
hinge_loss: _Loss = _route("hinge_loss")
squared_hinge_loss: _Loss = _route("squared_hinge_loss")
soft_margin_loss: _Loss = _route("soft_margin_loss")
hinge_embedding_loss: _Loss = _route("hinge_embedding_loss")
margin_ranking_loss: _Loss = _route("margin_ranking_loss")
kl_div: _Loss = _route("kl_div")
gaussian_kl: _Loss = _route("gaussian_kl")

cross_entropy: _RowsLoss = _route("cross_entropy")
nll_loss: _RowsLoss = _route("nll_loss")
categorical_cross_entropy: _RowsLoss = _route("categorical_cross_entropy")
softmax_focal_loss: _RowsLoss = _route("softmax_focal_loss")
categorical_hinge_loss: _RowsLoss = _route("categorical_hinge_loss")
multi_margin_loss: _RowsLoss = _route("multi_margin_loss")
multilabel_margin_loss: _RowsLoss = _route("multilabel_margin_loss")
multilabel_soft_margin_loss: _RowsLoss = _route("multilabel_soft_margin_loss")
kl_divergence: _RowsLoss = _route("kl_divergence")
kl_divergence_with_logits: _RowsLoss = _route("kl_divergence_with_logits")
js_divergence: _RowsLoss = _route("js_divergence")
js_divergence_with_logits: _RowsLoss = _route("js_divergence_with_logits")
# Its backward pass overwrites the input with its gradient; what is traced is the plain one.
cross_entropy_inplace: _RowsLoss = _route("cross_entropy_inplace", traced_name="cross_entropy")
