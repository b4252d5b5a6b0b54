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
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
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
# By family: only these losses are built. (The others' kernels are all alike, or few.)
LOSSES = {
    "pointwise": "POINTWISE_LOSS(mse_loss, MseLoss)\nPOINTWISE_LOSS(gaussian_nll_loss, GaussianNllLoss)\n",
    "rows": "ROWS_LOSS(nll_loss, NllLoss)\nROWS_LOSS(multi_margin_loss, MultiMargin)\n"
    "ROWS_LOSS(kl_divergence_with_logits, KlDivergenceWithLogits)\n",
}
CUDA, KERNELS = "csrc/core/cuda.h", "csrc/pointwise/cuda.cuh"
HOST = "csrc/pointwise/device.cpp"
PIECES, LOSS = "csrc/pointwise/pieces.h", "csrc/core/loss.h"
ROWS, NUMBERS, DEVICE = "csrc/rows/cuda.cuh", "csrc/core/numbers.cuh", "csrc/core/device.cuh"
LATTICE, LATTICE_HOST = "csrc/lattice/cuda.cuh", "csrc/lattice/device.cpp"
PAIRS, WARP = "csrc/pairs/cuda.cuh", "csrc/core/warp.cuh"
TRIPLETS, TRIPLETS_HOST = "csrc/triplets/cuda.cuh", "csrc/triplets/device.cpp"
VECTORS, VECTORS_ROW, VECTORS_HOST = "csrc/vectors/cuda.cuh", "csrc/vectors/row.h", "csrc/vectors/device.cpp"
# What concerns a family; a defect elsewhere concerns all.
CHECKS = {
    "pointwise": "check_kernels.py",
    "rows": "check_rows.py",
    "lattice": "check_lattice.py",
    "pairs": "check_pairs.py",
    "triplets": "check_triplets.py",
    "vectors": "check_vectors.py",
}
# The unmutated kernels are tested with all of these, a mutant with one.
SANITIZERS = {"thread": "libtsan.so", "address,undefined": "libasan.so"}
SECONDS = 300  # a test run that takes longer hangs


