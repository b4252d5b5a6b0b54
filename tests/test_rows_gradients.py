"""First and second derivatives of every loss over rows: against finite differences in float64, by the rule of the
judge in every dtype, where rows do not count, and where a derivative does not exist."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import fusedloss.functional as L
from fusedloss.testing.cases import DTYPES
from fusedloss.testing.row_cases import RowCall
from fusedloss.testing.row_catalogue import ROW_LOSSES, RowLoss

pytestmark = [
    pytest.mark.core,
    # torch's own forward mode compiles some of its formulas by it.
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
]

EACH_LOSS = pytest.mark.parametrize("loss", [pytest.param(loss, id=loss.id) for loss in ROW_LOSSES])
BY_REDUCTION = pytest.mark.parametrize(
    ("loss", "reduction"), [pytest.param(x, r, id=f"{x.id}-{r}") for x in ROW_LOSSES for r in x.reductions]
)


def differentiable_call(
    loss: RowLoss, given: dict[str, Tensor], reduction: str, free: tuple[str, ...]
) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    """The loss as a function of those tensors alone, and these tensors."""

    def call(*tensors: Tensor) -> Tensor:
        operands, keywords = loss.split(given | dict(zip(free, tensors, strict=True)))
        return loss(*operands, **keywords, reduction=reduction)

    return call, tuple(given[name].clone().requires_grad_() for name in free)


def shapes_of(loss: RowLoss) -> list[tuple[int, ...]]:
    one_row = [] if "axis" in loss.parameters else [(4,)]
    return [(3, 4), *one_row, *([(2, 3, 2)] if loss.most_axes > 2 else [])]


# ---- by finite differences -----------------------------------------------------------------------------------------


@BY_REDUCTION
def test_first_and_second_derivatives(loss: RowLoss, reduction: str) -> None:
    for shape in shapes_of(loss):
        call, inputs = differentiable_call(loss, loss.given(shape, away=True), reduction, loss.differentiable)
        assert gradcheck(call, inputs, check_forward_ad=True, check_batched_forward_grad=True)
        assert gradgradcheck(call, inputs, check_fwd_over_rev=True)


@pytest.mark.parametrize(
    ("loss", "reduction"),
    [pytest.param(x, r, id=f"{x.id}-{r}") for x in ROW_LOSSES if x.learned for r in x.reductions],
)
def test_derivatives_of_weights_and_temperatures(loss: RowLoss, reduction: str) -> None:
    free = (*loss.differentiable, *loss.learned)
    call, inputs = differentiable_call(loss, loss.given((3, 4), away=True), reduction, free)
    assert gradcheck(call, inputs, check_forward_ad=True)
    assert gradgradcheck(call, inputs)


@pytest.mark.parametrize("reduction", ["none", "mean"])
@EACH_LOSS
def test_batched_gradients(loss: RowLoss, reduction: str) -> None:
    """is_grads_batched and jacobian(vectorize=True) go through torch's older vmap, not that of torch.func."""
    call, inputs = differentiable_call(loss, loss.given((3, 4), away=True), reduction, loss.differentiable)
    assert gradcheck(call, inputs, check_batched_grad=True)
    assert gradgradcheck(call, inputs, check_batched_grad=True)


# ---- by the judge --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@EACH_LOSS
def test_second_derivatives(loss: RowLoss, dtype: torch.dtype) -> None:
    for shape in [(37, 21), (40, 3)]:  # with a row's classes in a register, and with a row in each lane
        given = loss.given(shape, dtype, seed=5, away=True)
        RowCall(loss, given, "none" if dtype.itemsize == 4 else "mean", second=True).judge()


@EACH_LOSS
def test_second_derivatives_of_long_rows(loss: RowLoss) -> None:
    """Of more classes than are kept at hand. Row by row: of one number torch's may be exact by luck."""
    if not loss.cornered:
        RowCall(loss, loss.given((9, 5000), torch.float32, seed=1), "none", second=True).judge()


# ---- one gradient and another --------------------------------------------------------------------------------------


@EACH_LOSS
def test_a_gradient_does_not_depend_on_which_others_are_asked_for(loss: RowLoss) -> None:
    free = (*loss.differentiable, *loss.learned)
    call, inputs = differentiable_call(loss, loss.given((13, 7)), "mean", free)
    together = torch.autograd.grad(call(*inputs), inputs)
    for k, gradient in enumerate(together):
        alone = [t.detach() for t in inputs]
        alone[k].requires_grad_()
        (only,) = torch.autograd.grad(call(*alone), alone[k])
        torch.testing.assert_close(only, gradient, rtol=1e-14, atol=1e-17)
        (asked_for,) = torch.autograd.grad(call(*inputs), inputs[k])
        torch.testing.assert_close(asked_for, gradient, rtol=1e-14, atol=1e-17)


