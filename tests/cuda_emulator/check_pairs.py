"""Holds the emulated CUDA kernels of losses over pairs against dense matrices of logits in float64, as check_rows.py
does losses over rows; `mutants.py` runs all. What other orders of threads give must be the same to the bit.

    python tests/cuda_emulator/check_pairs.py PATH_TO_EMU
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from check_kernels import ORDERS, TOLERANCE, load
from check_lattice import same

Tensor = torch.Tensor
Results = dict[str, list[Tensor]]
NONE, MEAN, SUM = 0, 1, 2
# Of the ops: vectors of the rows, of the columns, of what belongs to a row and is no column, scale and bias.
OPERANDS = 5
ROWS_OF_TILE, NUMBERS_OF_TILE = 1024, 1 << 21


@dataclass
class Case:
    loss: str
    operands: Sequence[Tensor | None]
    labels: Tensor | None = None
    scale: float = 2.0
    bias: float = 0.0
    offset: int = 0
    symmetric: bool = False
    reduction: int = NONE
    rounding: float = 1.0  # what else the logits' size costs
    once: bool = False  # as it takes long, in one order of threads only

    def __post_init__(self) -> None:
        self.operands = [*self.operands, *[None] * (OPERANDS - len(self.operands))]
        self.mask = [x is not None for x in self.operands]
        self.given = [x for x in self.operands if x is not None]
        self.tangents = [None if x is None else (torch.rand(x.shape) - 0.5).to(x.dtype) for x in self.operands]
        one = torch.full((), -1.75, dtype=self.first.dtype)
        self.grad_output = one if self.reduction else (torch.rand(len(self.first)) + 0.5).to(self.first.dtype)

    def __str__(self) -> str:
        given = [f"{x.dtype} {tuple(x.shape)}" for x in self.given]
        more = f"scale {self.scale}, offset {self.offset}, symmetric {self.symmetric}, reduction {self.reduction}"
        return f"{self.loss}: {', '.join(given)}, {more}"

    @property
    def first(self) -> Tensor:
        return self.given[0]

    @property
    def columns(self) -> int:
        return len(self.given[0] if self.operands[1] is None else self.given[1])

    @property
    def arguments(self) -> tuple[object, ...]:
        numbers = ([self.scale, self.bias], self.offset, self.symmetric, False, self.reduction)
        return (*self.operands, self.labels, *numbers)


# ---- the oracle ---------------------------------------------------------------------------------------------------


def each_row(case: Case, operands: Sequence[Tensor | None]) -> Tensor:
    first, second, positive, scale, bias = operands
    rows = torch.arange(len(case.first))

    def logits(products: Tensor) -> Tensor:
        scaled = products * case.scale if scale is None else products * (case.scale * scale)
        return scaled + case.bias if bias is None else scaled + (case.bias + bias)

    assert first is not None
    z = logits(first @ (first if second is None else second).T)
    if case.labels is not None:
        alike = (case.labels[:, None] == case.labels) & (rows[:, None] != rows)
        others = torch.where(rows[:, None] == rows, -math.inf, z).logsumexp(1)
        means = torch.where(alike, z, 0).sum(1) / alike.sum(1).clamp(min=1)
        return torch.where(alike.any(1), others - means, 0)
    if positive is not None:
        own = logits((first * positive).sum(1))
        return torch.cat([own[:, None], z], 1).logsumexp(1) - own
    if case.loss == "siglip_loss":
        belongs = torch.arange(z.shape[1]) == rows[:, None] + case.offset
        return -torch.nn.functional.logsigmoid(torch.where(belongs, z, -z)).sum(1)
    own = z[rows, rows + case.offset]
    value = z.logsumexp(1) - own
    return (value + z.logsumexp(0) - own) / 2 if case.symmetric else value


def expected(case: Case) -> Results:
    wide = [None if x is None else x.detach().double().clone().requires_grad_() for x in case.operands]
    leaves = [x for x in wide if x is not None]
    value = each_row(case, wide)
    anchors = len(case.first)
    if case.labels is not None:
        anchors = sum((case.labels == label).sum() > 1 for label in case.labels)
    if case.reduction != NONE:
        value = value.sum() / (max(int(anchors), 1) if case.reduction == MEAN else 1)
    weight = torch.ones_like(value, requires_grad=True)
    slopes = torch.autograd.grad(value, leaves, weight, create_graph=True, materialize_grads=True)
    tangents = [t.double() for t in case.tangents if t is not None]
    moved = sum((slope * t).sum() for slope, t in zip(slopes, tangents, strict=True))
    g = case.grad_output.double()
    (along,) = torch.autograd.grad(moved, weight, retain_graph=True, materialize_grads=True)
    by = torch.autograd.grad(value, leaves, g, create_graph=True, materialize_grads=True)
    moved = sum((slope * t).sum() for slope, t in zip(by, tangents, strict=True))
    second = torch.autograd.grad(moved, leaves, materialize_grads=True)
    results = {"": [value], "_value_and_gradient": slopes, "_backward": by, "_jvp": [along], "_hvp": second}
    return {suffix: [x.detach() for x in all_] for suffix, all_ in results.items()}


# ---- the kernels --------------------------------------------------------------------------------------------------


def launched(emulator: ModuleType, case: Case, suffix: str, *arguments: object) -> object:
    """Calls an op that must have run its kernels: one of rows for every tile, and one of columns."""
    before = emulator.statistics()
    result = getattr(torch.ops.fusedloss, case.loss + suffix)(*arguments, *case.arguments)
    after = emulator.statistics()
    rows = min(max(NUMBERS_OF_TILE // max(case.columns, 1), 64), ROWS_OF_TILE)
    wanted = -(-len(case.first) // rows) * (1 + case.symmetric)
    made = after["launches"] - before["launches"]
    assert made == wanted, f"{case.loss}{suffix} launched {made} kernels, not {wanted}"
    assert after["barriers"] > before["barriers"] or case.labels is not None  # all rows may be left out
    return result


def computed(emulator: ModuleType, case: Case) -> Results:
    mask, tangents, g = case.mask, case.tangents, case.grad_output
    value, gradients = launched(emulator, case, "_value_and_gradient", mask)
    second = launched(emulator, case, "_hvp", g, *tangents, mask)
    return {
        "": [value],
        "_value_and_gradient": gradients,
        "_jvp": [launched(emulator, case, "_jvp", *tangents)],
        "_hvp": [x for x, wanted in zip(second, mask, strict=True) if wanted],
    }


def computed_apart(emulator: ModuleType, case: Case) -> Results:
    """By other ops, which run the same kernels."""
    by = launched(emulator, case, "_backward", case.grad_output, case.mask)
    return {
        "": [launched(emulator, case, "")],
        "_backward": [x for x, wanted in zip(by, case.mask, strict=True) if wanted],
    }


def close(got: Tensor, want: Tensor, rounding: float) -> bool:
    """Up to rounding of the largest number, or of 1; every logit is rounded."""
    tolerance = TOLERANCE[got.dtype] + 8 * rounding * TOLERANCE[torch.promote_types(got.dtype, torch.float32)]
    largest = max([1.0, *want[want.isfinite()].abs().tolist()])
    return torch.allclose(got.double(), want, rtol=tolerance, atol=tolerance * largest, equal_nan=True)


def check(case: Case, got: Results, want: Results) -> None:
    for suffix, all_ in got.items():
        for k, (a, b) in enumerate(zip(all_, want[suffix], strict=True)):
            worst = int((a.double() - b).abs().nan_to_num(math.inf).argmax()) if b.numel() else 0
            values = f"{a.flatten()[worst : worst + 1].tolist()}, not {b.flatten()[worst : worst + 1].tolist()}"
            where = f"at {worst} of number {k} in {case}"
            assert a.shape == b.shape and close(a, b, case.rounding), f"{case.loss}{suffix} is {values}, {where}"


# ---- cases --------------------------------------------------------------------------------------------------------


def vectors(count: int, dtype: torch.dtype = torch.float32, length: int = 3) -> Tensor:
    return torch.randn(count, length).to(dtype)


def number(x: float, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.full((), x, dtype=dtype)


def all_types() -> Iterator[Case]:
    """Every loss with every operand that it may have; 16 bytes hold whole rows, or not."""
    for (k, dtype), count in itertools.product(enumerate(TOLERANCE), (12, 13)):
        a, b, c = (vectors(count, dtype) for _ in range(3))
        scale, bias = number(1.25, dtype), number(-0.5, dtype)
        reduction = (NONE, MEAN, SUM)[(k + count) % 3]
        labels = torch.randint(-2, 3, (count,)) * 2**40
        labels[:2] = torch.tensor([7, -7])  # alone
        yield Case("info_nce_loss", [a, b, None, scale, bias], reduction=reduction)
        yield Case("info_nce_loss", [a, b[:-3], c, scale], reduction=reduction)
        yield Case("clip_loss", [a, b, None, scale], symmetric=True, reduction=reduction)
        yield Case("siglip_loss", [a, b, None, scale, bias], bias=-1.0, reduction=reduction)
        yield Case("supervised_contrastive_loss", [a, None, None, scale], labels, reduction=reduction)


def widths() -> Iterator[Case]:
    """Rows about as long as what threads, warps and a block take at once; the right column is anywhere."""
    for k, columns in enumerate((1, 2, 3, 5, 8, 31, 32, 33, 255, 257, 1023, 1024, 1029)):
        a, b = vectors(1 + k % 3, (torch.float32, torch.float64)[k % 2]), vectors(columns)
        b = b.to(a.dtype)
        a = a[:columns]
        offset = (columns - len(a)) * (k % 3) // 2
        scale = number(1.5, a.dtype)
        yield Case("info_nce_loss", [a, b, None, scale], offset=offset)
        yield Case("siglip_loss", [a, b, None, scale, number(0.5, a.dtype)], offset=offset)
        yield Case("info_nce_loss", [a, b, vectors(len(a), a.dtype)])


def long_rows() -> Iterator[Case]:
    """A thread has more than it adds in float."""
    for columns in (33000, 33001):
        yield Case("info_nce_loss", [vectors(2), vectors(columns)], offset=columns - 2)
    yield Case("siglip_loss", [vectors(2), vectors(33001), None, number(0.5)], offset=5)


def tiles() -> Iterator[Case]:
    """More rows than a tile has, the last of which has few; what columns sum up is scaled when a larger logit comes."""
    count = 1030
    a, b = vectors(count), vectors(count)
    a[1024:] *= 3
    yield Case("clip_loss", [a, b, None, number(1.5)], symmetric=True, once=True)


def labelled() -> Iterator[Case]:
    for labels in ([5], [4, 4], [1, 2, 3, 4], [0] * 7, [1, 2, 1, 2, 1, 9, 2, 2], [3] * 33 + [8]):
        given = torch.tensor(labels)
        for dtype, reduction in ((torch.float32, NONE), (torch.float64, MEAN)):
            yield Case("supervised_contrastive_loss", [vectors(len(labels), dtype)], given, reduction=reduction)


def far_apart() -> Iterator[Case]:
    """Logits whose exponentials no number holds. They are whole numbers, which products in float give exactly."""
    for dtype in (torch.float32, torch.float64):
        a, b, c = (torch.randint(-9, 9, (13, 4)).to(dtype) for _ in range(3))
        labels = torch.arange(13) % 4
        scale = number(4.0, dtype)
        yield Case("info_nce_loss", [a, b], scale=8.0, rounding=100)
        yield Case("info_nce_loss", [a, b, c], scale=8.0, rounding=100)
        yield Case("clip_loss", [a, b, None, scale], symmetric=True, rounding=100)
        yield Case("siglip_loss", [a, b, None, scale], bias=-16.0, rounding=100)
        yield Case("supervised_contrastive_loss", [a], labels, scale=8.0, rounding=100)
    short = vectors(8)
    long = short.clone()
    long[3] *= 1e20  # its product with itself is infinite, and is no logit
    yield Case("supervised_contrastive_loss", [long], labels[:8], scale=1e-19)


def spoilt() -> Iterator[Case]:
    """A row that is NaN stands beside good ones, which do not notice."""
    for dtype in (torch.float32, torch.float64):
        a, b = vectors(7, dtype), vectors(8, dtype)
        a[3, 1] = math.nan
        yield Case("info_nce_loss", [a, b])
        yield Case("info_nce_loss", [a, b[:4], b[:7]])


def no_columns() -> Iterator[Case]:
    """Only what belongs to a row: the loss is 0."""
    yield Case("info_nce_loss", [vectors(3), vectors(0), vectors(3)])


CASES: tuple[Callable[[], Iterator[Case]], ...] = (
    all_types,
    widths,
    long_rows,
    tiles,
    labelled,
    far_apart,
    spoilt,
    no_columns,
)


# ---- what no formula says -----------------------------------------------------------------------------------------


def check_empty() -> None:
    """No rows."""
    a = vectors(0)
    for loss, labels in (("info_nce_loss", None), ("supervised_contrastive_loss", torch.empty(0, dtype=torch.int64))):
        case = Case(loss, [a, None if labels is not None else a], labels, reduction=SUM)
        value, (gradient, *_) = getattr(torch.ops.fusedloss, loss + "_value_and_gradient")(case.mask, *case.arguments)
        assert value.item() == 0 and gradient.shape == a.shape, (value, gradient)


def check_left_out() -> None:
    """Vectors that are alone with their label have no loss, whatever the others' logits are."""
    x = vectors(6)
    x[5] = math.inf
    labels = torch.tensor([1, 2, 3, 4, 5, 6])
    case = Case("supervised_contrastive_loss", [x], labels)
    value, (gradient,) = torch.ops.fusedloss.supervised_contrastive_loss_value_and_gradient(case.mask, *case.arguments)
    assert value.tolist() == [0] * 6, value
    assert gradient[:5].nan_to_num(0).abs().max() == 0, gradient


def main(path: str) -> None:
    emulator = load(path)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    cases = [case for family in CASES for case in family()]
    first: list[Results] = []
    for order in ORDERS:
        emulator.set_order(order)
        for k, case in enumerate(cases):
            if case.once and order != ORDERS[0]:
                continue
            got = computed(emulator, case)
            if order == ORDERS[0]:
                first.append(got)
                apart, want = computed_apart(emulator, case), expected(case)
                check(case, got, want)
                check(case, apart, want)
                assert same(apart[""][0], got[""][0]), f"with gradients the value is {got['']}, in {case}"
            for suffix, results in got.items():
                alike = all(same(x, y) for x, y in zip(results, first[k][suffix], strict=True))
                assert alike, f"{case.loss}{suffix} depends on the order of threads, in {case}"
        check_empty()
        check_left_out()
    print(f"{Path(path).name}: pairs as expected; {emulator.statistics()}")


if __name__ == "__main__":
    main(sys.argv[1])
