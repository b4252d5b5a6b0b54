"""First and second derivatives of mined triplet losses: against finite differences in float64, by the rule of the judge
in every dtype, and where vectors lie at the same place or nothing is compared."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import fusedloss.functional as L
from fusedloss.testing.cases import DTYPES
from fusedloss.testing.judge import numbers
from fusedloss.testing.triplet_cases import SHAPE, SIZES, TripletCall, layouts, of_whole_numbers
from fusedloss.testing.triplet_catalogue import TRIPLET_LOSSES, TripletLoss
from fusedloss.testing.triplet_oracle import RULES, results

pytestmark = [
    pytest.mark.core,
    # torch's own forward mode compiles some of its formulas by it.
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
]

EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)
EACH_LOSS = pytest.mark.parametrize("loss", [pytest.param(loss, id=loss.id) for loss in TRIPLET_LOSSES])
PLAIN = [loss for loss in TRIPLET_LOSSES if not loss.parameters.get("normalize")]
EACH_PLAIN = pytest.mark.parametrize("loss", [pytest.param(loss, id=loss.id) for loss in PLAIN])
EACH_MINING = pytest.mark.parametrize("mining", list(RULES))
BY_REDUCTION = pytest.mark.parametrize(
    ("loss", "reduction"), [pytest.param(x, r, id=f"{x.id}-{r}") for x in TRIPLET_LOSSES for r in x.reductions]
)


def smooth(loss: TripletLoss, shape: tuple[int, int], seed: int = 0) -> dict[str, Tensor]:
    """In float64, and as far from where a choice changes as in float32: more than what differences move."""
    given = loss.given(shape, torch.float32, seed)
    return given | {"embeddings": given["embeddings"].double()}


def of_embeddings(loss: TripletLoss, given: dict[str, Tensor], reduction: str) -> Callable[[Tensor], Tensor]:
    return lambda x: loss(x, given["labels"], reduction=reduction)


def leaf_of(given: dict[str, Tensor]) -> Tensor:
    return given["embeddings"].detach().clone().requires_grad_()


# ---- against finite differences --------------------------------------------------------------------------------------


@BY_REDUCTION
def test_derivatives_are_finite_differences(loss: TripletLoss, reduction: str) -> None:
    """First and second, backward and forward, each by itself and in a batch."""
    given = smooth(loss, (7, 3), seed=1)
    call, x = of_embeddings(loss, given, reduction), leaf_of(given)
    assert gradcheck(call, x, check_forward_ad=True, check_batched_forward_grad=True)
    assert gradgradcheck(call, x, check_fwd_over_rev=True)


@EACH_LOSS
def test_batched_gradients(loss: TripletLoss) -> None:
    """is_grads_batched and jacobian(vectorize=True) go through torch's older vmap, not that of torch.func."""
    given = smooth(loss, (6, 2), seed=3)
    for reduction in ("none", "mean"):
        call, x = of_embeddings(loss, given, reduction), leaf_of(given)
        assert gradcheck(call, x, check_batched_grad=True)
        assert gradgradcheck(call, x, check_batched_grad=True)


@EACH_MINING
def test_derivatives_without_a_margin(mining: str) -> None:
    x = smooth(next(loss for loss in PLAIN if loss.parameters["mining"] == mining), (8, 3), seed=5)["embeddings"]
    labels = torch.arange(8) % 3
    for squared, normalize in product((False, True), repeat=2):

        def call(x: Tensor, squared: bool = squared, normalize: bool = normalize) -> Tensor:
            return L.triplet_mining_loss(x, labels, 0.0, mining, squared, "sum", normalize=normalize)

        leaf = x.clone().requires_grad_()
        assert gradcheck(call, leaf) and gradgradcheck(call, leaf)


# ---- by the judge ----------------------------------------------------------------------------------------------------


@EACH_DTYPE
@EACH_LOSS
def test_second_derivatives(loss: TripletLoss, dtype: torch.dtype) -> None:
    given = loss.given(SHAPE, dtype, seed=5)
    for reduction in loss.reductions if dtype == torch.float32 else ("none", "mean"):
        TripletCall(loss, given, reduction, second=True).judge()


