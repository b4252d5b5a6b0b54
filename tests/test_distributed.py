"""Losses of a process group: on several ranks they are what one process computes that has everything.

The checks run in processes of their own, with gloo: every rank goes through all of them in order, and computes on the
side what a single process would find. To pytest they are one test for each number of ranks, since starting the
processes takes longer than all checks.
"""

from __future__ import annotations

import datetime
import multiprocessing
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as T
from torch import Tensor

import fusedloss.functional as L
from fusedloss.bench.peak_memory import peak_memory
from fusedloss.testing import judge as rule
from fusedloss.testing.oracle import Array

pytestmark = pytest.mark.host

SECONDS = 240  # until ranks that hang are ended
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Ranks:
    rank: int
    world: int

    def own(self, whole: Tensor, sizes: Sequence[int], axis: int = 0) -> Tensor:
        return whole.split(list(sizes), axis)[self.rank].detach().clone()


Check = Callable[[Ranks], None]
CHECKS: list[Check] = []


def check(function: Check) -> Check:
    CHECKS.append(function)
    return function


# ---- judging -------------------------------------------------------------------------------------------------------


def judge(what: str, ours: Tensor, torchs: Tensor, exact: Array) -> None:
    """The rule of testing/judge.py, where all elements are about as hard."""
    assert ours.dtype == torchs.dtype, (what, ours.dtype)
    assert ours.shape == exact.shape, (what, ours.shape)
    got, theirs = numbers(ours), numbers(torchs)
    with np.errstate(invalid="ignore"):
        off = np.nan_to_num(np.abs(theirs - exact), posinf=0)
        allowed = rule.FEW_ULPS * rule.ulp(np.nan_to_num(np.abs(exact), posinf=0), ours.dtype) + 2 * off.max(initial=0)
        right = (np.abs(got - exact) <= allowed) | (got == exact) | (np.isnan(got) & np.isnan(exact))
    assert right.all(), f"{what}: {got[~right][:5]} instead of {exact[~right][:5]}, torch {theirs[~right][:5]}"


def numbers(x: Tensor) -> Array:
    return rule.numbers(x, np.longdouble)


def same_everywhere(x: Tensor) -> None:
    everyone = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, x.detach().contiguous())
    for other in everyone:
        assert torch.equal(other.reshape(-1).view(torch.uint8), everyone[0].reshape(-1).view(torch.uint8))


@contextmanager
def refused(error: type[Exception], *words: str) -> Iterator[None]:
    """By every rank, and in words; afterwards all of them go on."""
    with pytest.raises(error) as raised:
        yield
    for word in words:
        assert word in str(raised.value), str(raised.value)
    dist.barrier()


# ---- a vocabulary over ranks ---------------------------------------------------------------------------------------

VOCABULARIES = {2: (7, 4), 3: (7, 4, 6)}
LARGE = {2: (300, 513), 3: (300, 513, 67)}


def starts(sizes: Sequence[int]) -> list[int]:
    return [sum(sizes[:rank]) for rank in range(len(sizes))]


