"""First and second derivatives of CTC: against finite differences in float64, by the rule of the judge in every dtype,
and where a sequence has no alignment or a frame does not count."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import fusedloss.functional as L
from fusedloss.testing.cases import DTYPES
from fusedloss.testing.judge import numbers
from fusedloss.testing.lattice_cases import LAYOUTS, SHAPE, SIZES, LatticeCall, for_oracle, laid_out
from fusedloss.testing.lattice_catalogue import LATTICE_LOSSES, LatticeLoss
from fusedloss.testing.lattice_oracle import results

pytestmark = [
    pytest.mark.core,
    # torch's own forward mode compiles some of its formulas by it.
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
]

EACH_LOSS = pytest.mark.parametrize("loss", [pytest.param(loss, id=loss.id) for loss in LATTICE_LOSSES])
EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)
LOG_PROBS, LOGITS = LATTICE_LOSSES[0], LATTICE_LOSSES[2]
FROM_LOGITS = [pytest.param(loss, id=loss.id) for loss in LATTICE_LOSSES if loss.parameters.get("from_logits")]
BY_REDUCTION = pytest.mark.parametrize(
    ("loss", "reduction"), [pytest.param(x, r, id=f"{x.id}-{r}") for x in LATTICE_LOSSES for r in x.reductions]
)
SMALL = (4, 3, 3)  # frames, samples, classes


def of_logits(loss: LatticeLoss, given: dict[str, Tensor], reduction: str) -> Callable[[Tensor], Tensor]:
    """The loss as a function of logits alone: torch's log-softmax first where it wants log-probabilities.

    For those its derivative is torch's, which is that of the loss behind a log-softmax only.
    """
    rest = list(given.values())[1:]

    def call(x: Tensor) -> Tensor:
        return loss(x if loss.parameters.get("from_logits") else x.log_softmax(-1), *rest, reduction=reduction)

    return call


def leaf_of(given: dict[str, Tensor]) -> Tensor:
    return given["log_probs"].detach().clone().requires_grad_()


# ---- against finite differences --------------------------------------------------------------------------------------


@BY_REDUCTION
def test_derivatives_are_finite_differences(loss: LatticeLoss, reduction: str) -> None:
    """First and second, backward and forward, each by itself and in a batch."""
    given = loss.given(SMALL, seed=1)
    call, x = of_logits(loss, given, reduction), leaf_of(given)
    assert gradcheck(call, x, check_forward_ad=True, check_batched_forward_grad=True)
    assert gradgradcheck(call, x, check_fwd_over_rev=True)


@pytest.mark.parametrize("reduction", ["none", "mean"])
@EACH_LOSS
def test_batched_gradients(loss: LatticeLoss, reduction: str) -> None:
    """is_grads_batched and jacobian(vectorize=True) go through torch's older vmap, not that of torch.func."""
    given = loss.given((4, 3, 3), seed=3)
    call, x = of_logits(loss, given, reduction), leaf_of(given)
    assert gradcheck(call, x, check_batched_grad=True)
    assert gradgradcheck(call, x, check_batched_grad=True)


@EACH_LOSS
def test_derivatives_of_one_sequence(loss: LatticeLoss) -> None:
    given = loss.given((6, 4), seed=2)
    call, x = of_logits(loss, given, "mean"), leaf_of(given)
    assert gradcheck(call, x, check_forward_ad=True)
    assert gradgradcheck(call, x, check_fwd_over_rev=True)


