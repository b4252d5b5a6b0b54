"""Shared by all tests: the number of threads, markers, and the extension under test.

`pytest --emulated PATH` runs the tests on the extension `_emu` in that file, whose ops run the CUDA kernels on CPU
tensors (tests/cuda_emulator). It takes the place of `fusedloss._C` before anything imports that.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator

import pytest
import torch

from cuda_emulator.check_kernels import load

torch.set_num_threads(2)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--emulated", metavar="PATH", help="the extension _emu to test in place of fusedloss._C")


def pytest_configure(config: pytest.Config) -> None:
    # Inductor compiles for the processor at hand and keeps what it compiled under a name that does not tell which that
    # was: kept files may crash on another machine that finds them. (Workers inherit the variable.)
    if not hasattr(config, "workerinput"):
        folder = tempfile.TemporaryDirectory(prefix="inductor", ignore_cleanup_errors=True)
        config.add_cleanup(folder.cleanup)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder.name
        # As many workers as cores, of two threads each: one that waits busily would take the time of those that work.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    config.addinivalue_line("markers", "core: runs on the build with sanitizers too; must not compile or fork")
    config.addinivalue_line("markers", "host: of the CPU, or in a new process, which imports _C; not with --emulated")
    config.addinivalue_line("markers", "device: about what only CUDA kernels do; runs with --emulated")
    if path := config.getoption("emulated"):
        module = load(path)
        sys.modules["fusedloss._C"] = module
        import fusedloss

        fusedloss._C = module  # what importing it in the package would have done


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    other, reason = ("host", "about the CPU") if config.getoption("emulated") else ("device", "about CUDA kernels")
    for item in items:
        if item.get_closest_marker(other):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def clean_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
