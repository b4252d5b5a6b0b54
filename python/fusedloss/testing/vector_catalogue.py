"""The losses of two or three vectors, as data: the list that their tests and `python -m fusedloss check` run over.

As in `catalogue`, a record says how to sample valid operands, which parameters to sweep and what torch (or the formula
in torch's ops) computes. The shape of a sample is that of its vectors, (*, D); what belongs to rows has the shape (*).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fusedloss.testing import vector_formulas as formulas
from fusedloss.testing.catalogue import Loss, Sampler, bits, positive, probability, signs
from fusedloss.testing.vector_oracle import room

Shape = tuple[int, ...]
Generator = torch.Generator


# ---- samplers --------------------------------------------------------------------------------------------------------


def vectors(shape: Shape, generator: Generator, scale: float = 1.0) -> Tensor:
    """Of lengths around 3/4, whatever the number of their entries, some much shorter than others."""
    entries = torch.randn(shape, generator=generator, dtype=torch.float64)
    lengths = torch.rand((*shape[:-1], 1), generator=generator, dtype=torch.float64) * 1.2 + 0.15
    return entries * lengths * (scale / math.sqrt(max(shape[-1], 1)))


def alike_or_not(shape: Shape, generator: Generator, scale: float = 1.0) -> Tensor:
    return bits(shape[:-1], generator).long()


def alike(shape: Shape, generator: Generator, scale: float = 1.0) -> Tensor:
    """To some degree."""
    return probability(shape[:-1], generator)


def same_or_other(shape: Shape, generator: Generator, scale: float = 1.0) -> Tensor:
    return signs(shape[:-1], generator).long()


def of_each_row(shape: Shape, generator: Generator, scale: float = 1.0) -> Tensor:
    """Every fourth row does not count, but not the first."""
    found = positive(shape[:-1], generator)
    found.view(-1)[2::4] = 0
    return found


@dataclass(frozen=True)
class VectorLoss(Loss):
    """One way to call one loss of vectors."""

    @property
    def vectors(self) -> tuple[str, ...]:
        return tuple(name for name, sampler in self.samplers.items() if sampler is vectors)

    @property
    def corner_at_0(self) -> bool:
        """Whether a cosine of 0, which is that of vectors of next to nothing, is where a hinge has its corner."""
        return self.name == "cosine_embedding_loss" and not self.parameters.get("margin")

    @property
    def learned(self) -> tuple[str, ...]:
        """What has a derivative beside vectors and a soft target."""
        return tuple(self.keyword_operands)

    @property
    def all_samplers(self) -> dict[str, Sampler]:
        return self.samplers | self.keyword_operands

    def given(
        self, shape: Shape, dtype: torch.dtype = torch.float64, seed: int = 0, scale: float = 1.0, away: bool = False
    ) -> dict[str, Tensor]:
        """All operands by name; rounded to dtype, but for integers. Or of rows that are away from corners."""
        generator = Generator().manual_seed(seed)
        found = {name: sampler(shape, generator, scale) for name, sampler in self.all_samplers.items()}
        found = {name: x.to(dtype) if x.is_floating_point() else x for name, x in found.items()}
        if not away:
            return found
        # A row of weight 0 has no derivative by its weight; here all count.
        found = {name: torch.where(x == 0, 1, x) if name == "weight" else x for name, x in found.items()}
        return found | self.away_from_corners(shape, dtype, generator)

    def away_from_corners(
        self, shape: Shape, dtype: torch.dtype, generator: Generator, distance: float = 0.01
    ) -> dict[str, Tensor]:
        """Vectors of which none is within that distance of where a derivative jumps."""
        rows, length = math.prod(shape[:-1]), shape[-1]
        kept: dict[str, list[Tensor]] = {name: [] for name in self.vectors}
        missing = rows
        for _ in range(200):
            many = {name: vectors((rows + 50, length), generator).to(dtype) for name in self.vectors}
            free = room(self.name, {k: x.double().numpy() for k, x in many.items()}, self.parameters) > distance
            for name, x in many.items():
                kept[name].append(x[torch.from_numpy(free)])
            missing -= int(free.sum())
            if missing <= 0:
                return {name: torch.cat(parts)[:rows].reshape(shape) for name, parts in kept.items()}
        raise ValueError(f"{self.id} has a corner next to everything of the shape {shape}")

    def sample(
        self, shape: Shape, dtype: torch.dtype = torch.float64, seed: int = 0, scale: float = 1.0
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        return self.split(self.given(shape, dtype, seed, scale))

    def split(self, given: dict[str, Tensor]) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Into positional operands and keyword operands."""
        return [given[k] for k in self.samplers], {k: x for k, x in given.items() if k not in self.samplers}

    def directions(self, given: dict[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
        """Of vectors, soft targets and weights."""
        generator = Generator().manual_seed(seed)
        moving = {name: given[name] for name in (*self.differentiable, *self.learned)}
        steps = {k: 2 * torch.rand(x.shape, generator=generator, dtype=torch.float64) - 1 for k, x in moving.items()}
        return {k: steps[k].to(x.dtype) for k, x in moving.items()}


# ---- the list --------------------------------------------------------------------------------------------------------

_TWO: dict[str, Sampler] = {"input1": vectors, "input2": vectors}
_THREE: dict[str, Sampler] = {"anchor": vectors, "positive": vectors, "negative": vectors}
_LABELLED, _SOFT, _SIGNED = _TWO | {"target": alike_or_not}, _TWO | {"target": alike}, _TWO | {"target": same_or_other}
_WEIGHT: dict[str, Sampler] = {"weight": of_each_row}

_CONTRASTIVE: dict[str, Any] = {
    "reference": formulas.contrastive_loss, "in_torch": False, "module": "ContrastiveLoss",
    "differentiable": tuple(_TWO),
}  # fmt: skip
_COSINE: dict[str, Any] = {
    "reference": formulas.cosine_embedding_loss, "module": "CosineEmbeddingLoss", "differentiable": tuple(_TWO),
}  # fmt: skip
_TRIPLET: dict[str, Any] = {
    "reference": formulas.triplet_margin_loss, "module": "TripletMarginLoss", "differentiable": tuple(_THREE),
}  # fmt: skip
_WITH_DISTANCE: dict[str, Any] = {
    "reference": formulas.triplet_margin_with_distance_loss, "module": "TripletMarginWithDistanceLoss",
    "differentiable": tuple(_THREE),
}  # fmt: skip
_BY_DEGREE = _CONTRASTIVE | {"differentiable": (*_TWO, "target")}


def _contrastive(variant: str, soft: bool = False, weight: bool = False, **parameters: Any) -> VectorLoss:
    samplers, rest = (_SOFT, _BY_DEGREE) if soft else (_LABELLED, _CONTRASTIVE)
    return VectorLoss("contrastive_loss", samplers, parameters=parameters, variant=variant,
                      keyword_operands=_WEIGHT if weight else {}, **rest)  # fmt: skip


def _cosine(variant: str, weight: bool = False, **parameters: Any) -> VectorLoss:
    return VectorLoss("cosine_embedding_loss", _SIGNED, parameters=parameters, variant=variant,
                      keyword_operands=_WEIGHT if weight else {}, **_COSINE)  # fmt: skip


def _triplet(variant: str, weight: bool = False, **parameters: Any) -> VectorLoss:
    return VectorLoss("triplet_margin_loss", _THREE, parameters=parameters, variant=variant,
                      keyword_operands=_WEIGHT if weight else {}, **_TRIPLET)  # fmt: skip


def _with_distance(variant: str, function: Any, weight: bool = False, **parameters: Any) -> VectorLoss:
    return VectorLoss("triplet_margin_with_distance_loss", _THREE, variant=variant,
                      parameters={"distance_function": function} | parameters,
                      keyword_operands=_WEIGHT if weight else {}, **_WITH_DISTANCE)  # fmt: skip


VECTOR_LOSSES = [
    _contrastive(""),
    _contrastive("soft, weight", soft=True, weight=True, margin=1.3),
    _contrastive("p=1", p=1.0, margin=3.5),
    _contrastive("p=3, soft", soft=True, p=3.0, margin=0.8),
    _contrastive("p=1.5, weight", weight=True, p=1.5, margin=1.6),
    _contrastive("p=0.5", p=0.5, margin=20.0),
    _contrastive("p=inf, soft, weight", soft=True, weight=True, p=math.inf, margin=0.6),
    _contrastive("normalize, soft", soft=True, normalize=True, margin=1.4),
    _cosine(""),
    _cosine("margin, weight", weight=True, margin=0.1),
    _cosine("normalize", normalize=True, margin=-0.2),
    _triplet(""),
    _triplet("swap, weight", weight=True, swap=True, margin=0.2),
    _triplet("p=1, margin 0", p=1.0, margin=0.0),
    _triplet("p=3, swap, eps", p=3.0, swap=True, eps=0.03, margin=0.1),
    _triplet("p=1.5, weight", weight=True, p=1.5, margin=0.3),
    _triplet("p=0.5", p=0.5, margin=2.0),
    _triplet("p=inf, swap", p=math.inf, swap=True, margin=0.1),
    _triplet("normalize, swap", normalize=True, swap=True, margin=0.1),
    _with_distance("", None),
    _with_distance("euclidean, swap", "euclidean", swap=True, margin=0.2),
    _with_distance("squared, weight", "squared_euclidean", weight=True, margin=0.3),
    _with_distance("squared, swap, normalize", "squared_euclidean", swap=True, normalize=True, margin=0.3),
    _with_distance("cosine", "cosine", margin=0.2),
    _with_distance("cosine, swap, weight", "cosine", weight=True, swap=True, margin=0.1),
    _with_distance("torch's function", F.pairwise_distance, margin=0.2),
    _with_distance("torch's module, swap", torch.nn.PairwiseDistance(p=3.0, eps=1e-3), swap=True, margin=0.2),
]  # fmt: skip