def logits(sizes: Sequence[int], dtype: torch.dtype, rows: tuple[int, ...] = (9,), scale: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return (torch.randn(*rows, sum(sizes), generator=generator, dtype=torch.float64) * scale).to(dtype)


def labels(sizes: Sequence[int], rows: tuple[int, ...] = (9,)) -> Tensor:
    target = torch.randint(sum(sizes), rows, generator=torch.Generator().manual_seed(4))
    target.view(-1)[2] = -100
    return target


def by_torch(whole: Tensor, target: Tensor, reduction: str, ignored: int = -100) -> Tensor:
    """In float32 at least; torch has its classes at the second axis."""
    wide = whole.reshape(-1, whole.shape[-1]).to(torch.promote_types(whole.dtype, torch.float32))
    rows = T.cross_entropy(wide, target.flatten().long(), None, None, ignored, None, "none")
    if reduction == "none":
        return rows.view(target.shape)
    return rows.sum() if reduction == "sum" else rows.sum() / (target != ignored).sum()


def exactly(whole: Tensor, target: Tensor, incoming: Tensor, reduction: str, ignored: int) -> tuple[Array, Array]:
    """The loss and its gradient by the formula, in long double."""
    counts = (target != ignored).numpy()
    label = np.where(counts, target.numpy().astype(np.int64), 0)[..., None]
    x = numbers(whole)
    with np.errstate(invalid="ignore", divide="ignore"):
        above = x - x.max(-1, keepdims=True)
        total = np.exp(above).sum(-1, keepdims=True)
        rows = np.where(counts, (np.log(total) - np.take_along_axis(above, label, -1))[..., 0], 0)
        slope = np.exp(above) / total
    np.put_along_axis(slope, label, np.take_along_axis(slope, label, -1) - 1, -1)
    share = numbers(incoming) / (counts.sum() if reduction == "mean" else 1)
    gradient = np.where(counts[..., None], slope * (share[..., None] if reduction == "none" else share), 0)
    return np.asarray(
        rows if reduction == "none" else rows.sum() / (counts.sum() if reduction == "mean" else 1)
    ), gradient


def judge_vocabulary(
    ranks: Ranks, whole: Tensor, target: Tensor, sizes: Sequence[int], reduction: str, ignored: int = -100
) -> None:
    """Value and gradient of the shard, whose incoming gradient differs from row to row."""
    shard, start = ranks.own(whole, sizes, -1).requires_grad_(), starts(sizes)[ranks.rank]
    ours = L.vocab_parallel_cross_entropy(shard, target, start, None, ignored, reduction)
    same_everywhere(ours)
    incoming = torch.linspace(0.5, 2, ours.numel()).view(ours.shape).to(ours.dtype)
    (gradient,) = torch.autograd.grad(ours, shard, incoming)

    leaf = whole.detach().requires_grad_()
    value = by_torch(leaf, target, reduction, ignored)
    (expected,) = torch.autograd.grad(value, leaf, incoming.to(value.dtype))
    exact, slope = exactly(whole, target, incoming, reduction, ignored)
    what = f"{whole.dtype} {tuple(whole.shape)} {reduction}"
    judge(f"value of {what}", ours, value.to(whole.dtype), exact)
    own = slope[..., start : start + shard.shape[-1]]
    judge(f"gradient of {what}", gradient, ranks.own(expected, sizes, -1), own)


@check
def vocabulary_in_all_dtypes_and_reductions(ranks: Ranks) -> None:
    for sizes in (VOCABULARIES[ranks.world], LARGE[ranks.world]):
        for dtype in DTYPES:
            for reduction in ("none", "mean", "sum"):
                judge_vocabulary(ranks, logits(sizes, dtype), labels(sizes), sizes, reduction)


@check
def half_types_are_computed_in_float32(ranks: Ranks) -> None:
    """Each element of a gradient is rounded once."""
    sizes = LARGE[ranks.world]
    for dtype in (torch.bfloat16, torch.float16):
        gradients = []
        for type_of_shard in (dtype, torch.float32):
            shard = ranks.own(logits(sizes, dtype, scale=0.5), sizes, -1).to(type_of_shard).requires_grad_()
            ours = L.vocab_parallel_cross_entropy(shard, labels(sizes), starts(sizes)[ranks.rank], reduction="none")
            gradients += torch.autograd.grad(ours.sum(), shard)
        torch.testing.assert_close(gradients[0].float(), gradients[1], rtol=0.6 * torch.finfo(dtype).eps, atol=1e-7)


@check
def rows_of_any_shape_and_targets_of_any_integer_type(ranks: Ranks) -> None:
    sizes = VOCABULARIES[ranks.world]
    for rows in ((), (3, 4), (0,), (2, 1, 3)):
        whole = logits(sizes, torch.float32, rows)
        target = torch.arange(whole[..., 0].numel()).view(rows) % sum(sizes)
        judge_vocabulary(ranks, whole, target, sizes, "none")
    for dtype in (torch.int32, torch.int16, torch.int8, torch.uint8):
        target = torch.arange(9).to(dtype)
        judge_vocabulary(ranks, logits(sizes, torch.float32), target, sizes, "mean")


@check
def shards_in_memory_of_any_order(ranks: Ranks) -> None:
    sizes = LARGE[ranks.world]
    shard, target, start = ranks.own(logits(sizes, torch.float32), sizes, -1), labels(sizes), starts(sizes)[ranks.rank]
    expected = L.vocab_parallel_cross_entropy(shard, target, start, reduction="none")
    for other in (shard.t().contiguous().t(), shard.repeat_interleave(2, -1)[:, ::2]):
        ours = L.vocab_parallel_cross_entropy(other, target, start, reduction="none")
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=0)


