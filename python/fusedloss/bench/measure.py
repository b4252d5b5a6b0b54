"""Measuring one row: correctness first, then memory, then time in interleaved rounds."""

import gc
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from statistics import median
from time import perf_counter

import torch
from torch import Tensor

from fusedloss._devices import Device
from fusedloss.bench.cases import Operands, Row
from fusedloss.bench.peak_memory import peak_memory
from fusedloss.bench.targets import HUGE_PAGE, MEMORY_SLACK, Target, target_of

Step = Callable[[], object]

SAMPLE_SECONDS = 2e-3  # a sample repeats a short step until the clock's own noise does not show
MAX_ROUNDS = 200
# From here on a row is about memory: its bandwidth and peak mean something.
LARGE = 100_000
# From here on it does not fit into a cache, and a copy tells the limit.
HUGE = 1 << 24


@dataclass(frozen=True)
class Effort:
    seconds: float  # of sampling a row, at least
    rounds: int  # at least


FULL, QUICK = Effort(2.0, 5), Effort(0.5, 3)


class IncorrectError(Exception):
    """A value or a gradient is not what the float64 reference says."""


@dataclass
class Result:
    """The figures of one row, by contender: fusedloss, torch, compile, copy and products. Seconds and bytes."""

    row: Row
    minimum: dict[str, float] = field(default_factory=dict)
    median: dict[str, float] = field(default_factory=dict)
    rounds: int = 0
    peak: dict[str, int] = field(default_factory=dict)
    traffic: int = 0
    copy_traffic: int = 0
    input_bytes: int = 0
    dense_bytes: int = 0  # of the matrix of every two rows, where torch makes one
    lasting_bytes: int = 0  # gradients, and the result of 'none'
    theoretical_bandwidth: float | None = None
    failure: str | None = None

    def ratio(self, contender: str) -> float | None:
        """How many times as long as fusedloss this one takes."""
        if contender not in self.minimum:
            return None
        return self.minimum[contender] / self.minimum["fusedloss"]

    def bandwidth(self, contender: str) -> float:
        return self.traffic / self.minimum[contender]

    @property
    def of_copy(self) -> float | None:
        if "copy" not in self.minimum:
            return None
        return self.bandwidth("fusedloss") / (self.copy_traffic / self.minimum["copy"])

    @property
    def of_products(self) -> float | None:
        """The time that the matrix products alone take, as a share of fusedloss's."""
        return self.ratio("products")

    @property
    def of_theoretical(self) -> float | None:
        if self.of_copy is None or self.theoretical_bandwidth is None:
            return None
        return self.bandwidth("fusedloss") / self.theoretical_bandwidth

    @property
    def promised(self) -> bool:
        """Whether targets.py says anything of the row: it speaks of the CPU."""
        return self.row.device is Device.CPU

    def misses(self) -> list[str]:
        """Which promises of targets.py the row breaks."""
        if self.failure or not self.promised:
            return []
        target = target_of(self.row.key)
        promised = (("torch", "eager", target.eager), ("compile", "compile", target.compiled))
        missed = [f"{word} < {least:g}" for name, word, least in promised if (self.ratio(name) or math.inf) < least]
        if (self.of_copy or math.inf) < target.of_copy:
            missed.append(f"copy < {target.of_copy:.0%}")
        if (self.of_products or math.inf) < target.of_products:
            missed.append(f"products < {target.of_products:.0%}")
        if self.peak and self._holds_too_much(target):
            missed.append("memory")
        return missed

    def _holds_too_much(self, target: Target) -> bool:
        if target.of_dense:
            return self.peak["fusedloss"] >= target.of_dense * self.dense_bytes
        if target.workspace:
            return self.peak["fusedloss"] >= self.peak["torch"]
        return self.peak["fusedloss"] > (1.0 + MEMORY_SLACK) * self.lasting_bytes + HUGE_PAGE


def measure(row: Row, effort: Effort, compile: bool) -> Result:
    """Measures one row; an error, or a result that is wrong, becomes the row's failure."""
    result = Result(row)
    torch.set_num_threads(row.threads)
    torch.compiler.reset()  # or a function compiled for the ninth time would quietly run uncompiled
    try:
        _measure(row, result, effort, compile)
    except Exception as error:
        result.failure = f"{type(error).__name__}: {error}"
    return result


def _measure(row: Row, result: Result, effort: Effort, compile: bool) -> None:
    operands = row.operands()
    losses = {"fusedloss": row.fused(), "torch": row.eager()}
    _check(losses, operands if row.checked_rows is None else row.operands(row.checked_rows))
    incoming = _incoming_gradient(losses["fusedloss"], operands)
    if row.alone:
        del losses["torch"]
    elif compile:
        losses["compile"] = torch.compile(losses["torch"], dynamic=False)
    steps = {name: _step(loss, operands, incoming) for name, loss in losses.items()}
    for step in steps.values():
        step()  # warms up, and compiles
    _count_bytes(result, operands, incoming)
    if operands[0].numel() >= LARGE:
        for name, step in steps.items():
            _clear_gradients(operands)  # or the release of the last one's would hide as much of this one's peak
            result.peak[name] = peak_memory(step, row.device)
    if row.loss.products:
        steps["products"] = row.loss.products(operands)
    if operands[0].numel() >= HUGE:
        source = operands[0].detach().flatten()
        destination = torch.empty_like(source)
        steps["copy"] = lambda: destination.copy_(source)
        result.copy_traffic = source.nbytes + destination.nbytes
        result.theoretical_bandwidth = row.device.theoretical_bandwidth
    samples = _interleave(steps, effort, row.device)
    result.rounds = len(samples["fusedloss"])
    result.minimum = {name: min(times) for name, times in samples.items()}
    result.median = {name: median(times) for name, times in samples.items()}