@BY_REDUCTION
def test_the_gradient_with_a_graph_is_that_without(loss: RowLoss, reduction: str) -> None:
    """create_graph computes the gradient anew, where the other was made in the forward pass."""
    call, inputs = differentiable_call(loss, loss.given((13, 7)), reduction, loss.differentiable)
    result = call(*inputs)
    incoming = torch.full_like(result, 0.3)
    with_graph = torch.autograd.grad(result, inputs, incoming, create_graph=True)
    without = torch.autograd.grad(call(*inputs), inputs, incoming)
    for one, other in zip(with_graph, without, strict=True):
        torch.testing.assert_close(one.detach(), other, rtol=1e-15, atol=1e-18)


@BY_REDUCTION
def test_a_factor_on_the_loss_is_one_on_its_gradients(loss: RowLoss, reduction: str) -> None:
    call, inputs = differentiable_call(loss, loss.given((40, 30), torch.float32), reduction, loss.differentiable)
    result = call(*inputs).sum()
    ones = torch.autograd.grad(result, inputs, retain_graph=True)
    quarters = torch.autograd.grad(result, inputs, torch.tensor(-0.25))
    for one, quarter in zip(ones, quarters, strict=True):
        assert torch.equal(one * -0.25, quarter)


@BY_REDUCTION
def test_the_third_derivative_is_refused_in_words(loss: RowLoss, reduction: str) -> None:
    call, inputs = differentiable_call(loss, loss.given((2, 3), away=True), reduction, loss.differentiable)
    (first,) = torch.autograd.grad(call(*inputs).sum(), inputs[0], create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), inputs[0], create_graph=True, allow_unused=True)
    if second is not None and second.requires_grad:
        with pytest.raises(RuntimeError, match="third derivative of "):
            second.sum().backward()


# ---- rows that do not count ------------------------------------------------------------------------------------------

SPOILT = torch.tensor([math.nan, math.inf, -math.inf, 0.0, 1e38])
OFF = torch.tensor([False, True, True, False, False, True, False])


