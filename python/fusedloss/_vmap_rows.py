"""Batching rules of the rows' ops for ``torch.vmap`` and the transforms that use it.

As those of :mod:`fusedloss._vmap`: the batch becomes the first axis of all tensors and the class axis moves by one, the
op runs once with ``reduction='none'`` over the batch, and the reduction is done for each sample here. Class weights
that differ from sample to sample have no place in the op; then it runs once a sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fusedloss import _C

_NONE, _MEAN, _SUM, _BATCHMEAN, _ROWMEAN, _MEAN_OR_ZERO = range(6)
_WEIGHTED_MEAN = {loss["name"] for loss in _C.row_losses() if loss["weighted_mean"]}


class _Batch:
    """The tensors of one call with the batch as first axis, and the sizes its reduction needs."""

    def __init__(self, name: str, size: int, dims: Sequence[int | None], arguments: Sequence[Any]) -> None:
        """Of a call whose arguments, from the input on, are these."""
        input, target, weight, sample_weight, parameters, axis, ignore_index, reduction, *dtype = arguments
        self.name, self.size, self.weight = name, size, weight
        self.parameters, self.ignore_index, self.reduction = parameters, ignore_index, reduction
        self.input, self.target = self.first(input, dims[0]), self.first(target, dims[1])
        self.axis = axis if axis < 0 else axis + 1
        classes = self.axis % max(self.input.dim(), 1)
        self.rows = torch.Size(n for d, n in enumerate(self.input.shape) if d not in (0, classes))
        self.sample_weight = None if sample_weight is None else self.of_rows(sample_weight, dims[3])
        floating = target.is_floating_point()
        self.dtype = torch.promote_types(input.dtype, target.dtype) if floating else input.dtype
        self.result_dtype: torch.dtype = (dtype[0] if dtype else None) or self.dtype

    def first(self, tensor: Tensor, dim: int | None) -> Tensor:
        moved = tensor.unsqueeze(0) if dim is None else tensor.movedim(dim, 0)
        return moved.expand(self.size, *moved.shape[1:])

    def of_rows(self, tensor: Tensor, dim: int | None) -> Tensor:
        """A factor for every row as (batch, 1, ..., 1, *its own shape), with as many axes as there are rows."""
        moved = self.first(tensor, dim)
        missing = len(self.rows) + 1 - moved.dim()
        return moved.reshape(self.size, *[1] * missing, *moved.shape[1:])

    def denominator(self) -> Tensor | float:
        if self.reduction in (_NONE, _SUM):
            return 1.0
        shape = (self.size, *self.rows)
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
        total: Tensor = factors.expand(shape).flatten(1).sum(1) if self.rows else factors.expand(shape)
        return total

    def reduce(self, values: Tensor) -> Tensor:
        if self.reduction == _NONE:
            return values.to(self.result_dtype)
        total = values.flatten(1).sum(1, dtype=torch.float64) if values.dim() > 1 else values.double()
        return self.divided(total).to(self.result_dtype)

    def divided(self, total: Tensor) -> Tensor:
        denominator = self.denominator()
        if self.reduction == _MEAN_OR_ZERO:
            return torch.where(torch.as_tensor(denominator != 0), total / denominator, 0.0)
        return total / denominator

    def spread(self, grad: Tensor, dim: int | None) -> Tensor:
        """The gradient of the reduced loss as one of the unreduced: divided, and the same for every row."""
        if self.reduction == _NONE:
            return self.first(grad, dim)
        each = self.divided((grad if dim is not None else grad.expand(self.size)).double())
        return each.to(_wide(self.dtype)).reshape(self.size, *[1] * len(self.rows)).expand(self.size, *self.rows)

    @property
    def arguments(self) -> tuple[Any, ...]:
        """Those of the op without a reduction."""
        tensors = self.input, self.target, self.weight, self.sample_weight
        return *tensors, self.parameters, self.axis, self.ignore_index, _NONE


def _wide(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype == torch.float64 else torch.float32


def _stacked(results: Sequence[Any]) -> tuple[Any, Any]:
    """Results of one structure as one result, and the axes of its batch."""
    if isinstance(results[0], Tensor):
        return torch.stack(list(results)), 0
    parts = [_stacked(part) for part in zip(*results, strict=True)]
    structure = type(results[0])
    return structure(values for values, _ in parts), structure(axes for _, axes in parts)


def _sample_by_sample(op: Any, info: Any, dims: Sequence[Any], arguments: Sequence[Any]) -> Any:
    def of(sample: int) -> list[Any]:
        return [
            argument.select(dim, sample) if isinstance(argument, Tensor) and dim is not None else argument
            for argument, dim in zip(arguments, dims, strict=True)
        ]

    return _stacked([op(*of(sample)) for sample in range(info.batch_size)])


def _rules(name: str) -> dict[str, Callable[..., Any]]:
    def op(suffix: str) -> Any:
        return getattr(torch.ops.fusedloss, name + suffix).default

    def each(b: _Batch, gradients: Sequence[Tensor], mask: Sequence[bool]) -> tuple[Tensor, ...]:
        """The gradients; those not asked for stay empty."""
        return tuple(g if asked else g.expand(b.size, 0) for g, asked in zip(gradients, mask, strict=True))

    def value(info: Any, dims: Any, *arguments: Any) -> Any:
        b = _Batch(name, info.batch_size, dims, arguments)
        return b.reduce(op("")(*b.arguments, _wide(b.dtype))), 0

    def value_and_gradient(info: Any, dims: Any, mask: Any, *arguments: Any) -> Any:
        b = _Batch(name, info.batch_size, dims[1:], arguments)
        result = b.reduce(op("")(*b.arguments, _wide(b.dtype)))
        one = torch.ones_like(result, dtype=_wide(b.dtype))
        gradients = op("_backward")(b.spread(one, 0), mask, *b.arguments)
        wanted = [gradient for gradient, asked in zip(gradients, mask, strict=True) if asked]
        return (result, wanted), (0, [0] * len(wanted))

    def backward(info: Any, dims: Any, grad: Tensor, mask: Any, *arguments: Any) -> Any:
        b = _Batch(name, info.batch_size, dims[2:], arguments)
        return each(b, op("_backward")(b.spread(grad, dims[0]), mask, *b.arguments), mask), (0, 0)

    def jvp(info: Any, dims: Any, u: Any, v: Any, *arguments: Any) -> Any:
        b = _Batch(name, info.batch_size, dims[2:], arguments)
        tangents = [None if t is None else b.first(t, d) for t, d in ((u, dims[0]), (v, dims[1]))]
        return b.reduce(op("_jvp")(*tangents, *b.arguments, _wide(b.dtype))), 0

    def hvp(info: Any, dims: Any, grad: Tensor, u: Any, v: Any, mask: Any, *arguments: Any) -> Any:
        b = _Batch(name, info.batch_size, dims[4:], arguments)
        tangents = [None if t is None else b.first(t, d) for t, d in ((u, dims[1]), (v, dims[2]))]
        return each(b, op("_hvp")(b.spread(grad, dims[0]), *tangents, mask, *b.arguments), mask), (0, 0)

    def unless_weights_differ(suffix: str, before: int, rule: Callable[..., Any]) -> Callable[..., Any]:
        """The rule, for an op that has so many arguments before the input."""

        def chosen(info: Any, dims: Any, *arguments: Any) -> Any:
            if dims[before + 2] is not None:
                return _sample_by_sample(op(suffix), info, dims, arguments)
            return rule(info, dims, *arguments)

        return chosen

    rules = [
        ("", 0, value),
        ("_value_and_gradient", 1, value_and_gradient),
        ("_backward", 2, backward),
        ("_jvp", 2, jvp),
        ("_hvp", 4, hvp),
    ]
    return {suffix: unless_weights_differ(suffix, before, rule) for suffix, before, rule in rules}


def register() -> None:
    """Registers the rules of every compiled loss over rows; called once, at import."""
    for loss in _C.row_losses():
        for suffix, rule in _rules(loss["name"]).items():
            torch.library.register_vmap(f"fusedloss::{loss['name']}{suffix}", rule)
