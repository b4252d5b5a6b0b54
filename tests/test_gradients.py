"""First and second derivatives of every loss against finite differences in float64, and the conventions where a
derivative does not exist."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import fusedloss.functional as L
from fusedloss.testing.catalogue import LOSSES, Loss, normal, positive

pytestmark = [
    pytest.mark.core,
    pytest.mark.filterwarnings("ignore:kl_div with reduction='mean'"),
    pytest.mark.filterwarnings("ignore:Using a target size"),
    # torch's own forward mode compiles some of its formulas by it.
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
]

ROWS, COLUMNS = 2, 3
BY_REDUCTION = [pytest.param(loss, r, id=f"{loss.id}-{r}") for loss in LOSSES for r in loss.reductions]
EACH = [pytest.param(loss, id=loss.id) for loss in LOSSES]
SAME_SHAPE = {"binary_cross_entropy", "binary_cross_entropy_with_logits", "sigmoid_focal_loss"}


def sample_away_from_corners(loss: Loss, shape: tuple[int, ...]) -> tuple[list[Tensor], dict[str, Tensor]]:
    for seed in range(100):
        operands, keywords = loss.sample(shape, seed=seed)
        if loss.corners is None or loss.corners(*operands).abs().min() > 0.01:
            return operands, keywords
    raise AssertionError(f"no sample of {loss.id} keeps away from the corners")


def broadcasting(loss: Loss, operands: list[Tensor]) -> list[Tensor]:
    """The operands of which all but the first are cut to one row (or one column, where q has the columns)."""
    if loss.name in SAME_SHAPE:
        return operands
    cut = (slice(None), slice(1)) if loss.keyword_operands else (slice(1),)
    return [operands[0], *(operand[cut] for operand in operands[1:])]


def differentiable_call(
    loss: Loss, operands: list[Tensor], keywords: dict[str, Tensor], weight: Tensor, reduction: str, weight_too: bool
) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    """The loss as a function of those tensors alone that have a derivative, and these tensors."""
    names = list(loss.samplers)
    free = [*loss.differentiable, *keywords, *(["weight"] if weight_too else [])]
    given = dict(zip(names, operands, strict=True)) | keywords | {"weight": weight}

    def call(*tensors: Tensor) -> Tensor:
        a = given | dict(zip(free, tensors, strict=True))
        return loss(*(a[n] for n in names), **{n: a[n] for n in (*keywords, "weight")}, reduction=reduction)

    return call, tuple(given[n].clone().requires_grad_() for n in free)


@pytest.mark.parametrize("weight_too", [False, True], ids=["fixed weight", "weight"])
@pytest.mark.parametrize(("loss", "reduction"), BY_REDUCTION)
def test_first_and_second_derivatives(loss: Loss, reduction: str, weight_too: bool) -> None:
    operands, keywords = sample_away_from_corners(loss, (ROWS, COLUMNS))
    weight = positive((ROWS, 1), torch.Generator().manual_seed(1))
    call, inputs = differentiable_call(loss, operands, keywords, weight, reduction, weight_too)
    assert gradcheck(call, inputs, check_forward_ad=True, check_batched_forward_grad=True)
    assert gradgradcheck(call, inputs, check_fwd_over_rev=True)


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("loss", EACH)
def test_batched_gradients(loss: Loss, reduction: str) -> None:
    """is_grads_batched and jacobian(vectorize=True) go through torch's older vmap, not that of torch.func."""
    operands, keywords = sample_away_from_corners(loss, (ROWS, COLUMNS))
    call, inputs = differentiable_call(loss, operands, keywords, torch.ones(ROWS, 1).double(), reduction, False)
    assert gradcheck(call, inputs, check_batched_grad=True)
    assert gradgradcheck(call, inputs, check_batched_grad=True)