def masked_calls(dtype: torch.dtype, classes: int) -> list[tuple[str, Callable[..., Tensor], Tensor]]:
    """Every way in which the rows OFF may be left out of a loss of logits, and those logits, spoilt in these rows."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(7, classes, generator=generator).to(dtype)
    x[OFF] = SPOILT.repeat(-(-classes // 5))[:classes].to(dtype)
    y = torch.randint(0, classes - 1, (7,), generator=generator)
    ignored = y.masked_fill(OFF, -100)
    soft = torch.randn(7, classes, generator=generator).softmax(1)
    soft[:, -1] = OFF.float() * 2
    s = (torch.rand(7, generator=generator) + 0.5).masked_fill(OFF, 0)
    w = torch.rand(classes, generator=generator) + 0.5
    soft, s, w = soft.to(dtype), s.to(dtype), w.to(dtype)
    last = classes - 1
    return [
        ("index", partial(L.cross_entropy, target=ignored), x),
        ("smoothing", partial(L.cross_entropy, target=ignored, weight=w, label_smoothing=0.1), x),
        ("z_loss", partial(L.cross_entropy, target=ignored, z_loss=0.1, softcap=5.0), x),
        ("probabilities", partial(L.cross_entropy, target=soft, ignore_index=last), x),
        ("sample_weight", partial(L.cross_entropy, target=y, sample_weight=s, z_loss=0.1), x),
        ("sample_weight of probabilities", partial(L.cross_entropy, target=soft, sample_weight=s), x),
        ("nll", partial(L.nll_loss, target=ignored, weight=w), x),
        ("sparse", partial(L.sparse_categorical_cross_entropy, target=ignored, ignore_class=-100), x.abs()),
        ("focal", partial(L.softmax_focal_loss, target=ignored, gamma=0.5), x),
    ]


@pytest.mark.parametrize("classes", [3, 40, 5000])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_that_do_not_count_are_exactly_zero(dtype: torch.dtype, classes: int) -> None:
    """In value and in first and second derivatives, whatever their logits are; and the others are as without them."""
    for name, call, x in masked_calls(dtype, classes):
        for reduction in ("none", "mean", "sum"):
            leaf = x.clone().requires_grad_()
            value = call(leaf, reduction=reduction)
            assert value.isfinite().all(), name
            if reduction == "none":
                assert not value[OFF].any(), name
            (without_graph,) = torch.autograd.grad(value, leaf, torch.ones_like(value), retain_graph=True)
            (gradient,) = torch.autograd.grad(value, leaf, torch.ones_like(value), create_graph=True)
            assert torch.equal(without_graph[OFF], torch.zeros_like(x[OFF])), f"{name}, {reduction}"
            assert torch.equal(gradient[OFF], torch.zeros_like(x[OFF])), f"{name}, {reduction}"
            assert gradient.isfinite().all() and gradient[~OFF].any()
            if gradient.requires_grad:
                (second,) = torch.autograd.grad(gradient, leaf, torch.ones_like(x), materialize_grads=True)
                assert torch.equal(second[OFF], torch.zeros_like(x[OFF])), f"{name}, {reduction}"
                assert second.isfinite().all()
            _, along = torch.func.jvp(lambda v, r=reduction, f=call: f(v, reduction=r), (x,), (torch.ones_like(x),))
            assert along.isfinite().all(), f"{name}, {reduction}"


@pytest.mark.parametrize("classes", [3, 40, 5000])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_comes_in_for_rows_that_do_not_count(dtype: torch.dtype, classes: int) -> None:
    """It is not looked at, by gradients that are made before it comes no more than by those that are made after."""
    for name, call, x in masked_calls(dtype, classes):
        leaf = x.clone().requires_grad_()
        value = call(leaf, reduction="none")
        clean = torch.linspace(-2, 3, 7, dtype=value.dtype)
        spoilt = torch.where(OFF, SPOILT.repeat(2)[:7].to(value.dtype), clean)
        (expected,) = torch.autograd.grad(value, leaf, clean, create_graph=True)
        for retain in (True, True, False):
            (gradient,) = torch.autograd.grad(value, leaf, spoilt, retain_graph=retain)
            assert torch.equal(gradient[OFF], torch.zeros_like(x[OFF])), name
            torch.testing.assert_close(gradient, expected.detach())


@pytest.mark.parametrize("shape", [(6, 3), (6, 40), (3, 5, 2), (4,)], ids=str)
def test_where_every_row_is_ignored(shape: tuple[int, ...]) -> None:
    """A mean is NaN as torch's is, or 0 on request; gradients are 0 all the same, and so is every value of 'none'."""
    axis = 0 if len(shape) == 1 else 1
    x = torch.full(shape, math.nan)
    y = torch.full([n for d, n in enumerate(shape) if d != axis], -100)
    w = torch.ones(shape[axis])
    for keywords in ({}, {"weight": w}, {"label_smoothing": 0.1}, {"label_smoothing": 0.1, "weight": w}):
        for all_ignored in ("nan", "zero"):
            for reduction in ("none", "mean", "sum"):
                leaf = x.clone().requires_grad_()
                value = L.cross_entropy(leaf, y, **keywords, all_ignored=all_ignored, reduction=reduction)  # type: ignore[arg-type]
                if reduction == "mean" and all_ignored == "nan":
                    assert value.isnan()
                    assert F.cross_entropy(torch.zeros(shape), y, **keywords).isnan()  # type: ignore[arg-type]
                else:
                    assert torch.equal(value, torch.zeros_like(value))
                (gradient,) = torch.autograd.grad(value.sum(), leaf)
                assert torch.equal(gradient, torch.zeros_like(x))
    counted = torch.zeros(shape).requires_grad_()
    value = L.cross_entropy(counted, torch.zeros_like(y), sample_weight=torch.tensor(0.0), all_ignored="zero")
    assert value == 0 and not torch.autograd.grad(value, counted)[0].any()


def test_keras_mean_over_nothing_is_zero() -> None:
    x = torch.rand(3, 4, requires_grad=True)
    value = L.sparse_categorical_cross_entropy(x, torch.full((3,), 255), ignore_class=255)
    assert value == 0 and not torch.autograd.grad(value, x)[0].any()


