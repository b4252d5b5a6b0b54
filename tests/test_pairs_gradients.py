"""First and second derivatives of losses over pairs: against finite differences in float64, by the rule of the judge in
every dtype, of operands that are one tensor, and where no pair counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import fusedloss.functional as L
from fusedloss.testing.cases import DTYPES
from fusedloss.testing.judge import numbers
from fusedloss.testing.pair_cases import LAYOUTS, SHAPE, SIZES, PairCall, integers, laid_out
from fusedloss.testing.pair_catalogue import PAIR_LOSSES, PairLoss, vectors
from fusedloss.testing.pair_oracle import results

pytestmark = [
    pytest.mark.core,
    # torch's own forward mode compiles some of its formulas by it.
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
]

EACH_LOSS = pytest.mark.parametrize("loss", [pytest.param(loss, id=loss.id) for loss in PAIR_LOSSES])
EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)
BY_REDUCTION = pytest.mark.parametrize(
    ("loss", "reduction"), [pytest.param(x, r, id=f"{x.id}-{r}") for x in PAIR_LOSSES for r in x.reductions]
)
LEARNED = [pytest.param(loss, id=loss.id) for loss in PAIR_LOSSES if "logit_scale" in loss.samplers]
SMALL = (3, 2)


def of_tensors(
    loss: PairLoss, given: dict[str, Tensor], reduction: str, free: Sequence[str] = ()
) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    """The loss as a function of those operands that have a derivative, or of some, and these."""
    names = free or loss.differentiable

    def call(*tensors: Tensor) -> Tensor:
        return loss(*(given | dict(zip(names, tensors, strict=True))).values(), reduction=reduction)

    return call, tuple(given[name].detach().clone().requires_grad_() for name in names)


# ---- against finite differences --------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["none", "mean"])
@EACH_LOSS
def test_derivatives_are_finite_differences(loss: PairLoss, reduction: str) -> None:
    """First and second, backward and forward, each by itself and in a batch."""
    call, inputs = of_tensors(loss, loss.given(SMALL, seed=1), reduction)
    assert gradcheck(call, inputs, check_forward_ad=True, check_batched_forward_grad=True)
    assert gradgradcheck(call, inputs, check_fwd_over_rev=True)


@EACH_LOSS
def test_batched_gradients(loss: PairLoss) -> None:
    """is_grads_batched and jacobian(vectorize=True) go through torch's older vmap, not that of torch.func."""
    for reduction in ("none", "sum"):
        call, inputs = of_tensors(loss, loss.given((3, 2), seed=3), reduction)
        assert gradcheck(call, inputs, check_batched_grad=True)
        assert gradgradcheck(call, inputs, check_batched_grad=True)


@EACH_LOSS
def test_derivatives_of_one_and_of_two_rows(loss: PairLoss) -> None:
    for shape in ((1, 3), (2, 2), (3, 1)):
        call, inputs = of_tensors(loss, loss.given(shape, seed=2), "sum")
        assert gradcheck(call, inputs, check_forward_ad=True)
        assert gradgradcheck(call, inputs)


def of_one_tensor() -> list[Any]:
    """Calls in which one tensor is several operands."""
    return [
        pytest.param(lambda x: L.info_nce_loss(x, x, temperature=0.5), id="query and key"),
        pytest.param(lambda x: L.info_nce_loss(x, x, temperature=0.5, symmetric=True), id="symmetric"),
        pytest.param(lambda x: L.info_nce_loss(x, x, normalize=True, reduction="none"), id="normalize"),
        pytest.param(lambda x: L.info_nce_loss(x, x.flip(0), x, temperature=0.5), id="negatives"),
        pytest.param(lambda x: L.info_nce_loss(x, x, x.expand(4, 4, 3), 0.5, normalize=True), id="own negatives"),
        pytest.param(lambda x: L.clip_loss(x, x, 2.0, "none"), id="clip"),
        pytest.param(lambda x: L.siglip_loss(x, x, 2.0, -1.0, normalize=True), id="siglip"),
        pytest.param(lambda x: L.clip_loss(x, x.roll(1, 0), x[0, 0] + 2.0), id="scale of the same tensor"),
    ]