@pytest.mark.parametrize("weight_too", [False, True], ids=["fixed weight", "weight"])
@pytest.mark.parametrize(
    ("loss", "reduction"),
    [p for p in BY_REDUCTION if p.values[0].name not in SAME_SHAPE],  # type: ignore[attr-defined]
)
def test_derivatives_of_operands_that_broadcast(loss: Loss, reduction: str, weight_too: bool) -> None:
    """The gradient of a broadcast operand is the sum over what it was broadcast to."""
    for seed in range(100):
        operands, keywords = loss.sample((ROWS, COLUMNS), seed=seed)
        operands = broadcasting(loss, operands)
        if loss.corners is None or loss.corners(*operands).abs().min() > 0.01:
            break
    weight = positive((ROWS, 1), torch.Generator().manual_seed(1))
    call, inputs = differentiable_call(loss, operands, keywords, weight, reduction, weight_too)
    assert gradcheck(call, inputs, check_forward_ad=True)
    assert gradgradcheck(call, inputs, check_fwd_over_rev=True)


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0)], ids=str)
@pytest.mark.parametrize("loss", EACH)
def test_derivatives_of_tensors_without_axes_or_elements(loss: Loss, shape: tuple[int, ...]) -> None:
    if shape == () and (loss.keyword_operands or loss.name == "gaussian_kl"):
        pytest.skip("needs a last axis")
    operands, keywords = sample_away_from_corners(loss, shape) if 0 not in shape else loss.sample(shape)
    call, inputs = differentiable_call(loss, operands, keywords, torch.ones(()).double(), "sum", False)
    assert gradcheck(call, inputs)
    assert gradgradcheck(call, inputs)


def test_distributions_of_no_dimensions_are_equal() -> None:
    """Their divergence is an empty sum, and its mean over the rows 0; the size of a row divides nothing."""
    mean = torch.empty(3, 0, requires_grad=True)
    weight = torch.ones(3, 1, requires_grad=True)
    for loss in (L.gaussian_kl(mean, mean), L.gaussian_kl(mean, mean, weight=weight)):
        assert loss.item() == 0
        assert torch.autograd.grad(loss, mean)[0].shape == (3, 0)
    assert torch.vmap(L.gaussian_kl)(torch.empty(2, 3, 0), torch.empty(2, 3, 0)).tolist() == [0, 0]


