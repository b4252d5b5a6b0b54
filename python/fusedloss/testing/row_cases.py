"""Calls of losses over rows, by the library, by torch and by the oracle, and those that `check` takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusedloss.testing import row_oracle
from fusedloss.testing.cases import (
    LAYOUTS,
    RANGES,
    Layout,
    channels_last,
    expanded,
    offset,
    one_number,
    shuffled_axes,
    transposed,
)
from fusedloss.testing.judge import KnownCall, numbers
from fusedloss.testing.oracle import Array, Both
from fusedloss.testing.row_catalogue import RowLoss, scores

SHAPE = (2, 5, 3, 67)  # four axes, of which the second are the classes, or the last
ROWS, CLASSES = 37, 21
LENGTHS = [1, 2, 3, 10, 15, 16, 17, 21, 63, 64, 65, 100, 127, 128, 129, 1000, 4097, 32000]


class RowCall(KnownCall):
    """One loss over rows on operands given by name. Its derivatives are taken by those of `free`."""

    loss: RowLoss

    def __init__(
        self,
        loss: RowLoss,
        given: dict[str, Tensor],
        reduction: str = "mean",
        free: Sequence[str] | None = None,
        factor: float = 1.0,
        device: str = "cpu",
        second: bool = False,
        same_as: RowCall | None = None,
    ) -> None:
        """`same_as`: a call of the same numbers that lie elsewhere in memory, whose results are known."""
        self.loss, self.given, self.reduction, self.factor, self.device = loss, given, reduction, factor, device
        self.directions = loss.directions(given) if second else None
        self.free = list(self.directions or (loss.differentiable if free is None else free))
        self.same_as = same_as

    def by_torch(self, ours: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss = self.loss
        # torch's own have no derivative by a weight, and not all have a second one.
        formula = self.directions is not None or not set(self.free) <= set(loss.differentiable)
        call: Callable[..., Tensor] = loss.in_ops if formula and loss.in_ops is not None else loss.reference
        # Dense copies: torch's own nll_loss refuses some layouts.
        dense = torch.contiguous_format
        leaves = {
            k: x.detach().clone(memory_format=dense).requires_grad_(k in self.free) for k, x in self.given.items()
        }
        wide = torch.float64 if self.double else torch.float32
        operands, keywords = loss.split({k: x.to(wide) if x.is_floating_point() else x for k, x in leaves.items()})
        reduction = "mean" if self.reduction == "batchmean" else self.reduction
        result = call(*operands, **keywords, **loss.parameters, reduction=reduction)
        free = {k: leaves[k] for k in self.free}
        return self.derivatives(result, free, self.grad_output(ours).to(wide), ours.dtype)

    def by_oracle(self, ours: Tensor) -> Both:
        precision = np.longdouble if self.double else np.float64
        arrays = {k: numbers(x, precision) if x.is_floating_point() else integers(x) for k, x in self.given.items()}
        parameters = {
            k: (v if self.double else float(np.float32(v))) if isinstance(v, float) else v
            for k, v in self.loss.parameters.items()
            if k != "axis"
        }
        rounding = torch.finfo(torch.float64 if self.double else torch.float32).eps / 2
        directions = None
        if self.directions is not None:
            directions = {k: numbers(x, precision) for k, x in self.directions.items()}
        axis = self.loss.class_axis(tuple(next(iter(self.given.values())).shape))
        grad_output = numbers(self.grad_output(ours), precision)
        rest: Any = (parameters, axis, self.reduction, grad_output, rounding, directions)
        return row_oracle.expected(self.loss.name, arrays, *rest)


def integers(x: Tensor) -> Array:
    array: Array = x.detach().long().numpy(force=True)
    return array


# ---- where operands lie in memory ----------------------------------------------------------------------------------


def laid_out(x: Tensor, layout: Layout) -> Tensor:
    """Operands of rows have fewer axes than the input: theirs is the layout nearest to it."""
    if x.dim() < 2 or x.shape[0] == x.shape[1] == 1:
        return x
    if x.dim() != 4 and layout in (channels_last, one_number, shuffled_axes):
        layout = transposed
    if x.dim() == 2 and layout is expanded:
        return x[:1].expand(x.shape)
    return layout(x)


def all_laid_out(given: dict[str, Tensor], layout: Layout, which: str = "all") -> dict[str, Tensor]:
    """All operands, or the one of that name."""
    return {k: laid_out(x, layout) if which in ("all", k) else x for k, x in given.items()}


def of_axes(loss: RowLoss, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape for a loss that takes no more than two axes."""
    return shape if loss.most_axes > 2 else (shape[0] * shape[2], shape[3])


# ---- what `check` goes through -------------------------------------------------------------------------------------


def row_cases(loss: RowLoss, dtype: torch.dtype, device: str, quick: bool) -> Iterator[RowCall]:
    """The calls by which a loss is checked in one dtype; the quick ones are some of each kind."""
    shape = (ROWS, CLASSES)
    given, away = loss.given(shape, dtype), loss.given(shape, dtype, away=True)
    everything = (*loss.differentiable, *loss.learned)
    for reduction in loss.reductions:
        yield RowCall(loss, given, reduction, device=device)
        yield RowCall(loss, given, reduction, free=everything, device=device)
        yield RowCall(loss, away, reduction, device=device, second=True)

    given = loss.given(of_axes(loss, SHAPE), dtype, seed=11)
    first = next(iter(given))
    layouts = [transposed, offset, expanded] if quick else [f for f in LAYOUTS[1:] if f is not one_number]
    for layout in layouts:
        yield RowCall(loss, all_laid_out(given, layout), "none", device=device)
        yield RowCall(loss, all_laid_out(given, layout, first), "mean", device=device)

    for classes in (1, 17, 129) if quick else LENGTHS[:-1:2] if dtype == torch.float64 else LENGTHS[1::2]:
        given = loss.given((max(3, 400 // classes), classes), dtype, seed=classes)
        yield RowCall(loss, given, "sum", device=device)
    for name in ["small", "large"] if quick else list(RANGES):
        if name == "subnormal" and loss.samplers.get("input") is scores:
            continue  # a derivative by them is beyond the range
        given = loss.given((21, 35), dtype, seed=17, scale=RANGES[name][dtype])
        given = {k: x.nan_to_num() if x.is_floating_point() else x for k, x in given.items()}
        yield RowCall(loss, given, "none", device=device)
