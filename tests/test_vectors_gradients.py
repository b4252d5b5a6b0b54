"""First and second derivatives of every loss of vectors: against finite differences in float64, by the rule of the
judge in every dtype, of rows that do not count, and where a derivative does not exist."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import fusedloss.functional as L
from fusedloss.testing.cases import DTYPES, LAYOUTS
from fusedloss.testing.vector_cases import SHAPE, VectorCall, all_laid_out
from fusedloss.testing.vector_catalogue import VECTOR_LOSSES, VectorLoss
from fusedloss.testing.vector_oracle import results

pytestmark = [
    pytest.mark.core,
    # torch's own forward mode compiles some of its formulas by it.
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
]

EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)
EACH_LOSS = pytest.mark.parametrize("loss", [pytest.param(loss, id=loss.id) for loss in VECTOR_LOSSES])
FIRST_BY_NAME = {loss.name: loss for loss in reversed(VECTOR_LOSSES)}
EACH_NAME = pytest.mark.parametrize("loss", [pytest.param(loss, id=name) for name, loss in FIRST_BY_NAME.items()])
BY_REDUCTION = pytest.mark.parametrize(
    ("loss", "reduction"), [pytest.param(x, r, id=f"{x.id}-{r}") for x in VECTOR_LOSSES for r in x.reductions]
)
NORMS = [0.5, 1.0, 1.5, 2.0, 2.5, 3.0, math.inf]


def differentiable_call(
    loss: VectorLoss, given: dict[str, Tensor], reduction: str, free: tuple[str, ...]
) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    """The loss as a function of those tensors alone, and these tensors."""

    def call(*tensors: Tensor) -> Tensor:
        operands, keywords = loss.split(given | dict(zip(free, tensors, strict=True)))
        return loss(*operands, **keywords, reduction=reduction)

    return call, tuple(given[name].clone().requires_grad_() for name in free)


def everything(loss: VectorLoss) -> tuple[str, ...]:
    return *loss.differentiable, *loss.learned


# ---- by finite differences -------------------------------------------------------------------------------------------


@BY_REDUCTION
def test_first_and_second_derivatives(loss: VectorLoss, reduction: str) -> None:
    """Backward and forward, by vectors, soft targets and weights."""
    shape = {"none": (3, 4), "mean": (2, 2, 3), "sum": (5,)}[reduction]
    call, inputs = differentiable_call(loss, loss.given(shape, seed=1, away=True), reduction, everything(loss))
    assert gradcheck(call, inputs, check_forward_ad=True)
    assert gradgradcheck(call, inputs, check_fwd_over_rev=True)


@pytest.mark.parametrize("number", range(12))
def test_any_combination(number: int) -> None:
    """Of a loss, its norm, margin, swap, normalize, weight and shapes."""
    random = np.random.default_rng(number)
    loss = list(FIRST_BY_NAME.values())[number % 4]
    parameters: dict[str, Any] = {"margin": float(random.uniform(0, 1)), "normalize": bool(random.integers(2))}
    if loss.name in ("contrastive_loss", "triplet_margin_loss"):
        parameters["p"] = float(random.choice(NORMS))
    if loss.name.startswith("triplet"):
        parameters["swap"] = bool(random.integers(2))
    if loss.name == "triplet_margin_loss":
        parameters["eps"] = float(random.choice([0, 1e-6, 0.01]))
    if loss.name == "triplet_margin_with_distance_loss":
        distances = [None, "squared_euclidean", "cosine", torch.nn.PairwiseDistance(3.0, 0.01)]
        parameters["distance_function"] = distances[int(random.integers(4))]
    made = replace(loss, parameters=parameters)
    given = made.given((2, 3), seed=number, away=True) | {"weight": torch.rand(2, dtype=torch.float64) + 0.5}
    free = made.vectors[:: int(random.integers(1, 3))]
    call, inputs = differentiable_call(made, given, "none", (*free, "weight"))
    assert gradcheck(call, inputs, check_forward_ad=True)
    assert gradgradcheck(call, inputs)


@EACH_NAME
def test_derivatives_of_what_is_broadcast(loss: VectorLoss) -> None:
    given = loss.given((2, 3, 3), seed=2, away=True)
    narrow = loss.given((3, 3), seed=3, away=True)
    given |= {loss.vectors[0]: narrow[loss.vectors[0]][:1], "weight": torch.rand(3, dtype=torch.float64) + 0.5}
    call, inputs = differentiable_call(loss, given, "mean", (*loss.differentiable, "weight"))
    assert gradcheck(call, inputs, check_forward_ad=True)
    assert gradgradcheck(call, inputs, check_fwd_over_rev=True)


@EACH_NAME
def test_batched_gradients(loss: VectorLoss) -> None:
    """is_grads_batched and jacobian(vectorize=True) go through torch's older vmap, not that of torch.func."""
    for reduction in ("none", "mean"):
        call, inputs = differentiable_call(loss, loss.given((2, 3), seed=4, away=True), reduction, everything(loss))
        assert gradcheck(call, inputs, check_batched_grad=True, check_forward_ad=True, check_batched_forward_grad=True)
        assert gradgradcheck(call, inputs, check_batched_grad=True)