def test_the_first_operand_may_broadcast_too() -> None:
    input = torch.randn(1, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    target = torch.randn(2, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    with pytest.warns(UserWarning, match="target size"):
        assert gradcheck(L.log_cosh_loss, (input, target), check_forward_ad=True)
        assert gradgradcheck(L.log_cosh_loss, (input, target), check_fwd_over_rev=True)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("shape", [(COLUMNS,), (ROWS, 1), (ROWS, COLUMNS), ()], ids=str)
def test_derivatives_of_pos_weight(shape: tuple[int, ...], smoothing: float) -> None:
    generator = torch.Generator().manual_seed(0)
    input, target = normal((ROWS, COLUMNS), generator), torch.rand(ROWS, COLUMNS, dtype=torch.float64)
    pos_weight = positive(shape, generator)
    inputs = tuple(t.requires_grad_() for t in (input, target, pos_weight))

    def call(x: Tensor, y: Tensor, p: Tensor) -> Tensor:
        return L.binary_cross_entropy_with_logits(x, y, pos_weight=p, label_smoothing=smoothing)

    assert gradcheck(call, inputs, check_forward_ad=True)
    assert gradgradcheck(call, inputs, check_fwd_over_rev=True)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("alpha", [-1.0, 0.0, 0.25, 1.0])
def test_derivatives_of_the_focal_loss_for_every_alpha_and_gamma(alpha: float, gamma: float) -> None:
    generator = torch.Generator().manual_seed(0)
    input = normal((6,), generator, 3.0).requires_grad_()
    target = (torch.rand(6, generator=generator, dtype=torch.float64) * 0.9 + 0.05).requires_grad_()
    call = partial(L.sigmoid_focal_loss, alpha=alpha, gamma=gamma, reduction="sum")
    assert gradcheck(call, (input, target), check_forward_ad=True)
    assert gradgradcheck(call, (input, target), check_fwd_over_rev=True)


@pytest.mark.parametrize("loss", EACH)
def test_a_gradient_does_not_depend_on_which_others_are_asked_for(loss: Loss) -> None:
    operands, keywords = loss.sample((5, 4))
    call, inputs = differentiable_call(loss, operands, keywords, torch.ones(5, 1).double(), "mean", False)
    together = torch.autograd.grad(call(*inputs), inputs)
    for k, gradient in enumerate(together):
        alone = [t.detach() for t in inputs]
        alone[k].requires_grad_()
        (only,) = torch.autograd.grad(call(*alone), alone[k])
        assert torch.equal(only, gradient)
        (asked_for,) = torch.autograd.grad(call(*inputs), inputs[k])
        assert torch.equal(asked_for, gradient)


@pytest.mark.parametrize(("loss", "reduction"), BY_REDUCTION)
def test_the_gradient_with_a_graph_is_that_without(loss: Loss, reduction: str) -> None:
    """create_graph computes the gradient anew, where the other was made in the forward pass."""
    operands, keywords = loss.sample((5, 4))
    call, inputs = differentiable_call(loss, operands, keywords, torch.ones(5, 1).double(), reduction, False)
    result = call(*inputs)
    incoming = torch.full_like(result, 0.3)
    with_graph = torch.autograd.grad(result, inputs, incoming, create_graph=True)
    without = torch.autograd.grad(call(*inputs), inputs, incoming)
    for one, other in zip(with_graph, without, strict=True):
        torch.testing.assert_close(one.detach(), other, rtol=1e-15, atol=1e-18)


# ---- beyond the second derivative -------------------------------------------------------------------------------


@pytest.mark.parametrize(("loss", "reduction"), BY_REDUCTION)
def test_the_third_derivative_is_refused_in_words(loss: Loss, reduction: str) -> None:
    operands, keywords = sample_away_from_corners(loss, (ROWS, COLUMNS))
    call, inputs = differentiable_call(loss, operands, keywords, torch.ones(()).double(), reduction, False)
    (first,) = torch.autograd.grad(call(*inputs).sum(), inputs[0], create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match=f"third derivative of {loss.name}"):
        second.sum().backward()


@pytest.mark.parametrize("direction", ["fff", "ffr", "frf", "frr", "rff", "rfr", "rrf", "rrr"])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_no_order_of_forward_and_reverse_mode_gives_a_silent_third_derivative(direction: str, reduction: str) -> None:
    """log_cosh''' is not 0; where it cannot be computed, 0 would be a wrong answer."""
    from torch.func import jacfwd, jacrev

    def function(x: Tensor) -> Tensor:
        return L.log_cosh_loss(x, torch.zeros(1, dtype=torch.float64), reduction=reduction)

    derivative: Callable[..., Any] = function
    for mode in direction:
        derivative = jacfwd(derivative) if mode == "f" else jacrev(derivative)
    with pytest.raises((RuntimeError, NotImplementedError), match="third derivative of log_cosh_loss"):
        derivative(torch.tensor([0.7], dtype=torch.float64))


# ---- where a derivative does not exist --------------------------------------------------------------------------


def slopes(call: Callable[..., Tensor], *operands: Tensor) -> tuple[Tensor, ...]:
    """The gradients of the sum over the elements."""
    leaves = [operand.clone().requires_grad_() for operand in operands]
    return torch.autograd.grad(call(*leaves, reduction="sum"), leaves)


def curvature(call: Callable[..., Tensor], input: Tensor, target: Tensor) -> list[float]:
    leaf = input.clone().requires_grad_()
    (first,) = torch.autograd.grad(call(leaf, target, reduction="sum"), leaf, create_graph=True)
    return torch.autograd.grad(first.sum(), leaf)[0].tolist()


@pytest.mark.parametrize(
    "call",
    [
        L.l1_loss,
        L.quantile_loss,
        partial(L.quantile_loss, q=0.9),
        partial(L.smooth_l1_loss, beta=0.0),
        L.mean_absolute_percentage_error,
        L.mse_loss,
        L.huber_loss,
        L.log_cosh_loss,
        L.smooth_l1_loss,
    ],
    ids=["l1", "median", "quantile", "smooth_l1 beta=0", "mape", "mse", "huber", "log_cosh", "smooth_l1"],
)
def test_no_error_has_no_slope(call: Callable[..., Tensor]) -> None:
    at = torch.tensor([-2.0, 0.5, 3.0])
    assert [slope.tolist() for slope in slopes(call, at, at)] == [[0.0] * 3, [0.0] * 3]


def test_a_tensor_of_quantiles_has_no_slope_at_a_tie() -> None:
    at = torch.ones(2, 3)
    gradients = slopes(L.quantile_loss, at, at, torch.full((3,), 0.2))
    assert all(not gradient.any() for gradient in gradients)


@pytest.mark.parametrize("call", [L.hinge_loss, L.squared_hinge_loss])
def test_the_hinge_has_no_slope_at_its_corner(call: Callable[..., Tensor]) -> None:
    corner = torch.tensor([1.0, -1.0])
    (slope,) = slopes(lambda x, reduction: call(x, corner, reduction=reduction), corner)
    assert slope.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("margin", [0.0, 0.6])
def test_hinge_embedding_has_the_slope_that_torch_has_at_its_corner(margin: float) -> None:
    input, target = torch.full((2,), margin), torch.tensor([1.0, -1.0])
    ours, torchs = (
        slopes(lambda x, reduction, f=f: f(x, target, margin=margin, reduction=reduction), input)[0]
        for f in (L.hinge_embedding_loss, torch.nn.functional.hinge_embedding_loss)
    )
    assert torch.equal(ours, torchs)


def test_margin_ranking_has_the_slope_that_torch_has_at_its_corner() -> None:
    first, second, target = torch.tensor([1.5, 1.0]), torch.tensor([1.0, 1.5]), torch.tensor([1.0, -1.0])
    ours, torchs = (
        slopes(lambda a, b, reduction, f=f: f(a, b, target, margin=0.5, reduction=reduction), first, second)
        for f in (L.margin_ranking_loss, torch.nn.functional.margin_ranking_loss)
    )
    for one, other in zip(ours, torchs, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_curvature_is_where_it_should_be(dtype: torch.dtype) -> None:
    r = torch.tensor([0.0, 0.25, -0.25, 2.0, -2.0, 100.0], dtype=dtype)
    zero = torch.zeros_like(r)
    assert curvature(partial(L.huber_loss, delta=0.5), r, zero) == [1, 1, 1, 0, 0, 0]
    assert curvature(partial(L.smooth_l1_loss, beta=0.5), r, zero) == [2, 2, 2, 0, 0, 0]
    assert curvature(L.mse_loss, r, zero) == [2] * 6
    assert curvature(L.l1_loss, r, zero) == [0] * 6
    assert curvature(L.quantile_loss, r, zero) == [0] * 6
    assert curvature(L.mean_absolute_percentage_error, r, zero + 1) == [0] * 6
    assert curvature(L.log_cosh_loss, r, zero)[0] == 1
    # 1 / cosh(100)^2: not NaN where cosh(100)^2 overflows, and not 0 where it does not.
    far = 4 * torch.tensor(-200.0, dtype=torch.float64).exp().to(dtype).item()
    assert curvature(L.log_cosh_loss, r, zero)[-1] == pytest.approx(far, rel=1e-12, abs=0)
    one = torch.ones_like(r)
    assert curvature(L.hinge_loss, r, one) == [0] * 6
    assert curvature(L.squared_hinge_loss, r, one) == [2, 2, 2, 0, 2, 0]
    quarter = pytest.approx(0.25, rel=4 * torch.finfo(dtype).eps)
    assert curvature(L.soft_margin_loss, r, one)[0] == quarter
    assert curvature(L.binary_cross_entropy_with_logits, r, one)[0] == quarter
    assert curvature(L.binary_cross_entropy_with_logits, r * 1000, one)[-1] == 0
    assert curvature(L.poisson_nll_loss, r, one)[0] == 1


def test_msle_has_neither_slope_nor_curvature_below_its_bound() -> None:
    input, target = torch.tensor([-1.0, 0.0], dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    assert slopes(lambda x, reduction: L.mean_squared_log_error(x, target, reduction=reduction), input)[0][0] == 0
    assert curvature(L.mean_squared_log_error, input, target)[0] == 0


def test_the_variance_takes_its_gradient_where_eps_takes_over() -> None:
    """torch clamps without recording it, so that a variance that fell to 0 can grow again."""
    x, y = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1.0])
    var = torch.tensor([0.0, 1e-9])
    ours, torchs = (
        slopes(lambda v, reduction, f=f: f(x, y, v, eps=1e-2, reduction=reduction), var)[0]
        for f in (L.gaussian_nll_loss, torch.nn.functional.gaussian_nll_loss)
    )
    torch.testing.assert_close(ours, torchs)
    assert ours[0] != 0


def test_bce_has_the_slope_that_torch_has_at_the_ends_of_its_range() -> None:
    input, target = torch.tensor([0.0, 1.0, 0.0, 1.0]), torch.tensor([0.0, 1.0, 1.0, 0.0])
    ours, torchs = (
        slopes(lambda x, reduction, f=f: f(x, target, reduction=reduction), input)[0]
        for f in (L.binary_cross_entropy, torch.nn.functional.binary_cross_entropy)
    )
    torch.testing.assert_close(ours, torchs)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, 2.0])
