"""Showing the results: tables on the terminal, JSON, and pictures."""

import json
import math
import platform
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from rich.markup import escape
from rich.table import Table

import fusedloss
from fusedloss._devices import Device
from fusedloss.bench.cases import SIZES_DIFFER
from fusedloss.bench.measure import Result
from fusedloss.bench.targets import target_of

COLOURS = {"fusedloss": "#1f5fa8", "torch": "#d9822b", "compile": "#7a9a3a"}
NAMES = {"torch": "torch eager", "compile": "torch.compile", "fusedloss": "fusedloss"}

# What a loss is compared with beside torch; a table has those of which it knows something.
SHARES: dict[str, Callable[[Result], float | None]] = {
    "of copy": lambda result: result.of_copy,
    "of peak": lambda result: result.of_theoretical,
    "of products": lambda result: result.of_products,
}


def result_table(results: list[Result]) -> Table:
    """Returns the table of one group: rows that share everything but the loss."""
    table = Table(title=results[0].row.group)
    table.add_column("loss", no_wrap=True)
    shares = [heading for heading, share in SHARES.items() if any(share(result) for result in results)]
    columns = ["fusedloss", "torch eager", "torch.compile", "x eager", "x compile", "GB/s", *shares, "memory"]
    for heading in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("misses")
    for result in results:
        if result.failure:
            table.add_row(
                result.row.label, "[bold red]FAILED", *[""] * (len(columns) - 1), f"[red]{escape(result.failure)}"
            )
            continue
        misses = result.misses()
        table.add_row(
            result.row.label,
            *(_times(result, name) for name in ("fusedloss", "torch", "compile")),
            _or_dash(result.ratio("torch"), "{:.2f}"),
            _or_dash(result.ratio("compile"), "{:.2f}"),
            _or_dash(None if result.dense_bytes else result.bandwidth("fusedloss") / 1e9, "{:.1f}"),
            *(_or_dash(SHARES[heading](result), "{:.0%}") for heading in shares),
            _memory(result),
            f"[red]{', '.join(misses)}" if misses else "[green]none" if result.promised else "-",
        )
    return table


LEGEND = (
    "Times: minimum (median) of interleaved rounds, forward + backward.  x: how many times as long as fusedloss.  "
    "GB/s: operands read once and gradients written once; of copy: against copy_ in the same rounds; "
    "of peak: against what the device's memory has in theory; "
    "of products: the time of q @ k.T, g @ k and g.T @ q alone, as a share of fusedloss's.  "
    "memory: peak beyond the inputs, fusedloss / torch eager, in tensors of the input's size, and where every two of N "
    "rows are compared, as a share of an N x N matrix; once it is released, fusedloss keeps one large gradient's block "
    "for the next."
)


def summary_table(results: list[Result]) -> Table:
    """Returns one line a group: the range of its ratios, and how many rows keep their promise."""
    table = Table(title="Times as fast as torch, over the losses: lowest, geometric mean, highest")
    table.add_column("case")
    for heading in ("torch eager", "torch.compile"):
        table.add_column(heading, justify="center")
    table.add_column("rows on target", justify="right")
    for group, members in _groups(results):
        measured = [result for result in members if not result.failure]
        kept = sum(not result.misses() for result in measured)
        on_target = f"{kept} of {len(members)}" if members[0].promised else "-"
        table.add_row(group, _range(measured, "torch"), _range(measured, "compile"), on_target)
    return table


def write_json(results: list[Result], command: str, machine: dict[str, object], path: Path) -> None:
    document = {
        "command": command,
        "machine": machine,
        "rows": [_as_json(result) for result in results],
    }
    path.write_text(json.dumps(document, indent=1) + "\n")


def machine(device: Device) -> dict[str, object]:
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_model(),
        "torch": torch.__version__,
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "fusedloss": fusedloss.__version__,
        "build": fusedloss.build_info(),
        "python": platform.python_version(),
    } | (_gpu() if device is Device.CUDA else {})


def _gpu() -> dict[str, object]:
    bandwidth = Device.CUDA.theoretical_bandwidth
    return {
        "gpu": Device.CUDA.model,
        "gpu_memory_bytes": torch.cuda.get_device_properties().total_memory,
        "gpu_theoretical_gigabytes_per_second": bandwidth and bandwidth / 1e9,
        "cuda": torch.version.cuda,
    }


def draw(results: list[Result], folder: Path) -> list[Path]:
    """Draws the pictures for which there are rows, and returns their paths."""
    done = [result for result in results if not result.failure]
    plain = [result for result in done if result.row.case == "float32"]
    by_classes = [result for result in done if result.row.case == "rows-by-classes"]
    other = [result for result in done if result.row.case not in ("float32", *SIZES_DIFFER)]
    other = [result for result in other if not result.row.case.startswith("broadcast")]
    huge = [result for result in plain if result.of_copy]
    drawings: list[tuple[str, list[Result], Callable[[list[Result]], Figure]]] = [
        ("speedup_by_size.png", plain, _draw_ratios),
        ("speedup_16M.png", other, _draw_ratios),
        ("bandwidth_16M.png", huge, _draw_bandwidth),
        ("time_by_classes.png", by_classes, _draw_by_classes),
    ]
    paths = []
    for name, rows, drawing in drawings:
        if rows:
            paths.append(folder / name)
            drawing(rows).savefig(paths[-1], dpi=110)
    return paths