# ---- by the judge ----------------------------------------------------------------------------------------------------


@EACH_DTYPE
@EACH_LOSS
def test_second_derivatives(loss: VectorLoss, dtype: torch.dtype) -> None:
    for shape in [(37, 21), (40, 3)]:  # with a row's entries in a register, and with a row in each lane
        given = loss.given(shape, dtype, seed=5, away=True)
        VectorCall(loss, given, "none" if dtype.itemsize == 4 else "mean", second=True).judge()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@EACH_LOSS
def test_second_derivatives_in_any_layout(loss: VectorLoss, dtype: torch.dtype) -> None:
    given = loss.given(SHAPE, dtype, seed=6, away=True)
    straight = VectorCall(loss, given, "none", second=True)
    for layout in LAYOUTS[1:6]:
        for which in ("all", loss.vectors[-1]):
            moved = all_laid_out(given, layout, which)
            if all(torch.equal(x, given[k]) for k, x in moved.items()):
                VectorCall(loss, moved, "none", second=True, same_as=straight).judge()


@EACH_LOSS
def test_second_derivatives_of_long_vectors(loss: VectorLoss) -> None:
    if loss.parameters.get("p", 2.0) == 2 and "module" not in loss.variant:  # of others a corner is always near
        VectorCall(loss, loss.given((9, 3000), torch.float32, seed=1, away=True), "none", second=True).judge()


# ---- one gradient and another ----------------------------------------------------------------------------------------


@EACH_LOSS
def test_a_gradient_does_not_depend_on_which_others_are_asked_for(loss: VectorLoss) -> None:
    call, inputs = differentiable_call(loss, loss.given((13, 7)), "mean", everything(loss))
    together = torch.autograd.grad(call(*inputs), inputs)
    for k, gradient in enumerate(together):
        alone = [t.detach() for t in inputs]
        alone[k].requires_grad_()
        (only,) = torch.autograd.grad(call(*alone), alone[k])
        torch.testing.assert_close(only, gradient, rtol=1e-14, atol=1e-17)
        (asked_for,) = torch.autograd.grad(call(*inputs), inputs[k])
        torch.testing.assert_close(asked_for, gradient, rtol=1e-14, atol=1e-17)


@BY_REDUCTION
def test_the_gradient_with_a_graph_is_that_without(loss: VectorLoss, reduction: str) -> None:
    """create_graph computes the gradient anew, where the other was made in the forward pass."""
    call, inputs = differentiable_call(loss, loss.given((13, 7)), reduction, everything(loss))
    result = call(*inputs)
    incoming = torch.full_like(result, 0.3)
    with_graph = torch.autograd.grad(result, inputs, incoming, create_graph=True)
    without = torch.autograd.grad(call(*inputs), inputs, incoming)
    for one, other in zip(with_graph, without, strict=True):
        torch.testing.assert_close(one.detach(), other, rtol=1e-14, atol=1e-16)


