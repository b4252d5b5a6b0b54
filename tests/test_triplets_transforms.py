"""Mined triplet losses under torch.func: derivatives are those of the formula in torch's ops, and vmap is a loop."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import fusedloss.functional as L
from fusedloss.testing.triplet_catalogue import TRIPLET_LOSSES, TripletLoss

pytestmark = [
    # torch's own forward mode.
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning"),
    pytest.mark.filterwarnings(
        "ignore:There is a performance drop because we have not yet implemented the batching rule"
    ),
]

EACH_LOSS = pytest.mark.parametrize("loss", [pytest.param(loss, id=loss.id) for loss in TRIPLET_LOSSES])
BY_REDUCTION = pytest.mark.parametrize(
    ("loss", "reduction"), [pytest.param(x, r, id=f"{x.id}-{r}") for x in TRIPLET_LOSSES for r in x.reductions]
)


def of_embeddings(loss: TripletLoss, labels: Tensor, reduction: str, ours: bool) -> Callable[[Tensor], Tensor]:
    call = loss if ours else loss.torch
    return lambda x: call(x, labels, reduction=reduction)


@EACH_LOSS
def test_grad_jvp_and_vjp_are_those_of_the_formula(loss: TripletLoss) -> None:
    given = loss.given((11, 4), seed=1)
    x, direction = given["embeddings"], loss.directions(given)["embeddings"]
    for reduction in loss.reductions:
        ours, theirs = (of_embeddings(loss, given["labels"], reduction, of_us) for of_us in (True, False))
        if reduction != "none":
            torch.testing.assert_close(grad(ours)(x), grad(theirs)(x))
        for one, other in zip(jvp(ours, (x,), (direction,)), jvp(theirs, (x,), (direction,)), strict=True):
            torch.testing.assert_close(one, other)
        incoming = torch.full_like(ours(x), 0.3)
        torch.testing.assert_close(vjp(ours, x)[1](incoming)[0], vjp(theirs, x)[1](incoming)[0])


@EACH_LOSS
def test_jacobians_and_hessians_are_those_of_the_formula(loss: TripletLoss) -> None:
    given = loss.given((5, 3), seed=2)
    x = given["embeddings"]
    for reduction in loss.reductions:
        ours, theirs = (of_embeddings(loss, given["labels"], reduction, of_us) for of_us in (True, False))
        expected = torch.autograd.functional.jacobian(theirs, x)
        torch.testing.assert_close(jacrev(ours)(x), expected)
        torch.testing.assert_close(jacfwd(ours)(x), expected)
        if reduction in ("none", "sum"):
            continue
        second = torch.autograd.functional.hessian(theirs, x)
        for transform in (hessian, lambda f: jacrev(jacrev(f)), lambda f: jacrev(jacfwd(f))):
            torch.testing.assert_close(transform(ours)(x), second)


# ---- vmap ------------------------------------------------------------------------------------------------------------

BATCH = 3


def batch_of(loss: TripletLoss, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """So many calls, of other numbers and labels."""
    calls = [loss.given(shape, seed=n) for n in range(BATCH)]
    return torch.stack([call["embeddings"] for call in calls]), torch.stack([call["labels"] for call in calls])


@BY_REDUCTION
def test_vmap_is_a_loop(loss: TripletLoss, reduction: str) -> None:
    """Over embeddings alone, over labels alone and over both, along any axis, in chunks."""
    x, labels = batch_of(loss, (7, 4))

    def call(x: Tensor, labels: Tensor) -> Tensor:
        return loss(x, labels, reduction=reduction)

    for over in ((0, 0), (0, None), (None, 0)):
        operands = x if over[0] == 0 else x[0], labels if over[1] == 0 else labels[0]
        each = [
            call(operands[0] if over[0] is None else x[n], operands[1] if over[1] is None else labels[n])
            for n in range(BATCH)
        ]
        expected = torch.stack(each)
        torch.testing.assert_close(vmap(call, over)(*operands), expected)
        torch.testing.assert_close(vmap(call, over, chunk_size=2)(*operands), expected)
        last = [t.movedim(0, -1) if d == 0 else t for t, d in zip(operands, over, strict=True)]
        in_dims = tuple(None if d is None else -1 for d in over)
        torch.testing.assert_close(vmap(call, in_dims)(*last), expected)
        if expected.dim() > 1:
            torch.testing.assert_close(vmap(call, over, out_dims=1)(*operands), expected.movedim(0, 1))


@BY_REDUCTION
def test_derivatives_of_each_call(loss: TripletLoss, reduction: str) -> None:
    """Gradients, tangents and second derivatives under vmap are those of a loop."""
    x, labels = batch_of(loss, (7, 3))

    def slope(x: Tensor, labels: Tensor) -> Tensor:
        result: Tensor = grad(lambda y: loss(y, labels, reduction=reduction).sum())(x)
        return result

    def tangent(x: Tensor, labels: Tensor) -> Tensor:
        result: Tensor = jvp(lambda y: loss(y, labels, reduction=reduction), (x,), (x.cos(),))[1]
        return result

    def second(x: Tensor, labels: Tensor) -> Tensor:
        result: Tensor = jvp(lambda y: slope(y, labels), (x,), (x.cos(),))[1]
        return result

    def twice(x: Tensor, labels: Tensor) -> Tensor:
        result: Tensor = grad(lambda y: (slope(y, labels) * y.detach().cos()).sum())(x)
        return result

    for derivative in (slope, tangent, second, twice):
        expected = torch.stack([derivative(a, b) for a, b in zip(x, labels, strict=True)])
        torch.testing.assert_close(vmap(derivative)(x, labels), expected)
        of_same = torch.stack([derivative(a, labels[0]) for a in x])
        torch.testing.assert_close(vmap(derivative, (0, None))(x, labels[0]), of_same)


def test_vmap_in_vmap() -> None:
    x, labels = torch.randn(4, 2, 8, 3), torch.randint(0, 3, (4, 2, 8))
    values = torch.stack([torch.stack([L.triplet_mining_loss(x[m, n], labels[m, n]) for n in range(2)])
                          for m in range(4)])  # fmt: skip
    torch.testing.assert_close(vmap(vmap(L.triplet_mining_loss))(x, labels), values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_vmap_keeps_the_dtype(dtype: torch.dtype) -> None:
    x, labels = torch.randn(4, 6, 3).to(dtype), torch.randint(0, 2, (4, 6))
    expected = torch.stack([L.triplet_mining_loss(a, b) for a, b in zip(x, labels, strict=True)])
    torch.testing.assert_close(vmap(L.triplet_mining_loss)(x, labels), expected, rtol=torch.finfo(dtype).eps, atol=0)
    assert vmap(grad(L.triplet_mining_loss))(x, labels).dtype == dtype


def test_an_error_is_one_under_vmap_too() -> None:
    with pytest.raises(ValueError, match="margin"):
        vmap(lambda x, y: L.triplet_mining_loss(x, y, -1.0))(torch.randn(5, 6, 3), torch.zeros(5, 6, dtype=torch.long))


def test_gradients_of_a_model_for_each_batch() -> None:
    model = nn.Linear(3, 5).double()
    parameters = dict(model.named_parameters())
    x, labels = torch.randn(4, 7, 3).double(), torch.arange(28).view(4, 7) % 3

    def objective(parameters: dict[str, Tensor], x: Tensor, labels: Tensor) -> Tensor:
        return L.triplet_mining_loss(functional_call(model, parameters, (x,)), labels, mining="all")

    ours = vmap(grad(objective), in_dims=(None, 0, 0))(parameters, x, labels)
    for n in range(4):
        theirs = torch.autograd.grad(
            TRIPLET_LOSSES[0].reference(model(x[n]), labels[n], mining="all"), list(parameters.values())
        )
        for name, expected in zip(parameters, theirs, strict=True):
            torch.testing.assert_close(ours[name][n], expected)
