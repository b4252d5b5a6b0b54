"""Batching rules of the compiled ops for ``torch.vmap`` and the transforms that use it.

Every rule does the same: the batch becomes the first axis of all tensors, the op runs once with ``reduction='none'``
over the batch, and the reduction is done for each sample here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fusedloss import _C

_NONE, _MEAN, _SUM, _BATCHMEAN, _ROWMEAN = range(5)

_Batched = tuple[Tensor | None, int | None]


class _Batch:
    """The operands and weight of one call, with the batch as first axis, and the sizes its reduction needs."""

    def __init__(self, name: str, size: int, operands: Sequence[_Batched], weight: _Batched, reduction: int) -> None:
        self.name, self.size, self.reduction = name, size, reduction
        logical = [self._logical(*operand) for operand in operands]
        self.shape: torch.Size = torch.broadcast_shapes(*(s for s in logical if s is not None))  # type: ignore[no-untyped-call]
        self.first = logical[0]
        self.operands = [self.align(*operand) for operand in operands]
        self.weight = self.align(*weight)
        present = [t.dtype for t in self.operands[: _REQUIRED[name]] if t is not None]
        self.dtype = present[0]
        for dtype in present[1:]:
            self.dtype = torch.promote_types(self.dtype, dtype)

    @staticmethod
    def _logical(tensor: Tensor | None, dim: int | None) -> list[int] | None:
        if tensor is None:
            return None
        return [n for d, n in enumerate(tensor.shape) if dim is None or d != dim % tensor.dim()]

    def align(self, tensor: Tensor | None, dim: int | None) -> Tensor | None:
        """The tensor as (batch, 1, ..., 1, *its own shape), with as many axes as the loss has."""
        if tensor is None:
            return None
        moved = tensor.unsqueeze(0) if dim is None else tensor.movedim(dim, 0)
        missing = len(self.shape) + 1 - moved.dim()
        padded = moved.reshape(moved.shape[0], *[1] * missing, *moved.shape[1:])
        return padded.expand(self.size, *padded.shape[1:])

    def denominator(self) -> Tensor | float:
        numel = float(self.shape.numel())
        if self.reduction == _MEAN:
            if self.weight is not None and self.name in _WEIGHTED_MEAN:
                total: Tensor = self.weight.expand(self.size, *self.shape).flatten(1).sum(1, dtype=torch.float64)
                return total
            return numel
        if self.reduction == _BATCHMEAN:
            return float(self.first[0]) if self.first else 1.0
        if self.reduction == _ROWMEAN:
            return float(self.shape[:-1].numel())
        return 1.0

    def reduce(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        if self.reduction == _NONE:
            return values.to(dtype)
        total = values.flatten(1).sum(1, dtype=torch.float64) if values.dim() > 1 else values.double()
        return (total / self.denominator()).to(dtype)

    def spread(self, grad: Tensor, dim: int | None) -> Tensor:
        """The gradient of the reduced loss as one of the unreduced: divided, and the same for every element."""
        if self.reduction == _NONE:
            moved = grad.unsqueeze(0) if dim is None else grad.movedim(dim, 0)
            return moved.expand(self.size, *self.shape)
        each = (grad if dim is not None else grad.expand(self.size)).double() / self.denominator()
        wide = torch.float64 if self.dtype == torch.float64 else torch.float32
        return each.to(wide).reshape(self.size, *[1] * len(self.shape)).expand(self.size, *self.shape)

    def unpad(self, gradients: Sequence[Tensor], operands: Sequence[_Batched], mask: Sequence[bool]) -> list[Tensor]:
        """The gradients of _backward and _hvp in the operands' own shapes; those not asked for stay empty."""
        shapes = [self._logical(*operand) if wanted else None for operand, wanted in zip(operands, mask, strict=True)]
        return [
            g.expand(self.size, 0) if shape is None else g.reshape(self.size, *shape)
            for g, shape in zip(gradients, shapes, strict=True)
        ]


_REQUIRED = {loss["name"]: len(loss["operands"]) for loss in _C.losses()}
_WEIGHTED_MEAN = {loss["name"] for loss in _C.losses() if loss["weighted_mean"]}


