"""Every loss over rows, and its gradients, against the oracle by the rule of fusedloss.testing.judge: the error is at
most twice torch's own, plus a few units in the last place of the result."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fusedloss.functional as L
from fusedloss.testing.cases import DTYPES, LAYOUTS, RANGES, channels_last, offset, stepped, transposed
from fusedloss.testing.catalogue import Sampler, normal
from fusedloss.testing.judge import compare, numbers
from fusedloss.testing.row_cases import CLASSES, LENGTHS, ROWS, SHAPE, RowCall, all_laid_out, of_axes
from fusedloss.testing.row_catalogue import (
    ROW_LOSSES,
    RowLoss,
    distribution,
    labels,
    labels_or_none,
    logits,
    of_classes,
    of_each_row,
    scores,
)

pytestmark = pytest.mark.core

EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)
EACH_LOSS = pytest.mark.parametrize("loss", [pytest.param(loss, id=loss.id) for loss in ROW_LOSSES])
WITH_LABELS = [loss for loss in ROW_LOSSES if loss.samplers.get("target") in (labels, labels_or_none)]
# Where -inf is a class that cannot be.
FROM_LOGITS = [
    loss
    for loss in ROW_LOSSES
    if (loss.parameters.get("from_logits") or loss.name in ("cross_entropy", "softmax_focal_loss"))
    and not {"label_smoothing", "softcap", "ignore_index"} & set(loss.parameters)
    and "temperature" not in loss.keyword_operands
]


# ---- shapes, dtypes, reductions, weights ---------------------------------------------------------------------------


@EACH_DTYPE
@EACH_LOSS
def test_reductions_and_weights(loss: RowLoss, dtype: torch.dtype) -> None:
    given = loss.given((ROWS, CLASSES), dtype)
    for reduction in loss.reductions:
        RowCall(loss, given, reduction).judge()
        RowCall(loss, given, reduction, factor=-0.37).judge()
        if loss.learned:
            RowCall(loss, given, reduction, free=(*loss.differentiable, *loss.learned)).judge()
        if reduction == "mean" and len(loss.differentiable) > 1:
            for operand in loss.differentiable:
                RowCall(loss, given, reduction, free=(operand,)).judge()


WITH_ALL = next(loss for loss in ROW_LOSSES if loss.id == "cross_entropy[z_loss, softcap]")
SOFT = {"input": logits, "target": distribution}
TARGETS: list[tuple[dict[str, Sampler], dict[str, Any]]] = [
    ({"input": logits, "target": labels}, {}),
    ({"input": logits, "target": labels_or_none}, {}),
    (SOFT, {}),
    (SOFT, {"ignore_index": 2}),
]


@pytest.mark.parametrize("shape", [(11, 5), (3, 300)], ids=str)  # rows in lanes, and along
@pytest.mark.parametrize("target", range(len(TARGETS)))
def test_cross_entropy_in_all_its_combinations(target: int, shape: tuple[int, int]) -> None:
    samplers, ignored = TARGETS[target]
    differentiable = ("input",) if target < 2 else ("input", "target")
    weights: list[dict[str, Sampler]] = [{}, {"weight": of_classes}]
    row_weights: list[dict[str, Sampler]] = [{}, {"sample_weight": of_each_row}]
    for k, (of_class, of_row, smoothing, z_loss, softcap) in enumerate(
        product(weights, row_weights, (0.0, 0.2), (0.0, 0.05), (None, 3.0))
    ):
        parameters = {"label_smoothing": smoothing, "z_loss": z_loss, **({"softcap": softcap} if softcap else {})}
        loss = replace(
            WITH_ALL,
            samplers=samplers,
            keyword_operands=of_class | of_row,
            parameters=parameters | ignored,
            differentiable=differentiable,
        )
        given = loss.given(shape, torch.float32, seed=k)
        reduction = loss.reductions[(k + target) % len(loss.reductions)]
        RowCall(loss, given, reduction).judge()
        if shape[1] < 10:
            RowCall(loss, given, reduction, second=True).judge()  # (of long rows in test_rows_gradients.py)


LENGTHS_IN = {torch.float64: LENGTHS[:-1], torch.float32: LENGTHS, torch.bfloat16: LENGTHS[::3]}


@pytest.mark.parametrize("dtype", LENGTHS_IN, ids=str)
@EACH_LOSS
def test_row_lengths(loss: RowLoss, dtype: torch.dtype) -> None:
    """Around registers and tiles, up to a vocabulary; of a few rows, or of as many as make some tiles."""
    for classes in LENGTHS_IN[dtype]:
        given = loss.given((max(2 if classes > 4096 else 5, 400 // classes), classes), dtype, seed=classes)
        RowCall(loss, given, "sum" if classes % 2 else "none").judge()


@pytest.mark.parametrize(("rows", "classes"), [*product([1, 2, 7, 8, 9, 31, 33], [2, 21]), (9001, 2)])
@EACH_LOSS
def test_numbers_of_rows(loss: RowLoss, rows: int, classes: int) -> None:
    """Around registers with a row in each lane, and over several blocks of rows."""
    RowCall(loss, loss.given((rows, classes), torch.float32, seed=rows), "none" if rows < 9 else "mean").judge()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("axes", [(0, 1, 2, 3), (0, 2, 3, 1), (1, 0, 2, 3), (3, 0, 2, 1)], ids=str)
@pytest.mark.parametrize(
    "shape",
    [
        *[(2500, 2, 1, 1), (700, 100, 1, 1), (2, 3, 40, 41), (3, 5, 1, 1)],
        pytest.param((17000, 1000, 1, 1), marks=pytest.mark.host),  # caches are a matter of the CPU
    ],
)
def test_slopes_at_the_labels_alone(shape: tuple[int, ...], axes: tuple[int, ...], dtype: torch.dtype) -> None:
    """Of more rows than are taken at once, and of zeros enough to go past the caches; `axes` is the order in memory."""
    if math.prod(shape) > 1e6 and (dtype != torch.float32 or axes[0] != 0):
        pytest.skip("tested in one dtype and two layouts")
    generator = torch.Generator().manual_seed(3)
    memory = torch.randn([shape[d] for d in axes], generator=generator).to(dtype)
    x = memory.permute([axes.index(d) for d in range(4)]).requires_grad_()
    labels = torch.randint(0, shape[1], [shape[0], *shape[2:]], generator=generator)
    weight = torch.rand(shape[1], generator=generator).to(dtype)
    for reduction in ("mean", "none"):
        incoming = 0.3 if reduction == "mean" else torch.rand(labels.shape, generator=generator).to(dtype)
        keywords = {"ignore_index": 1, "reduction": reduction}
        (ours,) = torch.autograd.grad((L.nll_loss(x, labels, weight, **keywords) * incoming).sum(), x)
        dense = x.detach().contiguous().requires_grad_()  # torch takes no other
        (theirs,) = torch.autograd.grad((F.nll_loss(dense, labels, weight, **keywords) * incoming).sum(), dense)
        assert ours.stride() == x.stride()
        torch.testing.assert_close(ours, theirs, rtol=4 * torch.finfo(dtype).eps, atol=0)
        assert torch.equal(ours == 0, theirs == 0)


@EACH_DTYPE
@EACH_LOSS
def test_a_single_row_has_no_other_axis(loss: RowLoss, dtype: torch.dtype) -> None:
    if "axis" in loss.parameters:
        pytest.skip("has its classes along another axis")
    for reduction in loss.reductions:
        one = RowCall(loss, loss.given((CLASSES,), dtype, seed=1), reduction)
        one.judge()
        assert one.ours()[0].shape == ()


@EACH_DTYPE
@EACH_LOSS
def test_no_rows(loss: RowLoss, dtype: torch.dtype) -> None:
    """A sum of nothing is 0, a mean what the oracle says, a gradient as empty as the operand."""
    for shape in [(0, 3), (0, 3, 3)][: 2 if loss.most_axes > 2 else 1]:
        for reduction in loss.reductions:
            call = RowCall(loss, loss.given(shape, dtype), reduction)
            value, gradients = call.ours()
            exact = call.exact(value)[0].value
            assert np.array_equal(numbers(value, exact.dtype), exact, equal_nan=True), (shape, reduction)
            for name in loss.differentiable:
                assert gradients[name].shape == shape


@pytest.mark.parametrize("label_dtype", [torch.int8, torch.int16, torch.int32, torch.uint8], ids=str)
@pytest.mark.parametrize("loss", [pytest.param(loss, id=loss.id) for loss in WITH_LABELS])
def test_labels_of_any_integer_type(loss: RowLoss, label_dtype: torch.dtype) -> None:
    """The same bits, whatever integers say which class is meant."""
    if label_dtype == torch.uint8 and loss.samplers["target"] is labels_or_none:
        pytest.skip("ignores -100, which uint8 has not")
    for shape in [(ROWS, CLASSES), (100,), of_axes(loss, SHAPE)]:
        given = loss.given(shape, torch.float32)
        narrow = given | {"target": given["target"].to(label_dtype)}
        for reduction in loss.reductions:
            one, other = RowCall(loss, given, reduction).ours(), RowCall(loss, narrow, reduction).ours()
            assert torch.equal(one[0], other[0])
            assert torch.equal(one[1]["input"], other[1]["input"])


MIXED = [(torch.float32, torch.float64), (torch.float64, torch.float32), (torch.bfloat16, torch.float32),
         (torch.float32, torch.float16), (torch.bfloat16, torch.float16)]  # fmt: skip


@pytest.mark.parametrize("dtypes", MIXED, ids=str)
@EACH_LOSS
def test_mixed_dtypes(loss: RowLoss, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    """Two distributions promote; weights have no say in the dtype of the result."""
    if "temperature" in loss.keyword_operands:
        pytest.skip("a tensor divides the logits in a pass of its own")
    given = loss.given((ROWS, CLASSES))
    first, second = list(given)[:2]
    mixed = {k: x.to(dtypes[k != first]) if x.is_floating_point() else x for k, x in given.items()}
    expected = torch.promote_types(*dtypes) if given[second].is_floating_point() else dtypes[0]
    for reduction in loss.reductions:
        call = RowCall(loss, mixed, reduction)
        assert call.ours()[0].dtype == expected
        if not (expected != torch.float64 and call.double):  # a wider weight does not make the arithmetic wider
            call.judge()


@pytest.mark.parametrize("factor", [2.0**15, 2.0**-10])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@EACH_LOSS
def test_a_scaled_loss(loss: RowLoss, dtype: torch.dtype, factor: float) -> None:
    """A gradient is scaled before it is rounded: loss scaling keeps small ones, and none overflows on the way."""
    given = loss.given((300, 33), dtype, seed=47)
    RowCall(loss, given, "mean" if factor > 1 else "sum", factor=factor).judge()


@pytest.mark.host  # on CUDA 16 bytes are twice as many halves, which are added in another order
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@EACH_LOSS
def test_half_types_are_rounded_once(loss: RowLoss, dtype: torch.dtype) -> None:
    """The same bits as computing on a float32 copy and rounding its result."""
    for shape in [(75, 29), (5, 3000)]:
        given = loss.given(shape, dtype, seed=37)
        wide = {k: x.float() if x.is_floating_point() else x for k, x in given.items()}
        if "temperature" in given:
            continue  # a tensor divides before the op, and rounds
        for reduction in loss.reductions:
            half, full = RowCall(loss, given, reduction).ours(), RowCall(loss, wide, reduction).ours()
            assert torch.equal(half[0], full[0].to(dtype)), reduction
            if reduction != "none":  # there the incoming gradient is rounded to the dtype of the result
                for name, gradient in half[1].items():
                    assert torch.equal(gradient, full[1][name].to(dtype)), (reduction, name)


# ---- layouts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@EACH_LOSS
def test_layouts(loss: RowLoss, dtype: torch.dtype) -> None:
    """In every memory layout of every operand: all alike, and each alone."""
    given = loss.given(of_axes(loss, SHAPE), dtype, seed=11)
    straight = {reduction: RowCall(loss, given, reduction) for reduction in ("none", "sum")}
    for layout in LAYOUTS[1:]:
        for which, reduction in [("all", "sum"), *((name, "none") for name in given)]:
            moved = all_laid_out(given, layout, which)
            same = all(torch.equal(x, given[k]) for k, x in moved.items())
            RowCall(loss, moved, reduction, same_as=straight[reduction] if same else None).judge()


@pytest.mark.host  # on CUDA a row in packs is added in another order
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_where_short_rows_lie_changes_no_bit(dtype: torch.dtype) -> None:
    """Lengths around those of registers, of which rows are taken in squares."""
    generator = torch.Generator().manual_seed(0)
    for rows, classes in product([15, 16, 17, 35], range(1, 40)):
        wide = normal((rows, classes + 3), generator).to(dtype)
        target = torch.arange(rows) % classes
        found = []
        for x in (wide[:, 1:-2].contiguous(), wide[:, 1:-2], wide.T.contiguous().T[:, 1:-2]):
            leaf = x.detach().requires_grad_()
            values = L.cross_entropy(leaf, target, reduction="none")
            (gradient,) = torch.autograd.grad(L.cross_entropy(leaf, target, reduction="sum"), leaf)
            found.append(torch.cat([values[:, None], gradient], dim=1))
        assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2]), (rows, classes)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
@EACH_LOSS
def test_gradient_comes_in_any_layout(loss: RowLoss, dtype: torch.dtype) -> None:
    given = loss.given(of_axes(loss, SHAPE), dtype, seed=13)
    leaves = {k: x.requires_grad_(k in loss.differentiable) for k, x in given.items()}
    operands, keywords = loss.split(leaves)
    result = loss(*operands, **keywords, reduction="none")
    free = [leaves[k] for k in loss.differentiable]
    grad = normal(tuple(result.shape), torch.Generator().manual_seed(14)).to(dtype)
    straight = torch.autograd.grad(result, free, grad, retain_graph=True)
    layouts = [*([transposed] if grad.dim() > 1 else []), stepped, offset]
    for layout in layouts:
        for a, b in zip(straight, torch.autograd.grad(result, free, layout(grad), retain_graph=True), strict=True):
            assert torch.equal(a, b), layout.__name__
    spread = grad.flatten()[:1].expand(grad.numel()).view(grad.shape)
    for a, b in zip(
        torch.autograd.grad(result, free, spread, retain_graph=True),
        torch.autograd.grad(result, free, spread.contiguous()),
        strict=True,
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("loss", [pytest.param(loss, id=loss.id) for loss in ROW_LOSSES if loss.most_axes > 2])
def test_the_gradient_lies_in_memory_as_the_input_does(loss: RowLoss) -> None:
    given = {k: channels_last(x) if x.dim() == 4 else x for k, x in loss.given(SHAPE, torch.float32).items()}
    for name, gradient in RowCall(loss, given, "sum").ours()[1].items():
        assert gradient.stride() == given[name].stride()


# ---- ranges --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(RANGES))
@EACH_DTYPE
@EACH_LOSS
def test_ranges(loss: RowLoss, dtype: torch.dtype, name: str) -> None:
    given = loss.given((21, 35), dtype, seed=17, scale=RANGES[name][dtype])
    given = {k: x.nan_to_num() if x.is_floating_point() else x for k, x in given.items()}  # infinite by rounding
    if name == "subnormal" and loss.samplers.get("input") is scores:
        verdict = next(RowCall(loss, given, "none").verdicts())  # a derivative by them is beyond the range
        assert verdict.wrong is None, verdict.wrong
        return
    RowCall(loss, given, "none").judge()
    if name in ("large", "huge"):
        RowCall(loss, given, "mean").judge()


@pytest.mark.parametrize("value", [0.0, -3.0, 1e4])
@EACH_DTYPE
@EACH_LOSS
def test_equal_logits(loss: RowLoss, dtype: torch.dtype, value: float) -> None:
    given = loss.given((5, 21), dtype, seed=19)
    for name, sampler in loss.samplers.items():
        if sampler is logits:
            given[name] = torch.full_like(given[name], value)
        elif sampler is distribution:
            given[name] = torch.full_like(given[name], 1 / 21)
    RowCall(loss, given, "none").judge()


@EACH_DTYPE
@pytest.mark.parametrize("loss", [pytest.param(loss, id=loss.id) for loss in FROM_LOGITS])
def test_classes_that_cannot_be(loss: RowLoss, dtype: torch.dtype) -> None:
    """Logits of -inf: the loss is that of the other classes alone, and their gradient exactly 0."""
    rows, all_classes, classes = 40, 33, 20
    generator = torch.Generator().manual_seed(0)
    place = torch.rand(rows, all_classes, generator=generator).argsort(1)[:, :classes]
    few = {k: x for k, x in loss.given((rows, classes), dtype).items() if x.dim() != 1 or len(x) == rows}
    many = dict(few)
    for name, sampler in loss.samplers.items():
        if few[name].is_floating_point():
            absent = -math.inf if sampler is logits else 0.0
            many[name] = torch.full((rows, all_classes), absent, dtype=dtype).scatter(1, place, few[name])
        else:
            label = place.gather(1, few[name].clamp(min=0)[:, None])[:, 0]
            many[name] = torch.where(few[name] < 0, few[name], label)
    free = [k for k in loss.differentiable if loss.samplers[k] is logits]
    for reduction in loss.reductions:
        call = RowCall(loss, many, reduction, free=free)
        value, gradients = call.ours()
        exact, slopes = call.exact(value)
        theirs, their_gradients = RowCall(loss, few, reduction, free=free).torchs(value)
        verdicts = [compare("value", value, theirs, exact)]
        for name, gradient in gradients.items():
            full = torch.zeros_like(many[name]).scatter(1, place, their_gradients[name])
            verdicts.append(compare(f"d/d{name}", gradient, full, slopes[name]))
            assert not gradient[many[name].isinf()].any()
        assert [v.wrong for v in verdicts if v.wrong] == []


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_infinite_logits_are_those_of_torch(dtype: torch.dtype) -> None:
    """An impossible class that is true has an infinite loss; +inf, or -inf alone, is no distribution."""
    inf, nan = math.inf, math.nan
    x = torch.tensor([[-inf, 1, 2], [0, -inf, -inf], [inf, 0, 1], [-inf, -inf, -inf], [1, nan, 0], [inf, inf, 0]])
    for repeats in (1, 30):  # in a register of classes, and in a lane
        wide = x.to(dtype).repeat(1, repeats)
        for label in range(3):
            y = torch.full((6,), label)
            found = []
            for cross_entropy in (L.cross_entropy, F.cross_entropy):
                leaf = wide.clone().requires_grad_()
                value = cross_entropy(leaf, y, reduction="none")
                found.append((value.detach(), *torch.autograd.grad(value.sum(), leaf)))
            for ours, theirs in zip(*found, strict=True):
                assert torch.equal(ours.isnan(), theirs.isnan())
                assert torch.equal(ours.isinf(), theirs.isinf())


@EACH_DTYPE
@EACH_LOSS
def test_a_nan_stays_with_its_own_row(loss: RowLoss, dtype: torch.dtype) -> None:
    """It reaches its row's value, and changes no bit of any other row's."""
    given = loss.given((7, 25), dtype, seed=23)
    clean, clean_sum = RowCall(loss, given, "none").ours(), RowCall(loss, given, "sum").ours()
    row = int(clean[0].nonzero()[0])  # a row that counts
    others = torch.arange(7) != row
    for name in loss.samplers:
        if not given[name].is_floating_point():
            continue
        spoilt = given[name].clone()
        spoilt[row, given["target"][row] if given.get("target", spoilt).dim() == 1 else 1] = math.nan
        if loss.name == "multilabel_margin_loss":
            spoilt[row] = math.nan
        value, gradients = RowCall(loss, given | {name: spoilt}, "none").ours()
        total, gradients_of_sum = RowCall(loss, given | {name: spoilt}, "sum").ours()
        assert value[row].isnan() and total.isnan(), name
        assert torch.equal(value[others], clean[0][others])
        for k, gradient in gradients.items():
            assert torch.equal(gradient[others], clean[1][k][others])
            assert torch.equal(gradients_of_sum[k][others], clean_sum[1][k][others])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("gamma", [0.0, 1e-3, 0.5, 1.0, 1.5, 2.0, 5.0, 100.0, 1e6])
def test_the_focal_loss_is_finite_for_every_finite_logit(gamma: float, dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max / (4 + 4 * gamma)
    sizes = [0.0, 1e-40, 1e-3, 1.0, 17.0, 37.0, 88.0, 89.0, 104.0, 110.0, 709.0, 746.0, 1e4, 1e30, largest]
    lead = torch.tensor([*sizes, *(-v for v in sizes)], dtype=dtype)
    for x, label in product((lead[:, None] * torch.tensor([1.0, 0, 0]), lead[:, None] * torch.eye(40)[0]), (0, 1)):
        leaf = x.to(dtype).requires_grad_()
        value = L.softmax_focal_loss(leaf, torch.full((len(x),), label), gamma=gamma, reduction="none")
        (slope,) = torch.autograd.grad(value.sum(), leaf, create_graph=True)
        (change,) = torch.autograd.grad((slope * torch.linspace(-1, 1, slope.shape[1])).sum(), leaf)
        for what, result in [("value", value), ("gradient", slope), ("second derivative", change)]:
            assert result.isfinite().all(), f"{what}: {lead[~result.isfinite().view(len(x), -1).all(1)].tolist()}"


def test_one_class_is_certain() -> None:
    """There is nothing to learn from a row of one class: no loss, no gradient, no rival."""
    for loss in ROW_LOSSES:
        if loss.name in ("cross_entropy", "softmax_focal_loss", "categorical_hinge_loss") and "z_loss" not in loss.id:
            if loss.samplers["target"] not in (labels, labels_or_none):
                continue
            value, gradients = RowCall(loss, loss.given((3, 1), torch.float32), "sum").ours()
            assert value == 0 and not gradients["input"].any(), loss.id


def test_class_indices_may_be_ignored_by_any_number() -> None:
    x: Tensor = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    for ignored in (-100, -1, 0, 3, 255, 2**40):
        y = torch.tensor([1, ignored, 2, ignored, 1, ignored])
        leaf = x.clone().requires_grad_()
        value = L.cross_entropy(leaf, y, ignore_index=ignored)
        torch.testing.assert_close(value, F.cross_entropy(x, y, ignore_index=ignored))
        (gradient,) = torch.autograd.grad(value, leaf)
        assert not gradient[1::2].any() and gradient[0::2].all()
