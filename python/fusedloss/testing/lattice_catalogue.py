"""The losses over alignments, as data: the list that their tests and `python -m fusedloss check` run over.

As in `catalogue`, a record says how to sample valid operands, which parameters to sweep and what torch computes. The
shape of a sample is that of the log-probabilities or logits, (frames, samples, classes) or (frames, classes).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fusedloss.testing import lattice_formulas as formulas
from fusedloss.testing.catalogue import Loss, Sampler, normal

Shape = tuple[int, ...]
Generator = torch.Generator

# Behind the labels of padded targets: no one may read it.
PADDING = -12345


# ---- samplers --------------------------------------------------------------------------------------------------------


def logits(shape: Shape, generator: Generator, scale: float = 1.0) -> Tensor:
    return normal(shape, generator, scale)


def log_probabilities(shape: Shape, generator: Generator, scale: float = 1.0) -> Tensor:
    return normal(shape, generator, scale).log_softmax(-1)


def padded(labels: list[Tensor], batched: bool) -> Tensor:
    """(N, S), of more columns than the longest needs; (S,) of one sequence."""
    if not batched:
        return labels[0]
    found = torch.full((len(labels), max((len(row) for row in labels), default=0) + 2), PADDING)
    for row, sequence in zip(found, labels, strict=True):
        row[: len(sequence)] = sequence
    return found


def concatenated(labels: list[Tensor], batched: bool) -> Tensor:
    return torch.cat([torch.zeros(0, dtype=torch.long), *labels])


def random_labels(count: int, classes: int, blank: int, generator: Generator) -> Tensor:
    found = torch.randint(0, max(classes - 1, 1), (count,), generator=generator)
    return found + (found >= blank)


@dataclass(frozen=True)
class LatticeLoss(Loss):
    """One way to call one loss over alignments."""

    differentiable: tuple[str, ...] = ("log_probs",)
    targets: Callable[[list[Tensor], bool], Tensor] = padded
    impossible: bool = False  # every third sequence but the first has no alignment

    @property
    def blank(self) -> int:
        return int(self.parameters.get("blank", 0))

    def given(
        self,
        shape: Shape,
        dtype: torch.dtype = torch.float64,
        seed: int = 0,
        scale: float = 1.0,
        labels: int | None = None,
    ) -> dict[str, Tensor]:
        """All operands by name. Every sequence has an alignment, unless `impossible`; the first has all frames.

        The first has `labels` labels, or as many as are sure to fit, and the others at most so many.
        """
        generator = Generator().manual_seed(seed)
        frames, classes, batch = shape[0], shape[-1], shape[1] if len(shape) == 3 else 1
        input_lengths = torch.randint(frames // 2, frames + 1, (batch,), generator=generator)
        input_lengths[:1] = frames
        # So many fit even if all are equal.
        most = ((input_lengths + 1) // 2) * int(classes > 1)
        most = most if labels is None else most.clamp(max=labels)
        target_lengths = (torch.rand(batch, generator=generator) * (most + 1)).long()
        target_lengths[:1] = most[:1] if labels is None else labels
        rows = [random_labels(n, classes, self.blank, generator) for n in target_lengths.tolist()]
        if self.impossible:
            for n in range(2, batch, 3):
                rows[n] = random_labels(1, classes, self.blank, generator).expand(int(input_lengths[n]) // 2 + 2)
        return self.of(self.samplers["log_probs"](shape, generator, scale).to(dtype), rows, input_lengths)

    def of(self, x: Tensor, labels: Sequence[Tensor], input_lengths: Tensor | None = None) -> dict[str, Tensor]:
        """The operands by name: all frames, or so many of each sequence, and its labels."""
        if input_lengths is None:
            input_lengths = torch.full((len(labels),), len(x))
        batched, target_lengths = x.dim() == 3, torch.tensor([len(row) for row in labels], dtype=torch.long)
        lengths = (input_lengths, target_lengths) if batched else (input_lengths[0], target_lengths[0])
        return dict(zip(self.samplers, (x, self.targets(list(labels), batched), *lengths), strict=True))

    def sample(
        self, shape: Shape, dtype: torch.dtype = torch.float64, seed: int = 0, scale: float = 1.0
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        return list(self.given(shape, dtype, seed, scale).values()), {}

    def directions(self, given: dict[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
        x = given["log_probs"]
        generator = Generator().manual_seed(seed)
        return {"log_probs": (2 * torch.rand(x.shape, generator=generator, dtype=torch.float64) - 1).to(x.dtype)}


# ---- the list --------------------------------------------------------------------------------------------------------


def _integers(shape: Shape, generator: Generator, scale: float = 1.0) -> Tensor:
    raise NotImplementedError("labels and lengths depend on each other: they are sampled by LatticeLoss.given")


def _operands(x: Sampler) -> dict[str, Sampler]:
    return {"log_probs": x, "targets": _integers, "input_lengths": _integers, "target_lengths": _integers}


_CTC: dict[str, Any] = {
    "reference": formulas.ctc_loss, "in_ops": formulas.ctc_loss_in_ops, "module": "CTCLoss",
}  # fmt: skip

LATTICE_LOSSES = [
    LatticeLoss("ctc_loss", _operands(log_probabilities), **_CTC),
    LatticeLoss("ctc_loss", _operands(log_probabilities), parameters={"blank": 2, "zero_infinity": True}, **_CTC,
                variant="concatenated, blank, zero_infinity", targets=concatenated, impossible=True),
    LatticeLoss("ctc_loss", _operands(logits), parameters={"from_logits": True}, variant="logits", **_CTC),
    LatticeLoss("ctc_loss", _operands(logits), variant="logits, concatenated, blank, zero_infinity", **_CTC,
                parameters={"from_logits": True, "blank": 1, "zero_infinity": True}, targets=concatenated,
                impossible=True),
]  # fmt: skip
