"""What one loss costs without a model around it: time and memory of forward and backward."""

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

from torch import Tensor

from fusedloss.bench.peak_memory import peak_memory
from lockstep import Loss

ROUNDS = 7


@dataclass(frozen=True)
class Cost:
    milliseconds: float
    bytes: int  # the most held at one time, beyond the prediction and the target


def compare(losses: tuple[Loss, Loss], prediction: Tensor, target: Tensor) -> tuple[Cost, Cost]:
    """Measures both losses on the same data, by turns; the time is the best of ROUNDS."""
    prediction = prediction.requires_grad_()
    steps = [_step(loss, prediction, target) for loss in losses]
    memory = []
    for step in steps:
        prediction.grad = None  # the other loss's; its release would hide as much of this one's peak
        memory.append(peak_memory(step))
    best = [float("inf")] * len(steps)
    for _ in range(ROUNDS):
        for i, step in enumerate(steps):
            begin = perf_counter()
            step()
            best[i] = min(best[i], perf_counter() - begin)
    ours, theirs = (Cost(1e3 * seconds, size) for seconds, size in zip(best, memory, strict=True))
    return ours, theirs


def _step(loss: Loss, prediction: Tensor, target: Tensor) -> Callable[[], None]:
    def step() -> None:
        prediction.grad = None
        loss(prediction, target).backward()

    return step
