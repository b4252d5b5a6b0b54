"""Holds the emulated CUDA kernels of triplet_mining_loss against its definition in float64, as check_lattice.py does
those of ctc_loss; `mutants.py` runs all. What other orders of threads give must be the same to the bit.

    python tests/cuda_emulator/check_triplets.py PATH_TO_EMU
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import torch
from check_kernels import ORDERS, TOLERANCE, load

Tensor = torch.Tensor
Results = dict[str, Tensor]
NONE, MEAN, SUM, MEAN_NONZERO = 0, 1, 2, 6
REDUCTIONS = (NONE, MEAN, SUM, MEAN_NONZERO)
BATCH_HARD, SEMI_HARD, ALL = MININGS = range(3)
MASK = [True]
# So many anchors make a block: 16 times those that the emulated device runs at once.
BLOCK = 64


@dataclass
class Case:
    x: Tensor
    labels: Tensor
    margin: float = 0.5
    mining: int = BATCH_HARD
    squared: bool = False
    normalize: bool = False
    reduction: int = NONE
    grad_output: Tensor | None = None
    tangent: Tensor = field(default_factory=lambda: torch.empty(0))

    def __post_init__(self) -> None:
        if self.tangent.numel() == 0:
            self.tangent = (torch.rand(self.x.shape, dtype=torch.float64) - 0.5).to(self.x.dtype)
        if self.grad_output is None:
            one = torch.full((), -1.75, dtype=self.x.dtype)
            self.grad_output = one if self.reduction else torch.rand(len(self.x)).to(self.x.dtype) + 0.5

    def __str__(self) -> str:
        given = f"{self.x.dtype} {tuple(self.x.shape)} by {self.x.stride()}, labels {self.labels.dtype}"
        options = f"margin {self.margin}, squared {self.squared}, normalize {self.normalize}"
        return f"{given}, mining {self.mining}, reduction {self.reduction}, {options}"

    @property
    def arguments(self) -> tuple[object, ...]:
        settings = self.margin, self.mining, self.squared, self.normalize, self.reduction
        return self.x, self.labels, *settings


# ---- the oracle ---------------------------------------------------------------------------------------------------


def compared(case: Case, x: Tensor) -> Tensor:
    """The vectors, or normalised ones."""
    if not case.normalize:
        return x
    square = (x * x).sum(1, keepdim=True)
    is_long = ~(square <= 1e-24)
    return x / torch.where(is_long, torch.where(is_long, square, 1).sqrt(), 1e-12)


def distance(case: Case, x: Tensor, y: Tensor) -> Tensor:
    square = (x - y).square().sum(-1)
    apart = ~(square == 0)
    return square if case.squared else torch.where(apart, torch.where(apart, square, 1).sqrt(), 0)


def nearest(of: list[int], row: list[float]) -> int:
    """The first of them; a NaN is nearer than all."""
    return min(of, key=lambda n: (not math.isnan(row[n]), 0 if math.isnan(row[n]) else row[n], n))


def mined(case: Case, d: list[list[float]]) -> Iterator[tuple[int, int, int]]:
    labels = case.labels.tolist()
    for a, label in enumerate(labels):
        row, farthest_first = d[a], [-of for of in d[a]]
        positives = [n for n, other in enumerate(labels) if other == label and n != a]
        negatives = [n for n, other in enumerate(labels) if other != label]
        if not positives or not negatives:
            continue
        if case.mining == ALL:
            yield from ((a, p, n) for p, n in itertools.product(positives, negatives))
        if case.mining == BATCH_HARD:
            yield a, nearest(positives, farthest_first), nearest(negatives, row)
        if case.mining == SEMI_HARD:
            has_nan = any(math.isnan(row[n]) for n in negatives)
            for p in positives:
                farther = [n for n in negatives if row[n] > row[p]] if not has_nan else []
                yield a, p, nearest(farther, row) if farther else nearest(negatives, farthest_first)


def expected(case: Case) -> Results:
    x = case.x.double().requires_grad_()
    y = compared(case, x)
    d = distance(case, y[:, None], y).tolist()
    triplets = torch.tensor(list(mined(case, d)), dtype=torch.int64).reshape(-1, 3)

    def sum_of(chosen: Tensor) -> Tensor:
        """Of these only: what has no part in it may be NaN."""
        a, p, n = (y[k] for k in chosen.unbind(1))
        return (distance(case, a, p) - distance(case, a, n) + case.margin).sum()

    def slopes(of: Tensor, **more: bool) -> Tensor:
        return torch.autograd.grad(of, x, materialize_grads=True, **more)[0]

    a, p, n = (y[k].detach() for k in triplets.unbind(1))
    above = triplets[~(distance(case, a, p) - distance(case, a, n) + case.margin <= 0)]
    terms = {MEAN: len(triplets), MEAN_NONZERO: len(above)}.get(case.reduction, 1)
    if case.reduction == NONE:
        values = [sum_of(above[above[:, 0] == k]) for k in range(len(x))]
    else:
        values = [sum_of(above) / max(terms, 1)]
    value = torch.stack(values) if case.reduction == NONE else values[0]
    moved = [(slopes(of, create_graph=True) * case.tangent.double()).sum() for of in values]
    assert case.grad_output is not None
    incoming = case.grad_output.double().reshape(-1).tolist()
    each = [slopes(of, retain_graph=True) for of in values]
    seconds = [slopes(of, retain_graph=True) for of in moved]
    return {
        "": value.detach(),
        "_value_and_gradient": sum(each, torch.zeros_like(x)),
        "_backward": sum((g * of for g, of in zip(incoming, each, strict=True)), torch.zeros_like(x)),
        "_jvp": torch.stack(moved).reshape(value.shape).detach(),
        "_hvp": sum((g * of for g, of in zip(incoming, seconds, strict=True)), torch.zeros_like(x)),
    }


# ---- the kernels --------------------------------------------------------------------------------------------------


def kernels_of(case: Case, suffix: str) -> int:
    """How many an op launches."""
    valued, moving = suffix in ("", "_value_and_gradient", "_jvp"), suffix in ("_jvp", "_hvp")
    graded = suffix not in ("", "_jvp")
    of_block = (2 if case.mining == BATCH_HARD else 3) + moving + graded
    blocks = -(-len(case.x) // BLOCK)
    sums = 1 + (case.reduction == MEAN_NONZERO) + (valued and case.reduction != NONE)
    return 1 + blocks * of_block + graded + sums


def launched(emulator: ModuleType, case: Case, suffix: str, *arguments: object) -> object:
    """Calls an op that must have run all of its kernels."""
    before = emulator.statistics()
    result = getattr(torch.ops.fusedloss, "triplet_mining_loss" + suffix)(*arguments)
    after = emulator.statistics()
    made, wanted = after["launches"] - before["launches"], kernels_of(case, suffix)
    assert made == wanted, f"triplet_mining_loss{suffix} launched {made} kernels, not {wanted}, in {case}"
    assert after["barriers"] > before["barriers"] and after["warp_operations"] > before["warp_operations"]
    return result


def computed(emulator: ModuleType, case: Case) -> Results:
    g, tangent, arguments = case.grad_output, case.tangent, case.arguments
    value, (gradient,) = launched(emulator, case, "_value_and_gradient", MASK, *arguments)
    return {
        "": value,
        "_value_and_gradient": gradient,
        "_jvp": launched(emulator, case, "_jvp", tangent, *arguments),
        "_hvp": launched(emulator, case, "_hvp", g, tangent, MASK, *arguments),
    }


def computed_apart(emulator: ModuleType, case: Case) -> Results:
    """By other ops, which run the same kernels."""
    value = launched(emulator, case, "", *case.arguments)
    return {"": value, "_backward": launched(emulator, case, "_backward", case.grad_output, MASK, *case.arguments)}


def same(a: Tensor, b: Tensor) -> bool:
    """To the bit."""
    bits = [x.contiguous().reshape(-1).view(torch.uint8) for x in (a, b)]
    return a.shape == b.shape and torch.equal(*bits)


def close(got: Tensor, want: Tensor) -> bool:
    """Up to rounding of the largest number."""
    tolerance = TOLERANCE[got.dtype] * 4
    largest = max([0.0, *want[want.isfinite()].abs().reshape(-1).tolist()])
    return torch.allclose(got.double(), want, rtol=tolerance, atol=tolerance * largest, equal_nan=True)


def check(case: Case, got: Results, want: Results) -> None:
    for suffix, a in got.items():
        b = want[suffix]
        differs = (a.double() != b) & ~(a.isnan() & b.isnan())
        at = int(torch.where(differs, (a.double() - b).abs().nan_to_num(math.inf), 0).argmax()) if b.numel() else 0
        values = f"{a.flatten()[at : at + 4].tolist()}, not {b.flatten()[at : at + 4].tolist()}, from {at} on"
        assert a.shape == b.shape and close(a, b), f"triplet_mining_loss{suffix} is {values}, in {case}"


# ---- cases --------------------------------------------------------------------------------------------------------


def numbers(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, dtype=torch.float64).to(dtype)


def classes(count: int, of: int) -> Tensor:
    """Of any order and size, the last one alone with its own."""
    values = torch.randint(-(2**62), 2**62, (of + 1,))
    found = torch.arange(count) % of
    found[-1] = of
    return values[found[torch.randperm(count)]]


def settings() -> Iterator[Case]:
    """All minings, of squares or not, of normalised vectors or not, each with two reductions."""
    for k, (mining, squared, normalize, half) in enumerate(itertools.product(MININGS, (0, 1), (0, 1), (0, 1))):
        dtype, reduction = (torch.float64, torch.float32)[k // 2 % 2], REDUCTIONS[(k + k // 4 + half) % 4]
        x, y = numbers(13, 5, dtype=dtype), classes(13, 3)
        yield Case(x, y, 0.5 + mining, mining, bool(squared), bool(normalize), reduction)


def many() -> Iterator[Case]:
    """More anchors than a block has, more numbers than a warp has lanes, more positives than one."""
    for mining, dtype in zip(MININGS, (torch.float64, torch.float32, torch.float64), strict=True):
        x = numbers(BLOCK + 6, 37, dtype=dtype)
        margin = 20.0 if mining == ALL else 0.3  # all pairs have a loss, or some
        yield Case(x, classes(len(x), 4), margin, mining, normalize=mining == SEMI_HARD, reduction=MEAN)
    yield Case(numbers(300, 3, dtype=torch.float64), classes(300, 2), 0.3, BATCH_HARD, reduction=SUM)


def ties() -> Iterator[Case]:
    """Small whole numbers, whose distances are often the same, or 0."""
    for mining, squared, margin in itertools.product(MININGS, (False, True), (0.0, 1.0)):
        x = torch.randint(-1, 2, (12, 2)).double()
        yield Case(x, classes(12, 3), margin, mining, squared, reduction=REDUCTIONS[mining + int(margin)])


def layouts() -> Iterator[Case]:
    for k, dtype in enumerate(TOLERANCE):
        for x in (numbers(6, 8, dtype=dtype).T, numbers(16, 9, dtype=dtype)[::2, 1::2]):
            tangent = (torch.rand(x.shape[::-1]) - 0.5).to(dtype).T
            labels = torch.arange(16).to((torch.int8, torch.uint8, torch.int16, torch.int32)[k])[::2] // 6
            yield Case(x, labels, 20.0, k % 3, squared=False, reduction=REDUCTIONS[k], tangent=tangent)


def incoming() -> Iterator[Case]:
    """The gradient of every anchor's value, as it may lie and of any type."""
    x, y = numbers(8, 3), classes(8, 2)
    for k, g in enumerate((torch.rand(8, 2)[:, 1], torch.full((), 3.0).expand(8), torch.rand(8).double())):
        yield Case(x, y, mining=k, grad_output=g)
    yield Case(x, y, grad_output=torch.tensor(-2.0, dtype=torch.float64), reduction=SUM)


