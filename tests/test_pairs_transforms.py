"""Losses over pairs under torch.func: derivatives are those of the formula in torch's ops, and vmap is a loop."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import fusedloss.functional as L
from fusedloss.testing.pair_catalogue import PAIR_LOSSES, PairLoss

pytestmark = [
    # torch's own forward mode.
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning"),
    pytest.mark.filterwarnings(
        "ignore:There is a performance drop because we have not yet implemented the batching rule"
    ),
]

EACH_LOSS = pytest.mark.parametrize("loss", [pytest.param(loss, id=loss.id) for loss in PAIR_LOSSES])
SMALL = (4, 3)


def of_operand(
    loss: PairLoss, given: dict[str, Tensor], name: str, reduction: str, ours: bool
) -> Callable[[Tensor], Tensor]:
    """The loss as a function of one operand; or its formula in torch's ops."""

    def call(x: Tensor) -> Tensor:
        operands = (given | {name: x}).values()
        return loss(*operands, reduction=reduction) if ours else loss.torch(*operands, reduction=reduction)

    return call


@EACH_LOSS
def test_grad_jvp_and_vjp_are_those_of_the_formula(loss: PairLoss) -> None:
    given = loss.given((6, 4), seed=1)
    directions = loss.directions(given)
    for reduction, name in product(loss.reductions, loss.differentiable):
        ours, theirs = (of_operand(loss, given, name, reduction, of_us) for of_us in (True, False))
        x, direction = given[name], directions[name]
        if reduction != "none":
            torch.testing.assert_close(grad(ours)(x), grad(theirs)(x))
        for one, other in zip(jvp(ours, (x,), (direction,)), jvp(theirs, (x,), (direction,)), strict=True):
            torch.testing.assert_close(one, other)
        incoming = torch.full_like(ours(x), 0.3)
        torch.testing.assert_close(vjp(ours, x)[1](incoming)[0], vjp(theirs, x)[1](incoming)[0])


@EACH_LOSS
def test_jacobians_and_hessians_are_those_of_the_formula(loss: PairLoss) -> None:
    given = loss.given(SMALL, seed=2)
    for reduction in ("none", "mean"):
        for name in loss.differentiable if reduction == "mean" else loss.tables[:1]:
            ours, theirs = (of_operand(loss, given, name, reduction, of_us) for of_us in (True, False))
            x = given[name]
            expected = jacrev(theirs)(x)
            torch.testing.assert_close(jacrev(ours)(x), expected)
            torch.testing.assert_close(jacfwd(ours)(x), expected)
            if reduction == "none":
                continue
            second = torch.autograd.functional.hessian(theirs, x)
            for transform in (hessian, lambda f: jacrev(jacrev(f)), lambda f: jacrev(jacfwd(f))):
                torch.testing.assert_close(transform(ours)(x), second)


@EACH_LOSS
def test_hessians_between_operands(loss: PairLoss) -> None:
    """Of all operands with all others."""
    given = loss.given((3, 2), seed=3)
    names = loss.differentiable

    def total(ours: bool) -> Callable[..., Tensor]:
        def call(*tensors: Tensor) -> Tensor:
            operands = (given | dict(zip(names, tensors, strict=True))).values()
            return loss(*operands) if ours else loss.torch(*operands, reduction="mean")

        return call

    every, tensors = tuple(range(len(names))), tuple(given[name] for name in names)
    ours, theirs = (jacfwd(jacrev(total(of_us), every), every)(*tensors) for of_us in (True, False))
    for one, other in zip(ours, theirs, strict=True):
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b)


# ---- vmap ------------------------------------------------------------------------------------------------------------

BATCH = 3