@EACH_LOSS
def test_second_derivatives_of_all_sizes(loss: TripletLoss) -> None:
    for n, size in enumerate(SIZES):
        dtype = torch.float64 if n % 3 == 1 else torch.float32
        TripletCall(loss, loss.given(size, dtype, seed=size[0]), "none", second=True).judge()


@EACH_LOSS
def test_second_derivatives_in_any_layout(loss: TripletLoss) -> None:
    for layout in layouts(loss):
        given = loss.given(SHAPE, torch.float32, seed=8, moved=layout)
        TripletCall(loss, given, "sum", second=True).judge()
        direction = loss.directions(given, seed=1)["embeddings"]
        leaf = leaf_of(given)
        (gradient,) = torch.autograd.grad(loss(leaf, given["labels"]), leaf, create_graph=True)
        moved = layout(direction)
        found = [torch.autograd.grad(gradient, leaf, d, retain_graph=True)[0] for d in (moved, moved.clone())]
        assert torch.equal(*found)


@EACH_PLAIN
def test_second_derivatives_at_equal_distances(loss: TripletLoss) -> None:
    """The choices of the first derivatives: of the lowest index."""
    for dtype in (torch.float64, torch.float32):
        TripletCall(loss, of_whole_numbers(loss, (30, 4), dtype), "none", second=True).judge()


@EACH_PLAIN
def test_second_derivatives_far_from_the_origin(loss: TripletLoss) -> None:
    given = loss.given(SHAPE, torch.float32, seed=7, moved=lambda x: x + 1000)
    TripletCall(loss, given, "mean", second=True).judge()


# ---- at the same place -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@EACH_LOSS
def test_vectors_at_the_same_place(loss: TripletLoss, dtype: torch.dtype) -> None:
    """A norm has no second derivative there, and is given 0; a square has one. Nothing is NaN."""
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(3)).to(dtype)
    given = {"embeddings": x[torch.tensor([0, 0, 1, 1, 1, 2, 0, 3])], "labels": torch.tensor([0, 0, 0, 1, 1, 1, 1, 2])}
    for reduction in loss.reductions:
        call = TripletCall(loss, given, reduction, second=True)
        if loss.parameters.get("normalize"):
            value, gradients = call.ours()
            assert value.isfinite().all() and gradients["embeddings"].isfinite().all()
        else:
            call.judge()


@EACH_MINING
def test_a_batch_of_one_vector(mining: str) -> None:
    """All distances are 0. Squared, the second derivative is that of a square; else there is none."""
    x, labels = torch.ones(5, 3, dtype=torch.float64), torch.tensor([0, 0, 1, 1, 1])
    direction = torch.linspace(-1, 1, 15).double().view(5, 3)
    for squared in (False, True):
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(
            L.triplet_mining_loss(leaf, labels, mining=mining, squared=squared), leaf, create_graph=True
        )
        (second,) = torch.autograd.grad(gradient, leaf, direction)
        assert not gradient.any() and second.isfinite().all() and bool(second.any()) == squared


# ---- forward mode ----------------------------------------------------------------------------------------------------


def jvp(loss: TripletLoss, given: dict[str, Tensor], tangent: Tensor, reduction: str) -> tuple[Tensor, Tensor]:
    call = of_embeddings(loss, given, reduction)
    found: tuple[Tensor, Tensor] = torch.func.jvp(call, (given["embeddings"],), (tangent,))
    return found


@BY_REDUCTION
def test_forward_mode_is_the_gradient_times_the_tangent(loss: TripletLoss, reduction: str) -> None:
    given = loss.given(SHAPE, seed=9)
    tangent, leaf = loss.directions(given)["embeddings"], leaf_of(given)
    value = loss(leaf, given["labels"], reduction=reduction)
    found, slope = jvp(loss, given, tangent, reduction)
    torch.testing.assert_close(found, value.detach(), rtol=1e-15, atol=0)
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    torch.testing.assert_close(slope.sum(), (gradient * tangent).sum(), rtol=1e-12, atol=1e-13)


