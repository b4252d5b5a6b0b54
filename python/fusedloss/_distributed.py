"""Losses whose rows lie on several ranks of a torch.distributed process group.

Two kinds of tensors are told apart. One that is *each rank's own* is a part of a whole, or a summand. One that is
*common* has the same value on every rank, like a loss that all of them return: a derivative by it is counted once,
whoever computes it. What takes a tensor from one kind to the other is linear, and its gradient goes the way that is
written beside it, so that all orders of derivatives are those of the sum, over the ranks, of what is their own:

- `gathered`: the rows of every rank, for each rank's own use; back, a rank gets the sum of what all found for its rows;
- `summed`: own summands to their common sum; back, the common gradient is every summand's;
- `replicated`: a common tensor for own use; back, the sum of what all found for it;
- `joined`: own parts to the common whole; back, a rank takes its own part of the common gradient.

Sums go over the ranks in their order, which makes the same bits on every rank and in every run. All ranks must
differentiate by the same arguments: a rank that leaves one out would not take part when its gradient is exchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["FLOATS", "gathered", "in_batch_loss", "joined", "member_of", "replicated", "result_type", "summed"]

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

# The loss of rows of `a` against all rows of `b`, in which the i-th's own is the one at offset + i, as
# rows_loss(a, b, offset, reduction, *parameters) with reduction 'none' or 'sum', of float32 or wider.
RowsLoss = Callable[..., Tensor]


def member_of(name: str, group: object) -> dist.ProcessGroup:
    """Returns the group, or the default one for None; a loss of that name says in words what is wrong with it."""
    if not (dist.is_available() and dist.is_initialized()):
        raise ValueError(f"{name}: group needs torch.distributed.init_process_group, which was not called")
    if group is dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError(f"{name}: group must be one that this process is a member of")
    group = dist.group.WORLD if group is None else group
    if not isinstance(group, dist.ProcessGroup):
        raise TypeError(f"{name}: group must be a torch.distributed.ProcessGroup, got {type(group).__name__}")
    return group


# ---- tensors between ranks -----------------------------------------------------------------------------------------


class _Linear(torch.autograd.Function):
    """A linear map, whose gradient is the map the other way, and so on."""

    @staticmethod
    def forward(tensor: Tensor, there: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor]) -> Tensor:
        return there(tensor)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.there, ctx.back = inputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return _Linear.apply(grad, ctx.back, ctx.there), None, None  # type: ignore[no-untyped-call]


def _linear(tensor: Tensor, there: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor]) -> Tensor:
    result: Tensor = _Linear.apply(tensor, there, back)  # type: ignore[no-untyped-call]
    return result


def _of_all(tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The ranks' tensors of one shape, along a new first axis."""
    world = dist.get_world_size(group)
    everyone = tensor.new_empty((world * tensor.numel(),))
    dist.all_gather_single(everyone, tensor.reshape(-1), group)
    return everyone.view(world, *tensor.shape)


