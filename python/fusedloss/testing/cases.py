"""The circumstances of a call: dtypes, weights, memory layouts and ranges of values, and those that `check` takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fusedloss.testing.catalogue import Loss, positive
from fusedloss.testing.judge import Call

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]

SHAPE = (3, 5, 4, 35)
ROWS, COLUMNS = 19, 67


def weights(shape: tuple[int, ...], dtype: torch.dtype) -> Iterator[Tensor | None]:
    generator = torch.Generator().manual_seed(7)
    yield None
    for form in (shape, (*shape[:-1], 1), shape[-1:], ()):
        yield positive(form, generator).to(dtype)


# ---- layouts: the same shape in other places of memory, of four axes -----------------------------------------------


def garbage(x: Tensor) -> Tensor:
    """What no one may read: NaN, or a number that is no label."""
    return torch.full_like(x, math.nan if x.is_floating_point() else torch.iinfo(x.dtype).max)


def transposed(x: Tensor) -> Tensor:
    return x.transpose(0, -1).contiguous().transpose(0, -1)


def stepped(x: Tensor) -> Tensor:
    return torch.stack([x, garbage(x)], dim=-1).flatten(-2)[..., ::2]


def rows_apart(x: Tensor) -> Tensor:
    return torch.cat([x, garbage(x)], dim=-1)[..., : x.shape[-1]]


def offset(x: Tensor) -> Tensor:
    """Not aligned to a vector."""
    return torch.cat([garbage(x.flatten()[:1]), x.flatten()])[1:].view(x.shape)


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def expanded(x: Tensor) -> Tensor:
    return x[:1, :, :1].expand(x.shape)


def one_number(x: Tensor) -> Tensor:
    return x[:1, :1, :1, :1].expand(x.shape)


def shuffled_axes(x: Tensor) -> Tensor:
    return x.permute(2, 0, 3, 1).contiguous().permute(1, 3, 0, 2)


Layout = Callable[[Tensor], Tensor]
LAYOUTS: list[Layout] = [
    torch.clone, transposed, stepped, rows_apart, offset, channels_last, expanded, one_number, shuffled_axes,
]  # fmt: skip


# ---- ranges of values ----------------------------------------------------------------------------------------------

TINY = {torch.float64: 1e-30, torch.float32: 1e-30, torch.bfloat16: 1e-30, torch.float16: 1e-6}
SUBNORMAL = {torch.float64: 1e-310, torch.float32: 1e-40, torch.bfloat16: 1e-40, torch.float16: 1e-6}
HUGE = {torch.float64: 1e12, torch.float32: 1e12, torch.bfloat16: 1e12, torch.float16: 1e4}
RANGES = {
    "tiny": TINY, "subnormal": SUBNORMAL, "small": dict.fromkeys(DTYPES, 1e-3), "large": dict.fromkeys(DTYPES, 30.0),
    "1e4": dict.fromkeys(DTYPES, 1e4), "huge": HUGE,
}  # fmt: skip


# ---- what `check` goes through -------------------------------------------------------------------------------------


def cases(loss: Loss, dtype: torch.dtype, device: str, quick: bool) -> Iterator[Call]:
    """The calls by which a loss is checked in one dtype; the quick ones are some of each kind."""
    yield from _of_reductions(loss, dtype, device, quick)
    # One number everywhere leaves nothing to compare with but torch's luck at that one.
    layouts: list[Layout] = [transposed, offset, expanded] if quick else [f for f in LAYOUTS[1:] if f is not one_number]
    yield from _of_layouts(loss, dtype, device, layouts)
    yield from _of_ranges(loss, dtype, device, ["small", "large"] if quick else list(RANGES))
    if not quick:
        yield from _of_many_elements(loss, dtype, device)


def _of_reductions(loss: Loss, dtype: torch.dtype, device: str, quick: bool) -> Iterator[Call]:
    """Every reduction with and without weights, those that have a gradient themselves, and second derivatives."""
    shape = (ROWS, COLUMNS)
    operands, keywords = loss.sample(shape, dtype)
    away, keywords_away = loss.sample_away_from_corners(shape, dtype)
    none, full, *that_broadcast = weights(shape, dtype)
    for reduction in loss.reductions:
        for w in (none, full) if quick else (none, full, *that_broadcast):
            yield Call(loss, operands, keywords, w, reduction, device=device)
        for w in (none, full):
            yield Call(loss, away, keywords_away, w, reduction, device=device, second=True)
        yield Call(loss, operands, keywords, full, reduction, device=device, weight_too=True)


def _of_layouts(loss: Loss, dtype: torch.dtype, device: str, layouts: list[Layout]) -> Iterator[Call]:
    """All tensors laid out alike, and the first one alone."""
    operands, keywords = loss.sample_away_from_corners(SHAPE, dtype, seed=11)
    weight = positive(SHAPE, torch.Generator().manual_seed(12)).to(dtype)
    for layout in layouts:
        alike = [layout(x) for x in operands]
        yield Call(loss, alike, keywords, layout(weight), "mean", device=device)
        yield Call(loss, [alike[0], *operands[1:]], keywords, weight, "none", device=device)
        if layout is not expanded:  # which brings together what was kept away from the corners
            yield Call(loss, alike, keywords, layout(weight), "sum", device=device, second=True)


def _of_ranges(loss: Loss, dtype: torch.dtype, device: str, ranges: list[str]) -> Iterator[Call]:
    for name in ranges:
        operands, keywords = loss.sample((29, 91), dtype, seed=17, scale=RANGES[name][dtype])
        finite = [x.nan_to_num() for x in operands]  # infinite by rounding to float16
        for reduction in ("none", "mean"):
            yield Call(loss, finite, keywords, None, reduction, device=device)


def _of_many_elements(loss: Loss, dtype: torch.dtype, device: str) -> Iterator[Call]:
    """More than a block of any device's work."""
    operands, keywords = loss.sample((65, 521), dtype, seed=3, scale=2.0)
    for reduction in ("none", "mean"):
        yield Call(loss, operands, keywords, None, reduction, device=device)
