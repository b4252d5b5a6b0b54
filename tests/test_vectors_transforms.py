"""The losses of vectors under torch.func: derivatives are those of the formula in torch's ops, and vmap is a loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import fusedloss.functional as L
from fusedloss.testing.vector_catalogue import VECTOR_LOSSES, VectorLoss

pytestmark = [
    # torch's own forward mode.
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning"),
    pytest.mark.filterwarnings(
        "ignore:There is a performance drop because we have not yet implemented the batching rule"
    ),
]

EACH_LOSS = pytest.mark.parametrize("loss", [pytest.param(loss, id=loss.id) for loss in VECTOR_LOSSES])
FIRST_BY_NAME = {loss.name: loss for loss in reversed(VECTOR_LOSSES)}
EACH_NAME = pytest.mark.parametrize("loss", [pytest.param(loss, id=name) for name, loss in FIRST_BY_NAME.items()])
BY_REDUCTION = pytest.mark.parametrize(
    ("loss", "reduction"), [pytest.param(x, r, id=f"{x.id}-{r}") for x in VECTOR_LOSSES for r in x.reductions]
)
BATCH = 4


def as_function(loss: VectorLoss, given: dict[str, Tensor], free: tuple[str, ...], reduction: str, ours: bool) -> Any:
    """Of the tensors of these names: the loss, or the formula in torch's ops."""

    def call(*tensors: Tensor) -> Tensor:
        operands, keywords = loss.split(given | dict(zip(free, tensors, strict=True)))
        return (loss if ours else loss.torch)(*operands, **keywords, reduction=reduction)

    return call


def everything(loss: VectorLoss) -> tuple[str, ...]:
    return *loss.differentiable, *loss.learned