def _sum(tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
    return _of_all(tensor, group).sum(0)


def _same(tensor: Tensor) -> Tensor:
    return tensor.view_as(tensor)


def summed(tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Returns the sum over the ranks."""
    return _linear(tensor, lambda own: _sum(own, group), _same)


def replicated(tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Returns the tensor, whose gradient will be the sum over the ranks."""
    return _linear(tensor, _same, lambda own: _sum(own, group))


def joined(tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Returns the ranks' tensors, which have one shape, along a new first axis."""
    rank = dist.get_rank(group)
    return _linear(tensor, lambda own: _of_all(own, group), lambda common: common[rank].clone())


def gathered(tensor: Tensor, sizes: list[int], group: dist.ProcessGroup) -> Tensor:
    """Returns the rows of all ranks, one rank's after another's; `sizes` says how many every rank has."""
    return _linear(tensor, lambda own: _all_rows(own, sizes, group), lambda all: _own_rows(all, sizes, group))


def _all_rows(own: Tensor, sizes: list[int], group: dist.ProcessGroup) -> Tensor:
    most = max(sizes)
    if own.shape[0] < most:  # collectives move tensors of one size
        own = torch.cat([own, own.new_zeros((most - own.shape[0], *own.shape[1:]))])
    everyone = _of_all(own, group)
    if min(sizes) == most:
        return everyone.flatten(0, 1)
    return torch.cat([rows[:size] for rows, size in zip(everyone, sizes, strict=True)])


def _own_rows(all: Tensor, sizes: list[int], group: dist.ProcessGroup) -> Tensor:
    """The sum of what the ranks have for this rank's rows, added up in float32 at least."""
    world, size = len(sizes), sizes[dist.get_rank(group)]
    found = all.new_empty((world * size, *all.shape[1:]))
    dist.all_to_all_single(found, all.contiguous(), [size] * world, sizes, group)
    return found.view(world, size, *all.shape[1:]).sum(0)


# ---- in-batch losses -----------------------------------------------------------------------------------------------


def in_batch_loss(
    name: str,
    rows_loss: RowsLoss,
    first: Tensor,
    second: Tensor,
    group: dist.ProcessGroup,
    reduction: str,
    *,
    operands: tuple[str, str],
    symmetric: bool,
    parameters: tuple[Tensor | float, ...] = (),
) -> Tensor:
    """Returns the loss of pairs, each rank of which holds some, as one process would that holds all of them.

    Args:
        name: of the loss, for errors.
        rows_loss: the loss of one direction (see `RowsLoss`).
        first: this rank's (n, D); how many rows a rank has may differ, and be 0.
        second: what belongs to them, row by row, (n, D).
        group: the ranks.
        reduction: 'mean' over the pairs of all ranks, their 'sum', or 'none' for the values of this rank's.
        operands: what the caller calls `first` and `second`.
        symmetric: whether the loss is the mean of that of `first` against `second` and of `second` against `first`.
        parameters: numbers or tensors that `rows_loss` takes and that are the same on every rank.

    Returns:
        The same value on every rank, or (n) for 'none', of first's dtype, under autocast at least float32.

    The gradients of `first` and `second` are slices of those of the one process, and a parameter's is the whole of it,
    on every rank; for 'none', those of the sum of what the ranks make of their values.
    """
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"{name}: reduction must be 'none', 'mean' or 'sum', got {reduction!r}")
    _check_pairs(name, first, second, operands)
    sizes = _sizes(name, first, operands[0], group)
    offset = sum(sizes[: dist.get_rank(group)])
    own = [replicated(x, group) if isinstance(x, Tensor) else x for x in parameters]
    per_row = "none" if reduction == "none" else "sum"
    value = rows_loss(first, gathered(second, sizes, group), offset, per_row, *own)
    if symmetric:
        value = (value + rows_loss(second, gathered(first, sizes, group), offset, per_row, *own)) / 2
    if reduction != "none":
        value = summed(value, group)
    if reduction == "mean":
        value = value / max(sum(sizes), 1)
    return value.to(result_type(first))


def result_type(input: Tensor) -> torch.dtype:
    """The dtype of a loss of that input: its own, under autocast at least float32."""
    device = input.device.type
    wide = device in ("cpu", "cuda") and torch.is_autocast_enabled(device)
    return torch.promote_types(input.dtype, torch.float32) if wide else input.dtype


def _check_pairs(name: str, first: Tensor, second: Tensor, operands: tuple[str, str]) -> None:
    for operand, tensor in zip(operands, (first, second), strict=True):
        if not isinstance(tensor, Tensor) or tensor.dtype not in FLOATS:
            given = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(f"{name}: {operand} must be a tensor of a floating type, got {given}")
    if first.dim() != 2 or second.shape != first.shape:
        got = f"{tuple(first.shape)} and {tuple(second.shape)}"
        raise ValueError(f"{name}: {operands[0]} and {operands[1]} must both have the shape (N, D), got {got}")
    if first.dtype != second.dtype or first.device != second.device:
        got = f"{first.dtype} on {first.device} and {second.dtype} on {second.device}"
        raise ValueError(
            f"{name}: with group, {operands[0]} and {operands[1]} must have one dtype and device, got {got}"
        )


def _sizes(name: str, tensor: Tensor, operand: str, group: dist.ProcessGroup) -> list[int]:
    """How many rows every rank has; where their length or dtype differs, all ranks raise the same error."""
    own = [*tensor.shape, FLOATS.index(tensor.dtype)]
    everyone = _of_all(torch.tensor(own, device=tensor.device), group).tolist()
    for rank, (_, *kind) in enumerate(everyone):
        if kind != everyone[0][1:]:
            got, expected = (f"(*, {length}) of {FLOATS[number]}" for length, number in (kind, everyone[0][1:]))
            raise ValueError(
                f"{name}: {operand} must have rows of one length and dtype on every rank, "
                f"got {expected} on rank 0 and {got} on rank {rank}"
            )
    return [size for size, *_ in everyone]
