"""What mined triplet losses hold in memory: some copies of the embeddings, and never the matrix of all distances."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import fusedloss.functional as L
from fusedloss.bench.peak_memory import peak_memory

COUNT, SIZE = 4096, 32
MATRIX = COUNT * COUNT * 4  # bytes of all distances in float32
WORK = 2**20

pytestmark = pytest.mark.host


def embeddings(dtype: torch.dtype = torch.float32, size: int = SIZE) -> Tensor:
    return torch.randn(COUNT, size, generator=torch.Generator().manual_seed(0)).to(dtype)


def labels(of_each: int = 16) -> Tensor:
    return torch.arange(COUNT) // of_each


def peak_of_step(loss: Callable[[], Tensor], leaf: Tensor) -> int:
    def step() -> None:
        leaf.grad = None
        loss().backward()

    step()  # what is allocated once does not count
    leaf.grad = None
    return peak_memory(step)


@pytest.mark.parametrize(("mining", "of_each", "share"), [("batch_hard", 16, 10), ("batch_hard", COUNT // 4, 10),
                                                          ("semi_hard", 16, 6), ("all", 16, 6)])  # fmt: skip
def test_a_step_is_a_small_part_of_the_matrix(mining: str, of_each: int, share: int) -> None:
    """Also where every anchor depends on all other vectors."""
    x, given = embeddings().requires_grad_(), labels(of_each)
    assert peak_of_step(lambda: L.triplet_mining_loss(x, given, mining=mining), x) <= MATRIX / share


def test_a_large_step_is_a_tenth_of_the_matrix() -> None:
    """Of 16384 vectors, whose matrix would be a gigabyte."""
    count = 4 * COUNT
    x, given = torch.randn(count, 8).requires_grad_(), torch.arange(count) // 16
    assert peak_memory(lambda: L.triplet_mining_loss(x, given).backward()) <= count * count * 4 / 10


@pytest.mark.parametrize("mining", ["batch_hard", "all"])
def test_memory_grows_with_the_vectors_and_not_with_their_pairs(mining: str) -> None:
    peaks = []
    for count in (COUNT // 4, COUNT):
        x, given = embeddings()[:count].clone().requires_grad_(), labels()[:count]
        peaks.append(peak_of_step(lambda x=x, given=given: L.triplet_mining_loss(x, given, mining=mining), x))
    assert peaks[1] <= 4 * peaks[0] + WORK


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_types_take_no_more_than_float32(dtype: torch.dtype) -> None:
    """They are read as they are; the distances are computed in float32 for both."""
    peaks = []
    for x in (embeddings(dtype, 256), embeddings(size=256)):
        leaf = x.requires_grad_()
        peaks.append(peak_of_step(lambda leaf=leaf: L.triplet_mining_loss(leaf, labels()), leaf))
    assert peaks[0] <= peaks[1] - embeddings(dtype, 256).nbytes + WORK  # its gradient is half as large


@pytest.mark.parametrize("mining", ["batch_hard", "semi_hard", "all"])
def test_a_value_alone_holds_less(mining: str) -> None:
    x = embeddings()
    assert peak_memory(lambda: L.triplet_mining_loss(x, labels(), mining=mining)) <= 3 * x.nbytes + WORK


def test_a_second_derivative_is_one_more_pass() -> None:
    x, direction = embeddings().requires_grad_(), embeddings()
    (gradient,) = torch.autograd.grad(L.triplet_mining_loss(x, labels()), x, create_graph=True)
    second = lambda: torch.autograd.grad(gradient, x, direction, retain_graph=True)  # noqa: E731
    second()
    assert peak_memory(second) <= MATRIX / 10


def test_a_transposed_tensor_is_not_copied() -> None:
    """In bytes of torch's allocator: what a step takes of embeddings in any layout is the same."""
    x = embeddings(size=128)
    peaks = []
    for y in (x, x.t().contiguous().t()):
        leaf = y.requires_grad_()
        peaks.append(peak_of_step(lambda leaf=leaf: L.triplet_mining_loss(leaf, labels()), leaf))
    assert peaks[1] <= peaks[0] + WORK // 4


def test_nothing_is_made_before_an_error_is_found() -> None:
    x, given = embeddings().requires_grad_(), labels()[:-1]

    def refused() -> None:
        with pytest.raises(ValueError, match="labels"):
            L.triplet_mining_loss(x, given)

    refused()
    assert peak_memory(refused) <= WORK // 16
    assert x.grad is None
