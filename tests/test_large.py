"""More elements than a 32-bit index can count, and the memory that a training step takes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fusedloss.functional as L

MANY = 2**31 + 17
ROWS, COLUMNS = 2**16 + 1, 2**15 + 1  # ROWS * COLUMNS > 2**31


# ---- sizes: expanded tensors have that many elements and the memory of few ----------------------------------------


def test_all_of_more_than_two_to_the_31_elements_are_counted() -> None:
    input, target = torch.zeros(1).double().expand(MANY), torch.full((1,), 2.0).double().expand(MANY)
    assert L.mse_loss(input, target, reduction="sum").item() == 4.0 * MANY  # float64 counts that far
    assert L.huber_loss(input, target, delta=1.0).item() == 1.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_mean_of_so_many_is_summed_in_float64(dtype: torch.dtype) -> None:
    """A float32 sum of ones stops growing at 2^24."""
    assert L.l1_loss(torch.ones(1, dtype=dtype).expand(MANY), torch.zeros(1, dtype=dtype).expand(MANY)).item() == 1.0


def test_strides_reach_beyond_two_to_the_31_elements() -> None:
    """The number of every row meets that of every column; the last ones are large enough to be missed."""
    row, column = torch.arange(ROWS).remainder(7).double(), torch.arange(COLUMNS).remainder(5).double()
    row[-1], column[-1] = 1000.0, -3000.0
    moments = (row * row).mean() - 2 * row.mean() * column.mean() + (column * column).mean()
    loss = L.mse_loss(row[:, None].expand(ROWS, COLUMNS), column.expand(ROWS, COLUMNS))
    torch.testing.assert_close(loss, moments, rtol=1e-12, atol=0)


# ---- results so large that they are written past the caches --------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("side", [3072, 3001])  # rows of whole lines of a cache, and not
def test_large_results_are_those_of_small_ones(side: int, dtype: torch.dtype) -> None:
    """In the order of memory and across it; every 64th row alone makes no large result."""
    generator = torch.Generator().manual_seed(side)
    x, y = (torch.randn(side, side, generator=generator).to(dtype) for _ in range(2))
    some = slice(None, None, 64)
    for a, b in ((x, y), (x.t(), y), (x.t(), y.t())):
        leaf = a.detach().requires_grad_()
        value = L.huber_loss(leaf, b, reduction="none")
        value.sum().backward()
        part = a[some].contiguous().requires_grad_()
        small = L.huber_loss(part, b[some].contiguous(), reduction="none")
        small.sum().backward()
        assert torch.equal(value[some], small)
        assert leaf.grad is not None and part.grad is not None
        assert torch.equal(leaf.grad[some], part.grad)
        assert torch.equal(leaf.grad, torch.where((a - b).abs() < 1, a - b, (a - b).sign()))


# ---- memory: what the process holds at most, as the kernel counts it ----------------------------------------------

STEP = """
import sys, torch, fusedloss.functional as L

dtype, steps = getattr(torch, sys.argv[1]), {
    "value": lambda x, y: L.mse_loss(x.detach(), y),
    "step": lambda x, y: L.mse_loss(x, y).backward(),
    "scaled step": lambda x, y: (L.huber_loss(x, y) * 3.0).backward(),
    "autocast step": lambda x, y: autocast_step(x, y),
}

def autocast_step(x, y):
    with torch.autocast("cpu", torch.bfloat16):
        loss = L.mse_loss(x, y)
    assert loss.dtype == torch.float32
    loss.backward()

def memory(field):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field)) * 1024

step = steps[sys.argv[2]]
step(torch.rand(100_000, dtype=dtype, requires_grad=True), torch.rand(100_000, dtype=dtype))  # loads what is lazy
size = 1 << 24
x, y = torch.full((size,), 0.25, dtype=dtype, requires_grad=True), torch.full((size,), 0.5, dtype=dtype)
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
before = memory("VmRSS")
step(x, y)
print((memory("VmHWM") - before) / (size * x.element_size()))
"""


@pytest.mark.host
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from Linux's /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("step", "tensors"), [("value", 0), ("step", 1), ("scaled step", 1), ("autocast step", 1)])
def test_a_step_takes_the_memory_of_its_gradient_alone(step: str, tensors: int, dtype: str) -> None:
    """In tensors of the size and type of the input; a copy of a half input in float32 would be two more."""
    done = subprocess.run([sys.executable, "-c", STEP, dtype, step], capture_output=True, text=True, timeout=120)
    if "clear_refs" in done.stderr:
        pytest.skip("this system does not let a process reset its peak")
    assert done.returncode == 0, done.stderr
    taken = float(re.findall(r"\S+", done.stdout)[-1])
    assert tensors - 0.05 <= taken <= tensors + 0.15
