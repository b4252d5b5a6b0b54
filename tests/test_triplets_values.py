"""Mined triplet losses and their gradients against the oracle by the rule of fusedloss.testing.judge, and their edge
cases: equal distances, vectors at the same place, labels that leave nobody to compare, NaN."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

import fusedloss.functional as L
from fusedloss.testing.cases import DTYPES, RANGES, transposed
from fusedloss.testing.triplet_cases import LAYOUTS, SHAPE, SIZES, TripletCall, layouts, of_whole_numbers
from fusedloss.testing.triplet_catalogue import CLEAR, TRIPLET_LOSSES, TripletLoss
from fusedloss.testing.triplet_oracle import RULES

pytestmark = pytest.mark.core

EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)
EACH_LOSS = pytest.mark.parametrize("loss", [pytest.param(loss, id=loss.id) for loss in TRIPLET_LOSSES])
PLAIN = [loss for loss in TRIPLET_LOSSES if not loss.parameters.get("normalize")]
EACH_PLAIN = pytest.mark.parametrize("loss", [pytest.param(loss, id=loss.id) for loss in PLAIN])
EACH_MINING = pytest.mark.parametrize("mining", list(RULES))
F32_OR_FEW = pytest.mark.parametrize(
    ("loss", "dtype"),
    [pytest.param(x, dtype, id=f"{x.id}-{dtype}") for x, dtype in product(TRIPLET_LOSSES, DTYPES)
     if dtype == torch.float32 or len(x.parameters) == 2],
)  # fmt: skip
REDUCTIONS = ("none", "mean", "sum", "mean_nonzero")
INTEGERS = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8]


def step(x: Tensor, labels: Tensor, **keywords: Any) -> tuple[Tensor, Tensor]:
    """The loss and the gradient of its sum."""
    leaf = x.detach().requires_grad_()
    value = L.triplet_mining_loss(leaf, labels, **keywords)
    return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]


def value_and_gradient(loss: TripletLoss, given: dict[str, Tensor], reduction: str = "none") -> tuple[Tensor, Tensor]:
    return step(*given.values(), **loss.parameters, reduction=reduction)


# ---- shapes, dtypes, reductions --------------------------------------------------------------------------------------


@EACH_DTYPE
@EACH_LOSS
def test_reductions(loss: TripletLoss, dtype: torch.dtype) -> None:
    given = loss.given(SHAPE, dtype)
    for reduction in loss.reductions:
        TripletCall(loss, given, reduction, factor=-0.37 if reduction == "none" else 1.0).judge()


@F32_OR_FEW
def test_sizes(loss: TripletLoss, dtype: torch.dtype) -> None:
    """Vectors and their lengths around registers and tiles."""
    for size in SIZES:
        TripletCall(loss, loss.given(size, dtype, seed=size[0]), "none" if size[0] % 2 else "sum").judge()


@pytest.mark.parametrize("loss", [pytest.param(x, id=x.id) for x in TRIPLET_LOSSES if "batch_hard" in x.id])
def test_lengths(loss: TripletLoss) -> None:
    """Of distances, which do not know what is mined."""
    for length in (0, 1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 127, 129, 257, 1025, 5000):
        dtype = torch.float32 if length > 100 or length % 2 else torch.float64
        TripletCall(loss, loss.given((3 if length == 1 else 6, length), dtype, seed=length), "none").judge()


@EACH_MINING
def test_numbers_of_vectors(mining: str) -> None:
    loss = next(loss for loss in TRIPLET_LOSSES if loss.parameters == {"mining": mining, "margin": 0.6})
    for count in (2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 15, 17, 18, 31, 32, 34):
        TripletCall(loss, loss.given((count, 3), torch.float32, seed=count), "none").judge()


@EACH_PLAIN
def test_many_vectors(loss: TripletLoss) -> None:
    """More than a block of any device's work, whose squares have no rounding error."""
    for dtype, reduction in ((torch.float32, "none"), (torch.bfloat16, "sum")):
        TripletCall(loss, of_whole_numbers(loss, (110, 5), dtype), reduction).judge()


