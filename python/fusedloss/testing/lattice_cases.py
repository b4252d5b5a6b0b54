"""Calls of losses over alignments, by the library, by torch and by the oracle, and those that `check` takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusedloss.testing import lattice_oracle
from fusedloss.testing.cases import RANGES, Layout, offset, rows_apart, stepped, transposed
from fusedloss.testing.judge import KnownCall, numbers
from fusedloss.testing.lattice_catalogue import LatticeLoss
from fusedloss.testing.oracle import Array, Both

SHAPE = (19, 8, 7)  # frames, samples, classes


class LatticeCall(KnownCall):
    """One loss over alignments on operands given by name."""

    loss: LatticeLoss

    def __init__(
        self,
        loss: LatticeLoss,
        given: dict[str, Tensor],
        reduction: str = "mean",
        factor: float = 1.0,
        device: str = "cpu",
        second: bool = False,
        same_as: LatticeCall | None = None,
    ) -> None:
        """`same_as`: a call of the same numbers that lie elsewhere in memory, whose results are known."""
        self.loss, self.given, self.reduction, self.factor, self.device = loss, given, reduction, factor, device
        self.free = list(loss.differentiable)
        self.directions = loss.directions(given) if second else None
        self.same_as = same_as

    def by_torch(self, ours: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss = self.loss
        call: Callable[..., Tensor] = loss.reference
        if self.directions is not None and loss.in_ops is not None:
            call = loss.in_ops
        wide = torch.float64 if self.double else torch.float32
        x, *rest = self.given.values()
        leaf = x.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
        result = call(leaf.to(wide), *rest, **loss.parameters, reduction=self.reduction)
        return self.derivatives(result, {"log_probs": leaf}, self.grad_output(ours).to(wide), ours.dtype)

    def by_oracle(self, ours: Tensor) -> Both:
        precision = np.longdouble if self.double else np.float64
        directions = None if self.directions is None else numbers(self.directions["log_probs"], precision)
        rounding = torch.finfo(torch.float64 if self.double else torch.float32).eps / 2
        x = numbers(self.given["log_probs"], precision)
        rest: Any = self.reduction, numbers(self.grad_output(ours), precision), rounding, directions
        return lattice_oracle.expected(x, for_oracle(self.loss, self.given), *rest)


def for_oracle(loss: LatticeLoss, given: dict[str, Tensor]) -> lattice_oracle.Given:
    targets, input_lengths, target_lengths = (integers(x) for x in list(given.values())[1:])
    return lattice_oracle.Given(targets, input_lengths, target_lengths, **loss.parameters)


def integers(x: Tensor) -> Array:
    """Lengths as one for each sample."""
    array: Array = np.atleast_1d(x.detach().long().numpy(force=True))
    return array


# ---- where log-probabilities lie in memory ---------------------------------------------------------------------------


def batch_first(x: Tensor) -> Tensor:
    return x.transpose(0, 1).contiguous().transpose(0, 1)


def classes_first(x: Tensor) -> Tensor:
    return x.movedim(-1, 0).contiguous().movedim(0, -1)


def frames_expanded(x: Tensor) -> Tensor:
    return x[:1].expand(x.shape)


def samples_expanded(x: Tensor) -> Tensor:
    return x[:, :1].expand(x.shape)


LAYOUTS: list[Layout] = [
    batch_first, classes_first, transposed, stepped, rows_apart, offset, frames_expanded, samples_expanded,
]  # fmt: skip


def laid_out(given: dict[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    return given | {"log_probs": layout(given["log_probs"])}


# ---- what `check` goes through ---------------------------------------------------------------------------------------

# Frames, samples, classes and the labels of the first sample, around registers and tiles.
SIZES = [
    (1, 3, 2, 1), (2, 1, 3, 1), (3, 2, 1, 0), (5, 9, 4, 3), (16, 3, 17, 8), (33, 2, 64, 7), (40, 2, 5, 17),
    (70, 1, 33, 32), (8, 3, 1000, 4), (150, 1, 29, 60),
]  # fmt: skip


def lattice_cases(loss: LatticeLoss, dtype: torch.dtype, device: str, quick: bool) -> Iterator[LatticeCall]:
    """The calls by which a loss is checked in one dtype; the quick ones are some of each kind."""
    given = loss.given(SHAPE, dtype)
    one = loss.given((SHAPE[0], SHAPE[2]), dtype, seed=1)
    for reduction in loss.reductions:
        yield LatticeCall(loss, given, reduction, device=device)
        yield LatticeCall(loss, one, reduction, device=device)
        yield LatticeCall(loss, given, reduction, device=device, second=True)

    straight = LatticeCall(loss, given, "none", device=device)
    for layout in [batch_first, stepped, frames_expanded] if quick else LAYOUTS:
        moved = laid_out(given, layout)
        same = torch.equal(moved["log_probs"], given["log_probs"])
        yield LatticeCall(loss, moved, "none", device=device, same_as=straight if same else None)

    for frames, samples, classes, labels in SIZES[:6:2] if quick else SIZES:
        if loss.blank < classes:
            given = loss.given((frames, samples, classes), dtype, seed=frames, labels=labels)
            yield LatticeCall(loss, given, "sum", device=device)
    for name in ["small", "large"] if quick else list(RANGES):
        given = loss.given(SHAPE, dtype, seed=17, scale=RANGES[name][dtype])
        given["log_probs"] = given["log_probs"].nan_to_num()  # infinite by rounding to float16
        yield LatticeCall(loss, given, "none", device=device)
