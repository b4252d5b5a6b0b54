"""Losses over an axis that is spread over the ranks of a torch.distributed process group.

A rank holds a shard; together they compute what a single process would that holds the whole.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import index
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fusedloss._distributed import FLOATS, joined, member_of, result_type

__all__ = ["vocab_parallel_cross_entropy"]

_NAME = "vocab_parallel_cross_entropy"
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def vocab_parallel_cross_entropy(
    input_shard: Tensor,
    target: Tensor,
    vocab_start: int,
    group: dist.ProcessGroup | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Cross-entropy of logits whose classes are spread over ranks, as under tensor parallelism.

    f = log sum_c exp(x_c) - x_target, with c over the classes of all ranks

    Every rank holds some classes of every row, and the same targets. The whole logits are on none: what travels is
    three numbers a row and rank, in one all-gather; the backward pass sends nothing. Logits of half types are read as
    they are and computed in float32, and what the ranks found is combined in float64.

    Args:
        input_shard: this rank's logits, (..., C_rank): the classes from `vocab_start` on, of every row. Shards may
            differ in size; together they must be all classes, each once, in any order of the ranks. The rows are the
            same on every rank. -inf is a class that cannot be, padding for instance.
        target: class indices within the whole vocabulary (int8 to int64 or uint8), of input_shard's shape without the
            classes, the same on every rank.
        vocab_start: the index, within the whole vocabulary, of the shard's first class.
        group: the ranks; None for all (torch's default group).
        ignore_index: rows of this target do not count: their gradient is exactly 0, whatever their logits are.
        reduction: 'none' gives one value a row, 'sum' their sum, 'mean' their sum divided by the number of rows that
            count (NaN if none does, as torch's).

    Returns:
        One value, or one a row for 'none', of input_shard's dtype (float32 under autocast), with the same bits on every
        rank.

    Raises:
        IndexError: on every rank, if a target is outside of the whole vocabulary and not ignore_index. (CUDA: the row's
            loss and gradient are NaN instead, so that nothing waits for the device.)
        ValueError: if `group` is not initialised or this process is not in it, a shape does not fit, vocab_start < 0 or
            `reduction` is unknown; and on every rank, if the shards have a gap or overlap (on the CPU).
        TypeError: for an argument of a wrong type.

    What a rank finds wrong with its own arguments it raises before the exchange, for which the others wait until the
    group's timeout. That all have the same rows is not checked: it would take an exchange of its own.

    Gradients of first and second order exist for input_shard: every rank gets its classes' slice of what a single
    process would get. All ranks call backward, with the same incoming gradient: the loss is one number that all hold,
    and not a sum over the ranks, between which nothing remains to be reduced. (Where DistributedDataParallel averages
    over replicas of the whole group, each with rows of its own, what comes out is the gradient of the mean of their
    losses, as ever.) A second backward pass through the gradients exchanges numbers between the ranks again.

    Example:
        >>> import torch, torch.distributed as dist, fusedloss.functional as F
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 3.0]])
        >>> F.vocab_parallel_cross_entropy(logits, torch.tensor([0, 1]), vocab_start=0)
        tensor(1.2047)
        >>> dist.destroy_process_group()

    References:
        Shoeybi et al., "Megatron-LM: Training Multi-Billion Parameter Language Models Using Model Parallelism", 2019,
        arXiv:1909.08053, section 3.
    """
    _check(input_shard, target, ignore_index, reduction)
    group, start = member_of(_NAME, group), _start(vocab_start)
    classes, counts = target.long(), target != ignore_index
    found = _of_shard(input_shard, classes - start, counts)
    shard = found.new_tensor([start, input_shard.shape[-1]])
    everyone = joined(torch.cat([found.flatten(), shard]), group)
    starts, ends = _ranges(everyone.detach()[:, -2:], target.dim())
    own = counts & (classes >= starts) & (classes < ends)
    known = own.any(0) | ~counts
    if target.device.type == "cpu":
        _check_shards(starts.flatten().tolist(), ends.flatten().tolist())
        _check_classes(classes, known, int(ends.max()), ignore_index)
    rows = _combined(everyone[:, :-2].view(len(everyone), *found.shape), own)
    rows = torch.where(counts, rows, 0) * torch.where(known, 1.0, torch.nan)
    if reduction != "none":
        rows = rows.sum()
    if reduction == "mean":
        rows = rows / counts.sum()
    return rows.to(result_type(input_shard))


