"""CTC under torch.func: derivatives are those of the recursion in torch's ops, and vmap is a loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import fusedloss.functional as L
from fusedloss.testing.lattice_catalogue import LATTICE_LOSSES, LatticeLoss, random_labels

pytestmark = [
    # torch's own forward mode.
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning"),
    pytest.mark.filterwarnings(
        "ignore:There is a performance drop because we have not yet implemented the batching rule"
    ),
]

EACH_LOSS = pytest.mark.parametrize("loss", [pytest.param(loss, id=loss.id) for loss in LATTICE_LOSSES])
BY_REDUCTION = pytest.mark.parametrize(
    ("loss", "reduction"), [pytest.param(x, r, id=f"{x.id}-{r}") for x in LATTICE_LOSSES for r in x.reductions]
)


def of_frames(loss: LatticeLoss, given: dict[str, Tensor], reduction: str, ours: bool) -> Callable[[Tensor], Tensor]:
    """The loss as a function of log-probabilities or logits alone, of static lengths; or its formula in torch's ops."""
    rest = list(given.values())[1:]
    assert loss.in_ops is not None
    formula = loss.in_ops

    def call(x: Tensor) -> Tensor:
        if ours:
            return loss(x, *rest, reduction=reduction)
        return formula(x, *rest, **loss.parameters, reduction=reduction)

    return call


@pytest.mark.parametrize("shape", [(6, 4, 4), (6, 4)], ids=["batch", "one"])
@EACH_LOSS
def test_grad_jvp_and_vjp_are_those_of_the_formula(loss: LatticeLoss, shape: tuple[int, ...]) -> None:
    given = loss.given(shape, seed=1)
    x, direction = given["log_probs"], loss.directions(given)["log_probs"]
    for reduction in loss.reductions:
        ours, theirs = (of_frames(loss, given, reduction, of_us) for of_us in (True, False))
        if reduction != "none" or len(shape) == 2:
            torch.testing.assert_close(grad(ours)(x), grad(theirs)(x))
        for one, other in zip(jvp(ours, (x,), (direction,)), jvp(theirs, (x,), (direction,)), strict=True):
            torch.testing.assert_close(one, other)
        incoming = torch.full_like(ours(x), 0.3)
        torch.testing.assert_close(vjp(ours, x)[1](incoming)[0], vjp(theirs, x)[1](incoming)[0])


@EACH_LOSS
def test_jacobians_and_hessians_are_those_of_the_formula(loss: LatticeLoss) -> None:
    given = loss.given((4, 2, 3), seed=2)
    x = given["log_probs"]
    for reduction in loss.reductions:
        ours, theirs = (of_frames(loss, given, reduction, of_us) for of_us in (True, False))
        expected = jacrev(theirs)(x)
        torch.testing.assert_close(jacrev(ours)(x), expected)
        torch.testing.assert_close(jacfwd(ours)(x), expected)
        if reduction == "none":
            continue
        second = torch.autograd.functional.hessian(theirs, x)
        for transform in (hessian, lambda f: jacrev(jacrev(f)), lambda f: jacrev(jacfwd(f))):
            torch.testing.assert_close(transform(ours)(x), second)


# ---- vmap ------------------------------------------------------------------------------------------------------------

BATCH = 3


def batch_of(loss: LatticeLoss, shape: tuple[int, ...]) -> list[list[Tensor]]:
    """So many calls, of the same shapes and lengths and of other numbers and labels."""
    given = loss.given(shape, seed=3)
    calls = []
    for n in range(BATCH):
        generator = torch.Generator().manual_seed(n)
        lengths = given["target_lengths"].reshape(-1).tolist()
        rows = [random_labels(length, shape[-1], loss.blank, generator) for length in lengths]
        x = loss.samplers["log_probs"](shape, generator)
        calls.append(list(loss.of(x, rows, given["input_lengths"].reshape(-1)).values()))
    return calls


@pytest.mark.parametrize("shape", [(6, 4, 4), (6, 4)], ids=["batch", "one"])
@BY_REDUCTION
def test_vmap_is_a_loop(loss: LatticeLoss, reduction: str, shape: tuple[int, ...]) -> None:
    """Over log-probabilities alone, over labels alone, and over all of lengths too, along any axis, in chunks."""
    calls = batch_of(loss, shape)
    for in_dims in ((0, None, None, None), (0, 0, None, None), (None, 0, None, None), (0, 0, 0, 0), (0, None, 0, None)):
        given = [torch.stack(x) if d == 0 else x[0] for x, d in zip(zip(*calls, strict=True), in_dims, strict=True)]
        each = [[x[n] if d == 0 else x for x, d in zip(given, in_dims, strict=True)] for n in range(BATCH)]
        expected = torch.stack([loss(*one, reduction=reduction) for one in each])

        def call(*tensors: Tensor) -> Tensor:
            return loss(*tensors, reduction=reduction)

        torch.testing.assert_close(vmap(call, in_dims)(*given), expected)
        torch.testing.assert_close(vmap(call, in_dims, chunk_size=2)(*given), expected)
        last = [x.movedim(0, -1) if d == 0 else x for x, d in zip(given, in_dims, strict=True)]
        torch.testing.assert_close(vmap(call, tuple(None if d is None else -1 for d in in_dims))(*last), expected)
        if expected.dim() > 1:
            torch.testing.assert_close(vmap(call, in_dims, out_dims=1)(*given), expected.movedim(0, 1))


