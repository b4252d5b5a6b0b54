"""Calls of losses of vectors, by the library, by torch and by the oracle, and those that `check` takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusedloss.testing import vector_oracle
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
from fusedloss.testing.vector_catalogue import VectorLoss

SHAPE = (3, 2, 5, 19)  # four axes, of which the last has the entries of vectors
ROWS, LENGTH = 37, 21
LENGTHS = [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 129, 512, 1000, 5000]


class VectorCall(KnownCall):
    """One loss of vectors on operands given by name. Its derivatives are taken by those of `free`."""

    loss: VectorLoss

    def __init__(
        self,
        loss: VectorLoss,
        given: dict[str, Tensor],
        reduction: str = "mean",
        free: Sequence[str] | None = None,
        factor: float = 1.0,
        device: str = "cpu",
        second: bool = False,
        same_as: VectorCall | None = None,
    ) -> None:
        """`same_as`: a call of the same numbers that lie elsewhere in memory, whose results are known."""
        self.loss, self.given, self.reduction, self.factor, self.device = loss, given, reduction, factor, device
        self.directions = loss.directions(given) if second else None
        self.free = list(self.directions or (loss.differentiable if free is None else free))
        self.same_as = same_as

    def by_torch(self, ours: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        dense = torch.contiguous_format
        leaves = {
            k: x.detach().clone(memory_format=dense).requires_grad_(k in self.free) for k, x in self.given.items()
        }
        wide = torch.float64 if self.double else torch.float32
        operands, keywords = self.loss.split({k: x.to(wide) if x.is_floating_point() else x for k, x in leaves.items()})
        result = self.loss.torch(*operands, **keywords, reduction=self.reduction)
        free = {k: leaves[k] for k in self.free}
        return self.derivatives(result, free, self.grad_output(ours).to(wide), ours.dtype)

    def by_oracle(self, ours: Tensor) -> Both:
        precision = np.longdouble if self.double else np.float64
        arrays = {k: numbers(x, precision) for k, x in self.given.items()}
        parameters = {
            k: float(v if self.double else np.float32(v)) if isinstance(v, float) else v
            for k, v in self.loss.parameters.items()
        }
        rounding = torch.finfo(torch.float64 if self.double else torch.float32).eps / 2
        directions = None
        if self.directions is not None:
            directions = {k: numbers(x, precision) for k, x in self.directions.items()}
        rest: Any = self.reduction, numbers(self.grad_output(ours), precision), rounding, directions
        return vector_oracle.expected(self.loss.name, self.rounded_where_exact(arrays), parameters, *rest)

    def rounded_where_exact(self, arrays: dict[str, Array]) -> dict[str, Array]:
        """Integers and truth values are exact: no rounding moves them."""
        return {k: x if self.given[k].is_floating_point() else x.astype(np.int64) for k, x in arrays.items()}


# ---- where operands lie in memory ------------------------------------------------------------------------------------


def laid_out(x: Tensor, layout: Layout) -> Tensor:
    """What belongs to rows has an axis less than the vectors: its layout is the one nearest to theirs."""
    if x.dim() < 2:
        return x
    if x.dim() != 4 and layout in (channels_last, one_number, shuffled_axes):
        layout = transposed
    if x.dim() == 2 and layout is expanded:
        return x[:1].expand(x.shape)
    return layout(x)


def all_laid_out(given: dict[str, Tensor], layout: Layout, which: str = "all") -> dict[str, Tensor]:
    """All operands, or the one of that name."""
    return {k: laid_out(x, layout) if which in ("all", k) else x for k, x in given.items()}


# ---- what `check` goes through ---------------------------------------------------------------------------------------


def vector_cases(loss: VectorLoss, dtype: torch.dtype, device: str, quick: bool) -> Iterator[VectorCall]:
    """The calls by which a loss is checked in one dtype; the quick ones are some of each kind."""
    given, away = loss.given((ROWS, LENGTH), dtype), loss.given((ROWS, LENGTH), dtype, away=True)
    everything = (*loss.differentiable, *loss.learned)
    for reduction in loss.reductions:
        yield VectorCall(loss, given, reduction, device=device)
        yield VectorCall(loss, given, reduction, free=everything, device=device)
        yield VectorCall(loss, away, reduction, device=device, second=True)

    given = loss.given(SHAPE, dtype, seed=11)
    for layout in [transposed, offset, expanded] if quick else [f for f in LAYOUTS[1:] if f is not one_number]:
        for which in loss.vectors[:1] if layout is expanded else ("all", *loss.vectors[:1]):
            yield VectorCall(loss, all_laid_out(given, layout, which), "none", device=device)

    for length in (2, 17, 129) if quick else LENGTHS[::2] if dtype == torch.float64 else LENGTHS[1::2]:
        if length == 1 and loss.parameters.get("normalize"):
            continue  # all vectors are 1 or -1, at no distance or at 2
        given = loss.given((max(3, 400 // length), length), dtype, seed=length)
        yield VectorCall(loss, given, "sum", device=device)
    for name in ["small", "large"] if quick else list(RANGES):
        if name in ("tiny", "subnormal") and loss.corner_at_0:
            continue
        given = loss.given((21, 35), dtype, seed=17, scale=RANGES[name][dtype])
        given = {k: x.nan_to_num() if x.is_floating_point() else x for k, x in given.items()}
        yield VectorCall(loss, given, "none", device=device)