@check
def the_order_of_the_ranks_is_free(ranks: Ranks) -> None:
    sizes = VOCABULARIES[ranks.world]
    whole, target = logits(sizes, torch.float64), labels(sizes)
    turned = Ranks(ranks.world - 1 - ranks.rank, ranks.world)
    ours = L.vocab_parallel_cross_entropy(turned.own(whole, sizes, -1), target, starts(sizes)[turned.rank])
    torch.testing.assert_close(ours, T.cross_entropy(whole, target))


@check
def logits_far_from_zero_lose_nothing(ranks: Ranks) -> None:
    """Sums of exponentials are those of differences, between ranks too."""
    sizes = VOCABULARIES[ranks.world]
    for offset in (1e4, -1e4):
        for dtype in (torch.float32, torch.float64):
            judge_vocabulary(ranks, logits(sizes, dtype) + offset, labels(sizes), sizes, "none")
    far = logits(sizes, torch.float32)
    far[:, : sizes[0]] -= 500
    judge_vocabulary(ranks, far, labels(sizes), sizes, "none")
    judge_vocabulary(ranks, logits(sizes, torch.float32, scale=60), labels(sizes), sizes, "none")


@check
def a_class_that_cannot_be(ranks: Ranks) -> None:
    """-inf: among others, in all of a shard, at a target; and then everywhere."""
    for sizes in (VOCABULARIES[ranks.world], LARGE[ranks.world]):
        whole, target = logits(sizes, torch.float32), labels(sizes).clamp_(max=sizes[0] - 1)
        whole[:, ::3] = -torch.inf
        whole[3, : sizes[0]] = whole[4:, sizes[0] :] = -torch.inf
        whole[5, : sizes[0] - 2] = -torch.inf
        judge_vocabulary(ranks, whole, target, sizes, "none")
        whole[0] = -torch.inf
        shard = ranks.own(whole, sizes, -1)
        ours = L.vocab_parallel_cross_entropy(shard, target, starts(sizes)[ranks.rank], reduction="none")
        assert ours.isnan().nonzero().tolist() == [[0]]


@check
def nan_reaches_its_own_row_on_all_ranks(ranks: Ranks) -> None:
    sizes = VOCABULARIES[ranks.world]
    whole, target = logits(sizes, torch.float32), labels(sizes)
    whole[1, -1] = torch.nan
    judge_vocabulary(ranks, whole, target, sizes, "none")


@check
def ignored_rows_count_nowhere(ranks: Ranks) -> None:
    for ignored in (-100, 3, 1000):
        sizes = VOCABULARIES[ranks.world]
        target = labels(sizes).where(labels(sizes) != -100, 0)
        target[4:6] = ignored
        whole = logits(sizes, torch.float32)
        judge_vocabulary(ranks, whole, target, sizes, "mean", ignored)
        whole[4], whole[5, 0] = torch.nan, torch.inf
        shard = ranks.own(whole, sizes, -1).requires_grad_()
        start = starts(sizes)[ranks.rank]
        value = L.vocab_parallel_cross_entropy(shard, target, start, None, ignored)
        (gradient,) = torch.autograd.grad(value, shard, create_graph=True)
        (second,) = torch.autograd.grad(gradient.square().sum(), shard)
        assert value.isfinite() and gradient.isfinite().all() and second.isfinite().all()
        assert not gradient[4:6].any() and not second[4:6].any()


