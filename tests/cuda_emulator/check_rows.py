"""Holds the emulated CUDA kernels of three losses over rows against torch's float64 formulas, as check_kernels.py does
for pointwise ones; `mutants.py` runs both.

    python tests/cuda_emulator/check_rows.py PATH_TO_EMU
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from check_kernels import ORDERS, TOLERANCE, close, load

Tensor = torch.Tensor
NONE, MEAN, SUM, BATCHMEAN, MEAN_OR_ZERO = 0, 1, 2, 3, 5
IGNORED = -100
# Rows and classes: around the limits at which a row is a thread's, a warp's or a block's, the packs of 4 and 8 classes,
# the chunks of 64 a thread, and the emulated grid of 1024 threads.
SHAPES = ((1, 1), (1100, 3), (5, 32), (70, 33), (33, 64), (3, 100), (35, 1024), (9, 1025), (2, 1500), (1, 17000))


@dataclass(frozen=True)
class Loss:
    """`formula(input, target, weight)` gives each row's value; classes are last, weight is that of every class."""

    name: str
    dense: bool
    parameters: tuple[float, ...]
    formula: Callable[[Tensor, Tensor, Tensor], Tensor]
    weighted_mean: bool = False


def nll(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    return -weight[y] * x.gather(-1, y[..., None])[..., 0]


def margins(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    excess = (0.75 - x.gather(-1, y[..., None]) + x).clamp(min=0)
    others = torch.ones_like(x).scatter(-1, y[..., None], 0)
    return weight[y] * (others * excess**2).sum(-1) / x.shape[-1]


def divergence(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    del weight
    p, q = (a / 2).log_softmax(-1), (b / 2).log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


LOSSES = (
    Loss("nll_loss", dense=False, parameters=(), formula=nll, weighted_mean=True),
    Loss("multi_margin_loss", dense=False, parameters=(2.0, 0.75), formula=margins),
    Loss("kl_divergence_with_logits", dense=True, parameters=(2.0,), formula=divergence),
)


@dataclass
class Case:
    loss: Loss
    input: Tensor
    target: Tensor
    weight: Tensor | None = None
    sample_weight: Tensor | None = None
    axis: int = -1
    reduction: int = MEAN
    shape: torch.Size = field(init=False)  # of the rows

    def __post_init__(self) -> None:
        self.shape = self.input.movedim(self.axis, -1).shape[:-1]

    def __str__(self) -> str:
        given = (self.input, self.target, self.weight, self.sample_weight)
        tensors = [f"{x.dtype} {tuple(x.shape)} by {x.stride()}" for x in given if x is not None]
        return f"{self.loss.name} axis {self.axis} reduction {self.reduction}: {', '.join(tensors)}"

    @property
    def operands(self) -> list[Tensor]:
        return [self.input, self.target] if self.loss.dense else [self.input]

    @property
    def mask(self) -> list[bool]:
        return [True, self.loss.dense]

    @property
    def arguments(self) -> tuple[object, ...]:
        given = (self.input, self.target, self.weight, self.sample_weight)
        return (*given, list(self.loss.parameters), self.axis, IGNORED, self.reduction)

    def op(self, suffix: str = "") -> Callable[..., object]:
        return getattr(torch.ops.fusedloss, self.loss.name + suffix)


# ---- the oracle ---------------------------------------------------------------------------------------------------


def weights_of(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """What multiplies the rows, which of them count, and what each is for a mean."""
    rows = torch.ones(case.shape, dtype=torch.float64)
    of_rows = rows if case.sample_weight is None else case.sample_weight.double().expand(case.shape)
    labelled = rows > 0 if case.loss.dense else case.target != IGNORED
    counts = labelled & (of_rows != 0)
    if not case.loss.weighted_mean:
        return of_rows, counts, labelled.double()
    label = torch.where(labelled, case.target, 0).long()
    of_mean = of_rows if case.weight is None else of_rows * case.weight.double()[label]
    return of_rows, counts, torch.where(counts, of_mean, 0)


def reduced(case: Case, each: Tensor) -> Tensor:
    of_rows, counts, of_mean = weights_of(case)
    each = torch.where(counts, each * of_rows, 0)
    if case.reduction == NONE:
        return each
    if case.reduction == SUM:
        return each.sum()
    total = of_mean.sum()
    return each.sum() / (total if total != 0 or case.reduction != MEAN_OR_ZERO else 1)


def by_rows(case: Case, leaves: list[Tensor]) -> Tensor:
    classes = case.input.shape[case.axis]
    weight = torch.ones(classes, dtype=torch.float64) if case.weight is None else case.weight.double()
    first, *others = (x.movedim(case.axis, -1) for x in leaves)
    target = others[0] if others else torch.where(case.target == IGNORED, 0, case.target).long()
    return case.loss.formula(first, target, weight)


def expected(case: Case, grad_output: Tensor, tangents: list[Tensor]) -> dict[str, list[Tensor]]:
    leaves = [x.double().requires_grad_() for x in case.operands]
    each = by_rows(case, leaves)
    slopes = torch.autograd.grad(each.sum(), leaves, create_graph=True)
    along = sum((s * t.double()).sum(case.axis) for s, t in zip(slopes, tangents, strict=True))
    value, jvp, factor = reduced(case, each), reduced(case, along), grad_output.double()

    def gradients(of: Tensor) -> list[Tensor]:
        found = torch.autograd.grad(of.sum(), leaves, retain_graph=True, materialize_grads=True, allow_unused=True)
        return list(found)

    return {
        "value": [value.detach()],
        "value with gradients": [value.detach()],
        "unit": gradients(value),
        "backward": gradients(value * factor),
        "jvp": [jvp.detach()],
        "hvp": gradients(jvp * factor) if jvp.requires_grad else [torch.zeros_like(x) for x in leaves],
    }


def computed(case: Case, grad_output: Tensor, tangents: list[Tensor]) -> dict[str, list[Tensor]]:
    count = len(case.operands)
    padded = [*tangents, *[None] * (2 - count)]
    value, unit = case.op("_value_and_gradient")(case.mask, *case.arguments)
    return {
        "value": [case.op()(*case.arguments)],
        "value with gradients": [value],
        "unit": unit,
        "backward": list(case.op("_backward")(grad_output, case.mask, *case.arguments))[:count],
        "jvp": [case.op("_jvp")(*padded, *case.arguments)],
        "hvp": list(case.op("_hvp")(grad_output, *padded, case.mask, *case.arguments))[:count],
    }


def check(case: Case) -> None:
    like = {"dtype": case.input.dtype}
    grad_output = torch.full((), -1.75, **like) if case.reduction else torch.rand(case.shape, **like) + 0.5
    tangents = [torch.rand_like(x) - 0.5 for x in case.operands]
    want = expected(case, grad_output, tangents)
    for name, all_of in computed(case, grad_output, tangents).items():
        for k, (a, b) in enumerate(zip(all_of, want[name], strict=True)):
            first = f"{a.flatten()[:4].tolist()}, not {b.flatten()[:4].tolist()}"
            assert close(a, b, 0.0 if name in ("unit", "backward", "hvp") else 0.5), (
                f"{name}[{k}] is {first}, in {case}"
            )


# ---- cases --------------------------------------------------------------------------------------------------------


def logits(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(shape) * 2).to(dtype)


def target_like(loss: Loss, x: Tensor, axis: int = -1) -> Tensor:
    """In the memory layout of x where it is dense."""
    if loss.dense:
        return torch.empty_like(x).copy_(torch.randn(x.shape) * 2)
    return torch.randint(0, x.shape[axis], x.movedim(axis, -1).shape[:-1])


def some_left_out(case: Case) -> Case:
    """Labels to be ignored, rows of weight 0, weights of classes."""
    rows = torch.arange(math.prod(case.shape)).reshape(case.shape)
    case.sample_weight = (rows % 5).to(case.input.dtype) / 2
    if not case.loss.dense:
        case.target = torch.where(rows % 3 == 1, IGNORED, case.target)
        case.weight = torch.rand(case.input.shape[case.axis], dtype=torch.float64) + 0.5
    return case


def plain(loss: Loss) -> Iterator[Case]:
    for dtype, (rows, classes) in itertools.product(TOLERANCE, SHAPES):
        if rows * classes > 20000 and dtype != torch.float32:
            continue
        x = logits(rows, classes, dtype=dtype)
        yield Case(loss, x, target_like(loss, x), reduction=(SUM, MEAN, NONE)[(rows + classes) % 3])


def left_out(loss: Loss) -> Iterator[Case]:
    for (rows, classes), reduction in itertools.product(
        ((40, 3), (34, 40), (7, 1030)), (NONE, MEAN, SUM, BATCHMEAN, MEAN_OR_ZERO)
    ):
        x = logits(rows, classes)
        if reduction == BATCHMEAN and loss.name != "kl_divergence_with_logits":
            continue
        yield some_left_out(Case(loss, x, target_like(loss, x), reduction=reduction))


def layouts(loss: Loss) -> Iterator[Case]:
    for dtype in TOLERANCE:
        inputs = [
            (logits(4, 5, 3, 2, dtype=dtype), 1),
            (logits(3, 7, 9, 40, dtype=dtype).permute(0, 3, 1, 2), 1),  # channels last
            (logits(40, 12, dtype=dtype).T, -1),
            (logits(12, 90, dtype=dtype)[::2, 5:75], -1),
            (logits(9, 101, dtype=dtype)[:, 1:], -1),  # another alignment at every row
            (logits(45, dtype=dtype), 0),
            (logits(*[2, 1, 3, 2] * 3, dtype=dtype).permute(*range(11, -1, -1)), 5),
        ]
        for x, axis in inputs:
            yield some_left_out(Case(loss, x, target_like(loss, x, axis), axis=axis, reduction=(MEAN, NONE)[axis % 2]))
    if loss.dense:
        for dtype in TOLERANCE:  # of another type, or apart by another stride or alignment
            yield Case(loss, logits(6, 80), logits(6, 80, dtype=dtype))
            yield Case(loss, logits(6, 80, dtype=dtype), logits(6, 88, dtype=dtype)[:, :80])
            yield Case(loss, logits(6, 80, dtype=dtype), logits(481, dtype=dtype)[1:].view(6, 80))


# ---- what no formula says -----------------------------------------------------------------------------------------


def check_empty() -> None:
    for loss in LOSSES:
        x = logits(0, 3)
        for reduction, value in ((SUM, 0.0), (MEAN, math.nan), (MEAN_OR_ZERO, 0.0)):
            got = Case(loss, x, target_like(loss, x), reduction=reduction)
            assert str(got.op()(*got.arguments).item()) == str(value), (loss.name, reduction)


def check_nothing_counts() -> None:
    """0 / 0, or 0 where that is asked for; the gradients are 0 also where the logits are NaN."""
    for classes in (3, 40, 1030):
        x, weight = torch.full((9, classes), math.nan), torch.arange(9) % 2.0
        for reduction, value in ((MEAN, math.nan), (MEAN_OR_ZERO, 0.0), (SUM, 0.0)):
            y = torch.where(weight == 0, 1, IGNORED)
            case = Case(LOSSES[0], x, y, sample_weight=weight, reduction=reduction)
            got, (slope,) = case.op("_value_and_gradient")(case.mask, *case.arguments)
            assert str(got.item()) == str(value)
            assert not slope.any()


def check_labels_out_of_range(module: object) -> None:
    """Their rows are NaN, all others are as they would be, and the first is named."""
    module.check_targets()
    for classes, label in itertools.product((3, 40, 1030), (-1, 2**31, -(2**40))):
        rows = 1100 if classes == 3 else 6
        bad = rows - 3
        x, y = logits(rows, classes), torch.arange(rows) % 3
        y[bad] = label
        case = Case(LOSSES[1], x, y, reduction=NONE)
        value, (slope,) = case.op("_value_and_gradient")(case.mask, *case.arguments)
        assert value.isnan().nonzero().flatten().tolist() == [bad], value
        assert slope.isnan().all(-1).nonzero().flatten().tolist() == [bad]
        assert slope.isnan().any(-1).nonzero().flatten().tolist() == [bad]
        try:
            module.check_targets()
        except IndexError as error:
            assert f"from 0 to {classes - 1}" in str(error) and f"got {label} at row {bad} " in str(error), error
        else:
            raise AssertionError("no label is named")
        module.check_targets()


def check_far_apart() -> None:
    """Offsets beyond 2^31 elements; of the memory between them no page is touched."""
    far = 2**30 + 5
    for strides in ((far, 1), (1, far)):
        x = torch.empty(2 * far + 40, dtype=torch.bfloat16).as_strided((3, 3), strides)
        x.copy_(torch.arange(9).view(3, 3))
        value = torch.ops.fusedloss.nll_loss(x, torch.tensor([2, 0, 2]), None, None, [], 1, IGNORED, NONE)
        assert value.tolist() == [-2, -3, -8], value


def check_long_sum() -> None:
    """Sums of many equal terms do not drift."""
    x = torch.zeros(1, 300000)
    (value,) = torch.ops.fusedloss.multi_margin_loss(x, torch.tensor([5]), None, None, [1.0, 0.3], 1, IGNORED, NONE)
    assert abs(value.item() / (torch.tensor(0.3).item() * (1 - 1 / 300000)) - 1) < 3e-7, value


def check_some_gradients() -> None:
    """Only those that the mask asks for are written."""
    a, b = logits(6, 80), logits(6, 80)
    want = expected(Case(LOSSES[2], a, b, reduction=SUM), torch.ones(()), [a, b])["unit"]
    for mask in ([True, False], [False, True]):
        case = Case(LOSSES[2], a, b, reduction=SUM)
        made = case.op("_backward")(torch.ones(()), mask, *case.arguments)
        assert [m.numel() > 0 for m in made] == mask
        assert close(made[mask.index(True)], want[mask.index(True)])


def main(path: str) -> None:
    emulator = load(path)
    torch.set_num_threads(1)
    for order in ORDERS:
        torch.manual_seed(order)
        emulator.set_order(order)
        for loss, family in itertools.product(LOSSES, (plain, left_out, layouts)):
            for case in family(loss):
                check(case)
        check_empty()
        check_nothing_counts()
        check_labels_out_of_range(emulator)
        check_far_apart()
        check_long_sum()
        check_some_gradients()
    print(f"{Path(path).name}: rows as expected; {emulator.statistics()}")


if __name__ == "__main__":
    main(sys.argv[1])