@EACH_DTYPE
@EACH_LOSS
def test_forward_mode_against_the_oracle(loss: TripletLoss, dtype: torch.dtype) -> None:
    given = loss.given(SHAPE, dtype, seed=10)
    direction = loss.directions(given)["embeddings"]
    double = dtype == torch.float64
    precision = np.longdouble if double else np.float64
    x, along = (numbers(t, precision) for t in (given["embeddings"], direction))
    exact, _ = results(x, loss.for_oracle(given["labels"], double), "none", directions=along)
    _, slope = jvp(loss, given, direction, "none")
    assert slope.dtype == dtype
    unit = torch.finfo(dtype).eps + 8 * torch.finfo(torch.float64 if double else torch.float32).eps
    assert (np.abs(numbers(slope, precision) - exact.value) <= unit * exact.size).all()


# ---- one gradient and another ----------------------------------------------------------------------------------------


@BY_REDUCTION
def test_a_graph_that_is_kept_gives_the_same_gradient_every_time(loss: TripletLoss, reduction: str) -> None:
    leaf = leaf_of(given := loss.given(SHAPE, torch.float32))
    result = loss(leaf, given["labels"], reduction=reduction)
    incoming = torch.full_like(result, 0.3)
    (expected,) = torch.autograd.grad(result, leaf, incoming, retain_graph=True)
    kept = expected.clone()
    expected.mul_(1000)  # it belongs to the caller
    (again,) = torch.autograd.grad(result, leaf, incoming, retain_graph=True)
    assert torch.equal(again, kept)
    result.backward(incoming, retain_graph=True)
    result.backward(incoming)
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad, 2 * kept, rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="second time"):
        result.backward(incoming)


@BY_REDUCTION
def test_the_gradient_with_a_graph_is_that_without(loss: TripletLoss, reduction: str) -> None:
    """create_graph computes the gradient anew, where the other was made in the forward pass."""
    given, found = loss.given(SHAPE), []
    for with_graph in (True, False):
        leaf = leaf_of(given)
        result = loss(leaf, given["labels"], reduction=reduction)
        incoming = torch.full_like(result, 0.3)
        found.append(torch.autograd.grad(result, leaf, incoming, create_graph=with_graph)[0])
    assert found[0].requires_grad and not found[1].requires_grad
    largest = float(found[1].abs().max())
    torch.testing.assert_close(found[0].detach(), found[1], rtol=0, atol=4 * torch.finfo(torch.float64).eps * largest)


@BY_REDUCTION
def test_a_factor_on_the_loss_is_one_on_its_gradient(loss: TripletLoss, reduction: str) -> None:
    leaf = leaf_of(given := loss.given(SHAPE, torch.float32))
    result = loss(leaf, given["labels"], reduction=reduction)
    ones, quarters = (
        torch.autograd.grad(result, leaf, torch.full_like(result, factor), retain_graph=True)[0]
        for factor in (1.0, -0.25)
    )
    assert torch.equal(ones * -0.25, quarters) and ones.any()


@EACH_LOSS
def test_what_comes_in_belongs_to_its_anchor(loss: TripletLoss) -> None:
    """The gradient is the sum of what each anchor makes of what comes in for it alone."""
    leaf = leaf_of(given := loss.given((11, 4)))
    result = loss(leaf, given["labels"], reduction="none")
    incoming = torch.linspace(-1, 2, 11).double()
    (together,) = torch.autograd.grad(result, leaf, incoming, retain_graph=True)
    each = [torch.autograd.grad(result[n], leaf, retain_graph=True)[0] * incoming[n] for n in range(11)]
    torch.testing.assert_close(torch.stack(each).sum(0), together, rtol=1e-13, atol=1e-13)
    nothing = result.detach() == 0
    for n in nothing.nonzero().flatten().tolist():
        assert not each[n].any()


@BY_REDUCTION
def test_the_third_derivative_is_refused_in_words(loss: TripletLoss, reduction: str) -> None:
    leaf = leaf_of(given := loss.given((7, 3)))
    result = loss(leaf, given["labels"], reduction=reduction).sum()
    (first,) = torch.autograd.grad(result, leaf, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="third derivative of triplet_mining_loss"):
        second.sum().backward()