# ---- arguments -----------------------------------------------------------------------------------------------------


def _check(input_shard: Tensor, target: Tensor, ignore_index: int, reduction: str) -> None:
    for name, tensor, types, what in (
        ("input_shard", input_shard, FLOATS, "of a floating type"),
        ("target", target, _INTEGERS, "with the indices of classes, of an integer type"),
    ):
        if not isinstance(tensor, Tensor) or tensor.dtype not in types:
            given = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(f"{_NAME}: {name} must be a tensor {what}, got {given}")
    shape, rows = tuple(input_shard.shape), tuple(input_shard.shape[:-1])
    if input_shard.dim() == 0 or shape[-1] == 0:
        raise ValueError(f"{_NAME}: input_shard must have at least one class along its last axis, got shape {shape}")
    if target.shape != rows:
        got = tuple(target.shape)
        raise ValueError(f"{_NAME}: target must have input_shard's shape without its last axis, {rows}, got {got}")
    if target.device != input_shard.device:
        device = input_shard.device
        raise ValueError(f"{_NAME}: target must be on input_shard's device, {device}, got {target.device}")
    if not isinstance(ignore_index, int):
        raise TypeError(f"{_NAME}: ignore_index must be an integer, got {type(ignore_index).__name__}")
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"{_NAME}: reduction must be 'none', 'mean' or 'sum', got {reduction!r}")


def _start(vocab_start: int) -> int:
    try:
        start = index(vocab_start)
    except TypeError:
        raise TypeError(f"{_NAME}: vocab_start must be an integer, got {type(vocab_start).__name__}") from None
    if start < 0:
        raise ValueError(f"{_NAME}: vocab_start must be at least 0, got {start}")
    return start


def _check_shards(starts: list[int], ends: list[int]) -> None:
    expected = 0
    for start, end, rank in sorted(zip(starts, ends, range(len(starts)), strict=True)):
        if start != expected:
            raise ValueError(
                f"{_NAME}: the ranks' classes, from vocab_start on, must make up the vocabulary without gap or "
                f"overlap, got {start} to {end - 1} on rank {rank} where {expected} is the next"
            )
        expected = end


def _check_classes(classes: Tensor, known: Tensor, vocabulary: int, ignore_index: int) -> None:
    if known.all():
        return
    place = (~known).nonzero()[0].tolist()
    raise IndexError(
        f"{_NAME}: every target must be the index of a class, from 0 to {vocabulary - 1}, or ignore_index = "
        f"{ignore_index}; got {classes[tuple(place)].item()} at index {place}"
    )


# ---- a shard -------------------------------------------------------------------------------------------------------

# The class of rows whose logits are left out; their value and gradient are then 0.
_NONE = -1
# Of the compiled op: weight, sample_weight, parameters, axis, ignore_index, and no reduction.
_OPTIONS = (None, None, (0.0, 0.0, 0.0), -1, _NONE, 0)


def _of_shard(input: Tensor, place: Tensor, counts: Tensor) -> Tensor:
    """Three numbers for every row, (3, ...): its largest logit, log sum exp less that one, and the target's logit.

    They are (-inf, 0) for a row of nothing else, (0, 0) for one that does not count, and the third is NaN if the target
    is not here.
    """
    with torch.no_grad():
        largest_at = _argmax(input)
        largest = _at(input, largest_at)
        label = torch.where(counts & (largest != -torch.inf), largest_at, _NONE)
        here = counts & (place >= 0) & (place < input.shape[-1])
        place = torch.where(here, place, largest_at)
    relative, at_target = _Shard.apply(input, label, largest_at, place, largest)  # type: ignore[no-untyped-call]
    return torch.stack([torch.where(counts, largest, 0.0), relative, torch.where(here, at_target, torch.nan)])


