"""`python -m fusedloss check`: every loss against the oracle on the devices of this machine."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from fusedloss._devices import Device
from fusedloss.testing.cases import DTYPES, cases
from fusedloss.testing.catalogue import LOSSES, Loss
from fusedloss.testing.judge import Call
from fusedloss.testing.lattice_cases import lattice_cases
from fusedloss.testing.lattice_catalogue import LATTICE_LOSSES, LatticeLoss
from fusedloss.testing.pair_cases import pair_cases
from fusedloss.testing.pair_catalogue import PAIR_LOSSES, PairLoss
from fusedloss.testing.row_cases import row_cases
from fusedloss.testing.row_catalogue import ROW_LOSSES, RowLoss
from fusedloss.testing.triplet_cases import triplet_cases
from fusedloss.testing.triplet_catalogue import TRIPLET_LOSSES, TripletLoss
from fusedloss.testing.vector_cases import vector_cases
from fusedloss.testing.vector_catalogue import VECTOR_LOSSES, VectorLoss

console = Console(width=None if sys.stdout.isatty() else 120)


@dataclass
class Tally:
    """What came of the calls of one loss in one dtype."""

    calls: int = 0
    worst: float = 0.0  # the largest error, in units of the allowed one
    failures: list[str] = field(default_factory=list)


def check(
    device: Annotated[list[Device] | None, typer.Option(help="Default: every device that is there.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer layouts, weights and ranges of values.")] = False,
    only: Annotated[str, typer.Option(help="Regular expression for the losses, e.g. 'mse_loss|kl_div'.")] = "",
) -> None:
    """Compare values, gradients and second derivatives of every loss with an independent computation in more digits."""
    for asked in device or []:
        if asked.missing:
            raise typer.BadParameter(asked.missing, param_hint="--device")
    every = (*LOSSES, *ROW_LOSSES, *LATTICE_LOSSES, *VECTOR_LOSSES, *PAIR_LOSSES, *TRIPLET_LOSSES)
    losses = [loss for loss in every if re.search(only, loss.id)]
    if not losses:
        raise typer.BadParameter(f"no loss matches {only!r}", param_hint="--only")
    failures = []
    for each in device or [d for d in Device if not d.missing]:
        tallies = run(losses, each, quick)
        console.print(table(losses, each, tallies))
        failures += list(failures_in_words(tallies))
    if not device and torch.cuda.is_available() and Device.CUDA.missing:
        console.print(f"[yellow]CUDA is there, but {Device.CUDA.missing}.")
    for words in failures:
        console.print(escape(words), style="red")
    if failures:
        raise typer.Exit(1)
    console.print("[green]All results are within the allowed error: twice torch's, plus a few units in the last place.")


Tallies = dict[tuple[str, torch.dtype], Tally]


def run(losses: list[Loss], device: Device, quick: bool) -> Tallies:
    tallies = {}
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="kl_div with reduction='mean'")
        bar = progress.add_task("", total=len(losses) * len(DTYPES))
        for loss in losses:
            for dtype in DTYPES:
                progress.update(bar, description=f"{device}: {escape(loss.id)}")
                tallies[loss.id, dtype] = check_one(loss, dtype, device, quick)
                progress.advance(bar)
    return tallies


def calls(loss: Loss, dtype: torch.dtype, device: Device, quick: bool) -> Iterator[Call]:
    if isinstance(loss, RowLoss):
        return row_cases(loss, dtype, device, quick)
    if isinstance(loss, LatticeLoss):
        return lattice_cases(loss, dtype, device, quick)
    if isinstance(loss, VectorLoss):
        return vector_cases(loss, dtype, device, quick)
    if isinstance(loss, PairLoss):
        return pair_cases(loss, dtype, device, quick)
    if isinstance(loss, TripletLoss):
        return triplet_cases(loss, dtype, device, quick)
    return cases(loss, dtype, device, quick)


def check_one(loss: Loss, dtype: torch.dtype, device: Device, quick: bool) -> Tally:
    tally = Tally()
    for call in calls(loss, dtype, device, quick):
        tally.calls += 1
        try:
            for verdict in call.verdicts():
                tally.worst = max(tally.worst, verdict.error)
                if verdict.wrong is not None:
                    tally.failures.append(f"{verdict.what} of {call}: {verdict.wrong}")
        except Exception as error:  # of whatever kind: the other losses are still to be checked
            tally.worst = float("inf")
            tally.failures.append(f"{call}: {type(error).__name__}: {error}")
    return tally


def table(losses: list[Loss], device: Device, tallies: Tallies) -> Table:
    table = Table(title=f"{device.model}: largest error, where 1 is allowed")
    table.add_column("loss", no_wrap=True)
    for heading in (*map(_name, DTYPES), "calls"):
        table.add_column(heading, justify="right")
    for loss in losses:
        row = [tallies[loss.id, dtype] for dtype in DTYPES]
        cells = [f"[red]{t.worst:.3g}, {len(t.failures)} wrong" if t.failures else f"{t.worst:.2f}" for t in row]
        table.add_row(escape(loss.id), *cells, str(sum(t.calls for t in row)))
    table.caption = f"{sum(t.calls for t in tallies.values())} calls, with all their first or second derivatives"
    return table


def failures_in_words(tallies: Tallies) -> Iterator[str]:
    for (name, dtype), tally in tallies.items():
        if tally.failures:
            more = f" (and {len(tally.failures) - 1} more)" if len(tally.failures) > 1 else ""
            yield f"{name} in {_name(dtype)}{more}: {tally.failures[0]}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
