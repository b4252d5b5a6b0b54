"""Calls of mined triplet losses, by the library, by torch and by the oracle, and those that `check` takes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np
import torch
from torch import Tensor

from fusedloss.testing import triplet_oracle
from fusedloss.testing.cases import RANGES, Layout, offset, rows_apart, stepped, transposed
from fusedloss.testing.judge import KnownCall, numbers
from fusedloss.testing.oracle import Both
from fusedloss.testing.triplet_catalogue import ATTEMPTS, CLEAR, Shape, TripletLoss, whole

SHAPE = (23, 9)  # vectors, and their length


class TripletCall(KnownCall):
    """One mined triplet loss on operands given by name."""

    loss: TripletLoss

    def __init__(
        self,
        loss: TripletLoss,
        given: dict[str, Tensor],
        reduction: str = "mean",
        factor: float = 1.0,
        device: str = "cpu",
        second: bool = False,
        same_as: TripletCall | None = None,
    ) -> None:
        """`same_as`: a call of the same numbers that lie elsewhere in memory, whose results are known."""
        self.loss, self.given, self.reduction, self.factor, self.device = loss, given, reduction, factor, device
        self.free = list(loss.differentiable)
        self.directions = loss.directions(given) if second else None
        self.same_as = same_as

    def by_torch(self, ours: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        wide = torch.float64 if self.double else torch.float32
        leaf = self.given["embeddings"].detach().clone(memory_format=torch.contiguous_format).requires_grad_()
        result = self.loss.torch(leaf.to(wide), self.given["labels"], reduction=self.reduction)
        return self.derivatives(result, {"embeddings": leaf}, self.grad_output(ours).to(wide), ours.dtype)

    def by_oracle(self, ours: Tensor) -> Both:
        precision = np.longdouble if self.double else np.float64
        directions = None if self.directions is None else numbers(self.directions["embeddings"], precision)
        return triplet_oracle.expected(
            numbers(self.given["embeddings"], precision),
            self.loss.for_oracle(self.given["labels"], self.double),
            self.reduction,
            numbers(self.grad_output(ours), precision),
            torch.finfo(torch.float64 if self.double else torch.float32).eps / 2,
            directions,
        )


# ---- where embeddings lie in memory ----------------------------------------------------------------------------------


def vectors_expanded(x: Tensor) -> Tensor:
    """All of them are one and the same, at the distance 0."""
    return x[:1].expand(x.shape)


def components_expanded(x: Tensor) -> Tensor:
    return x[:, :1].expand(x.shape)


def backwards(x: Tensor) -> Tensor:
    """Overlapping: each vector begins one number behind the last."""
    return x.flatten().as_strided(x.shape, (1, 1))


LAYOUTS: list[Layout] = [
    transposed, stepped, rows_apart, offset, vectors_expanded, components_expanded, backwards,
]  # fmt: skip


def layouts(loss: TripletLoss) -> list[Layout]:
    """(Normalised vectors of equal components are one or two, whose distances are 0 and 2 but for rounding.)"""
    return [f for f in LAYOUTS if f is not components_expanded or not loss.parameters.get("normalize")]


# ---- equal distances -------------------------------------------------------------------------------------------------


def of_whole_numbers(loss: TripletLoss, shape: Shape, dtype: torch.dtype, seed: int = 0) -> dict[str, Tensor]:
    """Of many distances that are the same to the bit the vector of the lowest index is chosen. Not for `normalize`."""
    for attempt in range(ATTEMPTS):
        generator = torch.Generator().manual_seed(seed + 1000 * attempt)
        x = whole(shape, generator).to(dtype)
        x[-(len(x) // 5) :] = x[: len(x) // 5]  # and some are at the distance 0
        given = {"embeddings": x, "labels": loss.samplers["labels"](shape, generator)}
        if loss.clearance(given, of_choices_too=False) > CLEAR[dtype]:
            return given
    raise RuntimeError(f"{loss.id}: no sample of whole numbers is clear of the hinge's corner")


# ---- what `check` goes through ---------------------------------------------------------------------------------------

# Vectors and their length, around registers and tiles.
SIZES = [
    (2, 3), (3, 1), (4, 0), (5, 2), (7, 16), (8, 17), (9, 1025), (15, 4), (16, 31), (17, 8), (20, 130), (33, 7),
    (65, 4),
]  # fmt: skip


def triplet_cases(loss: TripletLoss, dtype: torch.dtype, device: str, quick: bool) -> Iterator[TripletCall]:
    """The calls by which a loss is checked in one dtype; the quick ones are some of each kind."""
    given = loss.given(SHAPE, dtype)
    for reduction, second in product(loss.reductions, (False, True)):
        yield TripletCall(loss, given, reduction, device=device, second=second)
    for layout in [transposed, stepped] if quick else layouts(loss):
        yield TripletCall(loss, loss.given(SHAPE, dtype, seed=3, moved=layout), "none", device=device)
    for size in SIZES[:7:3] if quick else SIZES:
        yield TripletCall(loss, loss.given(size, dtype, seed=size[0]), "sum", device=device)
    # Squares of smaller ones are 0 in float32, for torch too.
    for name in ["small"] if quick else [name for name in RANGES if name not in ("tiny", "subnormal")]:
        given = loss.given(SHAPE, dtype, seed=17, scale=RANGES[name][dtype])
        yield TripletCall(loss, given, "none", device=device)
    if not loss.parameters.get("normalize"):
        for second in (False, True):
            given = of_whole_numbers(loss, (40, 6), dtype)
            yield TripletCall(loss, given, "none", device=device, second=second)
