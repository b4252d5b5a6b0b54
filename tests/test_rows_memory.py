"""What the losses over rows hold in memory: one gradient, and nothing with `inplace_backward`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import fusedloss.functional as L
from fusedloss.bench.peak_memory import peak_memory

ROWS, CLASSES = 512, 4096
ONE = ROWS * CLASSES * 4  # bytes of the logits in float32
FEW = 64 * 1024

pytestmark = pytest.mark.host


def logits(seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(ROWS, CLASSES, generator=torch.Generator().manual_seed(seed)).to(dtype)


def labels() -> Tensor:
    return torch.randint(CLASSES, (ROWS,), generator=torch.Generator().manual_seed(5))


def peak_of_step(loss: Callable[[], Tensor], *leaves: Tensor) -> int:
    def step() -> None:
        for leaf in leaves:
            leaf.grad = None
        loss().backward()

    step()  # what is allocated once does not count
    for leaf in leaves:
        leaf.grad = None
    return peak_memory(step)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_cross_entropy_holds_one_gradient(dtype: torch.dtype) -> None:
    x, target = logits(dtype=dtype).requires_grad_(), labels()
    assert peak_of_step(lambda: L.cross_entropy(x, target), x) <= x.nbytes + FEW


def test_an_unreduced_loss_holds_one_gradient() -> None:
    """Which is made with the values, and multiplied in its place by what comes in for the rows."""
    x, target, incoming = logits().requires_grad_(), labels(), torch.rand(ROWS)
    loss = lambda: (L.cross_entropy(x, target, reduction="none") * incoming).sum()  # noqa: E731
    assert peak_of_step(loss, x) <= ONE + 3 * incoming.nbytes + FEW


def test_a_second_derivative_is_one_more_pass() -> None:
    """Of the softmax's Hessian only its product with a direction is made."""
    x, direction = logits().requires_grad_(), logits(1)
    (gradient,) = torch.autograd.grad(L.cross_entropy(x, labels()), x, create_graph=True)
    second = lambda: torch.autograd.grad(gradient, x, direction, retain_graph=True)  # noqa: E731
    second()
    assert peak_memory(second) <= ONE + FEW


def test_lists_of_classes_are_read_where_they_lie() -> None:
    x, lists = logits().requires_grad_(), torch.full((ROWS, CLASSES), -1)
    lists[:, :2] = labels()[:, None]
    assert peak_of_step(lambda: L.multilabel_margin_loss(x, lists), x) <= ONE + FEW


def test_strided_logits_are_not_copied() -> None:
    x = logits().t().contiguous().requires_grad_()
    target = labels()
    assert peak_of_step(lambda: L.cross_entropy(x.t(), target), x) <= ONE + FEW


def test_distillation_makes_no_softmax() -> None:
    teacher, student = logits(1), logits(2).requires_grad_()
    loss = lambda: L.kl_divergence(teacher, student, from_logits=True, temperature=2.0)  # noqa: E731
    assert peak_of_step(loss, student) <= ONE + FEW
    teacher.requires_grad_()
    assert peak_of_step(loss, student, teacher) <= 2 * ONE + FEW


# ---- inplace_backward ------------------------------------------------------------------------------------------------


def hidden(x: Tensor) -> Tensor:
    """Logits that are no leaf, as a network gives them."""
    return x * 1.0


def test_the_logits_become_their_gradient() -> None:
    x, target = logits().requires_grad_(), labels()
    z = hidden(x)
    loss = L.cross_entropy(z, target, inplace_backward=True)
    assert torch.equal(z, x)  # until the backward pass
    loss.backward()
    assert torch.equal(z, x.grad)


@pytest.mark.parametrize("shape", [(ROWS, CLASSES), (160, 32000)], ids=str)  # short rows and a vocabulary
def test_in_place_takes_no_memory(shape: tuple[int, int]) -> None:
    leaf, target = torch.randn(shape, requires_grad=True), torch.randint(shape[1], shape[:1])
    loss = L.cross_entropy(leaf, target, inplace_backward=True)
    assert peak_memory(lambda: torch.autograd.grad(loss, leaf)) <= FEW


def test_in_place_is_refused_where_it_would_be_wrong() -> None:
    x, target = logits().requires_grad_(), labels()
    z = hidden(x)
    with pytest.raises(NotImplementedError, match="second derivative"):
        torch.autograd.grad(L.cross_entropy(z, target, inplace_backward=True), z, create_graph=True)
    loss = L.cross_entropy(z, target, inplace_backward=True)
    torch.autograd.grad(loss, z, retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, z)
    with pytest.raises(ValueError, match="without gaps"):
        L.cross_entropy(hidden(x)[:, ::2], target % 100, inplace_backward=True)


def test_logits_that_others_saved_are_missed_by_them() -> None:
    x, target = logits().requires_grad_(), labels()
    z = x.exp()  # whose backward reads its result
    loss = L.cross_entropy(z, target, inplace_backward=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_in_place_means_nothing_without_a_gradient() -> None:
    x, target = logits(), labels()
    before = x.clone()
    value = L.cross_entropy(x, target, inplace_backward=True)
    assert torch.equal(x, before)
    assert torch.equal(value, L.cross_entropy(x, target))
