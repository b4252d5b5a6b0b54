"""Shared by all tests: the number of threads, and the marker of those that the build with sanitizers runs."""

from __future__ import annotations

import pytest
import torch

torch.set_num_threads(2)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "core: runs on the build with sanitizers too; must not compile or fork")