def _wide(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype == torch.float64 else torch.float32


def _rules(name: str) -> dict[str, Callable[..., Any]]:
    def op(suffix: str) -> Any:
        return getattr(torch.ops.fusedloss, name + suffix).default

    def batch(info: Any, dims: Sequence[Any], tensors: Sequence[Tensor | None], reduction: int) -> _Batch:
        pairs = list(zip(tensors, dims, strict=True))
        return _Batch(name, info.batch_size, pairs[:3], pairs[3], reduction)

    def value(
        info: Any, dims: Any, x: Any, y: Any, z: Any, w: Any, parameters: Any, reduction: int, dtype: Any = None
    ) -> Any:
        b = batch(info, dims[:4], (x, y, z, w), reduction)
        values = op("")(*b.operands, b.weight, parameters, _NONE, _wide(b.dtype))
        return b.reduce(values, dtype or b.dtype), 0

    def value_and_gradient(info: Any, dims: Any, mask: Any, *arguments: Any) -> Any:
        x, y, z, w, parameters, reduction, *_ = arguments
        result, _ = value(info, dims[1:], *arguments)
        b = batch(info, dims[1:5], (x, y, z, w), reduction)
        one = torch.ones((b.size, *(b.shape if reduction == _NONE else ())), device=x.device, dtype=_wide(b.dtype))
        gradients = op("_backward")(b.spread(one, 0), mask, *b.operands, b.weight, parameters, _NONE)
        unpadded = b.unpad(gradients, list(zip((x, y, z), dims[1:4], strict=True)), mask)
        wanted = [gradient for gradient, asked in zip(unpadded, mask, strict=True) if asked]
        return (result, wanted), (0, [0] * len(wanted))

    def backward(
        info: Any, dims: Any, grad: Tensor, mask: Any, x: Any, y: Any, z: Any, w: Any, parameters: Any, reduction: int
    ) -> Any:
        b = batch(info, dims[2:6], (x, y, z, w), reduction)
        gradients = op("_backward")(b.spread(grad, dims[0]), mask, *b.operands, b.weight, parameters, _NONE)
        unpadded = b.unpad(gradients, list(zip((x, y, z), dims[2:5], strict=True)), mask)
        return tuple(unpadded), (0, 0, 0)

    def jvp(
        info: Any,
        dims: Any,
        u: Any,
        v: Any,
        s: Any,
        x: Any,
        y: Any,
        z: Any,
        w: Any,
        parameters: Any,
        reduction: int,
        dtype: Any = None,
    ) -> Any:
        b = batch(info, dims[3:7], (x, y, z, w), reduction)
        tangents = [b.align(t, d) for t, d in zip((u, v, s), dims[:3], strict=True)]
        values = op("_jvp")(*tangents, *b.operands, b.weight, parameters, _NONE, _wide(b.dtype))
        return b.reduce(values, dtype or b.dtype), 0

    def hvp(
        info: Any,
        dims: Any,
        grad: Tensor,
        u: Any,
        v: Any,
        s: Any,
        mask: Any,
        x: Any,
        y: Any,
        z: Any,
        w: Any,
        parameters: Any,
        reduction: int,
    ) -> Any:
        b = batch(info, dims[5:9], (x, y, z, w), reduction)
        tangents = [b.align(t, d) for t, d in zip((u, v, s), dims[1:4], strict=True)]
        gradients = op("_hvp")(b.spread(grad, dims[0]), *tangents, mask, *b.operands, b.weight, parameters, _NONE)
        unpadded = b.unpad(gradients, list(zip((x, y, z), dims[5:8], strict=True)), mask)
        return tuple(unpadded), (0, 0, 0)

    return {"": value, "_value_and_gradient": value_and_gradient, "_backward": backward, "_jvp": jvp, "_hvp": hvp}


def register() -> None:
    """Registers the rules of every compiled loss; called once, at import."""
    for loss in _C.losses():
        for suffix, rule in _rules(loss["name"]).items():
            torch.library.register_vmap(f"fusedloss::{loss['name']}{suffix}", rule)