@dataclass(frozen=True)
class Mutant:
    what: str
    file: str
    old: str
    new: str
    # Races between blocks, of which one runs after the other here, are for "thread".
    sanitizers: str = "address,undefined"


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
    # What a block finds out together.
    Mutant(
        "missing barrier where the largest is sought",
        WARP,
        "  __syncthreads();\n  for (int warp = 0;",
        "  for (int warp = 0;",
    ),
    Mutant(
        "last warp's largest not seen",
        WARP,
        "warp < kDeviceThreads / kWarp; ++warp) x",
        "warp < kDeviceThreads / kWarp - 1; ++warp) x",
    ),
    # Lattices: what threads of a block or a warp hand each other.
    Mutant(
        "lattice: missing barrier in a step",
        LATTICE,
        "    });\n    __syncthreads();\n    const Rows row = now_;",
        "    });\n    const Rows row = now_;",
    ),
    Mutant(
        "lattice: missing barrier behind a shift",
        LATTICE,
        "    });\n    __syncthreads();\n    return double(top);",
        "    });\n    return double(top);",
    ),
    Mutant(
        "lattice: missing __syncwarp before posteriors are taken off",
        LATTICE,
        "put(c, T(0));\n    __syncwarp();\n",
        "put(c, T(0));\n",
    ),
    Mutant("lattice: last warp not added", LATTICE, "warp = 1; warp < kWarps;", "warp = 1; warp < kWarps - 1;"),
    Mutant(
        "lattice: one row for this frame and the next",
        LATTICE,
        "next_(memory + Rows::numbers_for(pass.places),",
        "next_(memory,",
    ),
    Mutant("lattice: shared rows too short", LATTICE, "shared_rows, 2 * kRow)", "shared_rows, kRow)"),
    Mutant(
        "lattice: one place too many in shared memory",
        LATTICE,
        "if (pass.places > kSharedPlaces)\n    rows",
        "if (pass.places > kSharedPlaces + 1)\n    rows",
    ),
    Mutant(
        "lattice: programs share rows in device memory",
        LATTICE,
        "+ 2 * blockIdx.x * DeviceStates",
        "+ blockIdx.x * DeviceStates",
        sanitizers="thread",
    ),
    # Lattices: places, frames, samples.
    Mutant(
        "lattice: last blank forgotten",
        LATTICE,
        "k <= sample_.labels; k += kDeviceThreads) use(k);",
        "k < sample_.labels; k += kDeviceThreads) use(k);",
    ),
    Mutant(
        "lattice: a place is not initialised", LATTICE, "now_.store(k, second ?", "if (k > 0) now_.store(k, second ?"
    ),
    Mutant(
        "lattice: alignments begin anywhere", LATTICE, "if (k == (backward_ ? sample_.labels : 0)) states", "states"
    ),
    Mutant("lattice: wrong neighbour", LATTICE, "k > 0 ? now_.label.load(k - 1) :", "k > 0 ? now_.label.load(k) :"),
    Mutant(
        "lattice: blanks between equal labels left out",
        LATTICE,
        "labels[k].index != labels[k - 1].index ? 0",
        "true ? 0",
    ),
    Mutant(
        "lattice: backward, the wrong blank left out",
        LATTICE,
        "next, V(may_skip(pass_, sample_, k + 1)));",
        "next, V(may_skip(pass_, sample_, k)));",
    ),
    Mutant("lattice: programs meet a frame too late", LATTICE, "(sample.frames + 1) / 2", "(sample.frames + 3) / 2"),
    Mutant("lattice: edges swapped", LATTICE, "pass.edges, 2 * n + 1);", "pass.edges, 2 * n);"),
    Mutant("lattice: shift not added", LATTICE, "shifted += shift();", "shift();"),
    Mutant(
        "lattice: backward, the frame's own probability twice",
        LATTICE,
        "leave(t, k, backward_ ? sums : with_emission, second)",
        "leave(t, k, with_emission, second)",
    ),
    Mutant(
        "lattice: class by the wrong stride",
        LATTICE,
        "class_of(pass, sample, k) * pass.input.step)",
        "class_of(pass, sample, k))",
    ),
    Mutant("lattice: NaN of a label not seen", LATTICE, "largest_of_warp(bad) > 0", "bad < 0"),
    Mutant(
        "lattice: the tangent's mean not taken off",
        LATTICE,
        "k) * pass.tangent.step) - softmax.mean);",
        "k) * pass.tangent.step));",
    ),
    Mutant("lattice: value without its weight", LATTICE, "value * pass.samples[n].weight;", "value;"),
    # Lattices: gradients.
    Mutant("lattice: fate ignored", LATTICE, "if (fate == Fate::counts)\n", "if (fate != Fate::is_nan)\n"),
    Mutant(
        "lattice: frames that do not count have a gradient",
        LATTICE,
        "frame < pass.samples[n].frames ? pass.fates[n] :",
        "true ? pass.fates[n] :",
    ),
    Mutant("lattice: another sample's incoming gradient", LATTICE, "n * pass.incoming_step", "0 * pass.incoming_step"),
    Mutant("lattice: a label that comes again overwrites", LATTICE, "if (!labels[k].leads) continue;", ""),
    Mutant("lattice: a label that comes again forgotten", LATTICE, "same = labels[same].next)", "same = -1)"),
    Mutant("lattice: blanks forgotten", LATTICE, "if (lane_of_warp() == 0) put(pass_.blank, of_blank_);", ""),
    Mutant(
        "lattice: memory for one row of edges",
        LATTICE_HOST,
        "memory.of(2 * pass.count * row, number)",
        "memory.of(pass.count * row, number)",
    ),
    Mutant(
        "lattice: memory for emissions without slopes",
        LATTICE_HOST,
        "frames * parts * pass.places",
        "frames * 2 * pass.places",
    ),
    # Pairs: sums of threads and of a block.
    Mutant("pairs: a stretch counts twice", PAIRS, "    stretch_ = 0;\n", ""),
    Mutant(
        "pairs: missing barrier in a sum",
        PAIRS,
        "  __syncthreads();\n#pragma unroll\n  for (int k = 0; k < count; ++k) {\n    sums[k] = 0;",
        "#pragma unroll\n  for (int k = 0; k < count; ++k) {\n    sums[k] = 0;",
    ),
    Mutant("pairs: last warp not added", PAIRS, "warp < kWarps; ++warp) sums", "warp < kWarps - 1; ++warp) sums"),
    # Pairs: rows.
    Mutant("pairs: alignment of rows not tested", PAIRS, "tile.pitch * bytes % 16 == 0 &&", ""),
    Mutant("pairs: columns after the packs lost", PAIRS, "k = rest + threadIdx.x;", "k = rest + threadIdx.x + 1;"),
    Mutant("pairs: rows of the first tile again", PAIRS, "number_(tile.first + blockIdx.x)", "number_(blockIdx.x)"),
    Mutant("pairs: rows lie close together", PAIRS, "blockIdx.x * tile_.pitch", "blockIdx.x * (tile_.pitch - 1)"),
    Mutant("pairs: a vector is its own neighbour", PAIRS, "labels_ ? unsigned(number_) : kNone", "kNone"),
    Mutant("pairs: offset forgotten", PAIRS, "kNone : unsigned(tile.offset + number_)", "kNone : unsigned(number_)"),
    Mutant("pairs: what belongs pulls no more than others", PAIRS, "weight * (share - V(1))", "weight * share"),
    Mutant("pairs: rows that are alone count", PAIRS, "if (share_.raw == 0) return leave_out();", ""),
    Mutant(
        "pairs: columns have the row's weight", PAIRS, "its_weight = of_column(tile_.weights, k)", "its_weight = weight"
    ),
    Mutant("pairs: all threads give what belongs", PAIRS, "tile_.own && threadIdx.x == 0)", "tile_.own)"),
    # Pairs: columns.
    Mutant(
        "pairs: missing barrier where a column's largest is sought",
        PAIRS,
        "found[threadIdx.x] = top.raw;\n  __syncthreads();",
        "found[threadIdx.x] = top.raw;",
    ),
    Mutant(
        "pairs: sums of earlier tiles not scaled",
        PAIRS,
        "double all = known * factor;",
        "double all = known + 0 * factor;",
    ),
    Mutant("pairs: a column beyond the last", PAIRS, "if (warp != 0 || k != column) return;", "if (warp != 0) return;"),
    # Triplets: barriers.
    Mutant(
        "triplets: missing barrier before a tile is overwritten",
        TRIPLETS,
        "total[i][j] += sum[i][j];\n    __syncthreads();\n",
        "total[i][j] += sum[i][j];\n",
        sanitizers="thread",
    ),
    Mutant(
        "triplets: missing barrier in a stage of sorting",
        TRIPLETS,
        "        order[high] = place_a;\n      }\n      __syncthreads();\n",
        "        order[high] = place_a;\n      }\n",
    ),
    Mutant(
        "triplets: missing barrier behind the cleared row",
        TRIPLETS,
        "  row.clear();\n  __syncthreads();\n",
        "  row.clear();\n",
    ),
    Mutant(
        "triplets: missing barrier before sums of threads are read",
        TRIPLETS,
        "of_threads[threadIdx.x] = sum;\n  __syncthreads();\n",
        "of_threads[threadIdx.x] = sum;\n",
    ),
    # Triplets: distances and what is mined.
    Mutant("triplets: tile without its last number", TRIPLETS, "d < pass.size ? *at", "d + 1 < pass.size ? *at"),
    Mutant("triplets: vectors beyond the last measured", TRIPLETS, "n < end && d", "d"),
    Mutant("triplets: an anchor is its own positive", TRIPLETS, "else if (n != row.anchor)", "else"),
    Mutant(
        "triplets: last warp's vectors not seen", TRIPLETS, "warp = 1; warp < kWarps;", "warp = 1; warp < kWarps - 1;"
    ),
    Mutant("triplets: of equal distances any", TRIPLETS, "(same && other_n < n)", "same"),
    Mutant("triplets: a NaN is not found", TRIPLETS, "? other_is_nan : Order", "? false : Order"),
    Mutant("triplets: the corner has a loss", "csrc/triplets/formula.h", "!(f <= 0)", "!(f < 0)"),
    Mutant("triplets: sorted by distance only", TRIPLETS, "place_a >> kClassShift != place_b >> kClassShift", "false"),
    Mutant("triplets: runs that only rise", TRIPLETS, "(low & run) == 0", "true"),
    Mutant("triplets: semi-hard, as far is far enough", TRIPLETS, "!(negative(n) > d)", "negative(n) < d"),
    Mutant("triplets: nearer negatives' positives too", TRIPLETS, "n == 0 ? 0 : nearer_than(negative(n - 1))", "0"),
    Mutant("triplets: the sum before the last negative", TRIPLETS, "+ double(sorted.negative(within - 1))", ""),
    # Triplets: gradients.
    Mutant("triplets: another anchor's incoming gradient", TRIPLETS, "anchor * pass.incoming_step", "0"),
    Mutant(
        "triplets: float sums not added up",
        TRIPLETS,
        "if (++held_ == kShort) flush();",
        "++held_;\n    if (held_ == kShort) still_ = 0;",
    ),
    Mutant("triplets: others do not pull", TRIPLETS, "a < pass.block; ++a) pulled", "a < 0; ++a) pulled"),
    Mutant("triplets: anchors of the first block only", TRIPLETS, "pass.first <= n && n", "pass.first == 0 && n"),
    Mutant(
        "triplets: turned back along the wrong vector", TRIPLETS, "return w[d] * still(d);", "return y[d] * still(d);"
    ),
    Mutant("triplets: sorted rows too short", TRIPLETS_HOST, "std::bit_ceil(", "std::bit_floor("),
    Mutant(
        "triplets: the last block is a whole one",
        TRIPLETS_HOST,
        "std::min(block, pass.count - pass.first)",
        "block",
    ),
    # Losses of vectors.
    Mutant(
        "vectors: missing barrier behind a warp's numbers",
        VECTORS,
        "of_warps[i * kWarps + warp] = x[i];\n  __syncthreads();\n",
        "of_warps[i * kWarps + warp] = x[i];\n",
    ),
    Mutant(
        "vectors: missing barrier before they are written again",
        VECTORS,
        "  __syncthreads();  // before they are written again\n",
        "",
        sanitizers="thread",
    ),
    Mutant("vectors: last warp not merged", VECTORS, "other = 1; other < kWarps;", "other = 1; other < kWarps - 1;"),
    Mutant("vectors: shared array too short", VECTORS, "kMostNumbers * kWarps)", "kMostNumbers * kWarps / 2)"),
    Mutant("vectors: shuffles start a step late", VECTORS, "lanes = kWarp / 2;", "lanes = kWarp / 4;"),
    Mutant("vectors: packs overlap", VECTORS, "first = int64_t(kSize) * this->thread;", "first = this->thread;"),
    Mutant("vectors: all threads add the row's value", VECTORS, "if (access.thread == 0) sum.add", "sum.add"),
    Mutant("vectors: all blocks write one partial", VECTORS, "rows.partials[blockIdx.x] =", "rows.partials[0] ="),
    Mutant(
        "vectors: gradients of rows that do not count are left as they are",
        VECTORS,
        "if (rows.has_gradients) computed.clear_gradients();",
        "",
    ),
    Mutant("vectors: gradient by the wrong stride", VECTORS, "place.index * gradient.step", "place.index"),
    Mutant("vectors: packs that are not aligned", VECTORS_HOST, "% 16 == 0;", "% 8 == 0;"),
    Mutant("vectors: packs of rows that are not aligned", VECTORS_HOST, "view.strides[d] % size == 0", "true"),
    Mutant(
        "vectors: sign of a gradient", VECTORS_ROW, "by[second] = by[second] - part;", "by[second] = by[second] + part;"
    ),
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


