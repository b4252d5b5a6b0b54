"""Losses over pairs and their gradients against the oracle by the rule of fusedloss.testing.judge; what must be the
same by definition; and what counts in a batch and what does not."""

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
from fusedloss.testing.cases import DTYPES, RANGES
from fusedloss.testing.judge import numbers
from fusedloss.testing.pair_cases import (
    LAYOUTS,
    SHAPE,
    SIZES,
    PairCall,
    columns_expanded,
    laid_out,
    rows_expanded,
)
from fusedloss.testing.pair_catalogue import ALONE, PAIR_LOSSES, PairLoss, vectors
from fusedloss.testing.pair_oracle import results

pytestmark = pytest.mark.core

EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)
FLOATS = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
LOSS = {loss.id: loss for loss in PAIR_LOSSES}
REDUCTIONS = ("none", "mean", "sum")


def each(*names: str, but: str = "nothing", only: str = "") -> Any:
    """A test for each record, or those of some names and variants."""
    found = [
        pytest.param(loss, id=loss.id)
        for loss in PAIR_LOSSES
        if (not names or loss.name in names) and but not in loss.variant and only in loss.variant
    ]
    return pytest.mark.parametrize("loss", found)


def table(shape: tuple[int, ...], dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return vectors(shape, torch.Generator().manual_seed(seed)).to(dtype)


def value_and_gradients(
    loss: PairLoss, given: dict[str, Tensor], reduction: str = "none"
) -> tuple[Tensor, dict[str, Tensor]]:
    value, gradients = PairCall(loss, given, reduction).ours()
    return value.detach(), gradients


def assert_same(one: tuple[Tensor, dict[str, Tensor]], other: tuple[Tensor, dict[str, Tensor]]) -> None:
    """To the bit."""
    assert torch.equal(one[0], other[0])
    for name, gradient in one[1].items():
        assert torch.equal(gradient, other[1][name]), name


def assert_close(
    one: tuple[Tensor, dict[str, Tensor]], other: tuple[Tensor, dict[str, Tensor]], off: float = 1e-13
) -> None:
    torch.testing.assert_close(one[0], other[0], rtol=off, atol=off)
    for name in one[1].keys() & other[1].keys():
        torch.testing.assert_close(one[1][name], other[1][name], rtol=off, atol=off)


# ---- dtypes, reductions, sizes ---------------------------------------------------------------------------------------


@EACH_DTYPE
@each()
def test_reductions(loss: PairLoss, dtype: torch.dtype) -> None:
    given = loss.given(SHAPE, dtype)
    for reduction in loss.reductions:
        PairCall(loss, given, reduction).judge()
        PairCall(loss, given, reduction, factor=-0.37).judge()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@each()
def test_sizes(loss: PairLoss, dtype: torch.dtype) -> None:
    for shape in SIZES:
        if shape[0] > 100 and (not loss.has_ops or loss.normalize):
            continue  # the oracle takes its time, most of all for negatives of every query
        PairCall(loss, loss.given(shape, dtype, seed=shape[0]), "none" if shape[0] > 2 else "sum").judge()


@pytest.mark.parametrize(
    "loss", [pytest.param(loss, id=loss.id) for loss in PAIR_LOSSES if loss.has_ops and not loss.normalize]
)
def test_many_rows(loss: PairLoss) -> None:
    """Of several tiles, of which the last is not full."""
    PairCall(loss, loss.given((1501, 24), torch.float32, seed=1), "mean").judge()


@pytest.mark.parametrize("name", ["info_nce_loss[symmetric]", "clip_loss"])
def test_later_rows_are_a_thousand_times_as_likely(name: str) -> None:
    """What was added up in the columns of the first tiles is as nothing beside those that come."""
    loss = LOSS[name]
    given = loss.given((1301, 4), torch.float32, seed=2)
    given[loss.tables[0]] *= torch.linspace(0.1, 40, 1301)[:, None]
    PairCall(loss, given, "none").judge()
    given[loss.tables[0]] = given[loss.tables[0]].flip(0).contiguous()
    PairCall(loss, given, "mean").judge()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@each(but="symmetric", only="negatives")
def test_numbers_of_negatives(loss: PairLoss, dtype: torch.dtype) -> None:
    """More than queries, and few."""
    for rows, count in ((5, 1), (1, 5), (7, 64), (33, 65), (3, 1500), (300, 2)):
        given = loss.given((rows, 6), dtype, seed=count)
        shape = (count, 6) if given["negatives"].dim() == 2 else (rows, count, 6)
        given["negatives"] = table(shape, dtype, seed=count)
        PairCall(loss, given, "none").judge()


@each()
def test_without_rows_there_is_nothing(loss: PairLoss) -> None:
    """0, also as a mean, and gradients of the shapes that are given."""
    for dtype, width in product((torch.float32, torch.bfloat16), (1, 5)):
        given = {k: x[:0] if k in loss.tables or k == "labels" else x for k, x in loss.given((4, width), dtype).items()}
        for reduction in loss.reductions:
            value, gradients = value_and_gradients(loss, given, reduction)
            assert value.shape == ((0,) if reduction == "none" else ()) and not value.any() and value.dtype == dtype
            for name, gradient in gradients.items():
                assert gradient.shape == given[name].shape and not gradient.any()


@each("info_nce_loss", but="negatives")
def test_a_single_pair_is_right(loss: PairLoss) -> None:
    for dtype in DTYPES:
        value, gradients = value_and_gradients(loss, loss.given((1, 7), dtype))
        assert value.tolist() == [0.0] and not any(gradient.any() for gradient in gradients.values())


@EACH_DTYPE
@each(only="negatives")
def test_without_negatives_all_is_right(loss: PairLoss, dtype: torch.dtype) -> None:
    given = loss.given((5, 3), dtype)
    given["negatives"] = given["negatives"][..., :0, :]
    for reduction in loss.reductions:
        value, gradients = value_and_gradients(loss, given, reduction)
        assert not value.any() and not any(gradient.any() for gradient in gradients.values())
        assert gradients["negatives"].shape == given["negatives"].shape


@pytest.mark.parametrize("factor", [2.0**12, 2.0**-10])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@each()
def test_a_scaled_loss(loss: PairLoss, dtype: torch.dtype, factor: float) -> None:
    """A gradient is scaled before it is rounded: loss scaling keeps small ones, and none overflows on the way."""
    PairCall(loss, loss.given(SHAPE, dtype, seed=47), "mean" if factor > 1 else "sum", factor=factor).judge()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@each()
def test_half_types_are_rounded_once(loss: PairLoss, dtype: torch.dtype) -> None:
    """The same bits as computing on a float32 copy and rounding its result."""
    for shape in [SHAPE, (130, 9)]:
        given = loss.given(shape, dtype, seed=37)
        wide = {k: x.float() if x.is_floating_point() else x for k, x in given.items()}
        for reduction in loss.reductions:
            (value, gradients), (full, slopes) = (value_and_gradients(loss, g, reduction) for g in (given, wide))
            assert value.dtype == dtype and torch.equal(value, full.to(dtype)), reduction
            if reduction != "none":  # there the incoming gradient is rounded to the dtype of the result
                for name, gradient in gradients.items():
                    assert torch.equal(gradient, slopes[name].to(dtype)), (reduction, name)


# ---- layouts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@each()
def test_layouts(loss: PairLoss, dtype: torch.dtype) -> None:
    """All tables laid out alike, and each alone."""
    given = loss.given(SHAPE, dtype, seed=11)
    straight = PairCall(loss, given, "none")
    for layout, which in product(LAYOUTS, ("all", *loss.tables)):
        moved = laid_out(loss, given, layout, which)
        same = layout not in (rows_expanded, columns_expanded)
        PairCall(loss, moved, "none", same_as=straight if same else None).judge()


@each(but="own")
def test_layouts_of_many_rows(loss: PairLoss) -> None:
    """Several tiles of rows."""
    given = loss.given((300, 33), torch.float32, seed=12)
    straight = PairCall(loss, given, "mean")
    for layout in LAYOUTS[:2]:
        PairCall(loss, laid_out(loss, given, layout), "mean", same_as=straight).judge()


@each()
def test_a_gradient_lies_densely_or_as_its_operand(loss: PairLoss) -> None:
    for layout in (torch.clone, *LAYOUTS):
        given = laid_out(loss, loss.given(SHAPE, torch.float32), layout)
        for name, gradient in value_and_gradients(loss, given, "mean")[1].items():
            assert gradient.is_contiguous() or gradient.stride() == given[name].stride()


@each("supervised_contrastive_loss")
def test_labels_of_any_layout(loss: PairLoss) -> None:
    given = loss.given(SHAPE, torch.float32)
    y = given["labels"]
    straight = value_and_gradients(loss, given)
    for moved in (torch.stack([y, y + 1], 1)[:, 0], torch.cat([y[:3], y])[3:]):
        assert_same(value_and_gradients(loss, given | {"labels": moved}), straight)
    alike = torch.tensor([3]).expand(SHAPE[0])
    PairCall(loss, given | {"labels": alike}, "none").judge()


@FLOATS
@each()
def test_gradient_comes_in_any_layout(loss: PairLoss, dtype: torch.dtype) -> None:
    given = loss.given(SHAPE, dtype, seed=13)
    leaves = {k: x.requires_grad_(k in loss.differentiable) for k, x in given.items()}
    free = [leaves[k] for k in loss.differentiable]
    result = loss(*leaves.values(), reduction="none")
    grad = torch.randn(len(result), generator=torch.Generator().manual_seed(14)).to(dtype)
    straight = torch.autograd.grad(result, free, grad, retain_graph=True)
    for moved in (torch.stack([grad, grad * 0], 1)[:, 0], torch.cat([grad[:1], grad])[1:]):
        for one, other in zip(torch.autograd.grad(result, free, moved, retain_graph=True), straight, strict=True):
            assert torch.equal(one, other)
    spread = grad[:1].expand(len(grad))
    of_spread, of_copy = (
        torch.autograd.grad(result, free, g, retain_graph=True) for g in (spread, spread.contiguous())
    )
    for one, other in zip(of_spread, of_copy, strict=True):
        assert torch.equal(one, other)


# ---- ranges ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(RANGES))
@EACH_DTYPE
@each()
def test_ranges(loss: PairLoss, dtype: torch.dtype, name: str) -> None:
    """Of vectors; logits are as large as their squares."""
    given = loss.given(SHAPE, dtype, seed=17, scale=RANGES[name][dtype])
    given = {k: x.nan_to_num() if x.is_floating_point() else x for k, x in given.items()}  # infinite by rounding
    PairCall(loss, given, "none").judge()


def at_scale(loss: PairLoss, given: dict[str, Tensor], scale: float) -> tuple[PairLoss, dict[str, Tensor]]:
    """The loss whose logits are so many times the products."""
    if "logit_scale" in given:
        return loss, given | {"logit_scale": torch.full_like(given["logit_scale"], scale)}
    return replace(loss, parameters=loss.parameters | {"temperature": 1 / scale}), given


@pytest.mark.parametrize("scale", [2.0**13, 2.0**20, 2.0**-13, 2.0**-40])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@each()
def test_scales_of_logits(loss: PairLoss, dtype: torch.dtype, scale: float) -> None:
    """Logits of 1e4 and of 1e6 overflow nowhere; small ones leave the logarithm of how many they are."""
    scaled, given = at_scale(loss, loss.given(SHAPE, dtype, seed=3), scale)
    call = PairCall(scaled, given, "none")
    call.judge()
    value, gradients = call.ours()
    assert value.isfinite().all() and all(gradient.isfinite().all() for gradient in gradients.values())
    if scale < 1e-6 and dtype != torch.bfloat16 and loss.name != "siglip_loss":
        counted = value[value != 0].double()
        known = math.log(SHAPE[0] if "negatives" not in given else given["negatives"].shape[-2] + 1)
        known = math.log(SHAPE[0] - 1) if "labels" in given else known
        torch.testing.assert_close(counted, torch.full_like(counted, known), rtol=1e-6, atol=0)


@FLOATS
@each("clip_loss", "siglip_loss")
def test_a_scale_of_any_sign(loss: PairLoss, dtype: torch.dtype) -> None:
    for scale, bias in product((0.0, -3.0), (0.0, 12.0, -1e4, 1e4)):
        given = loss.given(SHAPE, dtype, seed=4)
        given["logit_scale"].fill_(scale)
        if "logit_bias" in given:
            given["logit_bias"].fill_(bias)
        PairCall(loss, given, "none").judge()


def test_a_huge_logit_costs_what_it_is() -> None:
    """Far from right the loss is the distance of two logits, and the gradient all or nothing."""
    for dtype in (torch.float64, torch.float32):
        eye = torch.eye(4, dtype=dtype)
        value, gradients = value_and_gradients(
            replace(LOSS["info_nce_loss"], parameters={"temperature": 2.0**-14}), {"query": eye, "key": -eye}, "sum"
        )
        # Each right logit is -2^14, the other three are 0.
        assert value == 4 * 2.0**14 + 4 * math.log(3) or abs(value.item() - 4 * (2.0**14 + math.log(3))) < 0.01
        torch.testing.assert_close(gradients["query"].diagonal(), torch.full((4,), 2.0**14, dtype=dtype))
        scale, bias = torch.tensor(2.0**14, dtype=dtype), torch.tensor(0.0, dtype=dtype)
        given = {"image": eye, "text": -eye, "logit_scale": scale, "logit_bias": bias}
        value, gradients = value_and_gradients(LOSS["siglip_loss"], given, "none")
        torch.testing.assert_close(value, torch.full((4,), 2.0**14 + 3 * math.log(2), dtype=dtype))


# ---- what is the same by definition ----------------------------------------------------------------------------------


def test_defaults() -> None:
    q, k = table(SHAPE), table(SHAPE, seed=1)
    y = torch.arange(SHAPE[0]) // 2
    assert torch.equal(L.info_nce_loss(q, k), L.info_nce_loss(q, k, None, 0.1, False, "mean", normalize=False))
    ours = L.supervised_contrastive_loss(q, y)
    assert torch.equal(ours, L.supervised_contrastive_loss(q, y, 0.1, "mean", normalize=False))
    assert torch.equal(L.clip_loss(q, k, 3.0), L.clip_loss(q, k, 3.0, "mean", normalize=False))
    assert torch.equal(L.siglip_loss(q, k, 3.0), L.siglip_loss(q, k, 3.0, 0.0, "mean", normalize=False))


@EACH_DTYPE
@each("clip_loss", "siglip_loss")
def test_a_scale_that_is_a_number(loss: PairLoss, dtype: torch.dtype) -> None:
    """The same bits as of a tensor, with and without axes; and of an integer as of a number."""
    given = loss.given(SHAPE, dtype, seed=6)
    known = {"logit_scale": 4.0, "logit_bias": -2.0}
    for name in known.keys() & given.keys():
        given[name].fill_(known[name])
    for reduction in loss.reductions:
        expected = PairCall(loss, given, reduction, free=loss.tables).ours()
        expected = expected[0].detach(), expected[1]
        for kind in (float, int, lambda x: torch.tensor(x, dtype=dtype), lambda x: torch.tensor([x], dtype=dtype)):
            leaves = {k: given[k].clone().requires_grad_() for k in loss.tables}
            settings = [kind(known[k]) for k in given if k in known]
            value = loss.function(*leaves.values(), *settings, **loss.parameters, reduction=reduction)
            incoming = PairCall(loss, given, reduction).grad_output(value)
            gradients = torch.autograd.grad(value, list(leaves.values()), incoming)
            assert_same((value.detach(), dict(zip(leaves, gradients, strict=True))), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@each("clip_loss", "siglip_loss")
def test_a_scale_of_a_wider_type(loss: PairLoss, dtype: torch.dtype) -> None:
    """As a parameter of a model is, beside vectors in half types: it is not rounded, and has its own gradient."""
    given = loss.given(SHAPE, dtype, seed=7)
    wide = torch.float64 if dtype == torch.float32 else torch.float32
    learned = [name for name in loss.differentiable if name not in loss.tables]
    for name in learned:
        given[name] = given[name].to(wide) * 1.001953125
    for reduction in loss.reductions:
        value, gradients = value_and_gradients(loss, given, reduction)
        assert value.dtype == dtype
        precise = {k: x.double() for k, x in given.items()}
        exact, slopes = value_and_gradients(loss, precise, reduction)
        unit = torch.finfo(dtype).eps
        torch.testing.assert_close(value.double(), exact, rtol=8 * unit, atol=8 * unit)
        for name in learned:
            assert gradients[name].dtype == wide
            # Incoming gradients of 'none' are rounded to the dtype of the result.
            off = 8 * unit if reduction == "none" else 64 * torch.finfo(torch.float32).eps
            torch.testing.assert_close(gradients[name].double(), slopes[name], rtol=off, atol=off * SHAPE[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@each("info_nce_loss", "clip_loss", "siglip_loss")
def test_tables_of_two_dtypes(loss: PairLoss, dtype: torch.dtype) -> None:
    """They meet in the wider type, and each has a gradient of its own."""
    given = loss.given(SHAPE, torch.float32, seed=5)
    for name in loss.tables[1:]:
        given[name] = given[name].to(dtype)
    value, gradients = value_and_gradients(loss, given, "sum")
    exact, slopes = value_and_gradients(loss, {k: x.double() for k, x in given.items()}, "sum")
    torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=1e-5)
    for name, gradient in gradients.items():
        assert gradient.dtype == given[name].dtype
        off = 2 * max(torch.finfo(gradient.dtype).eps, 1e-6)
        torch.testing.assert_close(gradient.double(), slopes[name], rtol=off, atol=1e-5)


def test_symmetric_is_the_mean_of_both_ways() -> None:
    q, k = table(SHAPE), table(SHAPE, seed=1)
    for reduction in REDUCTIONS:
        forth, back = (L.info_nce_loss(a, b, temperature=0.3, reduction=reduction) for a, b in ((q, k), (k, q)))
        both = L.info_nce_loss(q, k, temperature=0.3, symmetric=True, reduction=reduction)
        torch.testing.assert_close(both, (forth + back) / 2, rtol=1e-13, atol=0)
        swapped = L.info_nce_loss(k, q, temperature=0.3, symmetric=True, reduction=reduction)
        torch.testing.assert_close(both, swapped, rtol=1e-13, atol=0)
        torch.testing.assert_close(both, L.clip_loss(q, k, 1 / 0.3, reduction), rtol=1e-13, atol=0)


@pytest.mark.parametrize("normalize", [False, True])
def test_the_other_keys_are_negatives(normalize: bool) -> None:
    """Given as such, each query its own, they make the loss without negatives."""
    loss = replace(LOSS["info_nce_loss[own negatives]"], parameters={"temperature": 0.5, "normalize": normalize})
    q, k = table((9, 4)), table((9, 4), seed=1)
    others = torch.stack([torch.cat([k[:i], k[i + 1 :]]) for i in range(9)])
    value, slopes = value_and_gradients(loss, {"query": q, "key": k, "negatives": others})
    in_batch = replace(LOSS["info_nce_loss"], parameters=loss.parameters)
    expected, gradients = value_and_gradients(in_batch, {"query": q, "key": k})
    by_key = slopes["key"].clone()
    for i in range(9):
        by_key[:i] += slopes["negatives"][i, :i]
        by_key[i + 1 :] += slopes["negatives"][i, i:]
    assert_close((value, {"query": slopes["query"], "key": by_key}), (expected, gradients))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("normalize", [False, True])
def test_shared_negatives_are_everyones_own(normalize: bool, dtype: torch.dtype) -> None:
    """Expanded for every query, without a copy, they are the same; a sum is left out of the comparison of gradients."""
    loss = replace(LOSS["info_nce_loss[own negatives]"], parameters={"temperature": 0.5, "normalize": normalize})
    given = loss.given((11, 6), dtype) | {"negatives": table((7, 6), dtype, seed=2)}
    each_its_own = given | {"negatives": given["negatives"].expand(11, 7, 6)}
    PairCall(loss, each_its_own, "none").judge()
    (value, slopes), (expected, gradients) = (value_and_gradients(loss, g) for g in (each_its_own, given))
    off = 4 * max(torch.finfo(dtype).eps, 1e-15)
    torch.testing.assert_close(value, expected, rtol=off, atol=off)
    for name in ("query", "key"):
        torch.testing.assert_close(slopes[name], gradients[name], rtol=off, atol=off)


@each(but="normalize")
def test_normalize_is_torchs_before(loss: PairLoss) -> None:
    normalized = replace(loss, parameters=loss.parameters | {"normalize": True})
    given = loss.given(SHAPE, seed=8)
    for reduction in loss.reductions:
        value, gradients = value_and_gradients(normalized, given, reduction)
        leaves = {k: x.clone().requires_grad_(k in loss.differentiable) for k, x in given.items()}
        operands = [F.normalize(x, dim=-1) if k in loss.tables else x for k, x in leaves.items()]
        expected = loss(*operands, reduction=reduction)
        incoming = PairCall(loss, given, reduction).grad_output(expected)
        slopes = torch.autograd.grad(expected, [leaves[k] for k in loss.differentiable], incoming)
        assert_close((value, gradients), (expected.detach(), dict(zip(loss.differentiable, slopes, strict=True))))


@EACH_DTYPE
@each(only="normalize")
def test_lengths_do_not_count_when_normalized(loss: PairLoss, dtype: torch.dtype) -> None:
    """Vectors of twice the length have the same value, to the bit, and half the gradient."""
    given = loss.given(SHAPE, dtype, seed=9)
    value, gradients = value_and_gradients(loss, given, "mean")
    twice = {k: 2 * x if k in loss.tables else x for k, x in given.items()}
    same, halves = value_and_gradients(loss, twice, "mean")
    assert torch.equal(value, same)
    smallest = torch.finfo(dtype).smallest_normal
    for name in loss.tables:
        torch.testing.assert_close(halves[name] * 2, gradients[name], rtol=0, atol=4 * smallest)


@FLOATS
@each(only="normalize")
def test_a_vector_of_zeros(loss: PairLoss, dtype: torch.dtype) -> None:
    """At right angles to all others; its gradient is that of a vector divided by 1e-12."""
    given = loss.given(SHAPE, dtype, seed=10)
    zeros = dict(zip(loss.tables, (15, 14, 13), strict=False))  # of which none is compared with another
    for name, row in zeros.items():
        given[name].view(-1, SHAPE[1])[row] = 0
    for reduction in loss.reductions:
        call = PairCall(loss, given, reduction)
        call.judge()
        value, gradients = call.ours()
        assert value.isfinite().all() and all(gradient.isfinite().all() for gradient in gradients.values())
        for name, row in zeros.items():
            assert gradients[name].view(-1, SHAPE[1])[row].abs().max() > 1e6


@each()
def test_the_order_of_pairs_does_not_matter(loss: PairLoss) -> None:
    """A permutation of the rows permutes values and gradients."""
    given = loss.given(SHAPE, seed=11)
    order = torch.randperm(SHAPE[0], generator=torch.Generator().manual_seed(0))
    moves = [k for k, x in given.items() if x.dim() and len(x) == SHAPE[0]]
    value, gradients = value_and_gradients(loss, given, "sum")
    moved, slopes = value_and_gradients(loss, {k: x[order] if k in moves else x for k, x in given.items()}, "sum")
    expected = {k: g[order] if k in moves else g for k, g in gradients.items()}
    assert_close((moved, slopes), (value, expected), 1e-12)


# ---- labels ----------------------------------------------------------------------------------------------------------

SUPCON = LOSS["supervised_contrastive_loss"]


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8], ids=str)
def test_labels_of_any_integer_type(dtype: torch.dtype) -> None:
    given = SUPCON.given(SHAPE, torch.float32)
    given["labels"] = given["labels"] - given["labels"].min()
    expected = value_and_gradients(SUPCON, given)
    assert_same(value_and_gradients(SUPCON, given | {"labels": given["labels"].to(dtype)}), expected)
    low, high = torch.iinfo(dtype).min, torch.iinfo(dtype).max
    named = torch.unique(given["labels"], return_inverse=True)[1]
    names = torch.tensor([low, high, high - 1, low + 1, 0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11], dtype=dtype)
    renamed = names[named % len(names)]
    by_names, by_numbers = renamed, torch.unique(renamed.long(), return_inverse=True)[1]
    one, other = (value_and_gradients(SUPCON, given | {"labels": y}) for y in (by_names, by_numbers))
    assert_same(one, other)


def test_labels_that_differ_in_their_upper_halves() -> None:
    """2^32 + 1 is not 1."""
    given = SUPCON.given((6, 3))
    given["labels"] = torch.tensor([1, 2**32 + 1, 1, 2**32 + 1, -(2**62), 2**62])
    expected = value_and_gradients(SUPCON, given | {"labels": torch.tensor([0, 1, 0, 1, 2, 3])})
    assert_same(value_and_gradients(SUPCON, given), expected)


@EACH_DTYPE
@each("supervised_contrastive_loss")
def test_all_of_one_class(loss: PairLoss, dtype: torch.dtype) -> None:
    given = loss.given((23, 6), dtype)
    for reduction in loss.reductions:
        PairCall(loss, given | {"labels": torch.full((23,), 4)}, reduction).judge()


@EACH_DTYPE
@each("supervised_contrastive_loss")
def test_two_of_one_class_are_certain(loss: PairLoss, dtype: torch.dtype) -> None:
    """The softmax is over one other."""
    given = loss.given((2, 6), dtype) | {"labels": torch.tensor([3, 3])}
    value, gradients = value_and_gradients(loss, given)
    assert value.tolist() == [0.0, 0.0] and not gradients["embeddings"].any()


@pytest.mark.parametrize("spoilt", [0.5, math.nan, math.inf])
@EACH_DTYPE
@each("supervised_contrastive_loss")
def test_without_a_positive_there_is_nothing(loss: PairLoss, dtype: torch.dtype, spoilt: float) -> None:
    """Value and gradient are 0 whatever the vectors hold; of one vector too."""
    for rows in (1, 5, 70):
        given = loss.given((rows, 3), dtype) | {"labels": torch.arange(rows)}
        given["embeddings"][rows // 2] = spoilt
        for reduction in loss.reductions:
            value, gradients = value_and_gradients(loss, given, reduction)
            assert not value.any() and value.shape == ((rows,) if reduction == "none" else ())
            assert not gradients["embeddings"].any()


@FLOATS
@each("supervised_contrastive_loss")
def test_an_anchor_without_a_positive_is_a_negative_only(loss: PairLoss, dtype: torch.dtype) -> None:
    """It has no value and does not count in the mean, and what comes in for it is not looked at."""
    given = loss.given(SHAPE, dtype, seed=2)
    labels = given["labels"]
    alone = (labels == labels[:, None]).sum(1) == 1
    assert alone.any() and not alone.all() and alone[labels == ALONE].all()
    leaf = given["embeddings"].requires_grad_()
    values = loss(leaf, labels, reduction="none")
    assert not values[alone].any() and (values[~alone] > 0).all()
    mean = loss(leaf, labels)
    torch.testing.assert_close(mean, values.sum() / (~alone).sum(), rtol=1e-6, atol=0)
    incoming = torch.linspace(-1, 1, SHAPE[0], dtype=dtype)
    (expected,) = torch.autograd.grad(values, leaf, incoming, retain_graph=True)
    assert expected[alone].any(1).all()  # by those that it is a negative of
    for coming in (0.0, math.nan, math.inf):
        (gradient,) = torch.autograd.grad(values, leaf, incoming.masked_fill(alone, coming), retain_graph=True)
        assert torch.equal(gradient, expected)


@FLOATS
@each("supervised_contrastive_loss")
def test_classes_of_many_sizes(loss: PairLoss, dtype: torch.dtype) -> None:
    """From one vector to more than a tile's."""
    sizes = [1, 1, 2, 3, 15, 16, 17, 64, 100]
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    for y in (labels, labels[order]):
        given = loss.given((len(labels), 5), dtype, seed=3) | {"labels": y}
        PairCall(loss, given, "none").judge()


# ---- NaN and infinity ------------------------------------------------------------------------------------------------

# Where the rows of a table meet those of another: what is wrong in one row of the first is in its own value only.
ROW_BY_ROW = [loss for loss in PAIR_LOSSES if loss.name in ("info_nce_loss", "siglip_loss") and
              "symmetric" not in loss.variant]  # fmt: skip


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@EACH_DTYPE
@pytest.mark.parametrize("loss", [pytest.param(loss, id=loss.id) for loss in ROW_BY_ROW])
def test_a_nan_of_a_query_stays_in_its_row(loss: PairLoss, dtype: torch.dtype, bad: float) -> None:
    given = loss.given((9, 4), dtype, seed=21)
    first = loss.tables[0]
    spoilt = given[first].clone()
    spoilt[4, 1] = bad
    others = torch.arange(9) != 4
    for reduction in loss.reductions:
        clean, dirty = (value_and_gradients(loss, given | {first: x}, reduction) for x in (given[first], spoilt))
        if reduction == "none":
            assert torch.equal(dirty[0][others], clean[0][others])
        if math.isnan(bad):  # a logit that is infinite may be infinitely right
            assert dirty[0].isnan().any() and dirty[1][first][4].isnan().all()
        assert torch.equal(dirty[1][first][others], clean[1][first][others])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@EACH_DTYPE
@each(only="own")
def test_a_nan_of_ones_own_negatives_stays_with_its_query(loss: PairLoss, dtype: torch.dtype, bad: float) -> None:
    given = loss.given((9, 4), dtype, seed=22)
    others = torch.arange(9) != 4
    for name in ("key", "negatives"):
        spoilt = given[name].clone()
        spoilt[4][..., 1] = bad
        for reduction in loss.reductions:
            clean, dirty = (value_and_gradients(loss, given | {name: x}, reduction) for x in (given[name], spoilt))
            if reduction == "none":
                assert torch.equal(dirty[0][others], clean[0][others])
            for table in loss.tables:
                assert torch.equal(dirty[1][table][others], clean[1][table][others]), table
            if math.isnan(bad):
                assert dirty[0].isnan().any() and dirty[1]["query"][4].isnan().all()


@EACH_DTYPE
@each(but="own")
def test_a_nan_that_everyone_meets_reaches_everyone(loss: PairLoss, dtype: torch.dtype) -> None:
    """One of a key, a negative, an embedding or a text: no value or gradient is made up in its place."""
    given = loss.given((9, 4), dtype, seed=23)
    last = loss.tables[-1]
    given[last][2, 1] = math.nan
    for reduction in loss.reductions:
        value, gradients = value_and_gradients(loss, given, reduction)
        if "labels" in given:
            counted = value != 0 if reduction == "none" else torch.ones((), dtype=torch.bool)
            assert value[counted].isnan().all() and counted.any()
        else:
            assert value.isnan().all()
        assert gradients[loss.tables[0]].isnan().any(-1).all()


@each("clip_loss", "siglip_loss")
def test_a_nan_scale_reaches_everything(loss: PairLoss) -> None:
    for name in (k for k in loss.differentiable if k not in loss.tables):
        given = loss.given((9, 4), torch.float32)
        given[name].fill_(math.nan)
        value, gradients = value_and_gradients(loss, given)
        assert value.isnan().all() and all(gradient.isnan().all() for gradient in gradients.values())


def test_the_oracle_and_we_agree_on_a_nan() -> None:
    """Every entry that is NaN is so in both."""
    loss = LOSS["info_nce_loss"]
    given = loss.given((5, 3), seed=24)
    given["query"][1, 1] = math.nan
    value, gradients = value_and_gradients(loss, given, "sum")
    arrays = {k: numbers(x, np.longdouble) for k, x in given.items()}
    exact, slopes = results(loss.name, arrays, loss.parameters, "sum")
    assert value.isnan() and np.isnan(exact.value)
    for name, slope in slopes.items():
        assert np.array_equal(np.isnan(slope.value), gradients[name].isnan().numpy()), name