@check
def no_row_that_counts(ranks: Ranks) -> None:
    sizes = VOCABULARIES[ranks.world]
    shard = ranks.own(logits(sizes, torch.float32), sizes, -1).requires_grad_()
    target = torch.full((9,), -100)
    for reduction, expected in (("mean", torch.nan), ("sum", 0.0)):
        value = L.vocab_parallel_cross_entropy(shard, target, starts(sizes)[ranks.rank], reduction=reduction)
        torch.testing.assert_close(value, torch.tensor(expected), equal_nan=True)
        assert not torch.autograd.grad(value, shard)[0].any()


@check
def second_derivatives_of_a_vocabulary(ranks: Ranks) -> None:
    """What every rank makes of its gradient reaches all ranks' shards; the incoming gradient may move too."""
    for sizes in (VOCABULARIES[ranks.world], LARGE[ranks.world]):
        whole, target = logits(sizes, torch.float64), labels(sizes).clamp_(max=sum(sizes) - 4)
        whole[:, -2:] = -torch.inf
        direction = logits(sizes, torch.float64).roll(1, 0)
        shard = ranks.own(whole, sizes, -1).requires_grad_()
        ours = L.vocab_parallel_cross_entropy(shard, target, starts(sizes)[ranks.rank], reduction="none")
        (gradient,) = torch.autograd.grad(ours.square().sum(), shard, create_graph=True)
        (second,) = torch.autograd.grad((gradient * ranks.own(direction, sizes, -1)).sum(), shard)

        whole.requires_grad_()
        value = by_torch(whole, target, "none")
        (expected,) = torch.autograd.grad(value.square().sum(), whole, create_graph=True)
        (expected_second,) = torch.autograd.grad((expected * direction).sum(), whole)
        torch.testing.assert_close(gradient, ranks.own(expected, sizes, -1))
        torch.testing.assert_close(second, ranks.own(expected_second, sizes, -1))


@check
def under_autocast_the_loss_is_wide(ranks: Ranks) -> None:
    sizes = VOCABULARIES[ranks.world]
    shard = ranks.own(logits(sizes, torch.bfloat16), sizes, -1).requires_grad_()
    target, start = labels(sizes), starts(sizes)[ranks.rank]
    with torch.autocast("cpu", torch.bfloat16):
        ours = L.vocab_parallel_cross_entropy(shard, target, start)
    expected = T.cross_entropy(logits(sizes, torch.bfloat16).float(), target)
    torch.testing.assert_close(ours, expected)
    assert torch.autograd.grad(ours, shard)[0].dtype == torch.bfloat16


@check
def a_group_of_some_ranks(ranks: Ranks) -> None:
    group = dist.new_group([0, 1])
    if ranks.rank < 2:
        sizes = VOCABULARIES[2]
        whole, target, start = logits(sizes, torch.float64), labels(sizes), starts(sizes)[ranks.rank]
        ours = L.vocab_parallel_cross_entropy(ranks.own(whole, sizes, -1), target, start, group)
        torch.testing.assert_close(ours, T.cross_entropy(whole, target))
    else:
        with pytest.raises(ValueError, match="group must be one that this process is a member of"):
            L.vocab_parallel_cross_entropy(torch.zeros(2, 3), torch.tensor([0, 1]), 0, group)
    dist.barrier()


@check
def what_only_all_ranks_can_know_all_refuse(ranks: Ranks) -> None:
    sizes = VOCABULARIES[ranks.world]
    shard, start = ranks.own(logits(sizes, torch.float32), sizes, -1), starts(sizes)[ranks.rank]
    for wrong in (sum(sizes), -1):
        target = labels(sizes)
        target[5:7] = wrong
        with refused(IndexError, "target", f"0 to {sum(sizes) - 1}", f"got {wrong} at index [5]"):
            L.vocab_parallel_cross_entropy(shard, target, start)
    for step, words in ((1, "got 8 to 11 on rank 1 where 7"), (-1, "got 6 to 9 on rank 1 where 7")):
        with refused(ValueError, "vocab_start", "without gap or overlap", words):
            L.vocab_parallel_cross_entropy(shard, labels(sizes), start + step * (ranks.rank == 1))
    with refused(ValueError, "vocab_start", "got 1 to 7 on rank 0 where 0 is the next"):
        L.vocab_parallel_cross_entropy(shard, labels(sizes), start + 1)


# ---- pairs over ranks ----------------------------------------------------------------------------------------------


