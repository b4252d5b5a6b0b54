"""Batching rules of the compiled ops for ``torch.vmap`` and the transforms that use it.

Every rule does the same: the batch becomes the first axis of all tensors, the op runs once with ``reduction='none'``
over the batch, and the reduction is done for each sample here. What differs from family to family is in its `Batch`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fusedloss import _C
from fusedloss._vmap.batch import Batch, wide
from fusedloss._vmap.lattice import LatticeBatch
from fusedloss._vmap.pointwise import PointwiseBatch
from fusedloss._vmap.rows import RowsBatch
from fusedloss._vmap.vectors import VectorsBatch


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


def _rules(name: str, family: type[Batch]) -> dict[str, Callable[..., Any]]:
    """The rule of each op, by what its name adds to the loss's."""
    count = family.operands

    def op(suffix: str) -> Any:
        return getattr(torch.ops.fusedloss, name + suffix).default

    def gradients(b: Batch, mask: Any, suffix: str, *arguments: Any) -> tuple[Tensor, ...]:
        made = op(suffix)(*arguments)
        return b.unpadded((made,) if count == 1 else made, mask)

    def as_results(made: tuple[Tensor, ...]) -> Any:
        # torch gives the only result of an op as it is.
        return (made[0], 0) if count == 1 else (made, (0,) * count)

    def value(b: Batch, dims: Any) -> Any:
        return b.reduced(op("")(*b.arguments, wide(b.dtype))), 0

    def value_and_gradient(b: Batch, dims: Any, mask: Any) -> Any:
        result, _ = value(b, dims)
        one = torch.ones_like(result, dtype=wide(b.dtype))
        made = gradients(b, mask, "_backward", b.spread(one, 0), mask, *b.arguments)
        wanted = [gradient for gradient, asked in zip(made, mask, strict=True) if asked]
        return (result, wanted), (0, [0] * len(wanted))

    def backward(b: Batch, dims: Any, grad: Tensor, mask: Any) -> Any:
        return as_results(gradients(b, mask, "_backward", b.spread(grad, dims[0]), mask, *b.arguments))

    def jvp(b: Batch, dims: Any, *tangents: Any) -> Any:
        return b.reduced(op("_jvp")(*b.tangents(tangents, dims), *b.arguments, wide(b.dtype))), 0

    def hvp(b: Batch, dims: Any, grad: Tensor, *more: Any) -> Any:
        *tangents, mask = more
        along = b.tangents(tangents, dims[1:-1])
        return as_results(gradients(b, mask, "_hvp", b.spread(grad, dims[0]), *along, mask, *b.arguments))

    def rule(suffix: str, before: int, batched: Callable[..., Any]) -> Callable[..., Any]:
        """For an op that has so many arguments before the operands, and the result of `batched` for those."""

        def chosen(info: Any, dims: Any, *arguments: Any) -> Any:
            if not family.fits(dims[before:]):
                return _sample_by_sample(op(suffix), info, dims, arguments)
            b = family(name, info.batch_size, dims[before:], arguments[before:])
            return batched(b, dims[:before], *arguments[:before])

        return chosen

    rules: list[tuple[str, int, Callable[..., Any]]] = [
        ("", 0, value),
        ("_value_and_gradient", 1, value_and_gradient),
        ("_backward", 2, backward),
        ("_jvp", count, jvp),
        ("_hvp", count + 2, hvp),
    ]
    return {suffix: rule(suffix, before, batched) for suffix, before, batched in rules}


_SUFFIXES = ("", "_value_and_gradient", "_backward", "_jvp", "_hvp")


def _one_by_one(name: str) -> dict[str, Callable[..., Any]]:
    """The rules of a loss whose samples meet each other: a batch of calls is one call after another."""

    def rule(suffix: str) -> Callable[..., Any]:
        op = getattr(torch.ops.fusedloss, name + suffix).default
        return lambda info, dims, *arguments: _sample_by_sample(op, info, dims, arguments)

    return {suffix: rule(suffix) for suffix in _SUFFIXES}


def register() -> None:
    """Registers the rules of every compiled loss; called once, at import."""
    families: list[tuple[Any, type[Batch]]] = [
        (_C.losses(), PointwiseBatch),
        (_C.row_losses(), RowsBatch),
        (_C.lattice_losses(), LatticeBatch),
        (_C.vector_losses(), VectorsBatch),
    ]
    rules = {loss["name"]: _rules(loss["name"], family) for losses, family in families for loss in losses}
    rules |= {loss["name"]: _one_by_one(loss["name"]) for loss in (*_C.pair_losses(), *_C.triplet_losses())}
    for name, all_of_loss in rules.items():
        for suffix, rule in all_of_loss.items():
            torch.library.register_vmap(f"fusedloss::{name}{suffix}", rule)