@pytest.mark.parametrize("mining", ["semi_hard", "all"])
def test_groups_of_every_size(mining: str) -> None:
    """A label that nearly all have, one that few have, and some that are alone."""
    loss = next(loss for loss in TRIPLET_LOSSES if loss.parameters == {"mining": mining, "margin": 0.6})
    labels = torch.tensor([5] * 25 + [-1] * 3 + [2, 3] + [9] * 2)
    for seed in range(3):
        given = loss.given((32, 4), torch.float32, seed=seed)
        given["labels"] = labels[torch.randperm(32, generator=torch.Generator().manual_seed(seed))]
        if loss.clearance(given) > 1e-5:
            TripletCall(loss, given, "none").judge()


@pytest.mark.parametrize("factor", [2.0**15, 2.0**-10])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@EACH_LOSS
def test_a_scaled_loss(loss: TripletLoss, dtype: torch.dtype, factor: float) -> None:
    """A gradient is scaled before it is rounded: loss scaling keeps small ones, and none overflows on the way."""
    given = loss.given(SHAPE, dtype, seed=47)
    TripletCall(loss, given, "mean" if factor > 1 else "sum", factor=factor).judge()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@EACH_LOSS
def test_half_types_are_rounded_once(loss: TripletLoss, dtype: torch.dtype) -> None:
    """The same bits as computing on a float32 copy and rounding its result."""
    given = loss.given((33, 7), dtype, seed=37)
    wide = given | {"embeddings": given["embeddings"].float()}
    for reduction in loss.reductions:
        (value, gradient), (full, slope) = (value_and_gradient(loss, g, reduction) for g in (given, wide))
        assert value.dtype == dtype and torch.equal(value, full.to(dtype)), reduction
        if reduction != "none":  # there the incoming gradient is rounded to the dtype of the result
            assert torch.equal(gradient, slope.to(dtype)), reduction


# ---- layouts ---------------------------------------------------------------------------------------------------------


@F32_OR_FEW
def test_layouts(loss: TripletLoss, dtype: torch.dtype) -> None:
    for n, layout in enumerate(layouts(loss)):
        TripletCall(loss, loss.given(SHAPE, dtype, seed=11, moved=layout), "none" if n % 2 else "sum").judge()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
@EACH_LOSS
def test_where_the_numbers_lie_changes_no_bit(loss: TripletLoss, dtype: torch.dtype) -> None:
    for layout in LAYOUTS:
        x, labels = loss.given(SHAPE, dtype, seed=2).values()
        moved = layout(x)
        for one, other in zip(*(step(y, labels, **loss.parameters) for y in (moved, moved.contiguous())), strict=True):
            assert torch.equal(one, other), layout