@BY_REDUCTION
def test_a_factor_on_the_loss_is_one_on_its_gradients(loss: VectorLoss, reduction: str) -> None:
    call, inputs = differentiable_call(loss, loss.given((40, 30), torch.float32), reduction, everything(loss))
    result = call(*inputs).sum()
    ones = torch.autograd.grad(result, inputs, retain_graph=True)
    quarters = torch.autograd.grad(result, inputs, torch.tensor(-0.25))
    for one, quarter in zip(ones, quarters, strict=True):
        assert torch.equal(one * -0.25, quarter)


@BY_REDUCTION
def test_the_third_derivative_is_refused_in_words(loss: VectorLoss, reduction: str) -> None:
    call, inputs = differentiable_call(loss, loss.given((2, 3), away=True), reduction, loss.differentiable)
    (first,) = torch.autograd.grad(call(*inputs).sum(), inputs[0], create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), inputs[0], create_graph=True, allow_unused=True)
    if second is not None and second.requires_grad:
        with pytest.raises(RuntimeError, match="third derivative of "):
            second.sum().backward()


@EACH_NAME
def test_integers_have_no_gradient_and_soft_targets_have_one(loss: VectorLoss) -> None:
    if "target" not in loss.samplers:
        pytest.skip("has no target")
    given = loss.given((5, 4))
    soft = given["target"].double().requires_grad_()
    operands, _ = loss.split(given | {"target": soft})
    result = loss(*operands, reduction="sum")
    assert result.requires_grad == (loss.name == "contrastive_loss")


# ---- rows that do not count ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@EACH_LOSS
def test_rows_of_weight_0_have_no_second_derivative(loss: VectorLoss, bad: float) -> None:
    """Exactly 0, whatever they hold; and the others are as without them."""
    off = torch.arange(7) % 3 == 1
    for dtype, length in product((torch.float64, torch.float32, torch.bfloat16), (5, 300)):
        given = loss.given((7, length), dtype, seed=7)
        given["weight"] = torch.linspace(0.5, 1.5, 7).masked_fill(off, 0).to(dtype)
        directions = loss.directions(given)
        found = []
        for value in (0.5, bad):
            spoilt = given | {k: given[k].masked_fill(off[:, None], value) for k in loss.vectors}
            call, inputs = differentiable_call(loss, spoilt, "none", loss.vectors)
            result = call(*inputs)
            incoming = torch.linspace(1, 2, 7).to(dtype).requires_grad_()
            gradients = torch.autograd.grad(result, inputs, incoming, create_graph=True)
            along = [directions[k] for k in loss.vectors]
            second = torch.autograd.grad(gradients, [incoming, *inputs], along, materialize_grads=True)
            found.append([*(g.detach() for g in gradients), *second])
            _, tangent = torch.func.jvp(lambda *x, f=call: f(*x), tuple(x.detach() for x in inputs), tuple(along))
            assert not tangent[off].any()
        for clean, dirty in zip(*found, strict=True):
            assert torch.equal(clean, dirty)
            assert torch.equal(dirty[off], torch.zeros_like(dirty[off]))


@EACH_NAME
def test_what_comes_in_for_rows_of_weight_0(loss: VectorLoss) -> None:
    """It is not looked at."""
    given = loss.given((7, 5)) | {"weight": torch.tensor([1.0, 0, 2, 1, 0, 1, 1], dtype=torch.float64)}
    call, inputs = differentiable_call(loss, given, "none", loss.vectors)
    result = call(*inputs)
    clean = torch.linspace(-2, 3, 7, dtype=torch.float64)
    spoilt = torch.where(given["weight"] == 0, math.nan, clean)
    expected = torch.autograd.grad(result, inputs, clean, retain_graph=True)
    for create_graph in (False, True):
        found = torch.autograd.grad(result, inputs, spoilt, retain_graph=True, create_graph=create_graph)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one.detach(), other, rtol=1e-15, atol=1e-17)


# ---- a distance of 0 -------------------------------------------------------------------------------------------------