def spoilt() -> Iterator[Case]:
    """A NaN reaches every anchor; what is infinitely far is not the nearest."""
    for mining, (bad, which) in itertools.product(MININGS, ((math.nan, 1), (math.nan, -1), (math.inf, -1))):
        x, y = numbers(9, 3, dtype=torch.float64), torch.tensor([0, 1, 0, 1, 0, 1, 0, 2, 3])
        x[which, 1] = bad
        yield Case(x, y, 5.0, mining, reduction=(NONE, SUM, MEAN)[mining])


def nothing() -> Iterator[Case]:
    """No positives or no negatives; then what the vectors are is of no consequence."""
    for k, y in enumerate((torch.zeros(5, dtype=torch.int64), torch.arange(5), torch.zeros(1, dtype=torch.int64))):
        x = numbers(len(y), 3)
        for mining, reduction in itertools.product(MININGS, REDUCTIONS):
            yield Case(x, y, mining=mining, normalize=k == 1, reduction=reduction)


CASES: tuple[Callable[[], Iterator[Case]], ...] = (settings, many, ties, layouts, incoming, spoilt, nothing)


# ---- what no formula says -----------------------------------------------------------------------------------------


def check_empty() -> None:
    """No vectors, vectors without numbers, and none that counts but NaN."""
    for mining, reduction in itertools.product(MININGS, REDUCTIONS):
        case = Case(numbers(0, 4), torch.zeros(0, dtype=torch.int64), mining=mining, reduction=reduction)
        got, (gradient,) = torch.ops.fusedloss.triplet_mining_loss_value_and_gradient(MASK, *case.arguments)
        assert got.tolist() == ([] if reduction == NONE else 0) and gradient.shape == case.x.shape, got
        case = Case(numbers(4, 0), torch.tensor([0, 0, 1, 1]), 0.5, mining, reduction=reduction)
        got, _ = torch.ops.fusedloss.triplet_mining_loss_value_and_gradient(MASK, *case.arguments)
        assert torch.allclose(got.double(), expected(case)[""]), got
        case = Case(torch.full((3, 2), math.nan), torch.arange(3), mining=mining, normalize=True, reduction=reduction)
        got, (gradient,) = torch.ops.fusedloss.triplet_mining_loss_value_and_gradient(MASK, *case.arguments)
        assert not got.any() and not gradient.any(), (got, gradient)