@pytest.mark.parametrize("shape", [(6, 4, 4), (6, 4)], ids=["batch", "one"])
@BY_REDUCTION
def test_derivatives_of_each_call(loss: LatticeLoss, reduction: str, shape: tuple[int, ...]) -> None:
    """Gradients, tangents and second derivatives under vmap are those of a loop."""
    calls = batch_of(loss, shape)
    x, targets = (torch.stack([call[k] for call in calls]) for k in (0, 1))
    rest = calls[0][2:]

    def slope(x: Tensor, targets: Tensor) -> Tensor:
        result: Tensor = grad(lambda y: loss(y, targets, *rest, reduction=reduction).sum())(x)
        return result

    def tangent(x: Tensor, targets: Tensor) -> Tensor:
        result: Tensor = jvp(lambda y: loss(y, targets, *rest, reduction=reduction), (x,), (x.cos(),))[1]
        return result

    def second(x: Tensor, targets: Tensor) -> Tensor:
        result: Tensor = jvp(lambda y: slope(y, targets), (x,), (x.cos(),))[1]
        return result

    def twice(x: Tensor, targets: Tensor) -> Tensor:
        result: Tensor = grad(lambda y: (slope(y, targets) * y.detach().cos()).sum())(x)
        return result

    for derivative in (slope, tangent, second, twice):
        expected = torch.stack([derivative(a, b) for a, b in zip(x, targets, strict=True)])
        torch.testing.assert_close(vmap(derivative)(x, targets), expected)
        of_same = torch.stack([derivative(a, targets[0]) for a in x])
        torch.testing.assert_close(vmap(derivative, (0, None))(x, targets[0]), of_same)


def test_vmap_of_single_sequences_and_in_vmap() -> None:
    x, targets = torch.randn(6, 5, 4, 7), torch.randint(1, 7, (5, 4, 2))
    values = torch.stack([L.ctc_loss(x[:, n], targets[n], [6] * 4, [2] * 4, reduction="none") for n in range(5)])

    def one(x: Tensor, y: Tensor) -> Tensor:
        return L.ctc_loss(x, y, 6, 2, reduction="none")

    torch.testing.assert_close(vmap(vmap(one, (1, 0)), (1, 0))(x, targets), values)


def test_a_label_out_of_range_is_an_error_under_vmap_too() -> None:
    targets = torch.randint(1, 3, (5, 2))
    targets[3, 1] = 7
    with pytest.raises(IndexError, match="got 7"):
        vmap(lambda x, y: L.ctc_loss(x, y, 6, 2))(torch.randn(5, 6, 3), targets)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_vmap_keeps_the_dtype(dtype: torch.dtype) -> None:
    x, targets = torch.randn(4, 6, 3, 5).to(dtype), torch.randint(1, 5, (4, 3, 2))

    def call(x: Tensor, y: Tensor) -> Tensor:
        return L.ctc_loss(x, y, [6, 5, 6], [2, 2, 1], from_logits=True)

    expected = torch.stack([call(a, b) for a, b in zip(x, targets, strict=True)])
    torch.testing.assert_close(vmap(call)(x, targets), expected, rtol=torch.finfo(dtype).eps, atol=0)
    assert vmap(grad(call))(x, targets).dtype == dtype


def test_gradients_of_a_model_for_each_sample() -> None:
    model = nn.Linear(3, 5).double()
    parameters = dict(model.named_parameters())
    x, targets = torch.randn(4, 7, 3).double(), torch.randint(1, 5, (4, 2))

    def objective(parameters: dict[str, Tensor], x: Tensor, y: Tensor, criterion: Any) -> Tensor:
        result: Tensor = criterion(functional_call(model, parameters, (x,)).log_softmax(-1), y, [7], [2])
        return result

    def alone(x: Tensor, y: Tensor, frames: list[int], lengths: list[int]) -> Tensor:
        return L.ctc_loss(x, y, frames[0], lengths[0])

    ours = vmap(grad(lambda p, a, b: objective(p, a, b, alone)), in_dims=(None, 0, 0))(parameters, x, targets)
    for n in range(4):
        theirs = torch.autograd.grad(
            nn.functional.ctc_loss(model(x[n])[:, None].log_softmax(-1), targets[n : n + 1], [7], [2]),
            list(parameters.values()),
        )
        for name, expected in zip(parameters, theirs, strict=True):
            torch.testing.assert_close(ours[name][n], expected)