def test_the_focal_loss_is_finite_with_two_derivatives_at_any_logit(gamma: float) -> None:
    input = torch.tensor([0.0, 1e-30, 90.0, -90.0, 1e4, -1e4, 3e38, -3e38])
    for target in (torch.zeros(8), torch.ones(8)):
        call = partial(L.sigmoid_focal_loss, gamma=gamma)
        assert call(input, target).isfinite().all()
        assert slopes(lambda x, reduction, y=target, f=call: f(x, y, reduction=reduction), input)[0].isfinite().all()
        assert torch.tensor(curvature(call, input, target)).isfinite().all()


# ---- NaN --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("loss", EACH)
def test_nan_reaches_its_own_value_and_gradient_alone(loss: Loss, dtype: torch.dtype) -> None:
    names = list(loss.samplers)
    for name in loss.differentiable:
        operands, keywords = loss.sample((5, 7), dtype)
        spoilt = names.index(name)
        operands[spoilt][2, 3] = torch.nan
        leaves = [operands[names.index(n)].requires_grad_() for n in loss.differentiable]
        values = loss(*operands, **keywords, reduction="none")
        place = torch.zeros(5, 7, dtype=torch.bool)
        place[2, 3] = True
        assert torch.equal(values.isnan(), place.any(-1) if loss.name == "gaussian_kl" else place)
        for reduction in ("sum", "none"):
            result = loss(*operands, **keywords, reduction=reduction)
            gradients = torch.autograd.grad(result, leaves, torch.ones_like(result))
            for n, gradient in zip(loss.differentiable, gradients, strict=True):
                assert gradient[~place].isfinite().all(), f"{n} was reached by another element"
                if n == name:
                    assert gradient[2, 3].isnan(), f"NaN in {n} has gradient {gradient[2, 3]}"
