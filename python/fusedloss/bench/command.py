"""`python -m fusedloss bench`: measures every loss, shows the results and saves them."""

import re
import shlex
import sys
import warnings
from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fusedloss._devices import Device
from fusedloss.bench import embedding_cases, lattice_cases, row_cases
from fusedloss.bench.cases import Row, rows
from fusedloss.bench.measure import FULL, QUICK, Effort, Result, measure
from fusedloss.bench.report import LEGEND, draw, machine, result_table, summary_table, write_json

console = Console(width=None if sys.stdout.isatty() else 160)


def bench(
    device: Annotated[Device, typer.Option(help="Where the tensors are.")] = Device.CPU,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer sizes and rounds.")] = False,
    threads: Annotated[int, typer.Option(min=1, help="Threads on the CPU, of all cases but 'one-thread'.")] = 2,
    output: Annotated[Path, typer.Option(help="Folder for the JSON and the pictures.")] = Path("out/bench"),
    only: Annotated[str, typer.Option(help="Regular expression for the rows, e.g. 'mse_loss/.*/16M'.")] = "",
    compile: Annotated[bool, typer.Option(help="Compare with torch.compile too; compiling takes minutes.")] = True,
) -> None:
    """Measure every loss, forward and backward, against eager torch and torch.compile of the same loss."""
    if device.missing:
        raise typer.BadParameter(device.missing, param_hint="--device")
    # Broadcasting rows mean it; the warning would come from both sides, for every call.
    warnings.filterwarnings("ignore", message="Using a target size")
    output.mkdir(parents=True, exist_ok=True)
    every = [
        *rows(threads, quick, device),
        *row_cases.rows(threads, quick, device),
        *lattice_cases.rows(threads, device),
        *embedding_cases.rows(threads, device),
    ]
    selected = [row for row in every if re.search(only, row.key)]
    if not selected:
        raise typer.BadParameter(f"no row matches {only!r}", param_hint="--only")
    console.print(*(f"{name}: {value}" for name, value in machine(device).items()), sep="\n")
    results = run(selected, QUICK if quick else FULL, compile)
    console.print(LEGEND)
    console.print(summary_table(results))
    command = shlex.join(["python", "-m", "fusedloss", *sys.argv[1:]])
    write_json(results, command, machine(device), output / "results.json")
    files = ["results.json", *(path.name for path in draw(results, output))]
    console.print(f"Saved in {output}: {', '.join(files)}")
    failures = sum(result.failure is not None for result in results)
    if failures:
        console.print(f"[bold red]{failures} of {len(results)} rows failed")
        raise typer.Exit(1)


def run(selected: list[Row], effort: Effort, compile: bool) -> list[Result]:
    """Measures the rows and prints each group's table as soon as it is complete."""
    results = []
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    ) as progress:
        bar = progress.add_task("", total=len(selected))
        for _, group in groupby(selected, key=lambda row: row.group):
            measured = []
            for row in group:
                progress.update(bar, description=row.key)
                measured.append(measure(row, effort, compile))
                progress.advance(bar)
            progress.print(result_table(measured))
            results += measured
    return results