def _argmax(input: Tensor, columns: int = 64) -> Tensor:
    """argmax over the last axis; torch's own takes a CPU three times as long as the largest value does."""
    size = input.shape[-1]
    if input.device.type != "cpu" or size < 4 * columns:
        return input.argmax(-1)
    rest = size % columns
    even = input[..., : size - rest]
    largest = even.view(*even.shape[:-1], -1, columns).amax(-2)
    largest[..., :rest] = torch.maximum(largest[..., :rest], input[..., size - rest :])
    places = largest.argmax(-1, keepdim=True) + torch.arange(0, size, columns)
    places.clamp_(max=size - 1)
    return places.gather(-1, input.gather(-1, places).argmax(-1, keepdim=True)).squeeze(-1)


class _Shard(torch.autograd.Function):
    """log sum exp(input) - largest, and the logits at some places, in float64.

    The first is the compiled cross-entropy of `label`: where the largest is, or _NONE. Its backward pass makes the
    softmax in one pass over the shard, but for the 1 that it takes off at the label. That element, and the one at the
    place, where the gradients of both results meet, are computed in float64 and put where they belong.
    """

    @staticmethod
    def forward(
        input: Tensor, label: Tensor, largest_at: Tensor, place: Tensor, largest: Tensor
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(input.dtype, torch.float32)
        relative = torch.ops.fusedloss.cross_entropy(input, label, *_OPTIONS, wide)
        return relative.double(), _at(input, place)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs, output[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_at: Tensor) -> tuple[Tensor | None, ...]:
        input, label, largest_at, place, largest, relative = ctx.saved_tensors
        gradient, _ = torch.ops.fusedloss.cross_entropy_backward(grad, [True, False], input, label, *_OPTIONS)
        for where, also in ((largest_at, 0.0), (place, grad_at)):
            # (What comes in for rows that are left out is 0, and whatever stands in them must not become NaN.)
            above = torch.where(label == _NONE, 0.0, _at(input, where) - largest)
            gradient = _put(gradient, where, grad * torch.exp(above - relative) + also)
        return gradient, None, None, None, None


def _at(input: Tensor, place: Tensor) -> Tensor:
    return input.gather(-1, place.unsqueeze(-1)).squeeze(-1).double()


def _put(gradient: Tensor, place: Tensor, values: Tensor) -> Tensor:
    """Puts one number into every row. (`scatter` would make a float32 copy of a half type on the CPU.)"""
    first = torch.arange(0, gradient.numel(), gradient.shape[-1], device=gradient.device).view(place.shape)
    put: Callable[..., Tensor] = gradient.put if torch.is_grad_enabled() else gradient.put_
    return put(first + place, values.to(gradient.dtype))


# ---- what the shards found -----------------------------------------------------------------------------------------


def _ranges(shards: Tensor, dims: int) -> tuple[Tensor, Tensor]:
    """Every rank's first class and the one after its last, to be compared with targets of so many axes."""
    starts, sizes = shards.long().view(-1, 2, *[1] * dims).unbind(1)
    return starts, starts + sizes


def _combined(found: Tensor, own: Tensor) -> Tensor:
    """The loss of every row, from what `_of_shard` found on all ranks, (ranks, 3, ...)."""
    largest, relative, at_target = found.unbind(1)
    largest = largest.detach()  # as a base it is constant
    top = largest.amax(0)
    rest = torch.logsumexp(largest - top + relative, 0)
    return rest + (top - torch.where(own, at_target, 0.0).sum(0))
