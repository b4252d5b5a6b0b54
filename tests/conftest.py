"""Shared by all tests: one thread setting, and the dynamo cache cleared between files that compile."""

from __future__ import annotations

import pytest
import torch

torch.set_num_threads(2)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "core: runs on the build with sanitizers too; must not compile or fork")
