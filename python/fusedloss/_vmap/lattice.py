"""The batch of a call of a loss over a lattice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fusedloss._vmap.batch import MEAN, NONE, Axis, Batch


class LatticeBatch(Batch):
    """The batch joins the samples that each call has, which lie along the second axis of the frames."""

    operands = 1

    def __init__(self, name: str, size: int, dims: Sequence[Axis], arguments: Sequence[Any]) -> None:
        log_probs, targets, input_lengths, target_lengths, *self.settings, self.reduction = arguments[:8]
        self.size, self.dtype = size, log_probs.dtype
        self.result_dtype = next(iter(arguments[8:]), None) or self.dtype
        self.log_probs = self.aligned(log_probs, dims[0])
        self.shape = self.first(log_probs, dims[0]).shape[2:-1]
        targets = self.first(targets, dims[1])
        one_after_another = len(self.shape) == 1 and targets.dim() == 2
        self.targets = targets.flatten() if one_after_another else targets.flatten(0, -2)
        self.input_lengths = self.first(input_lengths, dims[2]).flatten()
        self.target_lengths = self.first(target_lengths, dims[3]).flatten()

    @property
    def arguments(self) -> tuple[Any, ...]:
        return self.log_probs, self.targets, self.input_lengths, self.target_lengths, *self.settings, NONE

    def aligned(self, tensor: Tensor, dim: Axis) -> Tensor:
        frames = self.first(tensor, dim).movedim(0, 1)
        return frames.flatten(1, -2)

    def unpadded(self, gradients: Sequence[Tensor], mask: Sequence[bool]) -> tuple[Tensor, ...]:
        if not mask[0]:
            return super().unpadded(gradients, mask)
        frames, _, classes = gradients[0].shape
        return (gradients[0].reshape(frames, self.size, *self.shape, classes).movedim(1, 0),)

    def divided(self, total: Tensor) -> Tensor:
        if self.reduction != MEAN:
            return total
        samples = self.target_lengths.numel() // self.size
        return total / (self.target_lengths.clamp(min=1) * samples).reshape(self.size, *self.shape)

    def reduced(self, values: Tensor) -> Tensor:
        each = values.reshape(self.size, *self.shape).double()
        if self.reduction != NONE:
            each = self.divided(each).flatten(1).sum(1) if self.shape else self.divided(each)
        return each.to(self.result_dtype)

    def spread(self, grad: Tensor, dim: Axis) -> Tensor:
        each = self.first(grad, dim)
        if self.reduction != NONE:
            each = each.double().reshape(self.size, *[1] * len(self.shape)).expand(self.size, *self.shape)
            each = self.divided(each).to(torch.float64)
        return each.flatten()
