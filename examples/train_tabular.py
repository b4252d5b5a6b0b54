"""Trains small networks on real data, with fusedloss and with torch's losses from the same seed, and compares them.

    python examples/train_tabular.py

The training shows that nothing but the import changes; the table of the losses alone shows what the import brings.
"""

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from torch import nn

import fusedloss
from fusedloss.bench import torch_formulas as formulas
from lockstep import Loss, Run, agreed, disagreement, train
from loss_alone import compare
from pictures import draw_curves, draw_shapes
from tabular_tasks import QUANTILES, Task, breast_cancer, diabetes, digit_attributes

# Of the losses alone: 32 MiB a tensor, from where on the C library hands freed memory back, as it does in large models.
ELEMENTS = 1 << 23
HIDDEN = 32

console = Console(width=None if sys.stdout.isatty() else 120)


@dataclass(frozen=True)
class Experiment:
    task: Task
    loss: str
    losses: tuple[Loss, Loss]  # fusedloss's and torch's
    outputs: int = 1

    @property
    def name(self) -> str:
        return f"{self.task.name}: {self.loss}"

    def new_model(self) -> nn.Module:
        inputs = self.task.train[0].shape[1]
        return nn.Sequential(
            nn.Linear(inputs, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, self.outputs)
        )


def experiments() -> list[Experiment]:
    levels = torch.tensor(QUANTILES)
    regression, binary, labels = diabetes(), breast_cancer(), digit_attributes()
    quantile = partial(formulas.quantile_loss, q=levels)
    focal = partial(formulas.sigmoid_focal_loss, reduction="mean")
    hinge = partial(formulas.hinge_loss, target_01=True)
    squared_hinge = partial(formulas.squared_hinge_loss, target_01=True)
    return [
        Experiment(regression, "mse", (fusedloss.MSELoss(), nn.MSELoss())),
        Experiment(regression, "l1", (fusedloss.L1Loss(), nn.L1Loss())),
        Experiment(regression, "huber", (fusedloss.HuberLoss(), nn.HuberLoss())),
        Experiment(regression, "log-cosh", (fusedloss.LogCoshLoss(), formulas.log_cosh_loss)),
        Experiment(regression, "quantile", (fusedloss.QuantileLoss(q=levels), quantile), len(levels)),
        Experiment(binary, "cross-entropy", (fusedloss.BCEWithLogitsLoss(), nn.BCEWithLogitsLoss())),
        Experiment(binary, "focal", (fusedloss.SigmoidFocalLoss(), focal)),
        Experiment(binary, "hinge", (fusedloss.HingeLoss(target_01=True), hinge)),
        Experiment(binary, "squared hinge", (fusedloss.SquaredHingeLoss(target_01=True), squared_hinge)),
        Experiment(labels, "cross-entropy", (fusedloss.BCEWithLogitsLoss(), nn.BCEWithLogitsLoss()), 4),
        Experiment(labels, "focal", (fusedloss.SigmoidFocalLoss(), focal), 4),
    ]


def train_all(work: list[Experiment], epochs: int) -> dict[str, tuple[Run, Run]]:
    runs = {}
    with Progress(
        TextColumn("{task.description}", table_column=Column(width=40)),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("epochs"),
        TimeElapsedColumn(),
        console=console,
    ) as progress:
        for experiment in work:
            bar = progress.add_task(experiment.name, total=epochs)
            advance = partial(progress.advance, bar)
            pair = train(experiment.task, experiment.losses, experiment.new_model, epochs, advance)
            runs[experiment.name] = agreed(experiment.name, pair)
    return runs


def training_table(work: list[Experiment], runs: dict[str, tuple[Run, Run]]) -> Table:
    table = Table(
        title="Trained twice, from the same seed",
        caption="inside: held-out targets between the predicted 0.1 and 0.9 quantiles, ideally 80%.  gap: largest "
        "distance between the two loss curves, relative to their highest point; one float32 epsilon a step is allowed."
        "  Networks this small spend most of a step outside of the loss, where nothing changes.",
    )
    for heading in ("data", "loss", "held out, fusedloss", "held out, torch"):
        table.add_column(heading)
    for heading in ("gap / allowed", "ms/step,\nfusedloss", "\ntorch"):
        table.add_column(heading, justify="right")
    for before, experiment in zip([None, *work], work, strict=False):
        if before and before.task is not experiment.task:
            table.add_section()
        ours, theirs = runs[experiment.name]
        gap, bound = disagreement((ours, theirs))
        table.add_row(
            experiment.task.name,
            experiment.loss,
            ours.verdict(experiment.task),
            theirs.verdict(experiment.task),
            f"{gap:.0e} / {bound:.0e}",
            f"{ours.milliseconds_per_step:.3f}",
            f"{theirs.milliseconds_per_step:.3f}",
        )
    return table


def loss_table(work: list[Experiment]) -> Table:
    table = Table(
        title=f"The losses alone: forward and backward, {ELEMENTS:,} elements",
        caption="peak memory: beyond prediction and target, the gradient included, in tensors of the prediction's size",
    )
    table.add_column("loss")
    for heading in ("ms,\nfusedloss", "\ntorch", "times\nfaster", "peak memory,\nfusedloss", "\ntorch"):
        table.add_column(heading, justify="right")
    torch.manual_seed(0)
    for experiment in work:
        shape = (ELEMENTS // experiment.outputs, experiment.outputs) if experiment.outputs > 1 else (ELEMENTS,)
        prediction = torch.randn(shape)
        target = (torch.rand(shape) < 0.3).float() if experiment.task.binary else torch.randn(shape[0])
        ours, theirs = compare(experiment.losses, prediction, target)
        table.add_row(
            experiment.loss,
            f"{ours.milliseconds:.1f}",
            f"{theirs.milliseconds:.1f}",
            f"{theirs.milliseconds / ours.milliseconds:.1f}",
            f"{ours.bytes / prediction.nbytes:.2f}",
            f"{theirs.bytes / prediction.nbytes:.2f}",
        )
    return table


def main(
    output: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("out"),
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training data.")] = 60,
) -> None:
    """Train on scikit-learn's diabetes, breast cancer and digits data with fusedloss and with torch, and compare."""
    output.mkdir(parents=True, exist_ok=True)
    work = experiments()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # in networks this small a second thread mostly waits, for long if the machine is busy
    runs = train_all(work, epochs)
    torch.set_num_threads(threads)
    console.print(training_table(work, runs))
    with console.status("Measuring the losses alone"):
        table = loss_table(list({experiment.loss: experiment for experiment in work}.values()))
    console.print(table)
    draw_shapes(output / "loss_shapes.png")
    draw_curves(output / "training_curves.png", runs)
    console.print(f"Pictures in {output}: loss_shapes.png (the losses and their derivatives), training_curves.png")


if __name__ == "__main__":
    typer.run(main)