@EACH_LOSS
def test_the_gradient_lies_in_memory_as_the_input_does(loss: TripletLoss) -> None:
    x, labels = loss.given(SHAPE, torch.float32).values()
    for reduction in loss.reductions:
        assert step(transposed(x), labels, **loss.parameters, reduction=reduction)[1].stride() == (1, SHAPE[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
@EACH_LOSS
def test_gradient_comes_in_any_layout(loss: TripletLoss, dtype: torch.dtype) -> None:
    x, labels = loss.given(SHAPE, dtype, seed=13).values()
    leaf = x.requires_grad_()
    result = loss(leaf, labels, reduction="none")
    grad = torch.randn(len(result), generator=torch.Generator().manual_seed(14)).to(dtype)
    (straight,) = torch.autograd.grad(result, leaf, grad, retain_graph=True)
    for moved in (torch.stack([grad, grad * 0], 1)[:, 0], torch.cat([grad[:1], grad])[1:]):
        assert torch.equal(torch.autograd.grad(result, leaf, moved, retain_graph=True)[0], straight)
    spread = grad[:1].expand(len(grad))
    of_spread, of_copy = (
        torch.autograd.grad(result, leaf, g, retain_graph=True)[0] for g in (spread, spread.contiguous())
    )
    assert torch.equal(of_spread, of_copy)


# ---- ranges ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in RANGES if name not in ("tiny", "subnormal")])
@F32_OR_FEW
def test_ranges(loss: TripletLoss, dtype: torch.dtype, name: str) -> None:
    given = loss.given(SHAPE, dtype, seed=17, scale=RANGES[name][dtype])
    TripletCall(loss, given, "none").judge()
    if name in ("large", "huge"):
        TripletCall(loss, given, "mean").judge()


@pytest.mark.parametrize("name", ["tiny", "subnormal"])
@EACH_DTYPE
@EACH_PLAIN
def test_distances_whose_squares_are_nothing(loss: TripletLoss, dtype: torch.dtype, name: str) -> None:
    """Beside the margin they are nothing too, and their gradient is finite."""
    generator = torch.Generator().manual_seed(0)
    x, labels = (sampler(SHAPE, generator, RANGES[name][dtype]) for sampler in loss.samplers.values())
    value, gradient = step(x.to(dtype), labels, **loss.parameters)
    torch.testing.assert_close(value.double(), torch.tensor(loss.parameters["margin"]).double(), rtol=4e-3, atol=0)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@EACH_PLAIN
def test_far_from_the_origin(loss: TripletLoss, dtype: torch.dtype) -> None:
    """Differences have all the digits that the numbers have; products of vectors would leave three of float32's."""
    for offset in (1000.0, -3e4):
        given = loss.given((23, 20), dtype, seed=7, moved=lambda x, offset=offset: x + offset)
        for reduction in ("none", "mean"):
            TripletCall(loss, given, reduction).judge()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@EACH_PLAIN
def test_half_types_far_from_the_origin(loss: TripletLoss, dtype: torch.dtype) -> None:
    """Of the whole numbers there that they have."""
    given = of_whole_numbers(loss, (23, 6), dtype)
    near = value_and_gradient(loss, given | {"embeddings": given["embeddings"] * 8})
    far = value_and_gradient(loss, given | {"embeddings": given["embeddings"] * 8 + 1024})
    for one, other in zip(near, far, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@EACH_PLAIN
def test_twins_in_a_wide_batch(loss: TripletLoss, dtype: torch.dtype) -> None:
    """At a thousandth of the others' distance, where products of vectors have no digits left; some of another label."""

    for labels in (torch.arange(14) % 7, torch.arange(14) % 2):
        for seed in range(100):
            x = torch.randn(14, 6, generator=torch.Generator().manual_seed(seed)).to(dtype)
            given = {"embeddings": torch.cat([x[:7] * 4, x[:7] * 4 + 1e-2 * x[7:]]), "labels": labels}
            if loss.clearance(given) > CLEAR[dtype]:
                break
        assert loss.clearance(given) > CLEAR[dtype]
        TripletCall(loss, given, "none").judge()


# ---- equal distances -------------------------------------------------------------------------------------------------


@EACH_DTYPE
@EACH_PLAIN
def test_of_equal_distances_the_lowest_index_is_taken(loss: TripletLoss, dtype: torch.dtype) -> None:
    """Values do not show which it was; gradients do."""
    for shape in ((13, 1), (17, 2), (40, 3)):
        TripletCall(loss, of_whole_numbers(loss, shape, dtype, seed=shape[0]), "none").judge()


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_equal_distances_by_hand(dtype: torch.dtype, squared: bool) -> None:
    """A cross around the anchor: all others are 1 away, and only the first positive and the first negative are pulled.
    As no negative is farther than a semi-hard positive, it takes the farthest, which is the first again."""
    x = torch.tensor([[0.0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]], dtype=dtype)
    labels = torch.tensor([1, 0, 1, 0, 1])
    known = {
        "batch_hard": [[2.0, 0], [-1, 0], [-1, 0], [0, 0], [0, 0]],
        "semi_hard": [[3.0, 1], [-2, 0], [-1, 0], [0, 0], [0, -1]],
    }
    for mining, slopes in known.items():
        leaf = x.clone().requires_grad_()
        value = L.triplet_mining_loss(leaf, labels, 0.5, mining, squared, "none")[0]
        (gradient,) = torch.autograd.grad(value, leaf)
        assert value == (0.5 if mining == "batch_hard" else 1.0)
        assert torch.equal(gradient, torch.tensor(slopes, dtype=dtype) * (2 if squared else 1))


@EACH_MINING
def test_which_of_many_equal_ones_is_taken(mining: str) -> None:
    """Far apart in the batch, whatever registers and threads they fall to."""
    for count in (20, 70, 150):
        x = torch.zeros(count, 2)
        x[0] = torch.tensor([0.0, 4.0])  # the anchor; the others lie at the same place
        labels = torch.arange(count) % 2
        leaf = x.requires_grad_()
        value = L.triplet_mining_loss(leaf, labels, 1.0, mining, reduction="none")[0]
        (gradient,) = torch.autograd.grad(value, leaf)
        positives, negatives = (count - 1) // 2, count // 2
        assert value == {"batch_hard": 1, "semi_hard": positives, "all": positives * negatives}[mining]
        pulled = gradient[:, 1].nonzero().flatten().tolist()
        # What the anchor itself gets of all its pairs cancels.
        expected = {"batch_hard": [1, 2], "semi_hard": [1, *range(2, count, 2)], "all": list(range(1, count))}
        assert pulled == expected[mining]
        assert gradient[1, 1] == {"batch_hard": 1, "semi_hard": positives, "all": positives}[mining]


# ---- vectors at the same place ---------------------------------------------------------------------------------------


@EACH_DTYPE
@EACH_LOSS
def test_vectors_at_the_same_place(loss: TripletLoss, dtype: torch.dtype) -> None:
    """At the distance 0 a pair has no gradient; that of the others is what it would be."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(6, 8, generator=generator).to(dtype)
    x = x[torch.tensor([0, 0, 1, 1, 1, 2, 0, 3])]
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 1, 2])
    # (A distance of 0 to a negative is a tie of two that are the same to the bit.)
    for reduction in loss.reductions:
        call = TripletCall(loss, {"embeddings": x, "labels": labels}, reduction)
        assert call.ours()[1]["embeddings"].isfinite().all()
        if not loss.parameters.get("normalize"):
            call.judge()


@EACH_DTYPE
@EACH_MINING
def test_a_batch_of_one_vector(dtype: torch.dtype, mining: str) -> None:
    """Every distance is 0, every triplet is worth the margin, and nothing pulls."""
    for squared, normalize, offset in product((False, True), (False, True), (0.0, 1000.0)):
        x = (torch.arange(7.0) + offset).expand(6, 7).to(dtype)
        value, gradient = step(x, torch.tensor([0, 0, 0, 1, 1, 2]), margin=0.75, mining=mining, squared=squared,
                               normalize=normalize)  # fmt: skip
        assert value == 0.75 and not gradient.any() and gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@EACH_MINING
def test_normalized_vectors_of_no_length(dtype: torch.dtype, mining: str) -> None:
    """They stay at the origin, and are divided by the smallest norm: as torch.nn.functional.normalize has it."""
    for squared in (False, True):
        loss = next(x for x in TRIPLET_LOSSES if x.parameters.get("normalize") and x.parameters["mining"] == mining
                    and bool(x.parameters.get("squared")) == squared)  # fmt: skip

        def with_zero(x: Tensor) -> Tensor:
            return x.index_fill(0, torch.tensor([3]), 0.0)

        given = loss.given((11, 5), dtype, seed=5, moved=with_zero)
        for second in (False, True):
            call = TripletCall(loss, given, "none", second=second)
            call.judge()
            assert call.ours()[1]["embeddings"].isfinite().all()


# ---- whom labels leave to compare ------------------------------------------------------------------------------------


@pytest.mark.parametrize("spoilt", [0.5, math.nan, math.inf])
@EACH_DTYPE
@EACH_LOSS
def test_nothing_to_compare(loss: TripletLoss, dtype: torch.dtype, spoilt: float) -> None:
    """All labels equal, all different, one vector or none: 0, and a gradient of exactly 0, whatever vectors hold."""
    for labels in ([3] * 9, list(range(9)), [3, 3], [3, 4], [3], []):
        x = torch.randn(len(labels), 5, generator=torch.Generator().manual_seed(1)).to(dtype)
        x[:1, 2] = spoilt
        for reduction in loss.reductions:
            given = {"embeddings": x, "labels": torch.tensor(labels, dtype=torch.int64)}
            value, gradient = value_and_gradient(loss, given, reduction)
            assert value.shape == ((len(labels),) if reduction == "none" else ())
            assert not value.any() and value.dtype == dtype, (labels, reduction)
            assert gradient.shape == x.shape and not gradient.any() and not gradient.signbit().any()


@EACH_LOSS
def test_without_components(loss: TripletLoss) -> None:
    """All vectors are the same: the margin, and a gradient without numbers."""
    for count in (0, 1, 5):
        x, labels = torch.zeros(count, 0), torch.arange(count) // 2
        for reduction in loss.reductions:
            value, gradient = value_and_gradient(loss, {"embeddings": x, "labels": labels}, reduction)
            assert gradient.shape == x.shape
            if reduction.startswith("mean"):
                torch.testing.assert_close(value, torch.tensor(loss.parameters["margin"] if count == 5 else 0.0))


@EACH_LOSS
def test_left_out_anchors(loss: TripletLoss) -> None:
    """A vector that is alone with its label has no value of its own; that of all others is the only one's mean."""
    given = loss.given(SHAPE)
    counts = (given["labels"][:, None] == given["labels"]).sum(1)
    values, _ = value_and_gradient(loss, given)
    assert (counts == 1).sum() == 1 and values[counts == 1] == 0 and (values[counts > 1] > 0).any()
    total = value_and_gradient(loss, given, "sum")[0]
    torch.testing.assert_close(values.sum(), total, rtol=1e-14, atol=0)
    terms = {"batch_hard": counts > 1, "semi_hard": counts - 1, "all": (counts - 1) * (SHAPE[0] - counts)}
    expected = total / terms[loss.parameters["mining"]].sum()
    torch.testing.assert_close(value_and_gradient(loss, given, "mean")[0], expected, rtol=1e-14, atol=0)


def test_each_reduction_by_hand() -> None:
    """On a line: two of one label at 0 and 1, one of another at 3."""
    x, labels = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([1, 1, 2])
    for mining in RULES:
        # 1 - 3 + 1.5 = -0.5 and 1 - 2 + 1.5 = 0.5
        values = {r: L.triplet_mining_loss(x, labels, 1.5, mining, False, r).tolist() for r in REDUCTIONS}
        assert values == {"none": [0.0, 0.5, 0.0], "sum": 0.5, "mean": 0.25, "mean_nonzero": 0.5}
        # At the corner nothing is positive.
        assert L.triplet_mining_loss(x, labels, 1.0, mining, reduction="mean_nonzero") == 0
        # 1 - 9 + 6 and 1 - 4 + 6
        values = {r: L.triplet_mining_loss(x, labels, 6, mining, True, r).tolist() for r in REDUCTIONS}
        assert values == {"none": [0.0, 3.0, 0.0], "sum": 3.0, "mean": 1.5, "mean_nonzero": 3.0}


@EACH_DTYPE
@EACH_MINING
def test_nothing_that_is_positive(mining: str, dtype: torch.dtype) -> None:
    """Clusters that are farther apart than the margin: 0, and a gradient of exactly 0, of all reductions."""
    x = torch.randn(12, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    labels = torch.arange(12) % 3
    for squared, reduction in product((False, True), REDUCTIONS):
        value, gradient = step(x + 40 * labels[:, None], labels, mining=mining, squared=squared, reduction=reduction)
        assert not value.any() and not gradient.any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@EACH_MINING
def test_the_corner_of_the_hinge(mining: str, dtype: torch.dtype) -> None:
    """There the derivative is 0, as torch's is: a positive as far as a negative, and no margin."""
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 5.0], [-4.0, -3.0]], dtype=dtype)
    labels = torch.tensor([0, 0, 1, 1])
    leaf = x.requires_grad_()
    values = L.triplet_mining_loss(leaf, labels, 0, mining, reduction="none")
    assert values[0] == 0
    assert not torch.autograd.grad(values[0], leaf, retain_graph=True)[0].any()
    total = L.triplet_mining_loss(leaf, labels, 0, mining, reduction="sum")
    torch.testing.assert_close(total, values.sum())


@EACH_MINING
def test_margins(mining: str) -> None:
    """0, a whole number, and one beside which distances are small."""
    for margin, squared in product((0, 0.0, 3, 1e-3, 1e5), (False, True)):
        parameters = {"mining": mining, "margin": margin} | ({"squared": True} if squared else {})
        base = next(x for x in TRIPLET_LOSSES if x.parameters["mining"] == mining)
        loss = TripletLoss(base.name, base.samplers, base.reference, parameters, in_ops=base.in_ops)
        for reduction in REDUCTIONS:
            TripletCall(loss, loss.given((14, 5), torch.float32, seed=4), reduction).judge()


# ---- what labels may be ----------------------------------------------------------------------------------------------


@EACH_LOSS
def test_labels_of_any_integer_type_and_layout(loss: TripletLoss) -> None:
    """The same bits, whatever numbers stand for the labels, wherever they lie."""
    x, labels = loss.given(SHAPE, torch.float32).values()
    order = labels.unique(return_inverse=True)[1]
    known = step(x, order, **loss.parameters, reduction="none")
    garbage = torch.full_like(order, 99)
    others = [
        *(order.to(dtype) for dtype in INTEGERS),
        100 - order,
        labels,
        order * 2**32,  # which are all the same if only 32 bits are looked at
        torch.where(order == 2, -(2**63), torch.where(order == 1, 2**63 - 1, order)),
        torch.stack([order, garbage], 1)[:, 0],
        torch.cat([garbage, order])[len(order) :],
        order.flip(0).clone().flip(0),
    ]
    for other in others:
        for one, expected in zip(step(x, other, **loss.parameters, reduction="none"), known, strict=True):
            assert torch.equal(one, expected)
    for value in (7, -(2**63)):
        same = torch.tensor(value).expand(SHAPE[0])
        assert L.triplet_mining_loss(x, same) == 0


# ---- order -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@EACH_LOSS
def test_a_permuted_batch_has_permuted_values(loss: TripletLoss, dtype: torch.dtype) -> None:
    given = loss.given((29, 6), dtype, seed=8)
    value, gradient = value_and_gradient(loss, given)
    unit = 16 * torch.finfo(dtype).eps
    for seed in range(4):
        order = torch.randperm(29, generator=torch.Generator().manual_seed(seed))
        moved = {name: x[order] for name, x in given.items()}
        other, slope = value_and_gradient(loss, moved)
        torch.testing.assert_close(other, value[order], rtol=unit, atol=unit)
        torch.testing.assert_close(slope, gradient[order], rtol=unit, atol=unit * float(gradient.abs().max()))


@EACH_LOSS
def test_a_shifted_or_turned_batch_has_the_same_value(loss: TripletLoss) -> None:
    """Distances are what counts; normalised vectors have no length."""
    x, labels = loss.given((19, 4), seed=6).values()
    value = loss(x, labels)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(1)).double())[0]
    torch.testing.assert_close(loss(x @ turn, labels), value, rtol=1e-12, atol=0)
    if loss.parameters.get("normalize"):
        lengths = torch.linspace(0.1, 9, 19).double()[:, None]
        torch.testing.assert_close(loss(x * lengths, labels), value, rtol=1e-12, atol=0)
        _, gradient = step(x, labels, **loss.parameters)
        torch.testing.assert_close((gradient * x).sum(1), torch.zeros(19).double(), rtol=0, atol=1e-15)
    else:
        torch.testing.assert_close(loss(x + 8, labels), value, rtol=1e-12, atol=0)
        _, gradient = step(x, labels, **loss.parameters)
        torch.testing.assert_close(gradient.sum(0), torch.zeros(4).double(), rtol=0, atol=1e-14)