def _draw_ratios(results: list[Result]) -> Figure:
    """One panel a group, two bars a loss, on a logarithmic scale: bars grow from 1, which is as fast as torch."""
    groups = _groups(results)
    losses = list(dict.fromkeys(result.row.loss.name for result in results))
    figure = Figure(figsize=(4 + 2.6 * len(groups), 1.5 + 0.36 * len(losses)), layout="constrained")
    panels = figure.subplots(1, len(groups), sharex=True, sharey=True, squeeze=False)[0]
    for panel, (group, members) in zip(panels, groups, strict=True):
        for shift, name in ((-0.2, "torch"), (0.2, "compile")):
            bars = [
                (losses.index(result.row.loss.name) + shift, ratio - 1.0)
                for result in members
                if (ratio := result.ratio(name)) is not None
            ]
            if bars:
                places, lengths = zip(*bars, strict=True)
                panel.barh(places, lengths, left=1.0, height=0.38, color=COLOURS[name], label=f"against {NAMES[name]}")
        panel.axvline(1.0, color="black", linewidth=1)
        panel.set(xscale="log", title=group.replace(", ", "\n"), yticks=range(len(losses)), yticklabels=losses)
        panel.grid(axis="x", color="0.9")
        panel.set_axisbelow(True)
    panels[0].invert_yaxis()
    panels[0].xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    panels[0].xaxis.set_major_formatter("{x:g}")
    panels[0].xaxis.set_minor_formatter(NullFormatter())
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=2, frameon=False)
    figure.supxlabel("times as fast, forward + backward")
    return figure


def _draw_bandwidth(results: list[Result]) -> Figure:
    losses = [result.row.loss.name for result in results]
    figure = Figure(figsize=(9, 1.5 + 0.42 * len(losses)), layout="constrained")
    panel = figure.subplots()
    for shift, name in ((-0.27, "fusedloss"), (0.0, "torch"), (0.27, "compile")):
        drawn = [
            (i + shift, result.bandwidth(name) / 1e9) for i, result in enumerate(results) if name in result.minimum
        ]
        if drawn:
            places, speeds = zip(*drawn, strict=True)
            panel.barh(places, speeds, height=0.27, color=COLOURS[name], label=NAMES[name])
    copy = max(result.copy_traffic / result.minimum["copy"] for result in results) / 1e9
    panel.axvline(copy, color="black", linewidth=1, linestyle="--", label="copy")
    panel.set(yticks=range(len(losses)), yticklabels=losses, xlabel="GB/s, inputs read once and gradients written once")
    panel.set_title(results[0].row.group)
    panel.invert_yaxis()
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return figure


def _draw_by_classes(results: list[Result]) -> Figure:
    """The time of cross_entropy over the number of classes, for one number of logits."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    panel = figure.subplots()
    for name, colour in COLOURS.items():
        drawn = [(result.row.shape[1], 1e3 * result.minimum[name]) for result in results if name in result.minimum]
        if drawn:
            classes, times = zip(*drawn, strict=True)
            panel.plot(classes, times, marker="o", color=colour, label=NAMES[name])
    panel.set(xscale="log", yscale="log", xlabel="classes in a row", ylabel="ms, forward + backward")
    panel.xaxis.set_major_locator(LogLocator(base=4))
    panel.xaxis.set_major_formatter("{x:.0f}")
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.set_title(f"cross_entropy of {math.prod(results[0].row.shape):,} logits")
    panel.grid(color="0.9")
    panel.legend(frameon=False)
    return figure


def _groups(results: list[Result]) -> list[tuple[str, list[Result]]]:
    return [(group, list(members)) for group, members in groupby(results, key=lambda result: result.row.group)]


def _range(results: list[Result], contender: str) -> str:
    ratios = [ratio for result in results if (ratio := result.ratio(contender)) is not None]
    if not ratios:
        return "-"
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    return f"{min(ratios):.2f}   {mean:.2f}   {max(ratios):.2f}"


def _memory(result: Result) -> str:
    sizes = (result.peak[name] for name in ("fusedloss", "torch") if name in result.peak)
    if result.dense_bytes:
        return " / ".join(f"{_three_digits(100 * size / result.dense_bytes)}%" for size in sizes) or "-"
    return " / ".join(f"{size / result.input_bytes:.2f}" for size in sizes) or "-"


def _times(result: Result, contender: str) -> str:
    if contender not in result.minimum:
        return "-"
    least, middle = result.minimum[contender], result.median[contender]
    scale, unit = (1e3, "ms") if least >= 1e-3 else (1e6, "us")
    return f"{_three_digits(least * scale)} ({_three_digits(middle * scale)}) {unit}"


def _three_digits(number: float) -> str:
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _as_json(result: Result) -> dict[str, object]:
    row, target = result.row, target_of(result.row.key)
    if result.failure:
        return {"key": row.key, "failure": result.failure}
    return {
        "key": row.key,
        "shape": row.shape,
        "dtype": str(row.dtype).removeprefix("torch."),
        "device": row.device,
        "threads": row.threads,
        "rounds": result.rounds,
        "minimum_seconds": result.minimum,
        "median_seconds": result.median,
        "times_as_fast_as_eager": result.ratio("torch"),
        "times_as_fast_as_compile": result.ratio("compile"),
        "target_eager": target.eager,
        "target_compile": target.compiled,
        "gigabytes_per_second": result.bandwidth("fusedloss") / 1e9,
        "share_of_copy_bandwidth": result.of_copy,
        "share_of_theoretical_bandwidth": result.of_theoretical,
        "share_of_products_time": result.of_products,
        "input_bytes": result.input_bytes,
        "dense_matrix_bytes": result.dense_bytes,
        "peak_bytes_beyond_inputs": result.peak,
        "misses": result.misses(),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(models)} x {models[0]}" if models else platform.processor()
