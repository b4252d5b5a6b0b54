"""Trains a network to put images of one digit near each other, with three losses, each fusedloss's and torch's.

    python examples/train_embeddings.py

Contrastive pairs, the hardest triplets of each batch, and supervised contrastive learning. Whether like lies next to
like is asked of images that were held out, and of digits of which the network never saw one.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as TF
import typer
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from torch import Tensor, nn

import fusedloss
from askew_digits import NEVER_SEEN, Recall, load_askew, recall
from fusedloss import functional as F
from fusedloss.bench import torch_formulas as formulas
from lockstep import Loss, Run, disagreement, train
from loss_alone import compare
from tabular_tasks import Task

BATCH_SIZE = 128
DIMENSIONS = 16
MARGIN = 1.0  # of unit vectors: they are 2 apart at most
TRIPLET_MARGIN = 0.3
TEMPERATURE = 0.1
ALONE = 4096, 128  # embeddings of the losses alone, and their dimensions

console = Console(width=None if sys.stdout.isatty() else 120)


@dataclass(frozen=True)
class Training:
    name: str
    losses: tuple[Loss, Loss]  # fusedloss's and torch's
    learning_rate: float


def network() -> nn.Module:
    """Three convolutions and a linear layer: (N, 1, 12, 12) to (N, DIMENSIONS).

    They are normalised image by image, because without it all embeddings begin in nearly one direction.
    """
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.GroupNorm(4, 16),
        nn.SiLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.GroupNorm(4, 32),
        nn.SiLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.GroupNorm(4, 32),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(32 * 3 * 3, DIMENSIONS),
    )


def pairs(embeddings: Tensor, digits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns every image next to one of its digit and next to some of others, and which pair is of one digit.

    Sorted by digit, the image before is mostly of the same one, and those further away are of others.
    """
    order, n = digits.argsort(stable=True), len(digits)
    shifts = 1, n // 6, n // 4, n // 3, n // 2
    first, second = order.repeat(len(shifts)), torch.cat([order.roll(shift) for shift in shifts])
    return embeddings[first], embeddings[second], (digits[first] == digits[second]).float()


contrastive = fusedloss.ContrastiveLoss(margin=MARGIN, normalize=True)


def contrastive_of_fusedloss(embeddings: Tensor, digits: Tensor) -> Tensor:
    return contrastive(*pairs(embeddings, digits))


def contrastive_of_torch(embeddings: Tensor, digits: Tensor) -> Tensor:
    return formulas.contrastive_loss(*pairs(TF.normalize(embeddings), digits), margin=MARGIN)


def normalized(formula: Callable[..., Tensor], **arguments: object) -> Loss:
    """Returns a formula of torch's operations, of embeddings of unit length."""

    def loss(embeddings: Tensor, digits: Tensor) -> Tensor:
        return formula(TF.normalize(embeddings), digits, **arguments)

    return loss


TRIPLETS = {"margin": TRIPLET_MARGIN, "mining": "semi_hard"}
SUPERVISED = {"temperature": TEMPERATURE}
TRAININGS = (
    Training("contrastive", (contrastive_of_fusedloss, contrastive_of_torch), 0.1),
    Training(
        "triplets, semi-hard",
        (
            partial(F.triplet_mining_loss, normalize=True, **TRIPLETS),
            normalized(formulas.triplet_mining_loss, **TRIPLETS),
        ),
        0.1,
    ),
    Training(
        "supervised contrastive",
        (
            partial(F.supervised_contrastive_loss, normalize=True, **SUPERVISED),
            normalized(formulas.supervised_contrastive_loss, **SUPERVISED),
        ),
        0.03,
    ),
)


def train_all(task: Task, epochs: int) -> dict[str, tuple[Run, Run]]:
    runs = {}
    with Progress(
        TextColumn("{task.description}", table_column=Column(width=24)),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("epochs"),
        TimeElapsedColumn(),
        console=console,
    ) as progress:
        for training in TRAININGS:
            bar = progress.add_task(training.name, total=epochs)
            own = replace(task, learning_rate=training.learning_rate)
            advance = partial(progress.advance, bar)
            runs[training.name] = train(own, training.losses, network, epochs, advance, batch_size=BATCH_SIZE)
    return runs


def untrained() -> nn.Module:
    """The network with which every training begins."""
    torch.manual_seed(0)
    return network()


@torch.no_grad()
def recall_of(model: nn.Module, task: Task) -> Recall:
    images, digits = task.test
    return recall(model(images), digits)