@EACH_LOSS
def test_the_hardest_is_the_hardest(loss: TripletLoss) -> None:
    """None of an anchor's triplets is harder than the hardest."""
    given = loss.given(SHAPE)
    x, labels = given.values()
    rest = {k: v for k, v in loss.parameters.items() if k != "mining"}
    hard, each = (L.triplet_mining_loss(x, labels, mining=m, **rest, reduction="none") for m in ("batch_hard", "all"))
    counts = (labels[:, None] == labels).sum(1)
    assert (each <= hard * (counts - 1) * (SHAPE[0] - counts) * (1 + 1e-14)).all()


# ---- NaN and infinity ------------------------------------------------------------------------------------------------


@EACH_DTYPE
@EACH_LOSS
def test_a_nan_reaches_every_anchor(loss: TripletLoss, dtype: torch.dtype) -> None:
    """All vectors are compared with all: as an anchor, as a positive of the others or as a negative. Those that are the
    anchor of nothing keep their 0."""
    given = loss.given(SHAPE, dtype, seed=23)
    counts = (given["labels"][:, None] == given["labels"]).sum(1)
    alone, among = int(counts.argmin()), int(counts.argmax())
    for bad in (alone, among, 0, SHAPE[0] - 1):
        for column in (0, SHAPE[1] - 1):
            x = given["embeddings"].clone()
            x[bad, column] = math.nan
            for reduction in loss.reductions:
                value, gradient = value_and_gradient(loss, given | {"embeddings": x}, reduction)
                if reduction == "none":
                    assert torch.equal(value.isnan(), counts > 1) and not value[counts == 1].any()
                else:
                    assert value.isnan()
                assert gradient[bad].isnan().all() or dtype == torch.float16 or gradient[bad].isnan().any()
                assert gradient[counts > 1].isnan().any(1).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@EACH_PLAIN