def test_derivatives_of_repeats_and_of_a_single_alignment() -> None:
    """Labels twice in a row, with a frame to spare and with none; and none at all."""
    rows = [torch.tensor(row, dtype=torch.long) for row in ([1, 1, 2], [1, 1], [], [2, 1, 2, 1])]
    x = torch.randn(5, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    given = LOGITS.of(x, rows, torch.tensor([4, 5, 3, 5]))
    assert gradcheck(of_logits(LOGITS, given, "none"), x, check_forward_ad=True)
    assert gradgradcheck(of_logits(LOGITS, given, "none"), x)


def test_the_derivative_by_log_probabilities_is_torchs() -> None:
    """exp(log p) - posterior, which is no derivative of the loss: that would be -posterior."""
    given = LOG_PROBS.given(SHAPE, seed=4)
    x, *rest = given.values()
    found = []
    for loss in (L.ctc_loss, F.ctc_loss):
        leaf = x.clone().requires_grad_()
        found.append(torch.autograd.grad(loss(leaf, *rest, reduction="sum"), leaf)[0])
    torch.testing.assert_close(*found, rtol=0, atol=1e-12)
    counted = torch.arange(SHAPE[0])[:, None] < given["input_lengths"]
    posterior = (x.exp() - found[0])[counted]
    torch.testing.assert_close(posterior.sum(-1), torch.ones(len(posterior)).double(), rtol=0, atol=1e-14)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_from_logits_is_a_log_softmax_before(reduction: str) -> None:
    given = LOGITS.given(SHAPE, seed=6)
    x, *rest = given.values()
    found = []
    for from_logits in (True, False):
        leaf = x.clone().requires_grad_()
        value = L.ctc_loss(
            leaf if from_logits else leaf.log_softmax(-1), *rest, reduction=reduction, from_logits=from_logits
        )
        (gradient,) = torch.autograd.grad(value, leaf, torch.ones_like(value), create_graph=True)
        (second,) = torch.autograd.grad(gradient, leaf, torch.linspace(-1, 1, x.numel()).double().view(x.shape))
        found.append((value.detach(), gradient.detach(), second))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


# ---- by the judge ----------------------------------------------------------------------------------------------------


@EACH_DTYPE
@EACH_LOSS
def test_second_derivatives(loss: LatticeLoss, dtype: torch.dtype) -> None:
    for reduction in loss.reductions:
        LatticeCall(loss, loss.given(SHAPE, dtype, seed=5), reduction, second=True).judge()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@EACH_LOSS
def test_second_derivatives_of_all_sizes(loss: LatticeLoss, dtype: torch.dtype) -> None:
    for frames, samples, classes, labels in SIZES:
        if loss.blank < classes and frames < 100:
            given = loss.given((frames, samples, classes), dtype, seed=frames, labels=labels)
            LatticeCall(loss, given, "none", second=True).judge()


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("loss", [LOG_PROBS, LOGITS], ids=["log_probs", "logits"])
def test_second_derivatives_in_any_layout(loss: LatticeLoss, layout: Any) -> None:
    given = laid_out(loss.given(SHAPE, torch.float32, seed=8), layout)
    LatticeCall(loss, given, "sum", second=True).judge()
    direction = loss.directions(given, seed=1)["log_probs"]
    leaf = leaf_of(given)
    value = loss(leaf, *list(given.values())[1:], reduction="sum")
    (gradient,) = torch.autograd.grad(value, leaf, create_graph=True)
    moved = layout(direction)
    found = [torch.autograd.grad(gradient, leaf, d, retain_graph=True)[0] for d in (moved, moved.clone())]
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


@pytest.mark.host  # what is kept at hand is a matter of the CPU's caches
@pytest.mark.parametrize("loss", [LOG_PROBS, LOGITS], ids=["log_probs", "logits"])
def test_second_derivatives_of_long_sequences(loss: LatticeLoss) -> None:
    """Of more frames and labels than are kept at hand, in float64."""
    given = loss.given((300, 1, 6), seed=3, labels=145)
    LatticeCall(loss, given, "none", second=True).judge()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("loss", [LOG_PROBS, LOGITS], ids=["log_probs", "logits"])
def test_second_derivatives_of_peaky_frames(loss: LatticeLoss, dtype: torch.dtype) -> None:
    """Nearly every alignment is impossible: what changes is tiny, and nothing is NaN."""
    generator = torch.Generator().manual_seed(0)
    given = loss.given((20, 4, 5), dtype, seed=1)
    x = (2000.0 * torch.randint(0, 2, (20, 4, 5), generator=generator) - 1000).to(dtype)
    given["log_probs"] = x if loss is LOGITS else x.log_softmax(-1)
    call = LatticeCall(loss, given, "none", second=True)
    call.judge()
    assert call.ours()[1]["log_probs"].isfinite().all()


# ---- forward mode ----------------------------------------------------------------------------------------------------


def jvp(loss: LatticeLoss, given: dict[str, Tensor], tangent: Tensor, reduction: str) -> tuple[Tensor, Tensor]:
    rest = list(given.values())[1:]
    found: tuple[Tensor, Tensor] = torch.func.jvp(
        lambda x: loss(x, *rest, reduction=reduction), (given["log_probs"],), (tangent,)
    )
    return found


@BY_REDUCTION
def test_forward_mode_is_the_gradient_times_the_tangent(loss: LatticeLoss, reduction: str) -> None:
    """That gradient which backward gives, torch's for log-probabilities."""
    given = loss.given(SHAPE, seed=9)
    tangent = loss.directions(given)["log_probs"]
    leaf = leaf_of(given)
    value = loss(leaf, *list(given.values())[1:], reduction=reduction)
    (gradient,) = torch.autograd.grad(value, leaf, torch.ones_like(value))
    products = (gradient * tangent).sum((0, 2))
    found, slope = jvp(loss, given, tangent, reduction)
    torch.testing.assert_close(found, value.detach(), rtol=1e-15, atol=0)
    torch.testing.assert_close(slope, products if reduction == "none" else products.sum(), rtol=1e-12, atol=1e-13)


@EACH_LOSS
def test_forward_mode_without_frames_is_nothing(loss: LatticeLoss) -> None:
    """Infinite as the loss is, it does not move. A tensor of no frames has no memory that a kernel could see."""
    x = torch.zeros(0, 2, 4, dtype=torch.float64)
    none = torch.zeros(2, dtype=torch.long)
    targets = torch.tensor([[1], [2]])
    logits = "from_logits" in loss.parameters
    slope = torch.ops.fusedloss.ctc_loss_jvp(x, x, targets, none, torch.tensor([0, 1]), 0, False, logits, 0)
    assert slope.tolist() == [0.0, 0.0]


@EACH_DTYPE
@EACH_LOSS
def test_forward_mode_against_the_oracle(loss: LatticeLoss, dtype: torch.dtype) -> None:
    given = loss.given(SHAPE, dtype, seed=10)
    direction = loss.directions(given)
    precision = np.longdouble if dtype == torch.float64 else np.float64
    along = numbers(direction["log_probs"], precision)
    exact, _ = results(numbers(given["log_probs"], precision), for_oracle(loss, given), "none", directions=along)
    _, slope = jvp(loss, given, direction["log_probs"], "none")
    assert slope.dtype == dtype
    # A sum of products of gradients, of which each may be off by what a posterior is.
    unit = torch.finfo(dtype).eps + 64 * torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    assert (np.abs(numbers(slope, precision) - exact.value) <= unit * exact.size).all()


def test_a_tangent_past_the_end_is_not_looked_at() -> None:
    given = LOG_PROBS.given(SHAPE, seed=9)
    tangent = LOG_PROBS.directions(given)["log_probs"]
    past = (torch.arange(SHAPE[0])[:, None] >= given["input_lengths"])[..., None]
    spoilt = tangent.masked_fill(past, math.nan)
    for loss in (LOG_PROBS, LOGITS):
        one, other = (jvp(loss, given, t, "none")[1] for t in (tangent, spoilt))
        assert torch.equal(one, other)


# ---- one gradient and another ----------------------------------------------------------------------------------------


@BY_REDUCTION
def test_a_graph_that_is_kept_gives_the_same_gradient_every_time(loss: LatticeLoss, reduction: str) -> None:
    leaf = leaf_of(given := loss.given(SHAPE, torch.float32))
    result = loss(leaf, *list(given.values())[1:], reduction=reduction)
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
def test_the_gradient_with_a_graph_is_that_without(loss: LatticeLoss, reduction: str) -> None:
    """create_graph computes the gradient anew, where the other was made in the forward pass."""
    given = loss.given(SHAPE)
    rest, found = list(given.values())[1:], []
    for with_graph in (True, False):
        leaf = leaf_of(given)
        result = loss(leaf, *rest, reduction=reduction)
        incoming = torch.full_like(result, 0.3)
        found.append(torch.autograd.grad(result, leaf, incoming, create_graph=with_graph)[0])
    assert found[0].requires_grad and not found[1].requires_grad
    # Differences of numbers up to 0.3.
    torch.testing.assert_close(found[0].detach(), found[1], rtol=0, atol=2e-16)


@BY_REDUCTION
def test_a_factor_on_the_loss_is_one_on_its_gradient(loss: LatticeLoss, reduction: str) -> None:
    leaf = leaf_of(given := loss.given(SHAPE, torch.float32))
    result = loss(leaf, *list(given.values())[1:], reduction=reduction)
    ones, quarters = (
        torch.autograd.grad(result, leaf, torch.full_like(result, factor), retain_graph=True)[0]
        for factor in (1.0, -0.25)
    )
    assert torch.equal(ones * -0.25, quarters) and ones.any()


@EACH_LOSS
def test_what_comes_in_belongs_to_its_sample(loss: LatticeLoss) -> None:
    """Each sample's gradient is its own times what comes in, exactly for powers of 2, and 0 for 0."""
    leaf = leaf_of(given := loss.given(SHAPE, torch.float32))
    result = loss(leaf, *list(given.values())[1:], reduction="none")
    (ones,) = torch.autograd.grad(result, leaf, torch.ones_like(result), retain_graph=True)
    incoming = torch.tensor([0.5, 0.0, -4.0, 0.0, 1.0, 2.0, 0.25, -1.0])
    (gradient,) = torch.autograd.grad(result, leaf, incoming)
    assert torch.equal(gradient, ones * incoming[:, None])


@BY_REDUCTION
def test_the_third_derivative_is_refused_in_words(loss: LatticeLoss, reduction: str) -> None:
    leaf = leaf_of(given := loss.given(SMALL))
    result = loss(leaf, *list(given.values())[1:], reduction=reduction).sum()
    (first,) = torch.autograd.grad(result, leaf, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="third derivative of ctc_loss"):
        second.sum().backward()


def test_a_second_derivative_by_the_incoming_gradient() -> None:
    """A gradient is linear in what comes in: its derivative by that, along a direction, is the loss's."""
    given = LOGITS.given(SHAPE)
    leaf, direction = leaf_of(given), LOGITS.directions(given)["log_probs"]
    incoming = torch.linspace(-1, 2, SHAPE[1]).double().requires_grad_()
    values = LOGITS(leaf, *list(given.values())[1:], reduction="none")
    (gradient,) = torch.autograd.grad(values, leaf, incoming, create_graph=True)
    (by_incoming,) = torch.autograd.grad(gradient, incoming, direction, retain_graph=True)
    torch.testing.assert_close(by_incoming, jvp(LOGITS, given, direction, "none")[1], rtol=1e-13, atol=1e-14)


@EACH_LOSS
def test_only_what_needs_a_gradient_has_one(loss: LatticeLoss) -> None:
    given = loss.given(SHAPE, torch.float32)
    for reduction in loss.reductions:
        assert not loss(*given.values(), reduction=reduction).requires_grad
        with torch.no_grad():
            value = loss(leaf_of(given), *list(given.values())[1:], reduction=reduction)
        assert value.grad_fn is None
        with_gradient = loss(leaf_of(given), *list(given.values())[1:], reduction=reduction)
        assert with_gradient.requires_grad
        torch.testing.assert_close(with_gradient.detach(), value, rtol=1e-6, atol=0)


# ---- sequences without an alignment ----------------------------------------------------------------------------------

ROWS = [torch.tensor(row, dtype=torch.long) for row in ([1, 1, 1, 1], [1, 2], [2, 2, 2, 2], [])]
OFF = torch.tensor([True, False, True, False])


def partly_impossible(loss: LatticeLoss, dtype: torch.dtype) -> dict[str, Tensor]:
    """Six frames, of which two of four sequences would need seven; the third has its wanted class at -inf as well."""
    x = torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    x = x if loss.parameters.get("from_logits") else x.log_softmax(-1)
    x[:, 2, 2] = -math.inf
    return loss.of(x, ROWS)


@pytest.mark.parametrize("zero_infinity", [False, True])
@EACH_DTYPE
@pytest.mark.parametrize("loss", [LOG_PROBS, LOGITS], ids=["log_probs", "logits"])
def test_without_an_alignment_all_derivatives_are_zero(
    loss: LatticeLoss, dtype: torch.dtype, zero_infinity: bool
) -> None:
    """First, second and forward ones, of every reduction; and no NaN beside them."""
    given = partly_impossible(loss, dtype)
    rest = list(given.values())[1:]
    keywords = {"zero_infinity": zero_infinity}
    for reduction in loss.reductions:
        leaf = leaf_of(given)
        value = loss(leaf, *rest, reduction=reduction, **keywords)
        if reduction == "none":
            assert (value[OFF] == (0.0 if zero_infinity else math.inf)).all() and value[~OFF].isfinite().all()
        else:
            assert value.isfinite() if zero_infinity else value == math.inf
        (without_graph,) = torch.autograd.grad(value, leaf, torch.ones_like(value), retain_graph=True)
        (gradient,) = torch.autograd.grad(value, leaf, torch.ones_like(value), create_graph=True)
        (second,) = torch.autograd.grad(gradient, leaf, torch.ones_like(leaf) * torch.arange(3))
        for found in (without_graph, gradient, second):
            assert torch.equal(found[:, OFF], torch.zeros_like(found[:, OFF])), reduction
            assert found.isfinite().all() and found[:, ~OFF].any()
        _, slope = torch.func.jvp(
            lambda x, r=reduction: loss(x, *rest, reduction=r, **keywords),
            (given["log_probs"],),
            (torch.ones_like(leaf),),
        )
        assert slope.isfinite().all()
        if reduction == "none":
            assert not slope[OFF].any()


@pytest.mark.parametrize("coming", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("loss", [LOG_PROBS, LOGITS], ids=["log_probs", "logits"])
def test_what_comes_in_for_a_sequence_without_an_alignment(loss: LatticeLoss, coming: float) -> None:
    """It is not looked at, whether the gradient is made before it comes or after, nor by the second derivative."""
    given = partly_impossible(loss, torch.float32)
    leaf, rest = leaf_of(given), list(given.values())[1:]
    value = loss(leaf, *rest, reduction="none")
    clean = torch.linspace(-1, 2, 4)
    spoilt = torch.where(OFF, coming, clean)
    (expected,) = torch.autograd.grad(value, leaf, clean, create_graph=True)
    for create_graph in (False, True):
        (gradient,) = torch.autograd.grad(value, leaf, spoilt, create_graph=create_graph, retain_graph=True)
        torch.testing.assert_close(gradient.detach(), expected.detach(), rtol=1e-6, atol=0)
    (second,) = torch.autograd.grad(gradient, leaf, torch.ones_like(leaf))
    assert second.isfinite().all() and not second[:, OFF].any()


def test_zero_infinity_is_torchs() -> None:
    """Value and gradient, where torch's are defined."""
    loss = LATTICE_LOSSES[1]
    given = loss.given(SHAPE, seed=12)
    for reduction in loss.reductions:
        found = []
        for function in (loss, loss.torch):
            leaf = leaf_of(given)
            value = function(leaf, *list(given.values())[1:], reduction=reduction)
            found.append((value.detach(), torch.autograd.grad(value.sum(), leaf)[0]))
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


# ---- frames that do not count ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("spoilt", [math.nan, math.inf, -math.inf])
@EACH_DTYPE
@EACH_LOSS
def test_frames_past_the_end_have_no_second_derivative(loss: LatticeLoss, dtype: torch.dtype, spoilt: float) -> None:
    """Whatever they hold, and whatever the direction is there."""
    given = loss.given(SHAPE, dtype, seed=19)
    rest = list(given.values())[1:]
    past = torch.arange(SHAPE[0])[:, None] >= given["input_lengths"]
    direction = loss.directions(given)["log_probs"]
    found = []
    for value, along in ((0.0, direction), (spoilt, direction.masked_fill(past[..., None], math.nan))):
        leaf = given["log_probs"].masked_fill(past[..., None], value).requires_grad_()
        result = loss(leaf, *rest, reduction="none")
        incoming = torch.ones_like(result).requires_grad_()
        (gradient,) = torch.autograd.grad(result, leaf, incoming, create_graph=True)
        found.append((gradient.detach(), *torch.autograd.grad(gradient, [incoming, leaf], along)))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
    assert not found[1][0][past].any() and not found[1][2][past].any()


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_a_nan_stays_with_its_own_sample_in_second_derivatives(reduction: str) -> None:
    for loss, bad in product((LOG_PROBS, LOGITS), (math.nan, math.inf)):
        given = loss.given((9, 4, 5), seed=23)
        direction = loss.directions(given)["log_probs"]
        others = torch.arange(4) != 1
        found = []
        for value in (0.5, bad):
            leaf = given["log_probs"].clone()
            leaf[2, 1, 0] = value
            leaf.requires_grad_()
            result = loss(leaf, *list(given.values())[1:], reduction=reduction)
            (gradient,) = torch.autograd.grad(result.sum(), leaf, create_graph=True)
            found.append(torch.autograd.grad(gradient, leaf, direction)[0])
        assert torch.equal(found[0][:, others], found[1][:, others])
        assert found[1][: int(given["input_lengths"][1]), 1].isnan().any()
