"""The batch of a call of a pointwise loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fusedloss import _C
from fusedloss._vmap.batch import BATCHMEAN, MEAN, NONE, ROWMEAN, Axis, Batch

_REQUIRED = {loss["name"]: len(loss["operands"]) for loss in _C.losses()}
_WEIGHTED_MEAN = {loss["name"] for loss in _C.losses() if loss["weighted_mean"]}


def _own_shape(tensor: Tensor, dim: Axis) -> torch.Size:
    return torch.Size(n for d, n in enumerate(tensor.shape) if dim is None or d != dim % tensor.dim())


class PointwiseBatch(Batch):
    """Operands and weight keep their own shapes behind the batch, so that they broadcast as those of a sample do."""

    operands = 3

    def __init__(self, name: str, size: int, dims: Sequence[Axis], arguments: Sequence[Any]) -> None:
        *tensors, weight, parameters, reduction = arguments[:6]
        self.name, self.size, self.parameters, self.reduction = name, size, parameters, reduction
        given = list(zip(tensors, dims[:3], strict=True))
        self.own = [None if t is None else _own_shape(t, d) for t, d in given]
        self.shape = torch.broadcast_shapes(*(shape for shape in self.own if shape is not None))  # type: ignore[no-untyped-call]
        self.tensors = self.tangents(tensors, dims[:3])
        self.weight = None if weight is None else self.aligned(weight, dims[3])
        self.dtype = tensors[0].dtype
        for tensor in tensors[1 : _REQUIRED[name]]:
            self.dtype = torch.promote_types(self.dtype, tensor.dtype)
        self.result_dtype = (arguments[6] if len(arguments) > 6 else None) or self.dtype

    @property
    def arguments(self) -> tuple[Any, ...]:
        return *self.tensors, self.weight, self.parameters, NONE

    def aligned(self, tensor: Tensor, dim: Axis) -> Tensor:
        return self.padded(tensor, dim)

    def divided(self, total: Tensor) -> Tensor:
        if self.reduction == MEAN and self.weight is not None and self.name in _WEIGHTED_MEAN:
            return total / self.weight.expand(self.size, *self.shape).flatten(1).sum(1, dtype=torch.float64)
        if self.reduction == MEAN:
            return total / float(self.shape.numel())
        if self.reduction == BATCHMEAN:
            return total / float(self.own[0][0] if self.own[0] else 1)
        if self.reduction == ROWMEAN:
            return total / float(self.shape[:-1].numel())
        return total

    def unpadded(self, gradients: Sequence[Tensor], mask: Sequence[bool]) -> tuple[Tensor, ...]:
        return tuple(
            g.reshape(self.size, *shape) if asked and shape is not None else g.expand(self.size, 0)
            for g, asked, shape in zip(gradients, mask, self.own, strict=True)
        )
