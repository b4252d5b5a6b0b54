"""Every loss of two or three vectors, and its gradients, against the oracle by the rule of fusedloss.testing.judge: the
error is at most twice torch's own, plus a few units in the last place of the result."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fusedloss.functional as L
from fusedloss.testing.cases import DTYPES, LAYOUTS, RANGES, channels_last, offset, one_number, stepped, transposed
from fusedloss.testing.catalogue import normal
from fusedloss.testing.judge import FEW_ULPS, numbers, ulp
from fusedloss.testing.vector_cases import LENGTH, LENGTHS, ROWS, SHAPE, VectorCall, all_laid_out
from fusedloss.testing.vector_catalogue import VECTOR_LOSSES, VectorLoss, alike, alike_or_not, same_or_other

pytestmark = pytest.mark.core

EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)
EACH_LOSS = pytest.mark.parametrize("loss", [pytest.param(loss, id=loss.id) for loss in VECTOR_LOSSES])
FIRST_BY_NAME = {loss.name: loss for loss in reversed(VECTOR_LOSSES)}
EACH_NAME = pytest.mark.parametrize("loss", [pytest.param(loss, id=name) for name, loss in FIRST_BY_NAME.items()])
# Every loss in one dtype, and its variants in all of them.
IN_ONE_DTYPE = pytest.mark.parametrize(
    ("loss", "dtype"),
    [pytest.param(x, DTYPES[k % 4], id=f"{x.id}-{DTYPES[k % 4]}") for k, x in enumerate(VECTOR_LOSSES)],
)
WITH_TARGET = [loss for loss in VECTOR_LOSSES if "target" in loss.samplers]
OF_NORMS = [loss for loss in FIRST_BY_NAME.values() if loss.name in ("contrastive_loss", "triplet_margin_loss")]


def everything(loss: VectorLoss) -> tuple[str, ...]:
    return *loss.differentiable, *loss.learned


# ---- shapes, dtypes, reductions, weights -----------------------------------------------------------------------------


@EACH_DTYPE
@EACH_LOSS
def test_reductions_and_weights(loss: VectorLoss, dtype: torch.dtype) -> None:
    given = loss.given((ROWS, LENGTH), dtype)
    for reduction in loss.reductions:
        VectorCall(loss, given, reduction).judge()
        VectorCall(loss, given, reduction, free=everything(loss), factor=-0.37).judge()
    operand = everything(loss)[DTYPES.index(dtype) % len(everything(loss))]
    VectorCall(loss, given, "mean", free=(operand,)).judge()


@EACH_LOSS
def test_numbers_of_entries(loss: VectorLoss) -> None:
    """Around registers, tiles and what is kept at hand. Every number in one dtype, and in another with another loss."""
    for k, length in enumerate(LENGTHS):
        dtype = DTYPES[(k + VECTOR_LOSSES.index(loss)) % 4]
        of_directions = loss.parameters.get("normalize") or loss.parameters.get("distance_function") == "cosine"
        if length == 1 and of_directions:
            continue  # all vectors are 1 or -1, at no distance or at 2
        # (Directions that nearly agree are looked at below.)
        given = loss.given((max(5, 300 // length), length), dtype, seed=length, away=bool(of_directions))
        VectorCall(loss, given, "none" if length % 2 else "sum", free=everything(loss)).judge()


@EACH_NAME
def test_numbers_of_rows(loss: VectorLoss) -> None:
    for rows in (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 100, 1025):
        for length, dtype in ((3, torch.float64), (40, torch.float32)):
            VectorCall(loss, loss.given((rows, length), dtype, seed=rows), "none").judge()


@EACH_LOSS
def test_any_number_of_axes(loss: VectorLoss) -> None:
    """Of a single vector each the loss has no axis."""
    for shape in [(5,), (1,), (2, 3, 4), (2, 1, 3, 5), (1, 1, 2), (2, 1, 1, 2, 1, 3)]:
        given = loss.given(shape, torch.float32, seed=len(shape))
        for reduction in ("none", "mean"):
            call = VectorCall(loss, given, reduction, free=everything(loss))
            assert call.ours()[0].shape == (shape[:-1] if reduction == "none" else ())
            call.judge()


@EACH_NAME
def test_a_row_alone_is_the_same(loss: VectorLoss) -> None:
    """To the bit, with its axis and without."""
    given = loss.given((6, 33), torch.float32, seed=1)
    values, gradients = VectorCall(loss, given, "none", factor=1.0).ours()
    for n in range(6):
        for index in (slice(n, n + 1), n):
            alone = {k: x[index] for k, x in given.items()}
            leaves = {k: x.clone().requires_grad_(k in loss.vectors) for k, x in alone.items()}
            operands, keywords = loss.split(leaves)
            value = loss(*operands, **keywords, reduction="none")
            assert torch.equal(value, values[index])
            incoming = VectorCall(loss, given, "none").grad_output(values)[index]
            found = torch.autograd.grad(value, [leaves[k] for k in loss.vectors], incoming)
            for k, gradient in zip(loss.vectors, found, strict=True):
                assert torch.equal(gradient, gradients[k][index])


@IN_ONE_DTYPE
def test_vectors_are_broadcast(loss: VectorLoss, dtype: torch.dtype) -> None:
    """One for all, one for each of a group, and missing axes: its gradient is the sum over all that it met."""
    wide = loss.given((3, 4, 9), dtype, seed=2)
    for shape, name in product([(9,), (4, 9), (1, 9), (3, 1, 9), (1, 1, 9)], loss.vectors):
        narrow = loss.given(shape, dtype, seed=3)
        VectorCall(loss, wide | {name: narrow[name]}, "none", free=everything(loss)).judge()
    first, *others = loss.vectors
    for shapes in [((3, 1, 9), (4, 9)), ((3, 1, 9), (1, 4, 9)), ((9,), (3, 4, 9))]:
        one, other = (loss.given(shape, dtype, seed=4) for shape in shapes)
        VectorCall(loss, wide | {first: one[first]} | {k: other[k] for k in others}, "mean").judge()


@IN_ONE_DTYPE
def test_what_belongs_to_rows_is_broadcast(loss: VectorLoss, dtype: torch.dtype) -> None:
    wide = loss.given((3, 4, 9), dtype, seed=5)
    for shape in ((9,), (4, 9), (1, 9), (3, 1, 9)):
        narrow = loss.given(shape, dtype, seed=6)
        for name in {*wide} - {*loss.vectors}:
            for reduction in ("none", "mean"):
                VectorCall(loss, wide | {name: narrow[name]}, reduction, free=everything(loss)).judge()


@IN_ONE_DTYPE
def test_nothing(loss: VectorLoss, dtype: torch.dtype) -> None:
    """No rows: a sum of 0 and a mean of NaN. Vectors without entries: a distance of 0, a cosine of 0."""
    for shape in [(0, 5), (3, 0), (0,), (0, 0), (2, 0, 3), (2, 3, 0)]:
        given = loss.given(shape, dtype)
        for reduction in loss.reductions:
            call = VectorCall(loss, given, reduction, free=everything(loss))
            value, gradients = call.ours()
            exact, slopes = call.by_oracle(value)
            np.testing.assert_allclose(numbers(value, np.float64), exact.value.astype(float), rtol=0.01)
            for name in everything(loss):
                assert gradients[name].shape == given[name].shape
                known = slopes[name].value.astype(float)
                np.testing.assert_allclose(numbers(gradients[name], np.float64), known, rtol=0.01)


TARGETS = {
    alike_or_not: [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64],
    same_or_other: [torch.int8, torch.int16, torch.int32, torch.int64, *DTYPES],
}


@pytest.mark.parametrize("loss", [pytest.param(x, id=x.id) for x in WITH_TARGET if x.samplers["target"] in TARGETS])
def test_targets_of_any_type(loss: VectorLoss) -> None:
    """The same bits, whatever type says what is meant."""
    for shape, dtype in product([(ROWS, LENGTH), (5,)], (torch.float32, torch.float64)):
        given = loss.given(shape, dtype)
        for reduction in loss.reductions:
            expected = VectorCall(loss, given, reduction).ours()
            for of_target in (dtype, *TARGETS[loss.samplers["target"]]):  # type: ignore[index]
                moved = given | {"target": given["target"].to(of_target)}
                found = VectorCall(loss, moved, reduction).ours()
                assert torch.equal(found[0], expected[0]), of_target
                assert found[0].dtype == dtype
                for name, gradient in expected[1].items():
                    assert torch.equal(found[1][name], gradient), of_target


MIXED = [(torch.float32, torch.float64), (torch.float64, torch.float32), (torch.bfloat16, torch.float32),
         (torch.float32, torch.float16), (torch.bfloat16, torch.float16)]  # fmt: skip


@pytest.mark.parametrize("dtypes", MIXED, ids=str)
@EACH_LOSS
def test_mixed_dtypes(loss: VectorLoss, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    """Vectors promote; each gradient has the dtype of its own."""
    given = {k: x.to(dtypes[k == loss.vectors[1]]) if x.is_floating_point() else x
             for k, x in loss.given((ROWS, LENGTH), seed=1).items()}  # fmt: skip
    reduction = loss.reductions[VECTOR_LOSSES.index(loss) % 3]
    call = VectorCall(loss, given, reduction, free=everything(loss))
    assert call.ours()[0].dtype == torch.promote_types(*dtypes)
    call.judge()


@EACH_DTYPE
@EACH_NAME
def test_a_weight_of_another_dtype(loss: VectorLoss, dtype: torch.dtype) -> None:
    """It has no say in the dtype of the result."""
    given = loss.given((ROWS, LENGTH), torch.float32)
    weight = (torch.arange(ROWS) % 5 / 4).to(dtype)
    call = VectorCall(loss, given | {"weight": weight}, "mean", free=(*loss.differentiable, "weight"))
    assert call.ours()[0].dtype == torch.float32
    if dtype != torch.float64:  # a wider weight does not make the arithmetic wider
        call.judge()


@EACH_NAME
def test_the_mean_is_over_all_rows(loss: VectorLoss) -> None:
    """Whatever they weigh."""
    given = loss.given((6, 4))
    weight = torch.tensor([1.0, 0, 2, 0, 0.5, 3])
    operands, _ = loss.split(given)
    values = loss(*operands, reduction="none")
    torch.testing.assert_close(loss(*operands, weight=weight, reduction="none"), values * weight)
    torch.testing.assert_close(loss(*operands, weight=weight, reduction="sum"), (values * weight).sum())
    torch.testing.assert_close(loss(*operands, weight=weight), (values * weight).sum() / 6)
    torch.testing.assert_close(loss(*operands), values.mean())


@pytest.mark.parametrize(
    ("dtype", "factor"), [(torch.bfloat16, 2.0**-10), (torch.float16, 2.0**15), (torch.float16, 2.0**-10)], ids=str
)
@EACH_LOSS
def test_a_scaled_loss(loss: VectorLoss, dtype: torch.dtype, factor: float) -> None:
    """A gradient is scaled before it is rounded: loss scaling keeps small ones, and none overflows on the way."""
    given = loss.given((100, 33), dtype, seed=47)
    VectorCall(loss, given, "mean" if factor > 1 else "sum", factor=factor).judge()


@pytest.mark.host  # on CUDA 16 bytes are twice as many halves, which are added in another order
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@EACH_LOSS
def test_half_types_are_rounded_once(loss: VectorLoss, dtype: torch.dtype) -> None:
    """The same bits as computing on a float32 copy and rounding its result."""
    for shape in [(75, 29), (5, 3000)]:
        given = loss.given(shape, dtype, seed=37)
        wide = {k: x.float() if x.is_floating_point() else x for k, x in given.items()}
        for reduction in loss.reductions:
            half, full = (VectorCall(loss, x, reduction, free=everything(loss)).ours() for x in (given, wide))
            assert torch.equal(half[0], full[0].to(dtype)), reduction
            if reduction != "none":  # there the incoming gradient is rounded to the dtype of the result
                for name, gradient in half[1].items():
                    assert torch.equal(gradient, full[1][name].to(dtype)), (reduction, name)


# ---- parameters ------------------------------------------------------------------------------------------------------

NORMS = [0.5, 0.9, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 10.0, math.inf]


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("loss", [pytest.param(x, id=x.name) for x in OF_NORMS])
def test_norms(loss: VectorLoss, dtype: torch.dtype, p: float) -> None:
    """In registers of entries and of rows, with a margin on either side of the distances, and by integers."""
    of_p = replace(loss, parameters={"p": p, "margin": 2.0 if p < 2 else 0.7})
    for shape in [(60, 5), (20, 100)]:
        VectorCall(of_p, loss.given(shape, dtype, seed=1), "none").judge()
        swapped = replace(of_p, parameters=of_p.parameters | {"swap": True})
        if loss.name == "triplet_margin_loss":
            VectorCall(swapped, loss.given(shape, dtype, seed=2), "none").judge()
    if p == int(p if math.isfinite(p) else 0):
        given, _ = loss.sample((9, 5), dtype)
        assert torch.equal(loss.function(*given, p=int(p)), loss.function(*given, p=p))


@pytest.mark.parametrize("eps", [0.0, 1e-12, 1e-6, 1e-2, 1.0, -0.5])
@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, math.inf])
def test_eps_is_added_to_every_difference(p: float, eps: float) -> None:
    loss = replace(FIRST_BY_NAME["triplet_margin_loss"], parameters={"p": p, "eps": eps, "swap": True, "margin": 0.5})
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        VectorCall(loss, loss.given((40, 9), dtype, seed=3), "none").judge()


@pytest.mark.parametrize("margin", [0.0, 0.1, 1.0, 7.5, 1e4])
@EACH_NAME
def test_margins(loss: VectorLoss, margin: float) -> None:
    if loss.name == "cosine_embedding_loss":
        margin = min(margin, 1.0)
    at = replace(loss, parameters={"margin": margin})
    for normalize, dtype in product((False, True), (torch.float64, torch.float32, torch.float16)):
        both = replace(at, parameters=at.parameters | {"normalize": normalize})
        if margin == 0 and loss.name == "triplet_margin_with_distance_loss":
            both = replace(both, reference=replace(FIRST_BY_NAME["triplet_margin_loss"]).reference)
        VectorCall(both, loss.given((50, 9), dtype, seed=4), "none").judge()


@pytest.mark.parametrize("margin", [-1.0, -0.5, 0.0, 0.3, 1.0])
def test_margins_of_cosines(margin: float) -> None:
    loss = replace(FIRST_BY_NAME["cosine_embedding_loss"], parameters={"margin": margin})
    for dtype in DTYPES:
        VectorCall(loss, loss.given((50, 3), dtype, seed=5), "none").judge()


def test_rows_whose_target_is_neither_1_nor_minus_1_cost_nothing() -> None:
    """As in torch."""
    given = FIRST_BY_NAME["cosine_embedding_loss"].given((6, 4))
    target = torch.tensor([0.0, 1, -1, 0.5, 2, -3])
    leaf = given["input1"].requires_grad_()
    values = L.cosine_embedding_loss(leaf, given["input2"], target, reduction="none")
    expected = torch.nn.functional.cosine_embedding_loss(leaf, given["input2"], target, reduction="none")
    torch.testing.assert_close(values, expected)
    (gradient,) = torch.autograd.grad(values.sum(), leaf)
    assert not values[[0, 3, 4, 5]].any() and not gradient[[0, 3, 4, 5]].any() and gradient[1].any()


# ---- layouts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@EACH_LOSS
def test_layouts(loss: VectorLoss, dtype: torch.dtype) -> None:
    """In every memory layout: all operands alike, and one of them alone. Of some the entries lie far apart."""
    given = loss.given(SHAPE, dtype, seed=11)
    straight = {reduction: VectorCall(loss, given, reduction) for reduction in ("none", "sum")}
    for layout in LAYOUTS[1:]:
        if layout is one_number and loss.parameters.get("normalize"):
            continue  # then all are the same
        alone = list(given)[LAYOUTS.index(layout) % len(given)]
        for which, reduction in [("all", "sum"), (alone, "none")]:
            moved = all_laid_out(given, layout, which)
            same = all(torch.equal(x, given[k]) for k, x in moved.items())
            VectorCall(loss, moved, reduction, same_as=straight[reduction] if same else None).judge()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@EACH_LOSS
def test_gradient_comes_in_any_layout(loss: VectorLoss, dtype: torch.dtype) -> None:
    given = loss.given(SHAPE, dtype, seed=13)
    leaves = {k: x.requires_grad_(k in loss.differentiable) for k, x in given.items()}
    operands, keywords = loss.split(leaves)
    result = loss(*operands, **keywords, reduction="none")
    free = [leaves[k] for k in loss.differentiable]
    grad = normal(tuple(result.shape), torch.Generator().manual_seed(14)).to(dtype)
    straight = torch.autograd.grad(result, free, grad, retain_graph=True)
    for layout in (transposed, stepped, offset):
        for a, b in zip(straight, torch.autograd.grad(result, free, layout(grad), retain_graph=True), strict=True):
            assert torch.equal(a, b), layout.__name__
    spread = grad.flatten()[:1].expand(grad.numel()).view(grad.shape)
    for a, b in zip(
        torch.autograd.grad(result, free, spread, retain_graph=True),
        torch.autograd.grad(result, free, spread.contiguous()),
        strict=True,
    ):
        assert torch.equal(a, b)


@EACH_NAME
def test_the_gradient_lies_in_memory_as_the_input_does(loss: VectorLoss) -> None:
    for layout in (channels_last, transposed):
        given = {k: layout(x) if x.dim() == 4 else x for k, x in loss.given(SHAPE, torch.float32).items()}
        for reduction in ("none", "sum"):
            for name, gradient in VectorCall(loss, given, reduction, free=loss.vectors).ours()[1].items():
                assert gradient.stride() == given[name].stride()


# ---- ranges ----------------------------------------------------------------------------------------------------------


@EACH_DTYPE
@EACH_LOSS
def test_ranges(loss: VectorLoss, dtype: torch.dtype) -> None:
    for name, scales in RANGES.items():
        if name in ("tiny", "subnormal") and loss.corner_at_0:
            continue
        given = loss.given((21, 35), dtype, seed=17, scale=scales[dtype])
        given = {k: x.nan_to_num() if x.is_floating_point() else x for k, x in given.items()}  # infinite by rounding
        VectorCall(loss, given, "none").judge()
        if name in ("large", "huge"):
            VectorCall(loss, given, "mean").judge()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@EACH_LOSS
def test_vectors_that_nearly_agree(loss: VectorLoss, dtype: torch.dtype) -> None:
    """Differences have all the digits that the vectors have.

    How much is left of a single row is a matter of luck, torch's and ours: the errors of all together are compared.
    """
    if loss.parameters.get("swap"):  # which of two distances is the smaller one is not to be seen
        loss = replace(loss, parameters=loss.parameters | {"swap": False})
    given = loss.given((300, 7), dtype, seed=18)
    for apart in (1e-2, 1e-4, 1e-6):
        other = loss.given((300, 7), dtype, seed=19, scale=apart)
        near = {k: given[loss.vectors[0]] + other[k] for k in loss.vectors[1:]}
        call = VectorCall(loss, given | near, "none")
        value, gradients = call.ours()
        (theirs, their_gradients), (exact, slopes) = call.references(value)
        slopes_found = ((gradients[k], their_gradients[k], slopes[k]) for k in gradients)
        for found, torchs, known in [(value, theirs, exact), *slopes_found]:
            off = (numbers(x, np.longdouble) - known.value for x in (found, torchs))
            ours, of_torch, size = (np.sqrt(np.square(x).mean()) for x in (*off, known.size))
            assert ours <= 2 * of_torch + FEW_ULPS * ulp(size, dtype), apart


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@EACH_LOSS
def test_vectors_of_very_different_lengths(loss: VectorLoss, dtype: torch.dtype) -> None:
    given = loss.given((60, 20), dtype, seed=20)
    for spread in (1e-6, 1e6):
        other = loss.given((60, 20), dtype, seed=20, scale=spread)
        VectorCall(loss, given | {loss.vectors[1]: other[loss.vectors[1]]}, "none").judge()


@EACH_DTYPE
@EACH_LOSS
def test_vectors_of_nothing_but_zeros(loss: VectorLoss, dtype: torch.dtype) -> None:
    """Values and gradients are finite; the values are those of the formula."""
    given = loss.given((12, 6), dtype, seed=21)
    for names in ((loss.vectors[0],), loss.vectors[1:], loss.vectors):
        zeros = given | {k: torch.zeros_like(given[k]) for k in names}
        value, gradients = VectorCall(loss, zeros, "none").ours()
        exact, _ = VectorCall(loss, zeros, "none").by_oracle(value)
        np.testing.assert_allclose(numbers(value, np.float64), exact.value.astype(float), rtol=0.01, atol=1e-6)
        small = [x for x in gradients.values() if x.isfinite().all()]
        # The slope of a cosine or of a normalized vector at 0 is as steep as torch's: beyond float16.
        assert len(small) == len(gradients) or dtype == torch.float16


# ---- NaN and infinity ------------------------------------------------------------------------------------------------


@EACH_DTYPE
@EACH_LOSS
def test_a_nan_stays_with_its_own_row(loss: VectorLoss, dtype: torch.dtype) -> None:
    """It reaches its row's value and gradients, and changes no bit of any other row's."""
    given = loss.given((7, 25), dtype, seed=23)
    given |= {k: torch.ones_like(given[k]) for k in loss.learned}
    clean, clean_sum = VectorCall(loss, given, "none").ours(), VectorCall(loss, given, "sum").ours()
    row = 3
    others = torch.arange(7) != row
    for name, bad in product(given, (math.nan, math.inf, -math.inf)):
        if not given[name].is_floating_point():
            continue
        spoilt = given[name].clone()
        spoilt[(row, 11) if spoilt.dim() == 2 else row] = bad
        value, gradients = VectorCall(loss, given | {name: spoilt}, "none").ours()
        total, gradients_of_sum = VectorCall(loss, given | {name: spoilt}, "sum").ours()
        if math.isnan(bad):
            assert value[row].isnan() and total.isnan(), name
            assert name == "weight" or gradients[loss.vectors[0]][row].isnan().any(), name
        assert torch.equal(value[others], clean[0][others])
        for k, gradient in gradients.items():
            assert torch.equal(gradient[others], clean[1][k][others]), (name, k)
            assert torch.equal(gradients_of_sum[k][others], clean_sum[1][k][others]), (name, k)


@EACH_DTYPE
@EACH_LOSS
def test_rows_of_weight_0_do_not_count(loss: VectorLoss, dtype: torch.dtype) -> None:
    """Whatever they hold, their value and gradients are exactly 0, and no bit of another's changes."""
    off = torch.arange(11) % 3 == 1
    for shape, bad in product([(11, 6), (11, 600)], [math.nan, math.inf, torch.finfo(dtype).max]):
        given = loss.given(shape, dtype, seed=29)
        given["weight"] = torch.linspace(0.5, 1.5, 11).masked_fill(off, 0).to(dtype)
        spoilt = given | {k: given[k].masked_fill(off[:, None], bad) for k in loss.vectors}
        if loss.samplers.get("target") is alike:
            spoilt["target"] = given["target"].masked_fill(off, bad)
        for reduction in loss.reductions:
            free = (*loss.differentiable, "weight")
            (value, gradients), (clean, known) = (
                VectorCall(loss, x, reduction, free=free).ours() for x in (spoilt, given)
            )
            assert torch.equal(value, clean)
            assert reduction != "none" or not value[off].any()
            for k in loss.differentiable:
                assert torch.equal(gradients[k], known[k]), k
                assert torch.equal(gradients[k][off], torch.zeros_like(gradients[k][off])), k
            assert torch.equal(gradients["weight"][~off], known["weight"][~off])
            assert not gradients["weight"][off].any()


