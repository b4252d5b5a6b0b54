"""Seeds defects in the CUDA kernels and launchers, one at a time, and shows that the tests find each of them.

    python tests/cuda_emulator/mutants.py [--only TEXT] [--jobs N]

Works on a copy of the sources in build/mutants with a few losses only, built with sanitizers. Exits with 1 if the
unmutated build is not clean, if a defect is not found or if it cannot be seeded any more because the text that it
replaces has changed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
HERE = "tests/cuda_emulator"
TREE = ROOT / "build/mutants/source"
BUILDS = ROOT / "build/mutants"
# By family: only these losses are built.
LOSSES = {
    "pointwise": "POINTWISE_LOSS(mse_loss, MseLoss)\nPOINTWISE_LOSS(gaussian_nll_loss, GaussianNllLoss)\n",
    "rows": "ROWS_LOSS(nll_loss, NllLoss)\nROWS_LOSS(multi_margin_loss, MultiMargin)\n"
    "ROWS_LOSS(kl_divergence_with_logits, KlDivergenceWithLogits)\n",
}
CUDA, KERNELS = "csrc/core/cuda.h", "csrc/pointwise/cuda.cuh"
HOST = "csrc/pointwise/device.cpp"
PIECES, LOSS = "csrc/pointwise/pieces.h", "csrc/core/loss.h"
ROWS, NUMBERS, DEVICE = "csrc/rows/cuda.cuh", "csrc/core/numbers.cuh", "csrc/core/device.cuh"
CHECKS = ("check_kernels.py", "check_rows.py")
# The unmutated kernels are tested with all of these, the mutants with the last.
SANITIZERS = {"thread": "libtsan.so", "address,undefined": "libasan.so"}
SECONDS = 300  # a test run that takes longer hangs


@dataclass(frozen=True)
class Mutant:
    what: str
    file: str
    old: str
    new: str


MUTANTS = (
    # The sum of a block.
    Mutant("missing barrier", CUDA, "  __syncthreads();\n", ""),
    Mutant("shuffle with half of the warp in its mask", CUDA, "down_sync(kFullWarp,", "down_sync(0xffffu,"),
    Mutant("shuffle tree starts a step late", CUDA, "offset = kWarp / 2;", "offset = kWarp / 4;"),
    Mutant("only the first warp writes shared memory", CUDA, "if (threadIdx.x % kWarp == 0)", "if (threadIdx.x == 0)"),
    Mutant("shared array one short", CUDA, "of_warps, threads / kWarp)", "of_warps, threads / kWarp - 1)"),
    Mutant("last warp not added", CUDA, "warp < threads / kWarp;", "warp < threads / kWarp - 1;"),
    # Partial sums.
    Mutant(
        "threads without an element return before the barrier",
        KERNELS,
        "if (!piece.partials) return;",
        "if (!piece.partials || blockIdx.x * kDeviceThreads + threadIdx.x >= piece.count) return;",
    ),
    Mutant("all blocks write one partial", KERNELS, "piece.partials[blockIdx.x] =", "piece.partials[0] ="),
    Mutant("all threads write the partial", KERNELS, "if (threadIdx.x == 0) piece.partials", "piece.partials"),
    Mutant("what additions lost is dropped", KERNELS, "(std::isfinite(lost) ? lost : 0)", "0 * lost"),
    Mutant("inf - inf is added", KERNELS, "(std::isfinite(lost) ? lost : 0)", "lost"),
    Mutant(
        "partial of the last block lost", DEVICE, "i < count; i += kDeviceThreads", "i < count - 1; i += kDeviceThreads"
    ),
    Mutant("sum not divided by the weights", DEVICE, "(divisor ? *divisor : 1)", "1"),
    Mutant(
        "one partial allocated for all blocks", HOST, "at::empty({int64_t(pieces.size()) * how.blocks}", "at::empty({1}"
    ),
    Mutant("pieces write one another's partials", HOST, "if (next) next += how.blocks;", ""),
    Mutant(
        "an empty sum is not written",
        HOST,
        "if (pass.count == 0 && !pass.sum.data) return;",
        "if (pass.count == 0) return;",
    ),
    # Division.
    Mutant("very small divisors not scaled", CUDA, "size < 0x1p-1000 ? 0x1p60 :", ""),
    Mutant("very large divisors not scaled", CUDA, "size > 0x1p1000 ? 0x1p-60 : 1", "1"),
    Mutant("infinite and zero quotients are NaN", CUDA, "return result == result ? result : rough;", "return result;"),
    # 16 bytes at a time.
    Mutant("a pack beyond the end", KERNELS, "end = piece.count / kSize * kSize;", "end = piece.count;"),
    Mutant("last full pack skipped", KERNELS, "i < end;", "i + kSize < end;"),
    Mutant("a pack skipped at each step", KERNELS, "i += (step - 1) * kSize)", "i += step * kSize)"),
    Mutant("last element of the tail skipped", KERNELS, "if (last < piece.count) {", "if (last + 1 < piece.count) {"),
    Mutant("tail one element beyond the end", KERNELS, "if (last < piece.count) {", "if (last <= piece.count) {"),
    Mutant("tail starts at the wrong place", KERNELS, "last = end + first;", "last = end / kSize + first;"),
    Mutant("alignment tested for 8 bytes", KERNELS, "% 16 == 0);", "% 8 == 0);"),
    Mutant("type not tested", KERNELS, "(view.dtype == dtype && view.strides[0]", "(view.strides[0]"),
    Mutant("contiguity not tested", KERNELS, "view.strides[0] == 1 &&", ""),
    Mutant("type of the weight not tested", KERNELS, "is_factor(piece.weight) &&", ""),
    Mutant("a weight for all read as one for each", KERNELS, "[element_ * view.strides[0]]", "[element_]"),
    Mutant("gradients stored one over the other", KERNELS, "packs[k].store(", "packs[0].store("),
    Mutant("pack not turned", CUDA, "? words[k + kWords] :", "? words[k] :"),
    Mutant("halves read in the wrong order", CUDA, "k % 2 ? words[k / 2] >> 16", "k % 2 == 0 ? words[k / 2] >> 16"),
    Mutant("halves written in the wrong order", CUDA, "(x[2 * k], x[2 * k + 1])", "(x[2 * k + 1], x[2 * k])"),
    Mutant(
        "values overwritten by gradients",
        HOST,
        "if (mode == Mode::value_and_gradient && pass.value.data)",
        "if (false)",
    ),
    # One element at a time.
    Mutant("weight with the operand's stride", KERNELS, "piece_.weight.strides[d]", "piece_.operands[0].strides[d]"),
    Mutant("tangent with the operand's stride", KERNELS, "piece_.tangents[k].strides", "piece_.operands[k].strides"),
    Mutant("index not reduced from axis to axis", KERNELS, "element = rest;", "element = element - rest;"),
    Mutant("outermost axis left out", KERNELS, "    move(0, element);\n", ""),
    Mutant(
        "float16 read as bfloat16",
        NUMBERS,
        "converted<T>(static_cast<const Float16*>",
        "converted<T>(static_cast<const BFloat16*>",
    ),
    Mutant(
        "float16 written as bfloat16",
        NUMBERS,
        "[offset] = converted<Float16>(x)",
        "[offset] = {converted<BFloat16>(x).bits}",
    ),
    # Pieces.
    Mutant("offsets overflow in 32 bits", PIECES, "fits &= reach < kMostElements;", ""),
    Mutant("piece at the wrong place", PIECES, "begin * view.strides[d]", "begin"),
    Mutant("second piece as long as the first", PIECES, "part(d, first, size - first);", "part(d, first, first);"),
    Mutant("too many axes", PIECES, "if (pass_.dims > kDeviceDims)", "if (pass_.dims > kDeviceDims + 1)"),
    Mutant("axis of a piece taken out of the sizes only", PIECES, "view.strides + d + 1,", "view.strides + d,"),
    # What multiplies gradients, and domains.
    Mutant("gradient without its incoming one", KERNELS, "if (piece.factor.data) scale *=", "if (false) scale *="),
    Mutant("gradient not divided by the weights", KERNELS, "if (piece.divisor) scale", "if (false) scale"),
    Mutant("kept gradient not multiplied", DEVICE, "if (by == 1) return;", "return;"),
    Mutant("last kept gradient not multiplied", DEVICE, "i < count; i += step", "i < count - 1; i += step"),
    Mutant(
        "domain without its border",
        LOSS,
        "nonnegative: return {.low = 0};",
        "nonnegative: return {.low = 0, .has_ends = false};",
    ),
    Mutant("domain not looked at", KERNELS, "if (!piece.domain.excludes(operand(restricted))) return;", "return;"),
    # Rows: the terms of the threads that have one together.
    Mutant("rows: missing barrier", ROWS, "  __syncthreads();\n  terms = empty", "  terms = empty"),
    Mutant("rows: last warp lost", ROWS, "warp < kWarps; ++warp", "warp < kWarps - 1; ++warp"),
    Mutant("rows: tree of a warp starts a step late", ROWS, "int lanes = kWarp / 2;", "int lanes = kWarp / 4;"),
    Mutant("rows: half of the warp in the mask", ROWS, "xor_sync(kFullWarp,", "xor_sync(0xffffu,"),
    # Rows: classes.
    Mutant(
        "rows: last class lost",
        ROWS,
        "i < singles(); i += threads()) {\n      chunks",
        "i + 1 < singles(); i += threads()) {\n      chunks",
    ),
    Mutant("rows: classes by the wrong stride", ROWS, "row + c * view.step", "row + c"),
    Mutant("rows: gradients by the wrong stride", ROWS, "offset(place, k) + c * view.step", "offset(place, k) + c"),
    Mutant(
        "rows: tangents where the operands are",
        ROWS,
        "tangents_(rows, rows.tangents,",
        "tangents_(rows, rows.operands,",
    ),
    Mutant("rows: first pack not aligned", ROWS, "unsigned(-address % 16 / sizeof(S))", "unsigned(0 * address)"),
    Mutant(
        "rows: classes after the packs taken for others", ROWS, "i < head_ ? i : i + packs_", "true ? i : i + packs_"
    ),
    Mutant("rows: a chunk counts twice", ROWS, "    some = empty<stage, V>();\n", ""),
    Mutant(
        "rows: all classes have the first one's weight", ROWS, "(rows_.weight.data) + c", "(rows_.weight.data) + 0 * c"
    ),
    Mutant("rows: alignment not tested", ROWS, "first.data)) % 16 == 0", "first.data)) % 1 == 0"),
)


def run(command: list[str], **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, text=True, capture_output=True, check=False, **more)


def complaint(text: str) -> str:
    """The line that says what went wrong: a sanitizer's, or that of Python's exception."""
    lines = [line.strip() for line in text.splitlines() if "Error: " in line or "runtime error: " in line]
    lines = lines or text.splitlines() or ["killed without a word"]
    sanitizers = [line for line in lines if "Sanitizer: " in line or "runtime error: " in line]
    return (sanitizers or lines[::-1])[0]


def copy_changed(source: Path, to: Path, text: str | None = None) -> None:
    """Only what differs, so that ninja builds what has changed, and what a mutant changed in the last run."""
    wanted = source.read_text() if text is None else text
    if not to.exists() or to.read_text() != wanted:
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_text(wanted)


def copy_sources() -> None:
    for name in ("csrc", "cmake", HERE):
        for path in (ROOT / name).rglob("*"):
            if path.suffix in (".h", ".cpp", ".cuh", ".cmake", ".in"):
                copy_changed(path, TREE / path.relative_to(ROOT))
    for name in ("CMakeLists.txt", "pyproject.toml"):
        copy_changed(ROOT / name, TREE / name)
    for family, losses in LOSSES.items():
        copy_changed(ROOT, TREE / f"csrc/{family}/losses.def", losses)


def configure(sanitizers: str) -> Path:
    scripts = Path(sys.executable).parent
    pybind = run([sys.executable, "-m", "pybind11", "--cmakedir"]).stdout.strip()
    options = {
        "pybind11_DIR": pybind,
        "Python_EXECUTABLE": sys.executable,
        "CMAKE_MAKE_PROGRAM": scripts / "ninja",
        "FUSEDLOSS_EMULATED": "ON",
        "FUSEDLOSS_SANITIZE": sanitizers,
    }
    build = BUILDS / sanitizers
    defined = [f"-D{name}={value}" for name, value in options.items()]
    done = run([str(scripts / "cmake"), "-S", str(TREE), "-B", str(build), "-G", "Ninja", *defined])
    if done.returncode:
        sys.exit(done.stderr)
    return build


def library(name: str) -> str:
    return run(["g++", f"-print-file-name={name}"]).stdout.strip()


def checks_of(file: str) -> tuple[str, ...]:
    """The scripts that a defect in this file concerns."""
    return CHECKS[:1] if "pointwise" in file else CHECKS[1:] if "rows" in file else CHECKS


def defect_found(build: Path, jobs: int, checks: tuple[str, ...] = CHECKS) -> str:
    """Builds and tests what is in the tree; what was found, or ''."""
    built = run([str(Path(sys.executable).parent / "ninja"), "-C", str(build), "-j", str(jobs)])
    if built.returncode:
        sys.exit(f"does not compile:\n{built.stdout[-3000:]}")
    (module,) = build.glob("_emu*.so")
    environment = {
        **os.environ,
        "LD_PRELOAD": f"{library(SANITIZERS[build.name])} {library('libstdc++.so.6')}",
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "halt_on_error=1",
        "TSAN_OPTIONS": "halt_on_error=1",
    }
    for check in checks:
        try:
            tested = run([sys.executable, str(ROOT / HERE / check), str(module)], env=environment, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            return f"no end within {SECONDS} s"
        if tested.returncode:
            return complaint(tested.stderr)
    return ""


def try_mutant(mutant: Mutant, build: Path, jobs: int) -> str:
    path = TREE / mutant.file
    clean = path.read_text()
    try:
        path.write_text(clean.replace(mutant.old, mutant.new))
        return defect_found(build, jobs, checks_of(mutant.file))
    finally:
        path.write_text(clean)


def stale() -> list[Mutant]:
    return [mutant for mutant in MUTANTS if (ROOT / mutant.file).read_text().count(mutant.old) != 1]


def main(
    only: Annotated[str, typer.Option(help="those whose description contains this")] = "",
    jobs: Annotated[int, typer.Option(help="compilers at once")] = 1,
) -> None:
    """Seeds defects in the CUDA kernels, one at a time, and shows that each is found."""
    console = Console()
    if lost := stale():
        console.print("not found exactly once in their files:", *[mutant.what for mutant in lost], sep="\n  ")
        sys.exit(1)
    copy_sources()
    for sanitizers in SANITIZERS:
        build = configure(sanitizers)
        if found := defect_found(build, jobs):
            console.print(f"the unmutated build is not clean with sanitizers {sanitizers}:", found)
            sys.exit(1)
        console.print(f"the unmutated build is clean with sanitizers {sanitizers}")
    table = Table("defect", "file", "found by", "seconds")
    survivors = 0
    for mutant in MUTANTS:
        if only not in mutant.what:
            continue
        start = time.monotonic()
        found = try_mutant(mutant, build, jobs)
        survivors += not found
        seconds = f"{time.monotonic() - start:.0f}"
        console.print(f"{seconds:>4} s  {mutant.what}: {found or 'NOT FOUND'}", markup=False, highlight=False)
        table.add_row(mutant.what, Path(mutant.file).name, found[:90] or "[bold red]NOT FOUND", seconds)
    console.print(table)
    sys.exit(survivors > 0)


if __name__ == "__main__":
    typer.run(main)