def first_and_second(call: Callable[..., Tensor], *given: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    leaves = [x.clone().requires_grad_() for x in given]
    gradients = torch.autograd.grad(call(*leaves), leaves, create_graph=True)
    along = [torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view(x.shape) for x in gradients]
    moving = [(g, d) for g, d in zip(gradients, along, strict=True) if g.requires_grad]
    if not moving:
        return [g.detach() for g in gradients], [torch.zeros_like(x) for x in given]
    moved, directions = zip(*moving, strict=True)
    second = torch.autograd.grad(moved, leaves, directions, materialize_grads=True)
    return [g.detach() for g in gradients], list(second)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("p", NORMS)
@EACH_DTYPE
def test_equal_vectors_have_a_gradient_of_0(dtype: torch.dtype, p: float, normalize: bool) -> None:
    """Whether they are alike or not; and finite second derivatives. Of entries and rows in registers, and long ones."""
    for rows, length in [(40, 3), (7, 100), (3, 1), (2, 3000)]:
        x = torch.randn(rows, length, generator=torch.Generator().manual_seed(1)).to(dtype)
        for target in (torch.zeros(rows), torch.ones(rows), torch.full((rows,), 0.5)):

            def call(a: Tensor, b: Tensor, y: Tensor = target) -> Tensor:
                return L.contrastive_loss(a, b, y, p=p, margin=0.5, reduction="sum", normalize=normalize)

            torch.testing.assert_close(call(x, x).double(), ((1 - target) * 0.25).sum().double())
            gradients, second = first_and_second(call, x, x)
            assert not any(g.any() for g in gradients)
            assert all(s.isfinite().all() for s in second)


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("p", NORMS)
@EACH_DTYPE
def test_an_anchor_that_is_its_positive(dtype: torch.dtype, p: float, swap: bool) -> None:
    """Without eps it is not moved towards it, and both distances to the negative are the same."""
    generator = torch.Generator().manual_seed(2)
    x, z = (torch.randn(9, 5, generator=generator).to(dtype) for _ in range(2))
    call = lambda a, b, c: L.triplet_margin_loss(a, b, c, 100.0, p, 0.0, swap, reduction="sum")  # noqa: E731
    gradients, second = first_and_second(call, x, x, z)
    arrays = {"anchor": x, "positive": x, "negative": z}
    parameters = {"p": p, "eps": 0.0, "swap": swap, "margin": 100.0}
    _, slopes = results("triplet_margin_loss", {k: v.double().numpy() for k, v in arrays.items()}, parameters, "sum")
    for name, gradient in zip(arrays, gradients, strict=True):
        known = torch.from_numpy(slopes[name].value)
        torch.testing.assert_close(gradient.double(), known, rtol=1e-5 + 2 * torch.finfo(dtype).eps, atol=1e-6)
    assert swap or not gradients[1].any()
    assert all(s.isfinite().all() for s in second)


@pytest.mark.parametrize("distance", ["euclidean", "squared_euclidean", "cosine"])
@EACH_DTYPE
def test_three_equal_vectors(dtype: torch.dtype, distance: str) -> None:
    """All distances are the same: what pulls and what pushes is the same."""
    x = torch.randn(9, 5, generator=torch.Generator().manual_seed(2)).to(dtype)
    for swap in (False, True):
        call = lambda a, b, c, s=swap: L.triplet_margin_with_distance_loss(  # noqa: E731
            a, b, c, distance_function=distance, swap=s, reduction="sum"
        )
        gradients, second = first_and_second(call, x, x, x)
        torch.testing.assert_close(call(x, x, x).double().item(), 9.0)
        assert all(g.abs().max() <= 1 + 1e-6 for g in gradients)
        assert all(s.isfinite().all() for s in second) or distance == "euclidean"


# ---- corners ---------------------------------------------------------------------------------------------------------


def slopes_of(call: Callable[..., Tensor], *given: Any, **keywords: Any) -> list[Any]:
    leaves = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in given]
    value = call(*leaves, **keywords, reduction="sum")
    return [x.tolist() for x in torch.autograd.grad(value, leaves)]


NOWHERE = [[0.0, 0.0]]