@EACH_LOSS
def test_a_second_derivative_by_the_incoming_gradient(loss: TripletLoss) -> None:
    """A gradient is linear in what comes in: its derivative by that, along a direction, is the loss's."""
    given = loss.given(SHAPE)
    leaf, direction = leaf_of(given), loss.directions(given)["embeddings"]
    incoming = torch.linspace(-1, 2, SHAPE[0]).double().requires_grad_()
    values = loss(leaf, given["labels"], reduction="none")
    (gradient,) = torch.autograd.grad(values, leaf, incoming, create_graph=True)
    (by_incoming,) = torch.autograd.grad(gradient, incoming, direction, retain_graph=True)
    torch.testing.assert_close(by_incoming, jvp(loss, given, direction, "none")[1], rtol=1e-13, atol=1e-14)


@EACH_LOSS
def test_only_what_needs_a_gradient_has_one(loss: TripletLoss) -> None:
    given = loss.given(SHAPE, torch.float32)
    for reduction in loss.reductions:
        assert not loss(*given.values(), reduction=reduction).requires_grad
        with torch.no_grad():
            value = loss(leaf_of(given), given["labels"], reduction=reduction)
        assert value.grad_fn is None
        with_gradient = loss(leaf_of(given), given["labels"], reduction=reduction)
        assert with_gradient.requires_grad
        torch.testing.assert_close(with_gradient.detach(), value, rtol=1e-6, atol=0)


# ---- nothing to compare, NaN -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("spoilt", [0.5, math.nan, math.inf])
@EACH_LOSS
def test_of_nothing_all_derivatives_are_zero(loss: TripletLoss, spoilt: float) -> None:
    """Second and forward ones too, along whatever direction."""
    for labels in ([3] * 6, list(range(6)), [1], []):
        x = torch.randn(len(labels), 4, generator=torch.Generator().manual_seed(1)).double()
        x[:1, 1] = spoilt
        given = {"embeddings": x, "labels": torch.tensor(labels, dtype=torch.int64)}
        direction = torch.full_like(x, spoilt)
        for reduction in loss.reductions:
            leaf = leaf_of(given)
            value = loss(leaf, given["labels"], reduction=reduction)
            (gradient,) = torch.autograd.grad(value.sum(), leaf, create_graph=True)
            (second,) = torch.autograd.grad(gradient, leaf, direction)
            assert not gradient.any() and not second.any()
            assert not jvp(loss, given, direction, reduction)[1].any()


@EACH_LOSS
def test_left_out_anchors_of_what_comes_in(loss: TripletLoss) -> None:
    """Neither a gradient nor a second derivative looks at what comes in for an anchor that has no value."""
    given = loss.given(SHAPE, seed=6)
    counts = (given["labels"][:, None] == given["labels"]).sum(1)
    direction, clean = loss.directions(given)["embeddings"], torch.linspace(-1, 2, SHAPE[0]).double()
    found = []
    for coming in (0.0, math.nan):
        leaf = leaf_of(given)
        values = loss(leaf, given["labels"], reduction="none")
        incoming = torch.where(counts > 1, clean, coming)
        (gradient,) = torch.autograd.grad(values, leaf, incoming, create_graph=True)
        found.append((gradient.detach(), torch.autograd.grad(gradient, leaf, direction)[0]))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other) and one.any()


@pytest.mark.parametrize(
    "loss", [pytest.param(x, id=x.id) for x in TRIPLET_LOSSES if x not in PLAIN or not x.parameters.get("squared")]
)
def test_a_nan_reaches_second_derivatives(loss: TripletLoss) -> None:
    """(But not of squares, whose second derivative is 2 everywhere.)"""
    given = loss.given((9, 4), seed=23)
    counts = (given["labels"][:, None] == given["labels"]).sum(1)
    leaf = given["embeddings"].clone()
    leaf[2, 1] = math.nan
    leaf.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf, given["labels"]), leaf, create_graph=True)
    (second,) = torch.autograd.grad(gradient, leaf, loss.directions(given)["embeddings"])
    assert second[counts > 1].isnan().any(1).all()
