"""What the rules of all families need of a call whose tensors have a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

NONE, MEAN, SUM, BATCHMEAN, ROWMEAN, MEAN_OR_ZERO = range(6)

# The axis of the batch in a tensor, or None.
Axis = int | None


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type that values of this one are computed in."""
    return dtype if dtype == torch.float64 else torch.float32


class Batch(ABC):
    """The tensors of one call with the batch as first axis, and the sizes its reduction needs."""

    operands: ClassVar[int]
    size: int  # how many samples
    shape: torch.Size  # of the values of a sample
    dtype: torch.dtype  # of the operands together
    result_dtype: torch.dtype
    reduction: int

    @abstractmethod
    def __init__(self, name: str, size: int, dims: Sequence[Axis], arguments: Sequence[Any]) -> None:
        """Of the op whose arguments, from the operands on, are these."""

    @staticmethod
    def fits(dims: Sequence[Axis]) -> bool:
        """Whether the op can take the batch of these arguments at once."""
        return True

    @property
    @abstractmethod
    def arguments(self) -> tuple[Any, ...]:
        """Those of the op without a reduction."""

    @abstractmethod
    def aligned(self, tensor: Tensor, dim: Axis) -> Tensor:
        """An operand's tangent as the operand is in `arguments`."""

    @abstractmethod
    def divided(self, total: Tensor) -> Tensor:
        """Each sample's sum, divided by what its reduction says."""

    def unpadded(self, gradients: Sequence[Tensor], mask: Sequence[bool]) -> tuple[Tensor, ...]:
        """The gradients of `_backward` and `_hvp` in the operands' own shapes; those not asked for stay empty."""
        return tuple(g if asked else g.expand(self.size, 0) for g, asked in zip(gradients, mask, strict=True))

    def first(self, tensor: Tensor, dim: Axis) -> Tensor:
        """The tensor with the batch as first axis."""
        moved = tensor.unsqueeze(0) if dim is None else tensor.movedim(dim, 0)
        return moved.expand(self.size, *moved.shape[1:])

    def padded(self, tensor: Tensor, dim: Axis) -> Tensor:
        """The tensor as (batch, 1, ..., 1, *its own shape), with as many axes as the values have."""
        first = self.first(tensor, dim)
        missing = len(self.shape) + 1 - first.dim()
        return first.reshape(self.size, *[1] * missing, *first.shape[1:])

    def tangents(self, tangents: Sequence[Tensor | None], dims: Sequence[Axis]) -> list[Tensor | None]:
        return [None if t is None else self.aligned(t, d) for t, d in zip(tangents, dims, strict=True)]

    def reduced(self, values: Tensor) -> Tensor:
        if self.reduction == NONE:
            return values.to(self.result_dtype)
        total = values.flatten(1).sum(1, dtype=torch.float64) if values.dim() > 1 else values.double()
        return self.divided(total).to(self.result_dtype)

    def spread(self, grad: Tensor, dim: Axis) -> Tensor:
        """The gradient of the reduced loss as one of the unreduced: divided, and the same for every value."""
        if self.reduction == NONE:
            return self.first(grad, dim)
        each = self.divided(self.first(grad, dim).double())
        return each.to(wide(self.dtype)).reshape(self.size, *[1] * len(self.shape)).expand(self.size, *self.shape)