def test_infinite_vectors_are_no_numbers(loss: TripletLoss, dtype: torch.dtype) -> None:
    """One that has positives and negatives is an anchor, from which all are infinitely far."""
    given = loss.given(SHAPE, dtype, seed=24)
    counts = (given["labels"][:, None] == given["labels"]).sum(1)
    bad = int(counts.argmax())
    for infinite in (math.inf, -math.inf):
        x = given["embeddings"].clone()
        x[bad, 1] = infinite
        values, gradient = value_and_gradient(loss, given | {"embeddings": x})
        assert values[bad].isnan() and gradient[bad].isnan().any()
        for reduction in ("mean", "sum", "mean_nonzero"):
            assert value_and_gradient(loss, given | {"embeddings": x}, reduction)[0].isnan()


@EACH_MINING
def test_a_nan_comes_in_for_left_out_anchors(mining: str) -> None:
    """It is not looked at: the gradient is that of the others, exactly."""
    x = torch.randn(7, 3, generator=torch.Generator().manual_seed(2)).requires_grad_()
    labels = torch.tensor([0, 0, 1, 1, 2, 0, 3])
    values = L.triplet_mining_loss(x, labels, 2.0, mining, reduction="none")
    left_out = torch.tensor([4, 6])
    clean = torch.linspace(-1, 2, 7)
    (expected,) = torch.autograd.grad(values, x, clean.index_fill(0, left_out, 0.0), retain_graph=True)
    for coming in (math.nan, math.inf):
        (gradient,) = torch.autograd.grad(values, x, clean.index_fill(0, left_out, coming), retain_graph=True)
        assert torch.equal(gradient, expected) and gradient.any()