def batch_of(loss: PairLoss, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """So many calls, of the same shapes."""
    calls = [loss.given(shape, seed=n) for n in range(BATCH)]
    return {name: torch.stack([call[name] for call in calls]) for name in loss.samplers}


@EACH_LOSS
def test_vmap_is_a_loop(loss: PairLoss) -> None:
    """Over all operands, over each alone and over all but each; along any axis, in chunks."""
    batch = batch_of(loss, (5, 3))
    names = list(batch)
    choices = {tuple(names), *((name,) for name in names), *(tuple(k for k in names if k != name) for name in names)}
    for batched in sorted(choice for choice in choices if choice):
        in_dims = tuple(0 if name in batched else None for name in names)
        given = [x if d == 0 else x[0] for x, d in zip(batch.values(), in_dims, strict=True)]
        for reduction in ("none", "mean"):

            def call(*tensors: Tensor, r: str = reduction) -> Tensor:
                return loss(*tensors, reduction=r)

            loop = [[x[n] if d == 0 else x for x, d in zip(given, in_dims, strict=True)] for n in range(BATCH)]
            expected = torch.stack([call(*one) for one in loop])
            torch.testing.assert_close(vmap(call, in_dims)(*given), expected)
            if len(batched) < len(names):
                continue
            torch.testing.assert_close(vmap(call, in_dims, chunk_size=2)(*given), expected)
            last = [x.movedim(0, -1) for x in given]
            torch.testing.assert_close(vmap(call, -1)(*last), expected)
            if expected.dim() > 1:
                torch.testing.assert_close(vmap(call, in_dims, out_dims=1)(*given), expected.movedim(0, 1))


Function = Callable[[Tensor], Tensor]


def slope(f: Function, x: Tensor) -> Tensor:
    found: Tensor = grad(f)(x)
    return found


def tangent(f: Function, x: Tensor) -> Tensor:
    found: Tensor = jvp(f, (x,), (x.cos(),))[1]
    return found


def forward_over_reverse(f: Function, x: Tensor) -> Tensor:
    found: Tensor = jvp(grad(f), (x,), (x.cos(),))[1]
    return found


def reverse_over_reverse(f: Function, x: Tensor) -> Tensor:
    found: Tensor = grad(lambda y: (grad(f)(y) * y.detach().cos()).sum())(x)
    return found


def by_operand(derivative: Callable[[Function, Tensor], Tensor], loss: PairLoss, k: int, *operands: Tensor) -> Tensor:
    return derivative(lambda x: loss(*operands[:k], x, *operands[k + 1 :]).sum(), operands[k])


@pytest.mark.parametrize("derivative", [slope, tangent, forward_over_reverse, reverse_over_reverse])
@EACH_LOSS
def test_derivatives_of_each_call(loss: PairLoss, derivative: Callable[[Function, Tensor], Tensor]) -> None:
    """Under vmap they are those of a loop, by every operand: where all have a batch, and where it alone has one."""
    batch = list(batch_of(loss, (4, 3)).values())
    for k, name in enumerate(loss.samplers):
        if name not in loss.differentiable:
            continue
        of_call = partial(by_operand, derivative, loss, k)
        expected = torch.stack([of_call(*one) for one in zip(*batch, strict=True)])
        torch.testing.assert_close(vmap(of_call)(*batch), expected)
        alone = [x if i == k else x[0] for i, x in enumerate(batch)]
        of_same = torch.stack([of_call(*alone[:k], x, *alone[k + 1 :]) for x in batch[k]])
        in_dims = tuple(0 if i == k else None for i in range(len(batch)))
        torch.testing.assert_close(vmap(of_call, in_dims)(*alone), of_same)


def test_vmap_in_vmap() -> None:
    q, k = torch.randn(2, 4, 3, 6, 5).unbind(0)
    values = torch.stack([torch.stack([L.info_nce_loss(a, b) for a, b in zip(*two, strict=True)])
                          for two in zip(q, k, strict=True)])  # fmt: skip
    torch.testing.assert_close(vmap(vmap(L.info_nce_loss))(q, k), values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_vmap_keeps_the_dtype(dtype: torch.dtype) -> None:
    image, text = torch.randn(2, 4, 6, 5).to(dtype).unbind(0)

    def call(image: Tensor, text: Tensor) -> Tensor:
        return L.clip_loss(image, text, 2.0, normalize=True)

    expected = torch.stack([call(a, b) for a, b in zip(image, text, strict=True)])
    torch.testing.assert_close(vmap(call)(image, text), expected, rtol=torch.finfo(dtype).eps, atol=0)
    assert vmap(grad(call))(image, text).dtype == dtype


def test_gradients_of_a_model_for_each_batch() -> None:
    model = nn.Linear(3, 5).double()
    parameters = dict(model.named_parameters())
    x, y = torch.randn(2, 4, 7, 3).double().unbind(0)

    def objective(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        one, other = (functional_call(model, parameters, (z,)) for z in (x, y))
        return L.info_nce_loss(one, other, temperature=0.5, symmetric=True, normalize=True)

    ours = vmap(grad(objective), in_dims=(None, 0, 0))(parameters, x, y)
    for n in range(4):
        theirs = torch.autograd.grad(objective(dict(model.named_parameters()), x[n], y[n]), list(model.parameters()))
        for name, expected in zip(parameters, theirs, strict=True):
            torch.testing.assert_close(ours[name][n], expected)
