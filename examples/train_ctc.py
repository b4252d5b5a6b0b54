"""Trains a network to read rows of digits, with fusedloss's CTC and with torch's from the same seed.

    python examples/train_ctc.py

Nobody says where in the image a digit is: the loss sums over all places. What it makes of them can be read from its
gradient, and is drawn.
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as TF
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn

from digit_sequences import FRAME, LABELS, digits_of, has_double, load_sequences, read, unpack
from fusedloss import functional as F
from lockstep import Run, disagreement, train
from loss_alone import compare
from pictures import draw_alignments
from tabular_tasks import Task

BATCH_SIZE = 32
HIDDEN = 64

console = Console(width=None if sys.stdout.isatty() else 120)


class Reader(nn.Module):
    """Convolutions see a digit's neighbourhood, a recurrent layer what came before: (N, 1, 8, W) to (N, T, labels)."""

    def __init__(self) -> None:
        super().__init__()
        self.see = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.SiLU(),
            nn.AvgPool2d((2, FRAME)),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.SiLU(),
            nn.AvgPool2d((2, 1)),
            nn.Flatten(1, 2),
            nn.Conv1d(64, HIDDEN, 5, padding=2),
            nn.SiLU(),
        )
        self.remember = nn.GRU(HIDDEN, HIDDEN)
        self.name = nn.Linear(HIDDEN, LABELS)

    def forward(self, images: Tensor) -> Tensor:
        states, _ = self.remember(self.see(images).permute(2, 0, 1))
        return self.name(states).transpose(0, 1)


def loss_of_fusedloss(logits: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    truth = unpack(target)
    frames_first = logits.transpose(0, 1)
    return F.ctc_loss(frames_first, truth.labels, truth.frames, truth.lengths, reduction=reduction, from_logits=True)


def loss_of_torch(logits: Tensor, target: Tensor) -> Tensor:
    truth = unpack(target)
    log_probs = logits.transpose(0, 1).log_softmax(-1)
    return TF.ctc_loss(log_probs, truth.labels, truth.frames, truth.lengths)


LOSSES = loss_of_fusedloss, loss_of_torch


def posterior(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    """Returns how probable each label is in each frame, given what the network says and that the target is true.

    The gradient with respect to the logits is softmax - posterior, so that nothing but the gradient is needed.
    """
    logits = model(images).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(loss_of_fusedloss(logits, target, reduction="sum"), logits)
    return logits.detach().softmax(-1) - gradient


def train_both(task: Task, epochs: int) -> tuple[Run, Run]:
    with Progress(console=console) as progress:
        bar = progress.add_task("Epochs", total=epochs)
        return train(task, LOSSES, Reader, epochs, partial(progress.advance, bar), batch_size=BATCH_SIZE)


def training_table(runs: tuple[Run, Run], task: Task) -> Table:
    gap, _ = disagreement(runs)
    table = Table(
        title="Trained twice, from the same seed",
        caption="The network says only blank for a while, then begins to read all at once. That magnifies rounding: "
        f"the loss curves part by {gap:.1%} of their highest point.",
    )
    table.add_column("")
    for heading in ("fusedloss", "torch"):
        table.add_column(heading, justify="right")
    rows: dict[str, Callable[[Run], str]] = {
        "label error rate, held out": lambda run: run.verdict(task),
        "loss of the last epoch": lambda run: f"{run.curve[-1]:.4f}",
        "seconds of training": lambda run: f"{sum(run.seconds):.1f}",
        "ms/step": lambda run: f"{run.milliseconds_per_step:.1f}",
    }
    for name, figure in rows.items():
        table.add_row(name, *map(figure, runs))
    return table


def loss_table(task: Task) -> Table:
    """Compares the losses alone on a batch of this training, and on one of the size that speech has."""
    table = Table(
        title="The losses alone: forward and backward",
        caption="peak memory: beyond logits and target, the gradient included, as multiples of the logits",
    )
    table.add_column("batch")
    for heading in ("ms,\nfusedloss", "\ntorch", "times\nfaster", "peak memory,\nfusedloss", "\ntorch"):
        table.add_column(heading, justify="right")
    images, target = task.train[0][:BATCH_SIZE], task.train[1][:BATCH_SIZE]
    torch.manual_seed(0)
    digits = torch.randn(BATCH_SIZE, images.shape[3] // FRAME, LABELS), target
    speech = torch.randn(8, 500, 80), torch.cat([torch.full((8, 1), 500), torch.randint(1, 80, (8, 60))], 1)
    for name, (logits, truth) in {"of this training": digits, "of speech": speech}.items():
        ours, theirs = compare(LOSSES, logits, truth)
        table.add_row(
            f"{name}: {len(logits)} x {logits.shape[1]} frames, {logits.shape[2]} labels",
            f"{ours.milliseconds:.2f}",
            f"{theirs.milliseconds:.2f}",
            f"{theirs.milliseconds / ours.milliseconds:.1f}",
            f"{ours.bytes / logits.nbytes:.2f}",
            f"{theirs.bytes / logits.nbytes:.2f}",
        )
    return table


def draw_reading(path: Path, task: Task, model: nn.Module) -> str:
    """Draws where the loss looks for each digit of a held-out image before and after training; returns what is read."""
    images, target = task.test
    i = next(i for i, digits in enumerate(digits_of(target)) if has_double(digits))
    images, target = images[i : i + 1], target[i : i + 1]
    frames = int(unpack(target).frames)
    torch.manual_seed(0)
    alignments = {
        "posterior before training: every place where a digit can be": Reader(),
        "posterior after training: where it is": model,
    }
    curves = {title: posterior(reader, images, target)[0, :frames] for title, reader in alignments.items()}
    draw_alignments(path, images[0, 0, :, : frames * FRAME], curves, *digits_of(target))
    return " ".join(map(str, read(model(images)[0], frames)))


def main(
    output: Annotated[Path, typer.Option(help="Folder for the picture.")] = Path("out"),
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training data.")] = 6,
) -> None:
    """Train on rows of scikit-learn's digits with fusedloss's CTC and with torch's, and compare."""
    output.mkdir(parents=True, exist_ok=True)
    task = load_sequences()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # in networks this small a second thread mostly waits
    runs = train_both(task, epochs)
    torch.set_num_threads(threads)
    console.print(training_table(runs, task))
    console.print(loss_table(task))
    digits = draw_reading(output / "ctc_posterior.png", task, runs[0].model)
    console.print(
        f"Picture in {output}: ctc_posterior.png, a row of digits, read as {digits}, and where CTC finds each"
    )


if __name__ == "__main__":
    typer.run(main)