@pytest.mark.parametrize("length", [2, 40])
@EACH_DTYPE
def test_a_hinge_has_no_slope_at_its_corner(dtype: torch.dtype, length: int) -> None:
    """Where the distance is the margin, and where two distances are a margin apart; of numbers that are exact."""
    zero, far, farther = torch.zeros(1, length), torch.zeros(1, length), torch.zeros(1, length)
    far[0, :2], farther[0, :2] = torch.tensor([3.0, 4.0]), torch.tensor([6.0, 8.0])
    a, b, c = (x.to(dtype) for x in (zero, far, farther))
    calls: list[tuple[Callable[..., Tensor], list[Tensor]]] = [
        (lambda x, y: L.contrastive_loss(x, y, torch.tensor([0]), margin=5.0), [a, b]),
        (lambda x, y, z: L.triplet_margin_loss(x, y, z, margin=5.0, eps=0.0), [a, b, c]),
        (lambda x, y, z: L.triplet_margin_loss(x, y, z, margin=0.0, eps=0.0), [a, b, b]),
        (lambda x, y, z: L.triplet_margin_with_distance_loss(
            x, y, z, distance_function="squared_euclidean", margin=75.0), [a, b, c]),
        (lambda x, y: L.cosine_embedding_loss(x, y, torch.tensor([-1])), [b, b[:, [1, 0, *range(2, length)]]
                                                                         * torch.tensor([1, -1] + [1] * (length - 2))]),
    ]  # fmt: skip
    for call, given in calls:
        value, (gradients, second) = call(*given), first_and_second(call, *given)
        assert value == 0
        assert not any(g.any() for g in gradients) and not any(s.any() for s in second)


def test_a_cosine_at_its_margin_has_no_slope() -> None:
    """Vectors at right angles."""
    given = [[2.0, 0.0, 1.0]], [[0.0, 3.0, 0.0]]
    slopes = slopes_of(lambda a, b, **k: L.cosine_embedding_loss(a, b, torch.tensor([-1]), **k), *given)
    assert slopes == [[[0.0] * 3], [[0.0] * 3]]


@pytest.mark.parametrize("length", [2, 40])
@EACH_DTYPE
def test_two_distances_that_are_equal_share_the_slope(dtype: torch.dtype, length: int) -> None:
    """As torch.minimum does: the negative is as far from the anchor as from the positive."""
    entries = torch.zeros(3, 1, length)
    entries[0, 0, 0], entries[1, 0, 0], entries[2, 0, 1] = 3.0, -3.0, 4.0
    leaves = [x.to(dtype).requires_grad_() for x in entries]
    value = L.triplet_margin_loss(*leaves, eps=0.0, swap=True)
    assert value == 2.0
    gradients = torch.autograd.grad(value, leaves)
    for gradient, expected in zip(gradients, ([0.7, 0.4], [-0.7, 0.4], [0.0, -0.8]), strict=True):
        torch.testing.assert_close(gradient[0, :2].double(), torch.tensor(expected).double(), rtol=0, atol=2e-3)
        assert not gradient[0, 2:].any()
    torch.testing.assert_close(gradients[0][0, 0] + gradients[1][0, 0], torch.zeros((), dtype=dtype))


@pytest.mark.parametrize("length", [3, 40])
def test_entries_that_are_largest_together(length: int) -> None:
    """A subgradient of the largest: shares that add up to 1, of theirs alone; torch's are equal."""
    x, y = [[3.0, -3.0, 1.0] + [0.0] * (length - 3)], [[0.0] * length]
    one = torch.ones(1, dtype=torch.float64)
    (first, second) = slopes_of(lambda a, b, **k: L.contrastive_loss(a, b, one, p=math.inf, **k), x, y)
    theirs = slopes_of(lambda a, b, reduction: torch.linalg.vector_norm(a - b, math.inf) ** 2, x, y)
    assert first == theirs[0] and second == theirs[1]


@pytest.mark.parametrize("p", [0.5, 1.0, 1.5, 2.0, 3.0])
def test_entries_that_are_equal_have_no_slope(p: float) -> None:
    x, y = [[3.0, 1.0, 2.0, -1.0]], [[1.0, 1.0, 2.0, 0.0]]
    one = torch.ones(1, dtype=torch.float64)
    ours = slopes_of(lambda a, b, **k: L.contrastive_loss(a, b, one, p=p, **k), x, y)
    theirs = slopes_of(lambda a, b, reduction: torch.linalg.vector_norm(a - b, p, dim=-1).sum() ** 2, x, y)
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs))
    assert ours[0][0][1] == ours[0][0][2] == ours[1][0][1] == 0
