"""The losses over pairs of a batch, as data: the list that their tests and `python -m fusedloss check` run over.

As in `catalogue`, a record says how to sample valid operands, which parameters to sweep and what the formula in torch's
ops computes. The shape of a sample is that of a table of vectors, (N, D).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fusedloss.testing import pair_formulas as formulas
from fusedloss.testing.catalogue import Loss, Sampler, normal

Shape = tuple[int, ...]
Generator = torch.Generator

# What the class of an anchor without a positive is called, far from the others.
ALONE = -70


# ---- samplers --------------------------------------------------------------------------------------------------------


def vectors(shape: Shape, generator: Generator, scale: float = 1.0) -> Tensor:
    """Products of two are about 1 in size, whatever their length."""
    return normal(shape, generator, float(scale / max(shape[-1], 1) ** 0.25))


def shared_negatives(shape: Shape, generator: Generator, scale: float = 1.0) -> Tensor:
    return vectors((shape[0] // 2 + 2, shape[1]), generator, scale)


def own_negatives(shape: Shape, generator: Generator, scale: float = 1.0) -> Tensor:
    return vectors((shape[0], shape[0] // 2 + 2, shape[1]), generator, scale)


def classes(shape: Shape, generator: Generator, scale: float = 1.0) -> Tensor:
    """About three vectors of each, and the first of one of its own."""
    found = torch.randint(0, shape[0] // 3 + 1, shape[:1], generator=generator) - 2
    found[:1] = ALONE
    return found


def scale_of_logits(shape: Shape, generator: Generator, scale: float = 1.0) -> Tensor:
    return 2 + 2 * torch.rand((), generator=generator, dtype=torch.float64)


def bias_of_logits(shape: Shape, generator: Generator, scale: float = 1.0) -> Tensor:
    return -1 - torch.rand((), generator=generator, dtype=torch.float64)


def one_scale(shape: Shape, generator: Generator, scale: float = 1.0) -> Tensor:
    return scale_of_logits(shape, generator).reshape(1)


def one_bias(shape: Shape, generator: Generator, scale: float = 1.0) -> Tensor:
    return bias_of_logits(shape, generator).reshape(1)


@dataclass(frozen=True)
class PairLoss(Loss):
    """One way to call one loss over pairs of a batch."""

    in_torch: bool = False

    @property
    def normalize(self) -> bool:
        return bool(self.parameters.get("normalize", False))

    @property
    def tables(self) -> list[str]:
        """The operands that hold vectors."""
        return [name for name in self.differentiable if not name.startswith("logit")]

    @property
    def has_ops(self) -> bool:
        """Whether it has five ops of its own. Negatives of every query's own make rows of logits, which another has."""
        return self.samplers.get("negatives") is not own_negatives

    def given(
        self, shape: Shape, dtype: torch.dtype = torch.float64, seed: int = 0, scale: float = 1.0
    ) -> dict[str, Tensor]:
        """All operands by name; rounded to dtype, but for labels."""
        generator = Generator().manual_seed(seed)
        found = {name: sampler(shape, generator, scale) for name, sampler in self.samplers.items()}
        return {name: x.to(dtype) if x.is_floating_point() else x for name, x in found.items()}

    def sample(
        self, shape: Shape, dtype: torch.dtype = torch.float64, seed: int = 0, scale: float = 1.0
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        return list(self.given(shape, dtype, seed, scale).values()), {}

    def directions(self, given: dict[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
        generator = Generator().manual_seed(seed)
        return {
            name: (2 * torch.rand(given[name].shape, generator=generator, dtype=torch.float64) - 1).to(
                given[name].dtype
            )
            for name in self.differentiable
        }


# ---- the list --------------------------------------------------------------------------------------------------------

_TWO: dict[str, Sampler] = {"query": vectors, "key": vectors}
_PAIR: dict[str, Sampler] = {"image": vectors, "text": vectors}
_LABELLED: dict[str, Sampler] = {"embeddings": vectors, "labels": classes}

_NCE: dict[str, Any] = {
    "reference": formulas.info_nce_loss, "module": "InfoNCELoss", "differentiable": ("query", "key"),
}  # fmt: skip
_NEGATIVES: dict[str, Any] = _NCE | {"differentiable": ("query", "key", "negatives")}
_SUPCON: dict[str, Any] = {
    "reference": formulas.supervised_contrastive_loss, "module": "SupervisedContrastiveLoss",
    "differentiable": ("embeddings",),
}  # fmt: skip
_CLIP: dict[str, Any] = {
    "reference": formulas.clip_loss, "module": "CLIPLoss", "differentiable": ("image", "text", "logit_scale"),
}  # fmt: skip
_SIGLIP: dict[str, Any] = {
    "reference": formulas.siglip_loss, "module": "SigLIPLoss",
    "differentiable": ("image", "text", "logit_scale", "logit_bias"),
}  # fmt: skip

PAIR_LOSSES = [
    PairLoss("info_nce_loss", _TWO, **_NCE),
    PairLoss("info_nce_loss", _TWO, parameters={"temperature": 0.25, "normalize": True}, variant="normalize", **_NCE),
    PairLoss("info_nce_loss", _TWO, parameters={"temperature": 0.5, "symmetric": True}, variant="symmetric", **_NCE),
    PairLoss("info_nce_loss", _TWO, variant="symmetric, normalize", **_NCE,
             parameters={"temperature": 0.125, "symmetric": True, "normalize": True}),
    PairLoss("info_nce_loss", _TWO | {"negatives": shared_negatives}, parameters={"temperature": 0.5},
             variant="shared negatives", **_NEGATIVES),
    PairLoss("info_nce_loss", _TWO | {"negatives": shared_negatives}, variant="shared negatives, normalize",
             parameters={"temperature": 0.25, "normalize": True}, **_NEGATIVES),
    PairLoss("info_nce_loss", _TWO | {"negatives": own_negatives}, parameters={"temperature": 0.5},
             variant="own negatives", **_NEGATIVES),
    PairLoss("info_nce_loss", _TWO | {"negatives": own_negatives}, variant="own negatives, normalize",
             parameters={"temperature": 0.25, "normalize": True}, **_NEGATIVES),
    PairLoss("supervised_contrastive_loss", _LABELLED, **_SUPCON),
    PairLoss("supervised_contrastive_loss", _LABELLED, parameters={"temperature": 0.25, "normalize": True},
             variant="normalize", **_SUPCON),
    PairLoss("clip_loss", _PAIR | {"logit_scale": scale_of_logits}, **_CLIP),
    PairLoss("clip_loss", _PAIR | {"logit_scale": one_scale}, parameters={"normalize": True}, variant="normalize",
             **_CLIP),
    PairLoss("siglip_loss", _PAIR | {"logit_scale": scale_of_logits, "logit_bias": bias_of_logits}, **_SIGLIP),
    PairLoss("siglip_loss", _PAIR | {"logit_scale": one_scale, "logit_bias": one_bias},
             parameters={"normalize": True}, variant="normalize", **_SIGLIP),
]  # fmt: skip
