"""What the losses of vectors hold in memory: their gradients, and next to nothing beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import fusedloss.functional as L
from fusedloss.bench.peak_memory import peak_memory
from fusedloss.testing.vector_catalogue import VECTOR_LOSSES, VectorLoss

ROWS, LENGTH = 4096, 256
ONE = ROWS * LENGTH * 4  # bytes of the vectors in float32
# Values of rows and what threads work in, and what large tensors are rounded up to.
WORK, PAGE = 512 * 1024, 2**21

pytestmark = pytest.mark.host

EACH_LOSS = pytest.mark.parametrize("loss", [pytest.param(loss, id=loss.id) for loss in VECTOR_LOSSES])
FIRST_BY_NAME = {loss.name: loss for loss in reversed(VECTOR_LOSSES)}
EACH_NAME = pytest.mark.parametrize("loss", [pytest.param(loss, id=name) for name, loss in FIRST_BY_NAME.items()])


def operands_of(
    loss: VectorLoss, dtype: torch.dtype = torch.float32, rows: int = ROWS
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Of vectors made at once, for the sampler takes its time; and those of them that are leaves."""
    given = loss.given((rows, 4), dtype)
    generator = torch.Generator().manual_seed(0)
    for name in loss.vectors:
        given[name] = (torch.randn(rows, LENGTH, generator=generator) / 16).to(dtype).requires_grad_()
    return given, [given[name] for name in loss.vectors]


def call(loss: VectorLoss, given: dict[str, Tensor], reduction: str) -> Tensor:
    operands, keywords = loss.split(given)
    return loss(*operands, **keywords, reduction=reduction)


def peak_of_step(loss: Callable[[], Tensor], leaves: list[Tensor]) -> int:
    def step() -> None:
        for leaf in leaves:
            leaf.grad = None
        loss().backward()

    step()  # what is allocated once does not count
    for leaf in leaves:
        leaf.grad = None
    return peak_memory(step)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@EACH_LOSS
def test_a_step_holds_its_gradients(loss: VectorLoss, dtype: torch.dtype) -> None:
    """Of half types too: nothing is widened, and no difference is kept."""
    given, leaves = operands_of(loss, dtype)
    bound = sum(x.nbytes for x in leaves) + len(leaves) * PAGE + WORK
    assert peak_of_step(lambda: call(loss, given, "mean"), leaves) <= bound


@EACH_NAME
def test_an_unreduced_loss_holds_its_gradients(loss: VectorLoss) -> None:
    given, leaves = operands_of(loss)
    incoming = torch.rand(ROWS)
    bound = sum(x.nbytes for x in leaves) + len(leaves) * PAGE + WORK
    assert peak_of_step(lambda: (call(loss, given, "none") * incoming).sum(), leaves) <= bound


@EACH_NAME
def test_only_gradients_that_are_wanted_are_made(loss: VectorLoss) -> None:
    given = {k: x.detach() for k, x in operands_of(loss)[0].items()}
    first = loss.vectors[0]
    given[first].requires_grad_()
    for reduction in ("none", "mean"):
        bound = ONE + PAGE + WORK
        assert peak_of_step(lambda r=reduction: call(loss, given, r).sum(), [given[first]]) <= bound  # type: ignore[misc]


@EACH_LOSS
def test_a_value_alone_holds_nothing(loss: VectorLoss) -> None:
    given, _ = operands_of(replace(loss, keyword_operands={}))
    given = {k: x.detach() for k, x in given.items()}
    for reduction in loss.reductions:
        assert peak_memory(lambda r=reduction: call(loss, given, r)) <= WORK  # type: ignore[misc]


@EACH_NAME
def test_vectors_that_lie_crosswise_are_not_copied(loss: VectorLoss) -> None:
    given, leaves = operands_of(loss)
    crosswise = [x.detach().t().contiguous().requires_grad_() for x in leaves]
    turned = given | {k: x.t() for k, x in zip(loss.vectors, crosswise, strict=True)}
    bound = sum(x.nbytes for x in leaves) + len(leaves) * PAGE + WORK
    assert peak_of_step(lambda: call(loss, turned, "mean"), crosswise) <= bound


@EACH_NAME
def test_one_vector_for_all_is_not_spread(loss: VectorLoss) -> None:
    """But for its gradient, which is made for every row and then summed."""
    given, leaves = operands_of(loss)
    one = leaves[1].detach()[:1].clone().requires_grad_()
    others = [x for k, x in enumerate(leaves) if k != 1]
    bound = (len(others) + 1) * (ONE + PAGE) + WORK
    assert peak_of_step(lambda: call(loss, given | {loss.vectors[1]: one}, "mean"), [one, *others]) <= bound


@EACH_NAME
def test_a_second_derivative_is_one_more_pass(loss: VectorLoss) -> None:
    given, leaves = operands_of(loss)
    gradients = torch.autograd.grad(call(loss, given, "mean"), leaves, create_graph=True)
    along = [torch.randn_like(x) for x in leaves]
    second = lambda: torch.autograd.grad(gradients, leaves, along, retain_graph=True)  # noqa: E731
    second()
    assert peak_memory(second) <= sum(x.nbytes for x in leaves) + len(leaves) * PAGE + WORK


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@EACH_NAME
def test_a_step_holds_less_than_half_of_torchs(loss: VectorLoss, dtype: torch.dtype) -> None:
    given, leaves = operands_of(loss, dtype)
    ours = peak_of_step(lambda: call(loss, given, "mean"), leaves)

    def theirs() -> Tensor:
        operands, keywords = loss.split({k: x.float() if x.is_floating_point() else x for k, x in given.items()})
        return loss.torch(*operands, **keywords)

    assert ours < peak_of_step(theirs, leaves) / (1.5 if dtype == torch.float32 else 2)


def test_nothing_is_made_before_an_error_is_found() -> None:
    _, leaves = operands_of(FIRST_BY_NAME["triplet_margin_loss"])

    def refused() -> None:
        with pytest.raises(ValueError, match="margin"):
            L.triplet_margin_loss(*leaves, margin=float("nan"))
        with pytest.raises(ValueError, match="negative"):
            L.triplet_margin_loss(leaves[0], leaves[1], leaves[2][:, :7])

    refused()
    assert peak_memory(refused) <= WORK // 16
    assert leaves[0].grad is None
