"""The batch of a call of a loss of vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fusedloss import _C
from fusedloss._vmap.batch import MEAN, NONE, Axis, Batch

_VECTORS = {loss["name"]: loss["vectors"] for loss in _C.vector_losses()}
_SOFT_TARGET = {loss["name"] for loss in _C.vector_losses() if loss["soft_target"]}


class VectorsBatch(Batch):
    """Operands keep their own shapes behind the batch, so that they broadcast as those of a sample do."""

    operands = 4

    def __init__(self, name: str, size: int, dims: Sequence[Axis], arguments: Sequence[Any]) -> None:
        tensors = arguments[:4]
        self.size, self.vectors = size, _VECTORS[name]
        self.parameters, self.normalize, self.reduction = arguments[4:7]
        first = [None if t is None else self.first(t, d) for t, d in zip(tensors, dims[:4], strict=True)]
        self.own = [None if t is None else t.shape[1:] for t in first]
        vectors = [shape for shape in self.own[: self.vectors] if shape is not None]
        self.shape = torch.broadcast_shapes(*vectors)[:-1]  # type: ignore[no-untyped-call]
        self.tensors = [None if t is None else self._padded(t, k) for k, t in enumerate(first)]
        self.dtype = tensors[0].dtype
        for k, tensor in enumerate(tensors[1:3], 1):
            if k < self.vectors or (name in _SOFT_TARGET and tensor.is_floating_point()):
                self.dtype = torch.promote_types(self.dtype, tensor.dtype)
        self.result_dtype = (arguments[7] if len(arguments) > 7 else None) or self.dtype

    @property
    def arguments(self) -> tuple[Any, ...]:
        return *self.tensors, self.parameters, self.normalize, NONE

    def _padded(self, first: Tensor, operand: int) -> Tensor:
        """With ones between the batch and its own axes, of which vectors have one more than rows."""
        missing = len(self.shape) + (operand < self.vectors) + 1 - first.dim()
        return first.reshape(self.size, *[1] * missing, *first.shape[1:])

    def aligned(self, tensor: Tensor, dim: Axis) -> Tensor:
        return self._padded(self.first(tensor, dim), 0)

    def tangents(self, tangents: Sequence[Tensor | None], dims: Sequence[Axis]) -> list[Tensor | None]:
        given = enumerate(zip(tangents, dims, strict=True))
        return [None if t is None else self._padded(self.first(t, d), k) for k, (t, d) in given]

    def divided(self, total: Tensor) -> Tensor:
        return total / float(self.shape.numel()) if self.reduction == MEAN else total

    def unpadded(self, gradients: Sequence[Tensor], mask: Sequence[bool]) -> tuple[Tensor, ...]:
        return tuple(
            g.reshape(self.size, *shape) if asked and shape is not None else g.expand(self.size, 0)
            for g, asked, shape in zip(gradients, mask, self.own, strict=True)
        )