def softmax_rows(a: Tensor, b: Tensor, scale: Tensor | float = 10.0) -> Tensor:
    return T.cross_entropy(scale * a @ b.t(), torch.arange(len(a)), reduction="none")


def sigmoid_rows(a: Tensor, b: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    signs = 2 * torch.eye(len(a), dtype=a.dtype) - 1
    return -T.logsigmoid(signs * (scale * a @ b.t() + bias)).sum(1)


@dataclass(frozen=True)
class Pairs:
    """A loss of ours, and the same by torch from the rows of one direction."""

    loss: Callable[..., Tensor]
    rows: Callable[..., Tensor]
    symmetric: bool
    parameters: tuple[float, ...] = ()
    keywords: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.loss.__name__

    def single(self, first: Tensor, second: Tensor, reduction: str, *parameters: Tensor) -> Tensor:
        if "normalize" in self.keywords:
            first, second = T.normalize(first, dim=1), T.normalize(second, dim=1)
        value = self.rows(first, second, *parameters)
        if self.symmetric:
            value = (value + self.rows(second, first, *parameters)) / 2
        return value if reduction == "none" else value.sum() if reduction == "sum" else value.mean()

    def spread(self, first: Tensor, second: Tensor, reduction: str, *parameters: Tensor) -> Tensor:
        settings = self.keywords | {"reduction": reduction, "group": dist.group.WORLD}
        return self.loss(first, second, *parameters, **settings)


PAIRS = (
    Pairs(L.info_nce_loss, softmax_rows, False),
    Pairs(L.info_nce_loss, softmax_rows, True, (), {"symmetric": True}),
    Pairs(L.clip_loss, softmax_rows, True, (4.0,)),
    Pairs(L.siglip_loss, sigmoid_rows, False, (4.0, -1.5)),
    Pairs(L.siglip_loss, sigmoid_rows, False, (4.0, -1.5), {"normalize": True}),
)
BATCHES = {2: ((5, 3), (4, 4), (0, 6)), 3: ((5, 3, 4), (3, 3, 3), (2, 0, 5))}


def vectors(rows: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return T.normalize(torch.randn(rows, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).to(
        dtype
    )


def parameters(pairs: Pairs) -> list[Tensor]:
    return [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in pairs.parameters]


@check
def pairs_of_all_ranks(ranks: Ranks) -> None:
    """Values, gradients and what a second backward pass gives, for every reduction and operand."""
    for pairs in PAIRS:
        for sizes in BATCHES[ranks.world]:
            for reduction in ("none", "mean", "sum"):
                compare_pairs(ranks, pairs, sizes, reduction)


def compare_pairs(ranks: Ranks, pairs: Pairs, sizes: Sequence[int], reduction: str) -> None:
    whole = [vectors(sum(sizes), seed).requires_grad_() for seed in (1, 2)]
    shards = [ranks.own(x, sizes).requires_grad_() for x in whole]
    own, common = parameters(pairs), parameters(pairs)
    directions = [vectors(sum(sizes), seed) for seed in (3, 4)]
    incoming = torch.linspace(0.5, 2, sum(sizes), dtype=torch.float64) if reduction == "none" else torch.tensor(1.5)

    value = pairs.single(*whole, reduction, *common)
    expected = torch.autograd.grad(value.square(), [*whole, *common], incoming.to(value), create_graph=True)
    along = [(g * v).sum() for g, v in zip(expected, directions, strict=False)]
    seconds = torch.autograd.grad(sum(along) + sum(expected[2:]), [*whole, *common])

    ours = pairs.spread(*shards, reduction, *own)
    if reduction == "none":
        value, incoming = ranks.own(value, sizes), ranks.own(incoming, sizes)
    else:
        same_everywhere(ours)
    torch.testing.assert_close(ours, value)
    gradients = torch.autograd.grad(ours.square(), [*shards, *own], incoming.to(ours), create_graph=True)
    along = [(g * ranks.own(v, sizes)).sum() for g, v in zip(gradients, directions, strict=False)]
    # (A parameter's gradient is common to all ranks, so that what is made of it counts once.)
    our_seconds = torch.autograd.grad(sum(along) + sum(gradients[2:]), [*shards, *own])

    for ours_of, expected_of in ((gradients, expected), (our_seconds, seconds)):
        for x, y in zip(ours_of[:2], expected_of[:2], strict=True):
            torch.testing.assert_close(x, ranks.own(y, sizes))
        for x, y in zip(ours_of[2:], expected_of[2:], strict=True):
            torch.testing.assert_close(x, y)
            same_everywhere(x)


@check
def pairs_of_half_types(ranks: Ranks) -> None:
    """They travel as they are; the loss is rounded once, and so is every rank's part of a gradient."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for pairs in PAIRS[:2]:
            sizes = BATCHES[ranks.world][0]
            whole = [vectors(sum(sizes), seed, dtype).requires_grad_() for seed in (1, 2)]
            shards = [ranks.own(x, sizes).requires_grad_() for x in whole]
            exact = [x.detach().double().requires_grad_() for x in whole]
            ours, torchs = pairs.spread(*shards, "mean"), pairs.single(*whole, "mean")
            truth = pairs.single(*exact, "mean")
            judge(f"{pairs.name} {dtype}", ours, torchs.to(dtype), numbers(truth))
            values = ((ours, shards), (torchs, whole), (truth, exact))
            for x, y, z in zip(*(torch.autograd.grad(*value) for value in values), strict=True):
                judge(f"gradient of {pairs.name} {dtype}", x, ranks.own(y, sizes), numbers(ranks.own(z, sizes)))


@check
def a_batch_without_pairs(ranks: Ranks) -> None:
    for pairs in PAIRS:
        shards = [vectors(0, seed).requires_grad_() for seed in (1, 2)]
        for reduction in ("mean", "sum"):
            value = pairs.spread(*shards, reduction, *parameters(pairs))
            assert value == 0
            assert [g.shape for g in torch.autograd.grad(value, shards)] == [(0, 6), (0, 6)]


class Tower(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(vectors(6, 5))
        self.scale = torch.nn.Parameter(torch.tensor(4.0, dtype=torch.float64))

    def forward(self, images: Tensor, ranks: int) -> tuple[Tensor, Tensor]:
        # The same scale, of whose gradient each rank takes its share.
        return images @ self.weight, self.scale / ranks + self.scale.detach() * (1 - 1 / ranks)


@check
def parallel_training_with_averaged_gradients(ranks: Ranks) -> None:
    """As documented: DistributedDataParallel, and the loss times the number of ranks."""
    sizes = BATCHES[ranks.world][0]
    images, texts = vectors(sum(sizes), 1), vectors(sum(sizes), 2)
    tower, alone = Tower(), Tower()
    parallel = torch.nn.parallel.DistributedDataParallel(tower)
    features, scale = parallel(ranks.own(images, sizes), ranks.world)
    (ranks.world * L.clip_loss(features, ranks.own(texts, sizes), scale, group=dist.group.WORLD)).backward()
    PAIRS[2].single(images @ alone.weight, texts, "mean", alone.scale).backward()
    torch.testing.assert_close(tower.weight.grad, alone.weight.grad)
    torch.testing.assert_close(tower.scale.grad, alone.scale.grad)


@check
def pairs_that_do_not_fit_all_ranks_refuse(ranks: Ranks) -> None:
    pairs, last = PAIRS[0], ranks.world - 1
    x = vectors(3, 1)
    with refused(ValueError, "query", "(*, 6) of torch.float64 on rank 0", f"(*, 5) of torch.float64 on rank {last}"):
        pairs.spread(*[x[:, :5] if ranks.rank == last else x] * 2, "mean")
    with refused(ValueError, "query", f"(*, 6) of torch.bfloat16 on rank {last}"):
        pairs.spread(*[x.bfloat16() if ranks.rank == last else x] * 2, "mean")
    for first, second, error, words in (
        (x, x[:2], ValueError, ("query and key", "(3, 6) and (2, 6)")),
        (x[0], x[0], ValueError, ("query and key", "(6,)")),
        (x, x.float(), ValueError, ("query and key", "float32")),
        (x, x.long(), TypeError, ("key", "int64")),
        (None, x, TypeError, ("query", "NoneType")),
    ):
        with refused(error, "info_nce_loss", *words):
            pairs.spread(first, second, "mean")  # type: ignore[arg-type]
    with refused(ValueError, "reduction", "'max'"):
        pairs.spread(x, x, "max")


# ---- the processes -------------------------------------------------------------------------------------------------


def go_through_checks(rank: int, world: int, folder: Path) -> None:
    """What a rank runs. It stops at the first failure, and the others then fail to reach it."""
    torch.set_num_threads(1)
    limit = datetime.timedelta(seconds=SECONDS / 2)
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world, timeout=limit)
    for each in CHECKS:
        try:
            each(Ranks(rank, world))
        except BaseException:
            text = f"{time.time():.3f} {each.__name__} on rank {rank} of {world}:\n{traceback.format_exc()}"
            (folder / f"rank{rank}").write_text(text)
            return
    dist.barrier()
    dist.destroy_process_group()
    (folder / f"rank{rank}").write_text("done")


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_find_together_what_one_process_does(world: int, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=go_through_checks, args=(rank, world, tmp_path)) for rank in range(world)]
    try:
        for process in processes:
            process.start()
        end = time.monotonic() + SECONDS
        for process in processes:
            process.join(max(end - time.monotonic(), 0))
        hung = [rank for rank, process in enumerate(processes) if process.is_alive()]
    finally:
        for process in processes:
            process.kill()
    reports = [file.read_text() for file in sorted(tmp_path.glob("rank*"))]
    failures = sorted(text for text in reports if text != "done")
    assert not failures, failures[0]  # the first in time; the others follow from it
    assert not hung, f"ranks {hung} did not end in {SECONDS} seconds"
    assert reports == ["done"] * world, [process.exitcode for process in processes]


# ---- without a group -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({}, ValueError, "group.*init_process_group"),
        ({"input_shard": [1.0]}, TypeError, "input_shard.*list"),
        ({"input_shard": torch.zeros(2, 3, dtype=torch.int64)}, TypeError, "input_shard.*int64"),
        ({"input_shard": torch.tensor(1.0)}, ValueError, r"input_shard.*\(\)"),
        ({"input_shard": torch.zeros(2, 0)}, ValueError, r"input_shard.*\(2, 0\)"),
        ({"target": torch.zeros(2)}, TypeError, "target.*float32"),
        ({"target": torch.tensor([True, False])}, TypeError, "target.*bool"),
        ({"target": torch.tensor([0, 1, 2])}, ValueError, r"target.*\(2,\), got \(3,\)"),
        ({"ignore_index": 1.5}, TypeError, "ignore_index.*float"),
        ({"reduction": "max"}, ValueError, "reduction.*'max'"),
    ],
)
def test_what_a_rank_can_know_is_refused_before_ranks_talk(
    changed: dict[str, object], error: type[Exception], words: str
) -> None:
    given = {"input_shard": torch.zeros(2, 3), "target": torch.tensor([0, 1]), "vocab_start": 0} | changed
    with pytest.raises(error, match=f"vocab_parallel_cross_entropy: {words}"):
        L.vocab_parallel_cross_entropy(**given)


@pytest.fixture
def alone() -> Iterator[None]:
    """A group of this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("start", "group", "error", "words"),
    [
        (1.0, None, TypeError, "vocab_start.*float"),
        (-1, None, ValueError, "vocab_start.*-1"),
        (0, "gloo", TypeError, "group.*str"),
    ],
)
def test_a_start_or_group_that_is_none(
    alone: None, start: object, group: object, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        L.vocab_parallel_cross_entropy(torch.zeros(2, 3), torch.tensor([0, 1]), start, group)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_vocabulary_holds_one_gradient(alone: None, dtype: torch.dtype) -> None:
    x, target = logits((4096,), dtype, (256,)).requires_grad_(), torch.arange(256)

    def step() -> None:
        x.grad = None
        L.vocab_parallel_cross_entropy(x, target, 0).backward()

    step()  # what is allocated once does not count
    x.grad = None
    assert peak_memory(step) <= x.nbytes + 256 * 1024
