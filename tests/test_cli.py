"""`python -m fusedloss check` and `bench`: they run, they notice what is wrong, and they ask for what is missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from fusedloss import __main__ as cli
from fusedloss import functional
from fusedloss._devices import Device
from fusedloss.bench import cases, measure
from fusedloss.bench.peak_memory import peak_memory

ROOT = Path(__file__).resolve().parent.parent

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Returns the exit code of a command and its output, in one line."""

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["fusedloss", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        return int(end.value.code or 0), " ".join((captured.out + captured.err).split())

    return run


DEVICES = pytest.mark.parametrize("device", [d for d in Device if not d.missing])


# ---- check --------------------------------------------------------------------------------------------------------


@DEVICES
def test_check_passes(run: Run, device: Device) -> None:
    only = r"^(mse_loss|kl_div|sigmoid_focal_loss|nll_loss|ctc_loss\[logits\])$"
    code, output = run("check", "--quick", "--device", device, "--only", only)
    assert code == 0, output
    for word in ("mse_loss", "kl_div", "sigmoid_focal_loss", "nll_loss", "ctc_loss[logits]", "float64", "bfloat16",
                 "within the allowed error"):  # fmt: skip
        assert word in output


def wrong_value(input: Tensor, target: Tensor, **keywords: Any) -> Tensor:
    return torch.nn.functional.mse_loss(input, target, **keywords) * (1 + 1e-4)


def wrong_gradient(input: Tensor, target: Tensor, **keywords: Any) -> Tensor:
    return torch.nn.functional.mse_loss(input * 1.001 - input.detach() * 0.001, target, **keywords)


def wrong_second_derivative(input: Tensor, target: Tensor, **keywords: Any) -> Tensor:
    nothing = 1e-3 * (input - input.detach()).square()
    return torch.nn.functional.mse_loss(input, target, **keywords) + (
        nothing if keywords["reduction"] == "none" else nothing.sum()
    )


def raises(input: Tensor, target: Tensor, **keywords: Any) -> Tensor:
    raise RuntimeError("no kernel image is available")


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (wrong_value, "value of mse_loss(input: float64 (19, 67), target: float64 (19, 67), reduction='none') on cpu"),
        (wrong_gradient, "d/dinput of mse_loss(input: float64 (19, 67)"),
        (wrong_second_derivative, "d/dinput along a direction of mse_loss(input: float64 (19, 67)"),
        (raises, "RuntimeError: no kernel image is available"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_check_names_the_call_of_a_broken_loss(
    run: Run, monkeypatch: pytest.MonkeyPatch, broken: Callable[..., Tensor], words: str
) -> None:
    monkeypatch.setattr(functional, "mse_loss", broken)
    code, output = run("check", "--quick", "--device", "cpu", "--only", "^(mse|l1)_loss$")
    assert code == 1
    assert words in output
    assert "value of l1_loss" not in output and "within the allowed error" not in output


def test_check_of_no_loss_is_refused(run: Run) -> None:
    code, output = run("check", "--only", "no such loss")
    assert code == 2 and "no loss matches 'no such loss'" in output


# ---- bench --------------------------------------------------------------------------------------------------------


@DEVICES
def test_bench_measures_and_saves(run: Run, tmp_path: Path, device: Device) -> None:
    only = ("--only", "^(mse_loss|huber_loss)/float32/(32|100k)", "--no-compile", "--output", str(tmp_path))
    code, output = run("bench", "--quick", "--device", device, *only)
    assert code == 0, output
    saved = json.loads((tmp_path / "results.json").read_text())
    expected = [f"{loss}_loss/float32/{size}" for size in ("32", "100k") for loss in ("mse", "huber")]
    assert [row["key"] for row in saved["rows"]] == expected
    for row in saved["rows"]:
        assert set(row["minimum_seconds"]) == {"fusedloss", "torch"}
        assert 0 < row["minimum_seconds"]["fusedloss"] <= row["median_seconds"]["fusedloss"] < 1
    # Every gradient is as large as an input; torch's mse_loss makes one more.
    assert [row["peak_bytes_beyond_inputs"] for row in saved["rows"][:2]] == [{}, {}]
    assert saved["rows"][2]["peak_bytes_beyond_inputs"]["torch"] >= 2 * saved["rows"][2]["input_bytes"]
    assert (tmp_path / "speedup_by_size.png").stat().st_size > 0


def test_bench_measures_nothing_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functional, "mse_loss", wrong_gradient)
    row = cases.Row(cases._loss("mse_loss", cases._real), "float32", "32", (4, 8), 1, Device.CPU)
    result = measure.measure(row, measure.QUICK, compile=False)
    assert result.failure is not None and "IncorrectError: gradient of operand 1" in result.failure
    assert not result.minimum


def test_bench_of_no_row_is_refused(run: Run, tmp_path: Path) -> None:
    code, output = run("bench", "--only", "no such row", "--output", str(tmp_path))
    assert code == 2 and "no row matches 'no such row'" in output


def test_a_gpu_has_no_rows_about_threads_of_the_cpu() -> None:
    on_cpu, on_gpu = ([row.key for row in cases.rows(2, False, device)] for device in Device)
    assert set(on_gpu) == {key for key in on_cpu if "/one-thread/" not in key} != set(on_cpu)


# ---- devices ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is here")
@pytest.mark.parametrize("command", ["check", "bench"])
def test_a_device_that_is_not_there_is_refused(run: Run, command: str) -> None:
    code, output = run(command, "--device", "cuda")
    assert code == 2 and "torch sees no CUDA device" in output


class Event:
    """Of a device whose clock is this one."""

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.at = 0.0

    def record(self) -> None:
        self.at = perf_counter()

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: Event) -> float:
        return 1e3 * (end.at - self.at)


def test_a_gpu_is_measured_by_its_own_clock_and_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    h100 = SimpleNamespace(memory_clock_rate=2_619_000, memory_bus_width=5120)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: h100)
    for name, result in [("synchronize", None), ("reset_peak_memory_stats", None), ("memory_allocated", 100)]:
        monkeypatch.setattr(torch.cuda, name, lambda result=result: result)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 100 + 7 * len(calls))
    assert 0 < measure._sample(lambda: calls.append(1), 5, Device.CUDA) < 1
    assert len(calls) == 5
    assert peak_memory(lambda: calls.append(1), Device.CUDA) == 42
    assert Device.CUDA.theoretical_bandwidth == pytest.approx(3.352e12, rel=1e-3)
    monkeypatch.setattr(torch.cuda, "get_device_properties", SimpleNamespace)
    assert Device.CUDA.theoretical_bandwidth is None


# ---- what is needed -----------------------------------------------------------------------------------------------


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], env=os.environ, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("missing", cli.EXTRA)
def test_what_the_commands_need_is_asked_for(missing: str) -> None:
    done = python(f"import sys; sys.modules[{missing!r}] = None\nfrom fusedloss.__main__ import main; main()")
    assert done.returncode == 1
    assert f"needs {missing}" in done.stderr and "fusedloss[cli]" in done.stderr and "Traceback" not in done.stderr


def test_the_extra_is_what_the_commands_ask_for() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert sorted(extras["cli"]) == sorted(cli.EXTRA)


def test_the_losses_need_nothing_of_it() -> None:
    done = python("import sys, fusedloss; print(*sys.modules)")
    loaded = set(done.stdout.split())
    assert "fusedloss.functional" in loaded, done.stderr
    assert not loaded & {*cli.EXTRA, "fusedloss.testing", "fusedloss.bench", "fusedloss.__main__", "scipy", "mpmath"}
