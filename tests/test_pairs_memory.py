"""What losses over pairs hold in memory: the gradients of the vectors, and of the logits of all pairs some tiles."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

import fusedloss.functional as L
from fusedloss.bench.peak_memory import peak_memory

ROWS, WIDTH = 4096, 64
ONE = ROWS * WIDTH * 4  # bytes of a table, and of its gradient while it is gathered
DENSE = ROWS * ROWS * 4  # of all logits in float32
TILE = 2**24  # of the logits that are there at once
# What two threads work in, and what large tensors are rounded up to.
WORK, PAGE = 2**20, 2**21

pytestmark = pytest.mark.host


def table(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) / shape[-1] ** 0.25).to(dtype)


def classes() -> Tensor:
    return torch.arange(ROWS) // 4


def info_nce(q: Tensor, k: Tensor) -> Tensor:
    return L.info_nce_loss(q, k)


def normalized(q: Tensor, k: Tensor) -> Tensor:
    return L.info_nce_loss(q, k, normalize=True)


def unreduced(q: Tensor, k: Tensor) -> Tensor:
    return L.info_nce_loss(q, k, reduction="none").sum()


def shared_negatives(q: Tensor, k: Tensor) -> Tensor:
    return L.info_nce_loss(q, q.detach(), k)


def siglip(image: Tensor, text: Tensor) -> Tensor:
    return L.siglip_loss(image, text, 2.0, -1.0)


def supervised(one: Tensor, other: Tensor) -> Tensor:
    """Of one table; the other's gradient is made by hand."""
    return L.supervised_contrastive_loss(one, classes()) + other.sum() * 0


ROW_BY_ROW = pytest.mark.parametrize("loss", [info_nce, normalized, unreduced, shared_negatives, siglip, supervised])


def peak_of_step(loss: Callable[..., Tensor], leaves: Sequence[Tensor]) -> int:
    def step() -> None:
        for leaf in leaves:
            leaf.grad = None
        loss(*leaves).backward()

    step()  # what is allocated once does not count
    for leaf in leaves:
        leaf.grad = None
    return peak_memory(step)


@ROW_BY_ROW
def test_a_step_holds_a_tile_and_the_gradients(loss: Callable[..., Tensor]) -> None:
    leaves = [table(ROWS, WIDTH, seed=k).requires_grad_() for k in (0, 1)]
    assert peak_of_step(loss, leaves) <= TILE + 2 * ONE + WORK < DENSE / 3


@pytest.mark.parametrize("loss", [info_nce, normalized])
def test_half_types_are_gathered_in_float32(loss: Callable[..., Tensor]) -> None:
    """Beside the gradients that are returned; of what is read no copy is made but of some rows."""
    leaves = [table(ROWS, WIDTH, dtype=torch.bfloat16, seed=k).requires_grad_() for k in (0, 1)]
    assert peak_of_step(loss, leaves) <= TILE + 3 * ONE + WORK


@pytest.mark.parametrize("loss", [info_nce, normalized, siglip])
def test_a_value_alone_holds_a_tile(loss: Callable[..., Tensor]) -> None:
    vectors = [table(ROWS, WIDTH, seed=k) for k in (0, 1)]
    assert peak_memory(lambda: loss(*vectors)) <= TILE + WORK


@pytest.mark.parametrize("loss", [info_nce, normalized, siglip, supervised])
def test_a_second_derivative_holds_two_tiles(loss: Callable[..., Tensor]) -> None:
    leaves = [table(ROWS, WIDTH, seed=k).requires_grad_() for k in (0, 1)]
    gradients = torch.autograd.grad(loss(*leaves), leaves, create_graph=True)
    directions = [table(ROWS, WIDTH, seed=k) for k in (2, 3)]
    moving = [(g, d) for g, d in zip(gradients, directions, strict=True) if g.requires_grad]
    of, along = zip(*moving, strict=True)
    second = lambda: torch.autograd.grad(of, leaves, along, retain_graph=True, allow_unused=True)  # noqa: E731
    assert peak_memory(second) <= 2 * TILE + 6 * ONE + WORK


def symmetric(q: Tensor, k: Tensor) -> Tensor:
    return L.info_nce_loss(q, k, symmetric=True)


def clip(image: Tensor, text: Tensor) -> Tensor:
    return L.clip_loss(image, text, 4.0, normalize=True)


@pytest.mark.parametrize("loss", [symmetric, clip])
def test_both_directions_hold_less_than_the_logits(loss: Callable[..., Tensor]) -> None:
    """Which are kept for the second direction as far as they are few."""
    leaves = [table(2 * ROWS, 8, seed=k).requires_grad_() for k in (0, 1)]
    assert peak_of_step(loss, leaves) < 0.4 * 4 * DENSE


def test_negatives_of_each_query_are_read_where_they_lie() -> None:
    """What is held are the gradients: of the negatives only if they have one."""
    q, k, negatives = table(64, WIDTH), table(64, WIDTH, seed=1), table(64, 512, WIDTH, seed=2)
    leaves = [q.requires_grad_(), k.requires_grad_()]
    loss = lambda q, k: L.info_nce_loss(q, k, negatives)  # noqa: E731
    assert peak_of_step(loss, leaves) <= 2 * q.nbytes + WORK
    assert peak_of_step(L.info_nce_loss, [*leaves, negatives.requires_grad_()]) <= negatives.nbytes + PAGE + WORK


def test_expanded_negatives_stay_expanded() -> None:
    q, k, shared = table(64, WIDTH), table(64, WIDTH, seed=1), table(512, WIDTH, seed=2)
    leaves = [q.requires_grad_(), k.requires_grad_()]
    loss = lambda q, k: L.info_nce_loss(q, k, shared.expand(64, 512, WIDTH))  # noqa: E731
    assert peak_of_step(loss, leaves) <= 2 * q.nbytes + WORK


def test_a_small_step_takes_some_kilobytes() -> None:
    """What threads work in is as large as the batch is."""
    leaves = [table(8, 4, seed=k).requires_grad_() for k in (0, 1)]
    for loss in (info_nce, normalized, siglip, clip, symmetric):
        assert peak_of_step(loss, leaves) <= 64 * 1024


def test_nothing_is_made_before_an_error_is_found() -> None:
    q, k = (table(ROWS, WIDTH, seed=k).requires_grad_() for k in (0, 1))

    def refused() -> None:
        with pytest.raises(ValueError, match="temperature"):
            L.info_nce_loss(q, k, temperature=-1.0)

    refused()
    assert peak_memory(refused) <= WORK // 16


# All that a process takes, as the system sees it.
GROWTH = """
import re, torch
torch.set_num_threads(2)
{library}
def most():
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1])
def step(rows):
    q, k = (torch.randn(rows, 32, requires_grad=True) for _ in range(2))
    loss(q, k).backward()
step(500)
before = most()
step(8192)
print(most() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the system does not say")
def test_many_pairs_take_little_of_the_system() -> None:
    """Of 8192 rows the logits are 256 MiB."""

    def growth(library: str) -> int:
        """In KiB."""
        code = GROWTH.format(library=library)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    ours = growth("from fusedloss.functional import info_nce_loss as loss")
    assert ours < 256 * 1024 / 8
