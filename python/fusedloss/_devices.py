"""The devices that the commands run on."""

from __future__ import annotations

from enum import StrEnum

import torch

from fusedloss._compatibility import build_info


class Device(StrEnum):
    """By their names in torch; which of several GPUs is meant says the variable CUDA_VISIBLE_DEVICES."""

    CPU = "cpu"
    CUDA = "cuda"

    @property
    def missing(self) -> str | None:
        """Why the losses cannot run on this device here; None if they can."""
        if self is Device.CPU:
            return None
        if not torch.cuda.is_available():
            return "torch sees no CUDA device"
        return None if build_info()["cuda_architectures"] else "this build of fusedloss has no CUDA kernels"

    @property
    def theoretical_bandwidth(self) -> float | None:
        """Bytes a second, where the device tells the clock (in kHz) and the width of its memory (in bits)."""
        if self is not Device.CUDA:
            return None
        properties = torch.cuda.get_device_properties()
        clock = getattr(properties, "memory_clock_rate", 0)
        width = getattr(properties, "memory_bus_width", 0)
        # Two transfers a cycle: the memory of GPUs has double data rate.
        return 2e3 * clock * width / 8 or None

    @property
    def model(self) -> str:
        return torch.cuda.get_device_name() if self is Device.CUDA else "the CPU"
