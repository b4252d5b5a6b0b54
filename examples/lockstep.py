"""Training the same model with two implementations of one loss, side by side."""

from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter

import torch
from torch import Tensor, nn

from tabular_tasks import Task

Loss = Callable[[Tensor, Tensor], Tensor]
BATCH_SIZE = 64


@dataclass
class Run:
    """One model in training: what it learnt, its loss after every epoch, and what each step took."""

    loss: Loss
    model: nn.Module
    optimizer: torch.optim.Optimizer
    curve: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def step(self, x: Tensor, y: Tensor) -> float:
        begin = perf_counter()
        prediction = self.model(x)
        loss = self.loss(prediction.squeeze(-1), y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.seconds.append(perf_counter() - begin)
        return loss.item()

    @property
    def milliseconds_per_step(self) -> float:
        return 1e3 * median(self.seconds)

    @torch.no_grad()
    def verdict(self, task: Task) -> str:
        x, y = task.test
        return task.judge(self.model(x).squeeze(-1), y)


def new_run(task: Task, loss: Loss, new_model: Callable[[], nn.Module], seed: int) -> Run:
    torch.manual_seed(seed)
    model = new_model()
    # Not Adam: it divides a gradient by its own size, so that a weight whose gradient is all rounding error takes a
    # full step in a random direction, and two correct losses drift apart. SGD moves by rounding what differs by it.
    optimizer = torch.optim.SGD(model.parameters(), lr=task.learning_rate, momentum=0.9, weight_decay=1e-3)
    return Run(loss, model, optimizer)


def train(
    task: Task,
    losses: tuple[Loss, Loss],
    new_model: Callable[[], nn.Module],
    epochs: int,
    each_epoch: Callable[[], None],
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
) -> tuple[Run, Run]:
    """Trains one new model a loss from the same seed, on the same batches, taking turns step by step.

    By turns, whatever else the machine does meanwhile slows both alike; who goes first changes every step.
    """
    x, y = task.train
    runs = new_run(task, losses[0], new_model, seed), new_run(task, losses[1], new_model, seed)
    shuffle = torch.Generator().manual_seed(seed)
    turn = list(runs)
    for _ in range(epochs):
        total = {id(run): 0.0 for run in runs}
        for batch in torch.randperm(len(x), generator=shuffle).split(batch_size):
            turn.reverse()
            for run in turn:
                total[id(run)] += run.step(x[batch], y[batch]) * len(batch)
        for run in runs:
            run.curve.append(total[id(run)] / len(x))
        each_epoch()
    return runs


def disagreement(runs: tuple[Run, Run]) -> tuple[float, float]:
    """Returns the largest distance of the two curves, relative to their highest point, and its bound.

    The two losses round differently, so that every step brings a relative error of about one float32 epsilon. SGD with
    a learning rate at which training is stable does not magnify the errors of earlier steps, so they add up at worst:
    the bound is epsilon times the number of steps. (A prediction that lies within rounding of a kink could be on one
    side of it in one run and on the other side in the other; with a few ten thousand predictions that is unlikely.)
    """
    ours, theirs = (torch.tensor(run.curve, dtype=torch.float64) for run in runs)
    distance = (ours - theirs).abs().max() / theirs.abs().max()
    return distance.item(), torch.finfo(torch.float32).eps * len(runs[0].seconds)


def agreed(name: str, runs: tuple[Run, Run]) -> tuple[Run, Run]:
    """Returns the runs, or raises AssertionError if their curves are further apart than rounding explains."""
    gap, bound = disagreement(runs)
    if not gap <= bound:
        raise AssertionError(f"{name}: the loss curves differ by {gap:.1e}, more than {bound:.1e}")
    return runs