def recall_table(runs: dict[str, tuple[Run, Run]], task: Task) -> Table:
    table = Table(
        title="Recall@1: the nearest of all other held-out images shows the same digit",
        caption=f"never seen: digits {' and '.join(map(str, NEVER_SEEN))}, of which no image was learnt from. "
        f"Embeddings have {DIMENSIONS} dimensions.",
    )
    table.add_column("compared by")
    for heading in ("digits learnt,\nfusedloss", "\ntorch", "never seen,\nfusedloss", "\ntorch"):
        table.add_column(heading, justify="right")

    def add(name: str, ours: Recall, theirs: Recall) -> None:
        found = (ours.seen, theirs.seen, ours.unseen, theirs.unseen)
        table.add_row(name, *(f"{share:.1%}" for share in found))

    pixels, before = recall_of(nn.Flatten(), task), recall_of(untrained(), task)
    add("pixels", pixels, pixels)
    add("before training", before, before)
    table.add_section()
    for name, pair in runs.items():
        ours, theirs = (recall_of(run.model, task) for run in pair)
        add(name, ours, theirs)
    return table


def training_table(runs: dict[str, tuple[Run, Run]]) -> Table:
    table = Table(
        title="Trained twice, from the same seed",
        caption="gap: largest distance between the two loss curves, relative to their highest point. Which triplet is "
        "mined can hang on a rounding, and everything after on that.",
    )
    table.add_column("loss")
    for heading in (
        "last epoch,\nfusedloss",
        "\ntorch",
        "gap",
        "seconds,\nfusedloss",
        "\ntorch",
        "ms/step,\nfusedloss",
    ):
        table.add_column(heading, justify="right")
    table.add_column("\ntorch", justify="right")
    for name, (ours, theirs) in runs.items():
        table.add_row(
            name,
            *(f"{run.curve[-1]:.4f}" for run in (ours, theirs)),
            f"{disagreement((ours, theirs))[0]:.0e}",
            *(f"{sum(run.seconds):.1f}" for run in (ours, theirs)),
            *(f"{run.milliseconds_per_step:.2f}" for run in (ours, theirs)),
        )
    return table


def loss_table() -> Table:
    """Compares the losses alone on a batch of the size that such training has where there is memory for it."""
    n, dimensions = ALONE
    table = Table(
        title=f"The losses alone: forward and backward, {n} embeddings of {dimensions} dimensions",
        caption=f"peak memory: beyond the embeddings, the gradient included; a matrix of {n} x {n} has "
        f"{n * n * 4 / 2**20:.0f} MiB",
    )
    table.add_column("loss")
    for heading in ("ms,\nfusedloss", "\ntorch", "times\nfaster", "peak MiB,\nfusedloss", "\ntorch"):
        table.add_column(heading, justify="right")
    torch.manual_seed(0)
    embeddings, labels = torch.randn(ALONE), torch.randint(n // 32, (n,))
    for training in TRAININGS:
        ours, theirs = compare(training.losses, embeddings, labels)
        table.add_row(
            training.name,
            f"{ours.milliseconds:.1f}",
            f"{theirs.milliseconds:.1f}",
            f"{theirs.milliseconds / ours.milliseconds:.1f}",
            f"{ours.bytes / 2**20:.1f}",
            f"{theirs.bytes / 2**20:.1f}",
        )
    return table


@torch.no_grad()
def draw_embeddings(path: Path, task: Task, models: dict[str, nn.Module]) -> None:
    """Draws where the held-out images lie, in the plane that holds most of each; digits never seen are triangles."""
    images, digits = task.test
    figure = Figure(figsize=(5 * len(models), 5.4), layout="constrained")
    for panel, (title, model) in zip(figure.subplots(1, len(models)), models.items(), strict=True):
        directions = TF.normalize(model(images))
        centred = directions - directions.mean(0)
        _, _, axes = torch.linalg.svd(centred, full_matrices=False)
        places = centred @ axes[:2].t()
        for digit in digits.unique().tolist():
            size, marker = (30, "^") if digit in NEVER_SEEN else (8, "o")
            x, y = places[digits == digit].t()
            panel.scatter(x, y, size, color=f"C{digit}", marker=marker, linewidths=0, alpha=0.7, label=str(digit))
        panel.set(title=title, xticks=[], yticks=[])
    handles, names = panel.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right", frameon=False, title="digit\n(triangles:\nnever seen)")
    figure.savefig(path, dpi=110)


def main(
    output: Annotated[Path, typer.Option(help="Folder for the picture.")] = Path("out"),
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training data.")] = 8,
) -> None:
    """Learn embeddings of scikit-learn's digits with fusedloss and with torch, and compare."""
    output.mkdir(parents=True, exist_ok=True)
    task = load_askew()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # in networks this small a second thread mostly waits
    runs = train_all(task, epochs)
    torch.set_num_threads(threads)
    console.print(recall_table(runs, task))
    console.print(training_table(runs))
    console.print(loss_table())
    models = {"before training": untrained()} | {name: ours.model for name, (ours, _) in runs.items()}
    draw_embeddings(output / "embeddings.png", task, models)
    console.print(f"Picture in {output}: embeddings.png, where held-out images lie before and after training")


if __name__ == "__main__":
    typer.run(main)