def _incoming_gradient(loss: Callable[..., Tensor], operands: Operands) -> Tensor | None:
    """What reduction 'none' gets from the rest of a network; a single value needs nothing."""
    with torch.no_grad():
        result = loss(*operands)
    return torch.randn_like(result) if result.dim() else None


def _count_bytes(result: Result, operands: Operands, incoming: Tensor | None) -> None:
    gradients = sum(operand.nbytes for operand in operands if operand.requires_grad)
    values = incoming.nbytes if incoming is not None else 0  # the result has the incoming gradient's size
    result.input_bytes = operands[0].nbytes
    result.dense_bytes = len(operands[0]) ** 2 * operands[0].element_size() if result.row.loss.dense else 0
    result.lasting_bytes = gradients + values
    # The least that must move: every operand read once, every gradient written once; for 'none' also the result
    # written and the incoming gradient read.
    result.traffic = sum(operand.nbytes for operand in operands) + gradients + 2 * values


def _clear_gradients(operands: Operands) -> None:
    for operand in operands:
        operand.grad = None


def _step(loss: Callable[..., Tensor], operands: Operands, incoming: Tensor | None) -> Step:
    leaves = [operand for operand in operands if operand.requires_grad]

    def step() -> None:
        for leaf in leaves:
            leaf.grad = None
        loss(*operands).backward(incoming)  # type: ignore[no-untyped-call]

    return step


def _check(losses: dict[str, Callable[..., Tensor]], operands: Operands) -> None:
    """Compares fusedloss with torch in float64: its error may be twice that of torch in the row's own dtype.

    Errors are relative to the largest element of the value and of each gradient. A few roundings of the result are
    allowed on top, for where torch happens to be exact.
    """
    incoming = _incoming_gradient(losses["torch"], operands)
    precise = [
        operand.detach().double().requires_grad_(operand.requires_grad) if operand.is_floating_point() else operand
        for operand in operands
    ]
    exact = _value_and_gradients(losses["torch"], precise, incoming.double() if incoming is not None else None)
    ours = _value_and_gradients(losses["fusedloss"], operands, incoming)
    theirs = _value_and_gradients(losses["torch"], operands, incoming)
    for what, mine, other, truth in zip(count(), ours, theirs, exact, strict=False):
        error = _relative_error(mine, truth)
        allowed = 2.0 * _relative_error(other, truth) + 4.0 * torch.finfo(mine.dtype).eps
        if not error <= allowed:  # a NaN is an error too
            name = f"gradient of operand {what}" if what else "value"
            raise IncorrectError(f"{name} is off by {error:.1e}, at most {allowed:.1e} is allowed")


def _value_and_gradients(loss: Callable[..., Tensor], operands: Operands, incoming: Tensor | None) -> list[Tensor]:
    _clear_gradients(operands)
    value = loss(*operands)
    value.backward(incoming)  # type: ignore[no-untyped-call]
    return [value.detach(), *(operand.grad for operand in operands if operand.grad is not None)]


def _relative_error(value: Tensor, truth: Tensor) -> float:
    return ((value.double() - truth).abs().max() / truth.abs().max()).item()


def _interleave(steps: dict[str, Step], effort: Effort, device: Device) -> dict[str, list[float]]:
    """Samples every step in rounds, so that whatever else the machine does meanwhile meets all of them alike.

    Returns the seconds of one call, for every round. Who goes first changes from round to round.
    """
    repeats = {name: _repeats(step, device) for name, step in steps.items()}
    samples: dict[str, list[float]] = {name: [] for name in steps}
    order = list(steps)
    gc.disable()
    try:
        end = perf_counter() + effort.seconds
        while (done := len(samples[order[0]])) < effort.rounds or (done < MAX_ROUNDS and perf_counter() < end):
            order.append(order.pop(0))
            for name in order:
                # Untimed: the release of the last contender's gradient (64 MiB cost 4 ms) is that contender's.
                # Every timed step then finds what its own last one left, as in a training loop.
                steps[name]()
                samples[name].append(_sample(steps[name], repeats[name], device))
    finally:
        gc.enable()
    return samples


def _repeats(step: Step, device: Device) -> int:
    seconds = _sample(step, 1, device)
    if seconds < 20 * SAMPLE_SECONDS:  # perhaps a short step that was interrupted once
        seconds = min(_sample(step, 1, device) for _ in range(5))
    return math.ceil(SAMPLE_SECONDS / seconds)


def _sample(step: Step, repeats: int, device: Device) -> float:
    """Returns the seconds of one call; on CUDA by the device's clock, as a call returns before it is done."""
    if device is Device.CUDA:
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        first.record()
        for _ in range(repeats):
            step()
        last.record()
        last.synchronize()
        return float(first.elapsed_time(last)) / 1e3 / repeats
    begin = perf_counter()
    for _ in range(repeats):
        step()
    return (perf_counter() - begin) / repeats
