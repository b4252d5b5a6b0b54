"""Calls of losses over pairs of a batch, by the library, by torch and by the oracle, and those that `check` takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusedloss.testing import pair_oracle
from fusedloss.testing.cases import RANGES, Layout, offset, rows_apart, stepped, transposed
from fusedloss.testing.judge import KnownCall, numbers
from fusedloss.testing.oracle import Array, Both
from fusedloss.testing.pair_catalogue import PairLoss

SHAPE = (37, 21)  # vectors, and numbers in each
SIZES = [(1, 3), (2, 1), (2, 64), (3, 7), (17, 3), (33, 17), (65, 16), (20, 700), (300, 8)]


class PairCall(KnownCall):
    """One loss over pairs on operands given by name. Its derivatives are taken by those of `free`."""

    loss: PairLoss

    def __init__(
        self,
        loss: PairLoss,
        given: dict[str, Tensor],
        reduction: str = "mean",
        free: Sequence[str] | None = None,
        factor: float = 1.0,
        device: str = "cpu",
        second: bool = False,
        same_as: PairCall | None = None,
    ) -> None:
        """`same_as`: a call of the same numbers that lie elsewhere in memory, whose results are known."""
        self.loss, self.given, self.reduction, self.factor, self.device = loss, given, reduction, factor, device
        self.free = list(loss.differentiable if free is None else free)
        self.directions = {k: d for k, d in loss.directions(given).items() if k in self.free} if second else None
        self.same_as = same_as

    def by_torch(self, ours: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        dense = torch.contiguous_format
        leaves = {
            k: x.detach().clone(memory_format=dense).requires_grad_(k in self.free) for k, x in self.given.items()
        }
        wide = torch.float64 if self.double else torch.float32
        operands = [x.to(wide) if x.is_floating_point() else x for x in leaves.values()]
        result = self.loss.torch(*operands, reduction=self.reduction)
        free = {k: leaves[k] for k in self.free}
        return self.derivatives(result, free, self.grad_output(ours).to(wide), ours.dtype)

    def by_oracle(self, ours: Tensor) -> Both:
        precision = np.longdouble if self.double else np.float64
        arrays = {k: numbers(x, precision) if x.is_floating_point() else integers(x) for k, x in self.given.items()}
        # A parameter takes part as a number of the dtype that is computed in.
        parameters: dict[str, Any] = {
            k: (v if self.double else float(np.float32(v))) if isinstance(v, float) else v
            for k, v in self.loss.parameters.items()
        }
        rounding = torch.finfo(torch.float64 if self.double else torch.float32).eps / 2
        directions = None
        if self.directions is not None:
            directions = {k: numbers(x, precision) for k, x in self.directions.items()}
        grad_output = numbers(self.grad_output(ours), precision)
        return pair_oracle.expected(
            self.loss.name, arrays, parameters, self.reduction, grad_output, rounding, directions
        )


def integers(x: Tensor) -> Array:
    array: Array = x.detach().long().numpy(force=True)
    return array


# ---- where vectors lie in memory -------------------------------------------------------------------------------------


def rows_expanded(x: Tensor) -> Tensor:
    return x[:1].expand(x.shape)


def columns_expanded(x: Tensor) -> Tensor:
    return x[..., :1].expand(x.shape)


LAYOUTS: list[Layout] = [transposed, stepped, rows_apart, offset, rows_expanded, columns_expanded]


def laid_out(loss: PairLoss, given: dict[str, Tensor], layout: Layout, which: str = "all") -> dict[str, Tensor]:
    """All tables of vectors, or the one of that name."""
    return {k: layout(x) if k in loss.tables and which in ("all", k) else x for k, x in given.items()}


# ---- what `check` goes through ---------------------------------------------------------------------------------------


def pair_cases(loss: PairLoss, dtype: torch.dtype, device: str, quick: bool) -> Iterator[PairCall]:
    """The calls by which a loss is checked in one dtype; the quick ones are some of each kind."""
    given = loss.given(SHAPE, dtype)
    for reduction in loss.reductions:
        yield PairCall(loss, given, reduction, device=device)
        yield PairCall(loss, given, reduction, device=device, second=True)

    straight = PairCall(loss, given, "none", device=device)
    for layout in [transposed, offset, rows_expanded] if quick else LAYOUTS:
        same = layout not in (rows_expanded, columns_expanded)
        alike = laid_out(loss, given, layout)
        yield PairCall(loss, alike, "none", device=device, same_as=straight if same else None)
        alone = laid_out(loss, given, layout, loss.tables[0])
        yield PairCall(loss, alone, "none", device=device, same_as=straight if same else None)

    for shape in SIZES[3:6] if quick else SIZES:
        yield PairCall(loss, loss.given(shape, dtype, seed=shape[0]), "sum", device=device)
    for name in ["small", "large"] if quick else list(RANGES):
        given = loss.given(SHAPE, dtype, seed=17, scale=RANGES[name][dtype])
        # Infinite by rounding to float16.
        given = {k: x.nan_to_num() if x.is_floating_point() else x for k, x in given.items()}
        yield PairCall(loss, given, "none", device=device)