# ---- distances -------------------------------------------------------------------------------------------------------


def value_and_gradients(call: Any, given: dict[str, Tensor], **keywords: Any) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in given.values()]
    value = call(*leaves, **keywords)
    return [value.detach(), *torch.autograd.grad(value.sum(), leaves)]


@pytest.mark.parametrize(
    ("name", "same"),
    [
        (None, torch.nn.PairwiseDistance()),
        ("euclidean", torch.nn.PairwiseDistance()),
        (torch.nn.functional.pairwise_distance, torch.nn.PairwiseDistance(2.0, 1e-6)),
        (torch.pairwise_distance, None),
    ],
    ids=["None", "euclidean", "torch.nn.functional", "torch"],
)
def test_distances_of_the_same_meaning_are_the_same(name: Any, same: Any) -> None:
    given = FIRST_BY_NAME["triplet_margin_loss"].given((9, 5), torch.float32)
    expected = value_and_gradients(L.triplet_margin_loss, given, swap=True, margin=0.3)
    for distance in (name, same):
        found = value_and_gradients(
            L.triplet_margin_with_distance_loss, given, distance_function=distance, swap=True, margin=0.3
        )
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("p", NORMS)
def test_a_module_of_torchs_brings_its_norm(p: float) -> None:
    given = FIRST_BY_NAME["triplet_margin_loss"].given((9, 5), torch.float32)
    module = torch.nn.PairwiseDistance(p, eps=0.01)
    found = value_and_gradients(L.triplet_margin_with_distance_loss, given, distance_function=module)
    for one, other in zip(found, value_and_gradients(L.triplet_margin_loss, given, p=p, eps=0.01), strict=True):
        assert torch.equal(one, other)
