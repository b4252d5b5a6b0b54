"""What can be said of CUDA tensors where there is no GPU: fake tensors go through the same checks and shapes. That the
kernels compute the right thing is seen under emulation (`make test-emulated`) and by `python -m fusedloss check`."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

import fusedloss
import fusedloss.functional as F
from fusedloss.testing.catalogue import LOSSES, Loss

EACH_LOSS = pytest.mark.parametrize("loss", [pytest.param(loss, id=loss.id) for loss in LOSSES])


def on(device: str, tensors: list[Tensor]) -> list[Tensor]:
    return [torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=device) for x in tensors]


@EACH_LOSS
def test_results_stay_on_the_device(loss: Loss) -> None:
    """(Not through autograd: a torch without CUDA aborts when a fake CUDA tensor requires a gradient.)"""
    operands, keywords = loss.sample((3, 4), torch.float32)
    with FakeTensorMode():
        fake = on("cuda:1", operands)
        result = loss(*fake, **{name: on("cuda:1", [x])[0] for name, x in keywords.items()}, reduction="none")
        assert result.device == torch.device("cuda:1")
        assert loss(*fake, reduction="sum", weight=torch.empty(1, 4, device="cuda:1")).device == result.device


@pytest.mark.parametrize("other", ["cuda:1", "cpu"])
@EACH_LOSS
def test_two_devices_are_refused(loss: Loss, other: str) -> None:
    operands, _ = loss.sample((3, 4), torch.float32)
    with FakeTensorMode():
        fake = on("cuda:0", operands)
        for k in range(1, len(fake)):
            mixed = [*fake[:k], *on(other, [operands[k]]), *fake[k + 1 :]]
            with pytest.raises(RuntimeError, match=f"cuda:0 and {other}"):
                loss(*mixed, reduction="sum")
        with pytest.raises(RuntimeError, match=f"cuda:0 and {other}"):
            loss(*fake, weight=torch.empty(3, 4, device=other), reduction="sum")


def test_nothing_of_cuda_is_loaded_at_import() -> None:
    """The module must import where there is no CUDA: its libraries are those of torch and of the system alone."""
    if not sys.platform.startswith("linux"):
        pytest.skip("reads the dynamic section of an ELF file")
    needed = subprocess.run(["ldd", fusedloss._C.__file__], capture_output=True, text=True, check=True).stdout
    names = {line.split()[0] for line in needed.splitlines() if line.strip()}
    assert not {name for name in names if name.startswith(("libcudart", "libcuda.", "libnv"))}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.skipif(not fusedloss.build_info()["cuda_architectures"], reason="a build without CUDA kernels")
def test_architectures_are_named() -> None:
    architectures = fusedloss.build_info()["cuda_architectures"]
    assert all(name.startswith(("sm_", "compute_")) for name in architectures)
    assert sum(name.startswith("compute_") for name in architectures) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_step_is_captured_in_a_cuda_graph() -> None:
    """No host reads, allocations only through torch's allocator, the current stream."""
    x = torch.randn(1000, device="cuda", requires_grad=True)
    y = torch.randn(1000, device="cuda")
    scale = torch.full((), 3.0, device="cuda")
    graph = torch.cuda.CUDAGraph()
    F.mse_loss(x, y).backward(scale)
    x.grad = None
    with torch.cuda.graph(graph):
        F.mse_loss(x, y).backward(scale)
    graph.replay()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, 6.0 * (x.detach() - y) / 1000)