@pytest.mark.parametrize("call", of_one_tensor())
def test_the_gradients_of_one_tensor_add_up(call: Callable[[Tensor], Tensor]) -> None:
    x = vectors((4, 3), torch.Generator().manual_seed(0)).requires_grad_()
    assert gradcheck(call, x, check_forward_ad=True)
    assert gradgradcheck(call, x)


@EACH_DTYPE
def test_one_tensor_as_query_and_key_has_both_gradients(dtype: torch.dtype) -> None:
    x = vectors(SHAPE, torch.Generator().manual_seed(1)).to(dtype)
    for symmetric in (False, True):
        one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
        each = torch.autograd.grad(L.info_nce_loss(one, other, symmetric=symmetric), (one, other))
        leaf = x.clone().requires_grad_()
        (both,) = torch.autograd.grad(L.info_nce_loss(leaf, leaf, symmetric=symmetric), leaf)
        torch.testing.assert_close(both, each[0] + each[1], rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_two_views_in_one_tensor() -> None:
    """(N, 2, D), as augmentations lie: neither is dense, and both gradients go into one."""
    x = vectors((SHAPE[0], 2, SHAPE[1]), torch.Generator().manual_seed(2)).requires_grad_()
    (together,) = torch.autograd.grad(L.info_nce_loss(x[:, 0], x[:, 1], symmetric=True), x)
    one, other = (x.detach()[:, k].clone().requires_grad_() for k in (0, 1))
    apart = torch.autograd.grad(L.info_nce_loss(one, other, symmetric=True), (one, other))
    torch.testing.assert_close(together, torch.stack(apart, 1), rtol=1e-13, atol=1e-15)


# ---- by the judge ----------------------------------------------------------------------------------------------------


@EACH_LOSS
def test_gradients_of_bfloat16_tables(loss: PairLoss) -> None:
    """Of so many numbers that their products are made by the processor's own instructions, if it has them."""
    given = loss.given((260, 130) if loss.has_ops else (24, 130), torch.bfloat16, seed=9)
    for reduction in ("none", "mean"):
        PairCall(loss, given, reduction).judge()


@EACH_DTYPE
@EACH_LOSS
def test_second_derivatives(loss: PairLoss, dtype: torch.dtype) -> None:
    for reduction in ("none", "mean"):
        PairCall(loss, loss.given(SHAPE, dtype, seed=5), reduction, second=True).judge()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@EACH_LOSS
def test_second_derivatives_of_all_sizes(loss: PairLoss, dtype: torch.dtype) -> None:
    for shape in SIZES:
        if shape[0] * shape[1] < 1000:
            PairCall(loss, loss.given(shape, dtype, seed=shape[0]), "none", second=True).judge()


@pytest.mark.parametrize("name", ["info_nce_loss", "clip_loss", "supervised_contrastive_loss", "siglip_loss"])
def test_second_derivatives_of_many_rows(name: str) -> None:
    """Of several tiles, of which the last is not full."""
    loss = next(loss for loss in PAIR_LOSSES if loss.id == name)
    PairCall(loss, loss.given((1041, 5), torch.float32, seed=6), "mean", second=True).judge()


@EACH_LOSS
def test_derivatives_by_some_operands(loss: PairLoss) -> None:
    """Each alone, and each left out."""
    given = loss.given(SHAPE, torch.float32, seed=7)
    names = loss.differentiable
    for free in [*((name,) for name in names), *(tuple(k for k in names if k != name) for name in names)]:
        for second in (False, True) if free else ():
            PairCall(loss, given, "mean", free=free, second=second).judge()


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
@EACH_LOSS
def test_second_derivatives_in_any_layout(loss: PairLoss, layout: Any) -> None:
    given = laid_out(loss, loss.given(SHAPE, torch.float32, seed=8), layout)
    PairCall(loss, given, "sum", second=True).judge()
    call, inputs = of_tensors(loss, given, "sum")
    directions = loss.directions(given, seed=1)
    gradients = torch.autograd.grad(call(*inputs), inputs, create_graph=True)
    moved = [layout(d) if k in loss.tables else d for k, d in directions.items()]
    found = [torch.autograd.grad(gradients, inputs, [d.clone() if copy else d for d in moved], retain_graph=True)
             for copy in (False, True)]  # fmt: skip
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@EACH_LOSS
def test_second_derivatives_of_vectors_of_zeros(loss: PairLoss, dtype: torch.dtype) -> None:
    """Which are finite, even of those that are divided by their norm: below 1e-12 by a constant."""
    given = loss.given(SHAPE, dtype, seed=9)
    given[loss.tables[0]][3] = 0
    call, inputs = of_tensors(loss, given, "mean")
    gradients = torch.autograd.grad(call(*inputs), inputs, create_graph=True)
    directions = loss.directions(given)
    directions[loss.tables[0]][3] *= 1e-12
    found = torch.autograd.grad(gradients, inputs, list(directions.values()))
    assert all(x.isfinite().all() for x in found)


# ---- forward mode ----------------------------------------------------------------------------------------------------


@EACH_DTYPE
@EACH_LOSS
def test_forward_mode_against_the_oracle(loss: PairLoss, dtype: torch.dtype) -> None:
    given = loss.given(SHAPE, dtype, seed=10)
    directions = loss.directions(given)
    precision = np.longdouble if dtype == torch.float64 else np.float64
    arrays = {k: numbers(x, precision) if x.is_floating_point() else integers(x) for k, x in given.items()}
    along = {k: numbers(x, precision) for k, x in directions.items()}
    for reduction in loss.reductions:
        exact, _ = results(loss.name, arrays, loss.parameters, reduction, directions=along)
        call, inputs = of_tensors(loss, given, reduction)
        value, slope = torch.func.jvp(call, tuple(x.detach() for x in inputs), tuple(directions.values()))
        assert value.dtype == slope.dtype == dtype
        unit = torch.finfo(dtype).eps + 64 * torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
        assert (np.abs(numbers(slope, precision) - exact.value) <= unit * exact.size).all(), reduction


@EACH_LOSS
def test_forward_mode_is_the_gradient_times_the_tangent(loss: PairLoss) -> None:
    """Of each operand alone, as others may have no tangent."""
    given = loss.given(SHAPE, seed=11)
    directions = loss.directions(given)
    for reduction in loss.reductions:
        call, inputs = of_tensors(loss, given, reduction)
        value = call(*inputs).sum()
        gradients = torch.autograd.grad(value, inputs)
        for name, gradient in zip(loss.differentiable, gradients, strict=True):
            alone, (leaf,) = of_tensors(loss, given, reduction, (name,))
            found, slope = torch.func.jvp(alone, (leaf.detach(),), (directions[name],))
            torch.testing.assert_close(found.sum(), value.detach(), rtol=1e-13, atol=0)
            torch.testing.assert_close(slope.sum(), (gradient * directions[name]).sum(), rtol=1e-11, atol=1e-12)


# ---- one gradient and another ----------------------------------------------------------------------------------------


@EACH_LOSS
def test_a_gradient_does_not_depend_on_which_others_are_asked_for(loss: PairLoss) -> None:
    for reduction in ("none", "mean"):
        given = loss.given(SHAPE)
        call, inputs = of_tensors(loss, given, reduction)
        together = torch.autograd.grad(call(*inputs).sum(), inputs)
        for name, gradient, leaf in zip(loss.differentiable, together, inputs, strict=True):
            alone, only = of_tensors(loss, given, reduction, (name,))
            (of_only,) = torch.autograd.grad(alone(*only).sum(), only)
            (asked_for,) = torch.autograd.grad(call(*inputs).sum(), leaf)
            for found in (of_only, asked_for):
                torch.testing.assert_close(found, gradient, rtol=1e-13, atol=1e-15)


@BY_REDUCTION
def test_a_graph_that_is_kept_gives_the_same_gradient_every_time(loss: PairLoss, reduction: str) -> None:
    call, inputs = of_tensors(loss, loss.given(SHAPE, torch.float32), reduction)
    result = call(*inputs)
    incoming = torch.full_like(result, 0.3)
    first = torch.autograd.grad(result, inputs, incoming, retain_graph=True)
    kept = [x.clone() for x in first]
    for x in first:
        x.mul_(1000)  # they belong to the caller
    for one, other in zip(torch.autograd.grad(result, inputs, incoming, retain_graph=True), kept, strict=True):
        assert torch.equal(one, other)
    result.backward(incoming, retain_graph=True)
    result.backward(incoming)
    for leaf, one in zip(inputs, kept, strict=True):
        assert leaf.grad is not None and torch.equal(leaf.grad, 2 * one)
    with pytest.raises(RuntimeError, match="second time"):
        result.backward(incoming)


@BY_REDUCTION
def test_the_gradient_with_a_graph_is_that_without(loss: PairLoss, reduction: str) -> None:
    """create_graph computes the gradient anew, where the other was made in the forward pass."""
    call, inputs = of_tensors(loss, loss.given(SHAPE), reduction)
    result = call(*inputs)
    incoming = torch.full_like(result, 0.3)
    with_graph = torch.autograd.grad(result, inputs, incoming, create_graph=True)
    without = torch.autograd.grad(call(*inputs), inputs, incoming)
    for one, other in zip(with_graph, without, strict=True):
        assert one.requires_grad and not other.requires_grad
        torch.testing.assert_close(one.detach(), other, rtol=1e-13, atol=1e-15)


@BY_REDUCTION
def test_a_factor_on_the_loss_is_one_on_its_gradient(loss: PairLoss, reduction: str) -> None:
    call, inputs = of_tensors(loss, loss.given(SHAPE, torch.float32), reduction)
    result = call(*inputs).sum()
    ones = torch.autograd.grad(result, inputs, retain_graph=True)
    quarters = torch.autograd.grad(result, inputs, torch.tensor(-0.25))
    for one, quarter in zip(ones, quarters, strict=True):
        assert torch.equal(one * -0.25, quarter) and one.any()


@EACH_LOSS
def test_what_comes_in_belongs_to_its_row(loss: PairLoss) -> None:
    """With an incoming gradient for one row alone, of value and gradient there is that row's alone."""
    given = loss.given((9, 4), seed=12)
    call, inputs = of_tensors(loss, given, "none")
    values = call(*inputs)
    total = [torch.zeros_like(x) for x in inputs]
    for i in range(9):
        incoming = torch.zeros(9, dtype=torch.float64)
        incoming[i] = 1
        for sum_, part in zip(total, torch.autograd.grad(values, inputs, incoming, retain_graph=True), strict=True):
            sum_ += part
            if sum_ is total[0] and loss.name == "info_nce_loss" and "symmetric" not in loss.variant:
                assert part[i].any() and not part[torch.arange(9) != i].any()
    for sum_, gradient in zip(total, torch.autograd.grad(values.sum(), inputs), strict=True):
        torch.testing.assert_close(sum_, gradient, rtol=1e-12, atol=1e-14)


@EACH_LOSS
def test_the_third_derivative_is_refused_in_words(loss: PairLoss) -> None:
    for reduction in loss.reductions:
        call, inputs = of_tensors(loss, loss.given(SMALL), reduction)
        (first, *_) = torch.autograd.grad(call(*inputs).sum(), inputs, create_graph=True)
        (second, *_) = torch.autograd.grad(first.square().sum(), inputs, create_graph=True)
        with pytest.raises(RuntimeError, match=f"third derivative of {loss.name if loss.has_ops else 'cross_entropy'}"):
            second.sum().backward()


def test_a_second_derivative_by_the_incoming_gradient() -> None:
    """A gradient is linear in what comes in: its derivative by that, along a direction, is the loss's."""
    for loss in PAIR_LOSSES:
        given = loss.given(SHAPE)
        call, inputs = of_tensors(loss, given, "none")
        directions = tuple(loss.directions(given).values())
        incoming = torch.linspace(-1, 2, SHAPE[0]).double().requires_grad_()
        gradients = torch.autograd.grad(call(*inputs), inputs, incoming, create_graph=True)
        (by_incoming,) = torch.autograd.grad(gradients, incoming, directions)
        _, slope = torch.func.jvp(call, tuple(x.detach() for x in inputs), directions)
        torch.testing.assert_close(by_incoming, slope, rtol=1e-11, atol=1e-12)


@EACH_LOSS
def test_only_what_needs_a_gradient_has_one(loss: PairLoss) -> None:
    given = loss.given(SHAPE, torch.float32)
    for reduction in loss.reductions:
        assert not loss(*given.values(), reduction=reduction).requires_grad
        call, inputs = of_tensors(loss, given, reduction)
        with torch.no_grad():
            value = call(*inputs)
        assert value.grad_fn is None
        with_gradient = call(*inputs)
        assert with_gradient.requires_grad
        torch.testing.assert_close(with_gradient.detach(), value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("loss", LEARNED)
def test_a_scale_of_one_element_has_a_gradient_of_its_shape(loss: PairLoss) -> None:
    for shape in ((), (1,), (1, 1)):
        given = loss.given(SHAPE, torch.float32)
        learned = [name for name in loss.differentiable if name not in loss.tables]
        given |= {name: given[name].reshape(shape) for name in learned}
        call, inputs = of_tensors(loss, given, "mean", learned)
        result = call(*inputs)
        assert result.shape == ()
        gradients = torch.autograd.grad(result, inputs, create_graph=True)
        assert [x.shape for x in gradients] == [torch.Size(shape)] * len(learned)
        second = torch.autograd.grad(sum(x.sum() for x in gradients), inputs)  # type: ignore[arg-type]
        assert [x.shape for x in second] == [torch.Size(shape)] * len(learned)


def test_a_logarithm_of_the_scale_learns() -> None:
    """As CLIP has it: the loss goes down along its gradient by the logarithm too."""
    image, text = (vectors((64, 8), torch.Generator().manual_seed(k)) for k in (0, 1))
    text = image + text / 4
    log_scale = torch.zeros((), dtype=torch.float64, requires_grad=True)
    values = []
    for _ in range(5):
        value = L.clip_loss(image, text, log_scale.exp(), normalize=True)
        (gradient,) = torch.autograd.grad(value, log_scale)
        values.append(value.item())
        log_scale = (log_scale - gradient).detach().requires_grad_()
    assert values == sorted(values, reverse=True) and values[-1] < values[0] - 0.1


# ---- where no pair counts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spoilt", [0.5, math.nan, math.inf])
@EACH_DTYPE
def test_without_a_positive_all_derivatives_are_zero(dtype: torch.dtype, spoilt: float) -> None:
    """First, second and forward ones, of every reduction, whatever the vectors hold."""
    for normalize in (False, True):
        x = vectors((6, 3), torch.Generator().manual_seed(0)).to(dtype)
        x[2] = spoilt
        for reduction in ("none", "mean", "sum"):

            def call(x: Tensor, r: str = reduction, n: bool = normalize) -> Tensor:
                return L.supervised_contrastive_loss(x, torch.arange(6), reduction=r, normalize=n)

            leaf = x.clone().requires_grad_()
            value = call(leaf)
            (gradient,) = torch.autograd.grad(value, leaf, torch.ones_like(value), create_graph=True)
            (second,) = torch.autograd.grad(gradient, leaf, torch.ones_like(leaf), materialize_grads=True)
            _, slope = torch.func.jvp(call, (x,), (torch.ones_like(x),))
            for found in (value, gradient, second, slope):
                assert not found.any() and found.isfinite().all()


@EACH_DTYPE
def test_what_comes_in_for_an_anchor_without_a_positive(dtype: torch.dtype) -> None:
    """It is not looked at, nor by the second derivative."""
    x = vectors((7, 3), torch.Generator().manual_seed(1)).to(dtype)
    labels = torch.tensor([0, 1, 0, 2, 1, 3, 0])
    alone = torch.tensor([False, False, False, True, False, True, False])
    leaf = x.requires_grad_()
    value = L.supervised_contrastive_loss(leaf, labels, reduction="none")
    clean = torch.linspace(-1, 2, 7).to(dtype)
    (expected,) = torch.autograd.grad(value, leaf, clean, create_graph=True)
    (second,) = torch.autograd.grad(expected, leaf, torch.ones_like(leaf), retain_graph=True)
    for coming in (math.nan, math.inf, -math.inf):
        spoilt = clean.masked_fill(alone, coming)
        (gradient,) = torch.autograd.grad(value, leaf, spoilt, create_graph=True)
        torch.testing.assert_close(gradient, expected)
        torch.testing.assert_close(torch.autograd.grad(gradient, leaf, torch.ones_like(leaf))[0], second)


@EACH_LOSS
def test_derivatives_of_no_rows(loss: PairLoss) -> None:
    given = {k: x[:0] if k in loss.tables or k == "labels" else x for k, x in loss.given((4, 3)).items()}
    for reduction in loss.reductions:
        call, inputs = of_tensors(loss, given, reduction)
        gradients = torch.autograd.grad(call(*inputs).sum(), inputs, create_graph=True)
        second = torch.autograd.grad(gradients, inputs, [torch.ones_like(x) for x in inputs], materialize_grads=True)
        plain = tuple(x.detach() for x in inputs)
        _, slope = torch.func.jvp(call, plain, tuple(torch.ones_like(x) for x in inputs))
        for found in (*gradients, *second, slope):
            assert not found.any()


@pytest.mark.parametrize(
    "loss", [pytest.param(loss, id=loss.id) for loss in PAIR_LOSSES if "negatives" in loss.samplers]
)
def test_derivatives_without_negatives(loss: PairLoss) -> None:
    """Nothing is wrong, and nothing can be made better."""
    given = loss.given((4, 3))
    given["negatives"] = given["negatives"][..., :0, :]
    for reduction in loss.reductions:
        call, inputs = of_tensors(loss, given, reduction)
        gradients = torch.autograd.grad(call(*inputs).sum(), inputs, create_graph=True)
        second = torch.autograd.grad(gradients, inputs, [torch.ones_like(x) for x in inputs], materialize_grads=True)
        plain = tuple(x.detach() for x in inputs)
        _, slope = torch.func.jvp(call, plain, tuple(torch.ones_like(x) for x in inputs))
        for found in (*gradients, *second, slope):
            assert not found.any()


def test_what_is_added_to_all_logits_of_a_softmax_has_no_slope() -> None:
    """No public function adds something to them, but the ops can."""
    x, y = torch.randn(2, 9, 5, dtype=torch.float64)
    bias = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    for symmetric in (False, True):
        value = torch.ops.fusedloss.clip_loss(x, y, None, None, bias, None, [3.0, 0.0], None, symmetric, False, 1)
        (slope,) = torch.autograd.grad(value, bias)
        assert abs(float(slope)) < 1e-14