# ---- the gradient in the place of the logits -------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1.0, -0.5])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_inplace_backward(dtype: torch.dtype, reduction: str, factor: float) -> None:
    """The gradient is the same to the bit, and lies where the logits were."""
    given = next(x for x in ROW_LOSSES if "ignored, weight" in x.id).given((9, 50), dtype)
    gradients = []
    for inplace in (False, True):
        leaf = given["input"].clone().requires_grad_()
        own = leaf * 1
        seen: list[Tensor] = []
        own.register_hook(seen.append)
        value = L.cross_entropy(
            own, given["target"], given["weight"], reduction=reduction, label_smoothing=0.1, inplace_backward=inplace
        )
        value.backward(torch.full_like(value, factor))
        assert (seen[0].data_ptr() == own.data_ptr()) == inplace
        gradients.append((value.detach(), leaf.grad))
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


def test_who_reads_the_logits_after_an_inplace_backward_is_told() -> None:
    leaf = torch.randn(4, 5, requires_grad=True)
    own = leaf * 1
    squares = (own**2).sum()
    L.cross_entropy(own, torch.tensor([0, 1, 2, 3]), inplace_backward=True).backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        squares.backward()


def test_without_a_gradient_nothing_is_overwritten() -> None:
    x = torch.randn(4, 5)
    kept = x.clone()
    value = L.cross_entropy(x, torch.tensor([0, 1, 2, 3]), inplace_backward=True)
    assert torch.equal(x, kept)
    assert torch.equal(value, L.cross_entropy(x, torch.tensor([0, 1, 2, 3])))


# ---- where a derivative does not exist -------------------------------------------------------------------------------


def slope(call: Callable[..., Tensor], at: Any, *rest: Any, **keywords: Any) -> list[Any]:
    leaf = torch.tensor(at, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(call(leaf, *rest, **keywords, reduction="sum"), leaf)
    found: list[Any] = gradient.tolist()
    return found


def test_classes_that_are_largest_together_share_the_slope() -> None:
    x = [[2.0, 2.0, 0.0, 2.0]]
    assert slope(L.categorical_hinge_loss, x, torch.tensor([2])) == [[1 / 3, 1 / 3, -1.0, 1 / 3]]
    assert slope(L.categorical_hinge_loss, x, torch.tensor([0])) == [[-1.0, 0.5, 0.0, 0.5]]
    one_hot = torch.tensor([[0.0, 0.0, 1.0, 0.0]], dtype=torch.float64)
    assert slope(L.categorical_hinge_loss, x, one_hot) == [[1 / 3, 1 / 3, -1.0, 1 / 3]]


def test_margins_have_no_slope_at_their_corners() -> None:
    x = [[1.0, 0.0, 0.5]]
    assert slope(L.categorical_hinge_loss, [[1.0, 0.0]], torch.tensor([0])) == [[0.0, 0.0]]
    assert slope(L.multi_margin_loss, x, torch.tensor([0])) == [[-1 / 3, 0.0, 1 / 3]]
    assert slope(L.multi_margin_loss, x, torch.tensor([0]), p=2) == [[-1 / 3, 0.0, 1 / 3]]
    assert slope(L.multilabel_margin_loss, x, torch.tensor([[0, -1, 1]])) == [[-1 / 3, 0.0, 1 / 3]]
    for loss, target in [
        ("multi_margin_loss", torch.tensor([0])),
        ("multilabel_margin_loss", torch.tensor([[0, -1, 1]])),
    ]:
        assert slope(getattr(L, loss), x, target) == slope(getattr(F, loss), x, target)


def test_a_label_that_is_listed_twice_counts_twice() -> None:
    x, y = [[1.0, 0.2, 0.5, 0.9]], torch.tensor([[0, 2, 0, -1]])
    assert slope(L.multilabel_margin_loss, x, y) == slope(F.multilabel_margin_loss, x, y)
    leaf = torch.tensor(x).double()
    torch.testing.assert_close(L.multilabel_margin_loss(leaf, y), F.multilabel_margin_loss(leaf, y))


def test_probabilities_have_no_slope_where_they_are_clipped() -> None:
    clipped = [[1.0, 1e-9, 0.0], [0.5, 0.25, 0.25]]
    gradient = slope(L.sparse_categorical_cross_entropy, clipped, torch.tensor([1, 1]))
    assert gradient[0] == [0.0, 0.0, 0.0]
    assert gradient[1] == [1.0, -3.0, 1.0]
    assert slope(L.categorical_cross_entropy, clipped, torch.tensor([[1.0, 0, 0], [0, 1, 0]]).double()) == [
        [0.0, 0.0, 0.0],
        [1.0, -3.0, 1.0],
    ]