def check_rescaled() -> None:
    """Autograd keeps what the forward pass made, or makes it when it knows what comes in."""
    for dtype, reduction in itertools.product((torch.float32, torch.float16), REDUCTIONS):
        case = Case(numbers(8, 3, dtype=dtype), classes(8, 2), reduction=reduction)
        leaf = case.x.clone().requires_grad_()
        value = torch.ops.fusedloss.triplet_mining_loss(leaf, *case.arguments[1:])
        (gradient,) = torch.autograd.grad(value, leaf, case.grad_output)
        assert close(gradient, expected(case)["_backward"]), (gradient, case)


def main(path: str) -> None:
    emulator = load(path)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    cases = [case for family in CASES for case in family()]
    first: list[Results] = []
    for order in ORDERS:
        emulator.set_order(order)
        for k, case in enumerate(cases):
            got = computed(emulator, case)
            if order == ORDERS[0]:
                first.append(got)
                apart, want = computed_apart(emulator, case), expected(case)
                check(case, got, want)
                check(case, apart, want)
                assert same(apart[""], got[""]), f"with gradients the value is {got['']}, not {apart['']}, in {case}"
            for suffix, result in got.items():
                assert same(result, first[k][suffix]), f"triplet_mining_loss{suffix} hangs on threads' order, in {case}"
        check_empty()
        check_rescaled()
    print(f"{Path(path).name}: triplets as expected; {emulator.statistics()}")


if __name__ == "__main__":
    main(sys.argv[1])