def checks_of(file: str) -> list[str]:
    """The scripts that a defect in this file concerns."""
    return [check for family, check in CHECKS.items() if family in file] or [*CHECKS.values()]


def defect_found(build: Path, jobs: int, checks: Iterable[str] = tuple(CHECKS.values())) -> str:
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

    def found_by(check: str) -> str:
        try:
            tested = run([sys.executable, str(ROOT / HERE / check), str(module)], env=environment, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            return f"no end within {SECONDS} s"
        return complaint(tested.stderr) if tested.returncode else ""

    with ThreadPoolExecutor(jobs) as pool:
        return next(filter(None, pool.map(found_by, checks)), "")


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
    builds = {sanitizers: configure(sanitizers) for sanitizers in SANITIZERS}
    for sanitizers, build in builds.items():
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
        found = try_mutant(mutant, builds[mutant.sanitizers], jobs)
        survivors += not found
        seconds = f"{time.monotonic() - start:.0f}"
        console.print(f"{seconds:>4} s  {mutant.what}: {found or 'NOT FOUND'}", markup=False, highlight=False)
        table.add_row(mutant.what, Path(mutant.file).name, found[:90] or "[bold red]NOT FOUND", seconds)
    console.print(table)
    sys.exit(survivors > 0)


if __name__ == "__main__":
    typer.run(main)
