"""What CTC holds in memory: one gradient beside its input, and little more however long the sequences are."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fusedloss.functional as L
from fusedloss.bench.peak_memory import peak_memory

FRAMES, SAMPLES, CLASSES, LABELS = 200, 8, 1000, 50
ONE = FRAMES * SAMPLES * CLASSES * 4  # bytes of the logits in float32
# What two threads work in, and what large tensors are rounded up to.
WORK, PAGE = 2**20, 2**21

pytestmark = pytest.mark.host


def logits(dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(FRAMES, SAMPLES, CLASSES, generator=torch.Generator().manual_seed(seed)).to(dtype)


def rest() -> tuple[Tensor, Tensor, Tensor]:
    labels = torch.randint(1, CLASSES, (SAMPLES, LABELS), generator=torch.Generator().manual_seed(5))
    return labels, torch.full((SAMPLES,), FRAMES), torch.full((SAMPLES,), LABELS)


def peak_of_step(loss: Callable[[], Tensor], leaf: Tensor) -> int:
    def step() -> None:
        leaf.grad = None
        loss().backward()

    step()  # what is allocated once does not count
    leaf.grad = None
    return peak_memory(step)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("from_logits", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_step_holds_one_gradient(dtype: torch.dtype, from_logits: bool, reduction: str) -> None:
    """Of half types too: nothing is widened."""
    x = logits(dtype).requires_grad_()
    loss = lambda: L.ctc_loss(x, *rest(), reduction=reduction, from_logits=from_logits).sum()  # noqa: E731
    assert peak_of_step(loss, x) <= x.nbytes + PAGE + WORK


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(150, 16, 80, 30), (200, 4, 1000, 40), (900, 1, 30, 400)], ids=str)
def test_a_step_holds_less_than_torchs(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    frames, samples, classes, labels = shape
    x = torch.randn(frames, samples, classes).to(dtype).requires_grad_()
    given = torch.randint(1, classes, (samples, labels)), [frames] * samples, [labels] * samples
    ours = peak_of_step(lambda: L.ctc_loss(x, *given, from_logits=True), x)
    theirs = peak_of_step(lambda: F.ctc_loss(x.float().log_softmax(-1), *given), x)
    assert ours < theirs / 2


def test_one_sequence_holds_less_than_torchs() -> None:
    x = torch.randn(150, 1, 80, requires_grad=True)
    given = torch.randint(1, 80, (1, 30)), [150], [30]
    ours = peak_of_step(lambda: L.ctc_loss(x, *given, from_logits=True), x)
    theirs = peak_of_step(lambda: F.ctc_loss(x.log_softmax(-1), *given), x)
    assert ours < theirs


def test_a_small_step_takes_some_kilobytes() -> None:
    """What threads work in is as large as the sequences are."""
    x = torch.randn(20, 1, 30, requires_grad=True)
    assert peak_of_step(lambda: L.ctc_loss(x, torch.ones(1, 1, dtype=torch.long), [20], [1]), x) <= 16 * 1024


def test_a_value_alone_holds_nothing() -> None:
    x = logits()
    assert peak_memory(lambda: L.ctc_loss(x, *rest(), from_logits=True)) <= WORK


def test_frames_that_lie_batch_first_are_not_copied() -> None:
    x = logits().transpose(0, 1).contiguous().requires_grad_()
    assert peak_of_step(lambda: L.ctc_loss(x.transpose(0, 1), *rest(), from_logits=True), x) <= ONE + PAGE + WORK


def test_a_second_derivative_is_one_more_pass() -> None:
    """Of the Hessian only its product with a direction is made."""
    x, direction = logits().requires_grad_(), logits(seed=1)
    (gradient,) = torch.autograd.grad(L.ctc_loss(x, *rest(), from_logits=True), x, create_graph=True)
    second = lambda: torch.autograd.grad(gradient, x, direction, retain_graph=True)  # noqa: E731
    second()
    assert peak_memory(second) <= ONE + PAGE + WORK


def test_nothing_is_made_before_an_error_is_found() -> None:
    x, (labels, frames, lengths) = logits().requires_grad_(), rest()
    labels[-1, -1] = CLASSES

    def refused() -> None:
        with pytest.raises(IndexError, match=f"got {CLASSES} at position {LABELS - 1} of sample {SAMPLES - 1}"):
            L.ctc_loss(x, labels, frames, lengths, from_logits=True)

    refused()
    assert peak_memory(refused) <= WORK // 16
    assert x.grad is None


# All that a process takes, as the system sees it.
GROWTH = """
import re, torch
torch.set_num_threads(2)
{library}
def most():
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1])
def step(frames, labels):
    x = torch.randn(frames, 1, 8, requires_grad=True)
    y = torch.randint(1, 8, (1, labels))
    ctc_loss(x.log_softmax(-1), y, [frames], [labels]).backward()
step(100, 10)
before = most()
step(6000, 2000)
print(most() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the system does not say")
def test_a_long_sequence_takes_little_of_the_system() -> None:
    """6000 frames of 4001 states: torch keeps them all, 92 MiB each way."""

    def growth(library: str) -> int:
        """In KiB."""
        code = GROWTH.format(library=library)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    ours = growth("from fusedloss.functional import ctc_loss")
    theirs = growth("from torch.nn.functional import ctc_loss")
    assert theirs > 150_000
    assert ours < theirs / 4
