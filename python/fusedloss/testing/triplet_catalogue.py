"""The mined triplet losses, as data: the list that their tests and `python -m fusedloss check` run over.

As in `catalogue`, a record says how to sample valid operands, which parameters to sweep and what torch computes. The
shape of a sample is that of the embeddings, (N, D).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusedloss.testing import triplet_oracle
from fusedloss.testing.catalogue import Loss, normal
from fusedloss.testing.triplet_formulas import triplet_mining_loss
from fusedloss.testing.triplet_oracle import RULES

Shape = tuple[int, ...]
Generator = torch.Generator

# Which vector is the farthest or the nearest, and on which side of its corner a hinge is, must not hang on rounding:
# no comparison that decides is so near to a tie, as a share of what is compared. 80 units in the last place.
CLEAR = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 1e-5, torch.float16: 1e-5}
ATTEMPTS = 400


def labels(shape: Shape, generator: Generator, scale: float = 1.0) -> Tensor:
    """Of any order and any size: about four vectors of each, and a last one that is alone with its own."""
    count = shape[0]
    classes = max(2, count // 4)
    found = torch.arange(count) % classes
    if count > 5:
        found[-1] = classes
    values = torch.randint(-(2**62), 2**62, (classes + 1,), generator=generator)
    return values[found[torch.randperm(count, generator=generator)]]


def whole(shape: Shape, generator: Generator, scale: float = 1.0) -> Tensor:
    """Small whole numbers: the squares of their distances have no rounding error, and many are the same."""
    return torch.randint(-2, 3, shape, generator=generator).double()


def unchanged(x: Tensor) -> Tensor:
    return x


@dataclass(frozen=True)
class TripletLoss(Loss):
    """One way to call the loss."""

    differentiable: tuple[str, ...] = ("embeddings",)

    def given(
        self,
        shape: Shape,
        dtype: torch.dtype = torch.float64,
        seed: int = 0,
        scale: float = 1.0,
        moved: Callable[[Tensor], Tensor] = unchanged,
    ) -> dict[str, Tensor]:
        """All operands by name, of which nothing is decided by rounding; the embeddings moved as is said."""
        for attempt in range(ATTEMPTS):
            generator = Generator().manual_seed(seed + 1000 * attempt)
            x = moved(self.samplers["embeddings"](shape, generator, scale).to(dtype))
            given = {"embeddings": x, "labels": self.samplers["labels"](shape, generator)}
            if self.clearance(given) > CLEAR[dtype]:
                return given
        raise RuntimeError(f"{self.id}: no sample of shape {shape} in {ATTEMPTS} is clear")

    def clearance(self, given: dict[str, Tensor], of_choices_too: bool = True) -> float:
        x = given["embeddings"].double().numpy()
        return triplet_oracle.clearance(x, self.for_oracle(given["labels"]), of_choices_too)

    def for_oracle(self, of: Tensor, double: bool = True) -> triplet_oracle.Given:
        """The labels and parameters; a margin takes part as a number of the dtype that is computed in."""
        margin = self.parameters.get("margin", 1.0)
        rest = {k: v for k, v in self.parameters.items() if k != "margin"}
        return triplet_oracle.Given(of.numpy(force=True), float(margin if double else np.float32(margin)), **rest)

    def sample(
        self, shape: Shape, dtype: torch.dtype = torch.float64, seed: int = 0, scale: float = 1.0
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Vectors of a length of about 1, however many numbers they have."""
        return list(self.given(shape, dtype, seed, scale / math.sqrt(max(shape[1], 1))).values()), {}

    def directions(self, given: dict[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
        x = given["embeddings"]
        generator = Generator().manual_seed(seed)
        return {"embeddings": (2 * torch.rand(x.shape, generator=generator, dtype=torch.float64) - 1).to(x.dtype)}


def _loss(mining: str, squared: bool, normalize: bool) -> TripletLoss:
    parameters: dict[str, Any] = {"mining": mining, "margin": 0.6}
    if squared:
        parameters |= {"squared": True, "margin": 1.7}
    if normalize:
        parameters |= {"normalize": True, "margin": 0.3}
    variant = ", ".join([mining, *(word for word in ("squared", "normalize") if word in parameters)])
    return TripletLoss(
        "triplet_mining_loss",
        {"embeddings": normal, "labels": labels},
        triplet_mining_loss,
        parameters,
        variant,
        in_ops=triplet_mining_loss,
        in_torch=False,
        module="TripletMiningLoss",
        reductions=("none", "mean", "sum", "mean_nonzero"),
    )


TRIPLET_LOSSES = [_loss(mining, s, n) for mining in RULES for s in (False, True) for n in (False, True)]
