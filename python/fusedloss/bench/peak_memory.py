"""How much memory a computation needs at its worst moment, as torch's allocator saw it."""

import itertools
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

# The profiler announces its start and stop on stderr, in the middle of tables and progress bars, unless this is set.
os.environ.setdefault("KINETO_LOG_LEVEL", "6")

import torch
from torch.profiler import ProfilerActivity, profile

from fusedloss._devices import Device


def peak_memory(run: Callable[[], object], device: Device = Device.CPU) -> int:
    """Returns the most bytes that `run` holds at one time in tensors of its own making on that device."""
    return _on_cuda(run) if device is Device.CUDA else _on_cpu(run)


def _on_cuda(run: Callable[[], object]) -> int:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    return torch.cuda.max_memory_allocated() - before


def _on_cpu(run: Callable[[], object]) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    # The trace is the profiler's only public record in which single allocations keep their order.
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = sorted(((e["ts"], e["args"]["Bytes"]) for e in events if e["name"] == "[memory]"), key=lambda e: e[0])
    return max(itertools.accumulate(size for _, size in changes), default=0)
