"""The batch of a call of a loss over rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fusedloss import _C
from fusedloss._vmap.batch import MEAN_OR_ZERO, NONE, SUM, Axis, Batch

_WEIGHTED_MEAN = {loss["name"] for loss in _C.row_losses() if loss["weighted_mean"]}


class RowsBatch(Batch):
    """The class axis moves by one. Class weights that differ from sample to sample have no place in the op."""

    operands = 2

    def __init__(self, name: str, size: int, dims: Sequence[Axis], arguments: Sequence[Any]) -> None:
        input, target, weight, sample_weight, parameters, axis, ignore_index, reduction, *dtype = arguments
        self.name, self.size, self.weight = name, size, weight
        self.parameters, self.ignore_index, self.reduction = parameters, ignore_index, reduction
        self.input, self.target = self.first(input, dims[0]), self.first(target, dims[1])
        self.axis = axis if axis < 0 else axis + 1
        classes = self.axis % max(self.input.dim(), 1)
        self.shape = torch.Size(n for d, n in enumerate(self.input.shape) if d not in (0, classes))
        self.sample_weight = None if sample_weight is None else self.padded(sample_weight, dims[3])
        floating = target.is_floating_point()
        self.dtype = torch.promote_types(input.dtype, target.dtype) if floating else input.dtype
        self.result_dtype = (dtype[0] if dtype else None) or self.dtype

    @staticmethod
    def fits(dims: Sequence[Axis]) -> bool:
        return dims[2] is None

    @property
    def arguments(self) -> tuple[Any, ...]:
        tensors = self.input, self.target, self.weight, self.sample_weight
        return *tensors, self.parameters, self.axis, self.ignore_index, NONE

    def aligned(self, tensor: Tensor, dim: Axis) -> Tensor:
        return self.first(tensor, dim)

    def divided(self, total: Tensor) -> Tensor:
        if self.reduction in (NONE, SUM):
            return total
        denominator = self._denominator()
        if self.reduction == MEAN_OR_ZERO:
            return torch.where(denominator != 0, total / denominator, 0.0)
        return total / denominator

    def _denominator(self) -> Tensor:
        shape = (self.size, *self.shape)
        weighted = self.name in _WEIGHTED_MEAN
        factors = torch.ones((), dtype=torch.float64, device=self.input.device)
        if self.sample_weight is not None and weighted:
            factors = self.sample_weight.double()
        if self.target.shape == shape:
            labels = self.target.long()
            counts = labels != self.ignore_index
            if self.weight is not None and weighted:
                factors = factors * self.weight.double()[torch.where(counts, labels, 0)]
            factors = torch.where(counts, factors, 0.0)
        return factors.expand(shape).flatten(1).sum(1) if self.shape else factors.expand(shape)