def assert_all_close(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


@EACH_LOSS
def test_grad_jvp_and_vjp_are_those_of_the_formula(loss: VectorLoss) -> None:
    """By and along all operands at once."""
    free = everything(loss)
    argnums = tuple(range(len(free)))
    for shape in [(5, 4), (4,)]:
        given = loss.given(shape, seed=1, away=True)
        at, along = tuple(given[k] for k in free), tuple(loss.directions(given).values())
        for reduction in loss.reductions:
            ours, theirs = (as_function(loss, given, free, reduction, of_us) for of_us in (True, False))
            if reduction != "none" or len(shape) == 1:
                assert_all_close(grad(ours, argnums)(*at), grad(theirs, argnums)(*at))
            assert_all_close(jvp(ours, at, along), jvp(theirs, at, along))
            incoming = torch.full_like(ours(*at), 0.3)
            assert_all_close(vjp(ours, *at)[1](incoming), vjp(theirs, *at)[1](incoming))


@EACH_LOSS
def test_jacobians_and_hessians_are_those_of_the_formula(loss: VectorLoss) -> None:
    """By one vector, and by two of them crosswise."""
    given = loss.given((2, 3), seed=2, away=True)
    free = loss.vectors[-2:]
    at = tuple(given[k] for k in free)
    for reduction in ("none", "mean"):
        ours, theirs = (as_function(loss, given, free, reduction, of_us) for of_us in (True, False))
        expected = jacrev(theirs, (0, 1))(*at)
        assert_all_close(jacrev(ours, (0, 1))(*at), expected)
        assert_all_close(jacfwd(ours, (0, 1))(*at), expected)
    second = torch.autograd.functional.hessian(theirs, at)
    for transform in (hessian, lambda f, n: jacrev(jacrev(f, n), n), lambda f, n: jacrev(jacfwd(f, n), n)):
        for one, other in zip(transform(ours, (0, 1))(*at), second, strict=True):
            assert_all_close(one, other)


# ---- vmap ------------------------------------------------------------------------------------------------------------


def batch_of(loss: VectorLoss, shape: tuple[int, ...]) -> tuple[list[dict[str, Tensor]], list[Tensor]]:
    """So many calls, and their operands stacked."""
    calls = [loss.given(shape, seed=n, away=True) for n in range(BATCH)]
    return calls, [torch.stack([given[k] for given in calls]) for k in calls[0]]


@pytest.mark.parametrize("shape", [(3, 4), (4,)], ids=["rows", "one"])
@BY_REDUCTION
def test_vmap_is_a_loop(loss: VectorLoss, reduction: str, shape: tuple[int, ...]) -> None:
    """Over all operands, over each alone and over all but that one, along any axis, in chunks."""
    calls, batch = batch_of(loss, shape)
    keys = list(calls[0])
    call = as_function(loss, calls[0], tuple(keys), reduction, True)
    expected = torch.stack([call(*given.values()) for given in calls])
    torch.testing.assert_close(vmap(call)(*batch), expected)
    torch.testing.assert_close(vmap(call, chunk_size=3)(*batch), expected)
    torch.testing.assert_close(vmap(call, in_dims=-1)(*(x.movedim(0, -1) for x in batch)), expected)
    if expected.dim() > 1:
        torch.testing.assert_close(vmap(call, out_dims=1)(*batch), expected.movedim(0, 1))
    for k in range(len(keys)):
        for alone in (True, False):
            in_dims = tuple(0 if (i == k) == alone else None for i in range(len(keys)))
            given = [x if d == 0 else x[0] for x, d in zip(batch, in_dims, strict=True)]
            loop = [call(*(x[n] if d == 0 else x for x, d in zip(given, in_dims, strict=True))) for n in range(BATCH)]
            torch.testing.assert_close(vmap(call, in_dims=in_dims)(*given), torch.stack(loop))


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@EACH_NAME
def test_vmap_of_what_is_broadcast(loss: VectorLoss, reduction: str) -> None:
    """Operands of fewer axes, with a batch and without one."""
    given = loss.given((2, 3, 4), seed=1) | {"weight": torch.rand(3, dtype=torch.float64) + 0.5}
    narrow = loss.given((4,), seed=2)
    for name in loss.vectors:
        for batched in loss.vectors:
            keys = list(given)
            tensors = given | {name: narrow[name]}
            many = torch.stack([tensors[batched] * (n + 1) for n in range(BATCH)])
            call = as_function(loss, tensors, tuple(keys), reduction, True)
            in_dims = tuple(0 if k == batched else None for k in keys)
            loop = [call(*(tensors | {batched: x}).values()) for x in many]
            torch.testing.assert_close(vmap(call, in_dims)(*(tensors | {batched: many}).values()), torch.stack(loop))


@BY_REDUCTION
def test_derivatives_of_each_call(loss: VectorLoss, reduction: str) -> None:
    """Gradients, tangents and second derivatives under vmap are those of a loop."""
    calls, batch = batch_of(loss, (3, 4))
    keys, first = list(calls[0]), loss.vectors[0]
    argnums = tuple(keys.index(k) for k in everything(loss))
    call = as_function(loss, calls[0], tuple(keys), reduction, True)

    def slopes(*tensors: Tensor) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = grad(lambda *x: call(*x).sum(), argnums)(*tensors)
        return found

    def tangent(*tensors: Tensor) -> tuple[Tensor, ...]:
        x, *rest = tensors
        return (jvp(lambda y: call(y, *rest), (x,), (x.cos(),))[1],)

    def second(*tensors: Tensor) -> tuple[Tensor, ...]:
        x, *rest = tensors
        found: tuple[Tensor, ...] = jvp(lambda y: slopes(y, *rest), (x,), (x.cos(),))[1]
        return found

    def twice(*tensors: Tensor) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = grad(lambda *x: (slopes(*x)[0] * tensors[0].cos()).sum(), argnums)(*tensors)
        return found

    assert keys[0] == first
    for derivative in (slopes, tangent, second, twice):
        loop = [derivative(*given.values()) for given in calls]
        for k, found in enumerate(vmap(derivative)(*batch)):
            torch.testing.assert_close(found, torch.stack([each[k] for each in loop]))
        of_one = [derivative(x, *list(calls[0].values())[1:]) for x in batch[0]]
        in_dims = (0, *(None for _ in keys[1:]))
        for k, found in enumerate(vmap(derivative, in_dims)(batch[0], *list(calls[0].values())[1:])):
            torch.testing.assert_close(found, torch.stack([each[k] for each in of_one]))


@EACH_NAME
def test_vmap_of_single_rows_and_in_vmap(loss: VectorLoss) -> None:
    given = loss.given((5, 6, 7))
    operands, _ = loss.split(given)
    torch.testing.assert_close(vmap(vmap(loss))(*operands), loss(*operands, reduction="none"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@EACH_NAME
def test_vmap_keeps_the_dtype(loss: VectorLoss, dtype: torch.dtype) -> None:
    operands, _ = loss.split(loss.given((4, 30, 10), dtype))
    expected = torch.stack([loss(*rows) for rows in zip(*operands, strict=True)])
    torch.testing.assert_close(vmap(loss)(*operands), expected, rtol=torch.finfo(dtype).eps, atol=0)
    assert vmap(grad(loss))(*operands).dtype == dtype


def test_gradients_of_a_model_for_each_sample() -> None:
    model = nn.Linear(3, 4).double()
    parameters = dict(model.named_parameters())
    x = torch.randn(3, 5, 3).double()

    def objective(parameters: dict[str, Tensor], a: Tensor, b: Tensor, c: Tensor, criterion: Any) -> Tensor:
        result: Tensor = criterion(*(functional_call(model, parameters, (v,)) for v in (a, b, c)), swap=True)
        return result

    ours, theirs = (
        vmap(grad(lambda p, a, b, c, f=f: objective(p, a, b, c, f)), in_dims=(None, 0, 0, 0))(parameters, *x)
        for f in (L.triplet_margin_loss, nn.functional.triplet_margin_loss)
    )
    for name in parameters:
        torch.testing.assert_close(ours[name], theirs[name])
