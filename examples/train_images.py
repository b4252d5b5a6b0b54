"""Trains convolutional networks on imbalanced images, with fusedloss and with torch's losses from the same seed.

    python examples/train_images.py

First plain cross-entropy against two remedies for rare classes: class weights and the focal loss. Then the network with
class weights teaches a smaller one, which needs no labels for that.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as TF
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from torch import Tensor, nn

import fusedloss
from digit_images import CLASSES, RARE, Digits, load_digits, recalls
from fusedloss import functional as F
from lockstep import Loss, Run, agreed, disagreement, train
from pictures import draw_curves, draw_recalls
from tabular_tasks import Task

GAMMA = 2.0
TEMPERATURE = 3.0
PLAIN, WEIGHTED, FOCAL = "cross-entropy", "weighted cross-entropy", "weighted focal"
ALONE, DISTILLED = "small network, weighted cross-entropy", "small network, distilled"

console = Console(width=None if sys.stdout.isatty() else 120)


@dataclass(frozen=True)
class Training:
    name: str
    task: Task
    losses: tuple[Loss, Loss]  # fusedloss's and torch's
    new_model: Callable[[], nn.Module]
    epochs: int


def network(width: int) -> nn.Module:
    """Two convolutions and a linear layer; smooth, so that rounding is not magnified at a corner."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.SiLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.SiLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * width, CLASSES),
    )


large, small = partial(network, 16), partial(network, 4)


def class_weights(counts: Tensor) -> Tensor:
    """Returns weights with which every class counts the same, and the average image counts 1."""
    return counts.sum() / (CLASSES * counts)


def focal_of_torch(alpha: Tensor) -> Loss:
    def loss(input: Tensor, target: Tensor) -> Tensor:
        entropy = TF.cross_entropy(input, target, reduction="none")
        return (alpha[target] * (1 - torch.exp(-entropy)) ** GAMMA * entropy).mean()

    return loss


def imitate(student: Tensor, teacher: Tensor) -> Tensor:
    return TEMPERATURE**2 * F.kl_divergence(teacher, student, from_logits=True, temperature=TEMPERATURE)


def imitate_of_torch(student: Tensor, teacher: Tensor) -> Tensor:
    predicted, truth = (TF.log_softmax(logits / TEMPERATURE, dim=1) for logits in (student, teacher))
    return TEMPERATURE**2 * TF.kl_div(predicted, truth, reduction="batchmean", log_target=True)


def remedies(digits: Digits, epochs: int) -> list[Training]:
    weight = class_weights(digits.counts)
    weighted = fusedloss.CrossEntropyLoss(weight), nn.CrossEntropyLoss(weight)
    focal = fusedloss.SoftmaxFocalLoss(alpha=weight, gamma=GAMMA), focal_of_torch(weight)
    return [
        Training(PLAIN, digits.task, (fusedloss.CrossEntropyLoss(), nn.CrossEntropyLoss()), large, epochs),
        Training(WEIGHTED, digits.task, weighted, large, epochs),
        Training(FOCAL, digits.task, focal, large, epochs),
        Training(ALONE, digits.task, weighted, small, epochs),
    ]


def train_all(work: list[Training]) -> dict[str, tuple[Run, Run]]:
    runs = {}
    with Progress(
        TextColumn("{task.description}", table_column=Column(width=40)),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("epochs"),
        TimeElapsedColumn(),
        console=console,
    ) as progress:
        for training in work:
            bar = progress.add_task(training.name, total=training.epochs)
            advance = partial(progress.advance, bar)
            pair = train(training.task, training.losses, training.new_model, training.epochs, advance)
            runs[training.name] = agreed(training.name, pair)
    return runs


@torch.no_grad()
def recalls_of(run: Run, digits: Digits) -> Tensor:
    images, truth = digits.test
    return recalls(run.model(images), truth)


def recall_table(digits: Digits, of: dict[str, Tensor]) -> Table:
    table = Table(
        title="Which digits are recognised: share of the held-out images",
        caption=f"The small network has {size(small()):,} parameters, the others {size(large()):,}. "
        "Distilled: from the one with the weighted loss, on all images, without their labels.",
    )
    table.add_column("digit")
    for heading in ("images to\nlearn from", *(name.replace(", ", ",\n") for name in of)):
        table.add_column(heading, justify="right")
    for digit, count in enumerate(digits.counts.tolist()):
        style = "bold" if digit in RARE else ""
        table.add_row(str(digit), str(count), *(f"{recall[digit]:.0%}" for recall in of.values()), style=style)
    table.add_section()
    table.add_row("rare", "", *(f"{recall[list(RARE)].mean():.1%}" for recall in of.values()), style="bold")
    table.add_row("all", "", *(f"{recall.mean():.1%}" for recall in of.values()))
    return table


def training_table(runs: dict[str, tuple[Run, Run]], task: Task) -> Table:
    table = Table(
        title="Trained twice, from the same seed",
        caption="gap: largest distance between the two loss curves, relative to their highest point; one float32 "
        "epsilon a step is allowed.",
    )
    for heading in ("loss", "held out, fusedloss", "held out, torch"):
        table.add_column(heading)
    for heading in ("gap / allowed", "ms/step,\nfusedloss", "\ntorch"):
        table.add_column(heading, justify="right")
    for name, (ours, theirs) in runs.items():
        gap, bound = disagreement((ours, theirs))
        table.add_row(
            name,
            ours.verdict(task),
            theirs.verdict(task),
            f"{gap:.0e} / {bound:.0e}",
            f"{ours.milliseconds_per_step:.3f}",
            f"{theirs.milliseconds_per_step:.3f}",
        )
    return table


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def main(
    output: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("out"),
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training data.")] = 40,
) -> None:
    """Train on scikit-learn's digits, made imbalanced, with fusedloss and with torch, and compare."""
    output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # in networks this small a second thread mostly waits
    digits = load_digits()
    runs = train_all(remedies(digits, epochs))
    teacher = runs[WEIGHTED][0].model
    with torch.no_grad():
        imitation = digits.imitation(teacher(digits.unlabelled))
    runs |= train_all([Training(DISTILLED, imitation, (imitate, imitate_of_torch), small, epochs)])
    recall = {name: recalls_of(ours, digits) for name, (ours, _) in runs.items()}
    console.print(training_table(runs, digits.task))
    console.print(recall_table(digits, recall))
    draw_recalls(output / "recall_by_class.png", digits.counts, recall)
    draw_curves(output / "image_training_curves.png", runs)
    console.print(f"Pictures in {output}: recall_by_class.png, image_training_curves.png")


if __name__ == "__main__":
    typer.run(main)
