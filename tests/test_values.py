"""Every loss and its gradients against the oracle, by one rule: the error is at most twice torch's own, plus a few
units in the last place of the result.

torch's error is that of torch's loss (or of the formula in torch's ops) in the dtype of the computation, rounded to the
dtype of the result, on the same operands. A single element of torch's may be exact by luck, and the largest error of a
tensor may be a thousand times what is due at its easiest elements: compared is therefore with the largest error that
torch makes among the `NEIGHBOURS` elements (or a 16th of all, if that is more) that are about as hard, measured by how
far rounding the operands moves the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import maximum_filter1d
from torch import Tensor

import fusedloss.functional as L
import oracle
from catalogue import LOSSES, Loss, Sampler, bits, counts, log_probability, normal, positive, probability, signs

pytestmark = [
    pytest.mark.core,
    pytest.mark.filterwarnings("ignore:kl_div with reduction='mean'"),
    pytest.mark.filterwarnings("ignore:Using a (target|input) size"),
]

# Beside twice torch's error: what a value composed of a handful of correctly rounded operations may lose.
FEW_ULPS = 4
NEIGHBOURS = 257

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
EACH = [pytest.param(loss, id=loss.id) for loss in LOSSES]
EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)
EACH_LOSS = pytest.mark.parametrize("loss", EACH)
SAME_SHAPE = {"binary_cross_entropy", "binary_cross_entropy_with_logits", "sigmoid_focal_loss"}


# ---- the rule ------------------------------------------------------------------------------------------------------


def ulp(size: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    info = torch.finfo(dtype)
    exponent = np.frexp(np.maximum(size, size.dtype.type(info.smallest_normal)))[1] - 1
    return np.ldexp(size.dtype.type(info.eps), exponent)


def rounded_to_range(exact: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    largest = exact.dtype.type(torch.finfo(dtype).max)
    beyond = largest * (1 + exact.dtype.type(torch.finfo(dtype).eps) / 4)
    return np.where(np.abs(exact) >= beyond, np.copysign(np.inf, exact), np.clip(exact, -largest, largest))


def largest_nearby(error: np.ndarray, difficulty: np.ndarray) -> np.ndarray:
    """For every element the largest error among those that are about as difficult."""
    order = np.argsort(difficulty, kind="stable")
    result = np.empty_like(error)
    result[order] = maximum_filter1d(error[order].astype(np.float64), max(NEIGHBOURS, error.size // 16))
    return result


def numbers(tensor: Tensor, precision: Any) -> np.ndarray:
    return tensor.detach().double().numpy().astype(precision)


def assert_within_rule(what: str, ours: Tensor, torchs: Tensor | None, exact: oracle.Result, elements: int = 1) -> None:
    """`elements` is the number of those that a reduction goes over."""
    if ours.numel() == 0:
        return
    precision = exact.value.dtype.type
    assert ours.shape == exact.value.shape, what
    truth = rounded_to_range(exact.value, ours.dtype).ravel()
    size, got = exact.size.ravel(), numbers(ours, precision).ravel()
    finite = np.isfinite(truth)
    with np.errstate(invalid="ignore", over="ignore"):
        allowed = FEW_ULPS * ulp(np.where(finite, size, 0), ours.dtype)
        same = (got == truth) | (np.isnan(got) & np.isnan(truth))
        error = np.where(finite, np.abs(got - truth), np.where(same, 0, np.inf))
        if torchs is not None:
            theirs = numbers(torchs, precision).ravel()
            off = np.abs(theirs - truth)
            assert exact.sensitivity is not None
            difficulty = exact.sensitivity.ravel() + ulp(np.where(finite, size, 0), ours.dtype)
            # Where torch is not finite and the truth is, its error excuses nothing, but at the end of the range, where
            # a sum or a factor overflows before it is divided.
            allowed = allowed + 2 * largest_nearby(np.where(np.isfinite(off), off, 0), difficulty)
            range_end = size * elements >= torch.finfo(ours.dtype).max / 4
            error = np.where(np.isinf(theirs) & (got == theirs) & range_end, 0, error)
    bad = ~(error <= allowed)
    if bad.any():
        worst = int(np.argmax(np.where(bad & ~np.isnan(error), error / allowed, np.where(bad, np.inf, 0))))
        by_torch = "" if torchs is None else f", torch {torchs.flatten()[worst].item()!r}"
        raise AssertionError(
            f"{what}: {bad.sum()} of {bad.size} elements; at {worst}: got {got[worst]!r}, exact {truth[worst]!r}"
            f"{by_torch}, error {error[worst]:.3g}, allowed {allowed[worst]:.3g}"
        )


def where_undefined(exact: oracle.Result, ours: Tensor, torchs: Tensor) -> oracle.Result:
    """The result, or NaN where both have it: at an infinite operand a limit may exist that torch does not take."""
    both = (ours.isnan() & torchs.isnan()).numpy()
    return oracle.Result(np.where(both, np.nan, exact.value), exact.size, exact.sensitivity)


# ---- one call three times ------------------------------------------------------------------------------------------


def weighted_by_torch(
    loss: Loss, operands: list[Tensor], keywords: dict[str, Tensor], w: Tensor, reduction: str
) -> Tensor:
    """The weighted loss as a user of torch would write it."""
    if loss.name == "gaussian_kl":
        mean, log_var = operands
        values = -0.5 * (w * (1 + log_var - mean**2 - log_var.exp())).sum(-1)
    else:
        values = loss.torch(*operands, **keywords, reduction="none") * w
    if reduction in ("none", "sum"):
        return values if reduction == "none" else values.sum()
    if reduction == "batchmean" and loss.name != "gaussian_kl":
        return values.sum() / values.shape[0]
    if loss.name in oracle.MEAN_OF_WEIGHTS:
        return values.sum() / w.expand_as(values).sum()
    return values.mean()


class Call:
    """One loss on given operands: by the library, by torch and by the oracle."""

    def __init__(
        self,
        loss: Loss,
        operands: list[Tensor],
        keywords: dict[str, Tensor] | None = None,
        weight: Tensor | None = None,
        reduction: str = "mean",
        weight_too: bool = False,
        factor: float = 1.0,
    ) -> None:
        self.loss, self.reduction, self.weight_too, self.factor = loss, reduction, weight_too, factor
        self.given = dict(zip(loss.samplers, operands, strict=True)) | (keywords or {})
        if weight is not None:
            self.given["weight"] = weight
        self.free = [*loss.differentiable, *(keywords or {}), *(["weight"] if weight_too else [])]

    def judge(self, undefined_as_torchs: bool = False) -> None:
        ours, our_gradients = self.ours()
        theirs, their_gradients = self.torchs(ours)
        loss, gradients = self.exact(ours)
        if undefined_as_torchs:
            undefined = {"": (ours, theirs)} | {k: (our_gradients[k], their_gradients[k]) for k in their_gradients}
            loss = where_undefined(loss, *undefined.pop(""))
            gradients = gradients | {k: where_undefined(gradients[k], *pair) for k, pair in undefined.items()}
        shown = {k: (tuple(x.shape), x.dtype) for k, x in self.given.items()}
        what = f"{self.loss.id} {self.reduction} {shown}"
        elements = max(x.numel() for x in self.given.values())
        assert_within_rule(f"value of {what}", ours, theirs, loss, elements)
        if self.reduction != "none":  # without a gradient other code adds the values up
            with torch.no_grad():
                assert_within_rule(f"value without gradient of {what}", self.ours()[0], theirs, loss, elements)
        for name in self.free:
            assert our_gradients[name].dtype == self.given[name].dtype
            if undefined_as_torchs and name not in their_gradients:
                continue
            of_ours, of_theirs = our_gradients[name], their_gradients.get(name)
            assert_within_rule(f"d/d{name} of {what}", of_ours, of_theirs, gradients[name], elements)

    def grad_output(self, result: Tensor) -> Tensor:
        if self.reduction != "none":
            return torch.full_like(result, self.factor)
        generator = torch.Generator().manual_seed(5)
        return (torch.rand(result.shape, generator=generator) + 0.5).to(result.dtype) * self.factor

    def leaves(self, free: list[str]) -> dict[str, Tensor]:
        # detach keeps memory and strides
        return {k: x.detach().requires_grad_(k in free) for k, x in self.given.items()}

    def ours(self) -> tuple[Tensor, dict[str, Tensor]]:
        a = self.leaves(self.free)
        positional = [a[name] for name in self.loss.samplers]
        rest = {k: x for k, x in a.items() if k not in self.loss.samplers}
        result = self.loss(*positional, **rest, reduction=self.reduction)
        if not torch.is_grad_enabled():
            return result, {}
        gradients = torch.autograd.grad(result, [a[k] for k in self.free], self.grad_output(result))
        return result, dict(zip(self.free, gradients, strict=True))

    def torchs(self, ours: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        # torch has no derivative by pos_weight: there ours must be exact but for a few ulps.
        free = [name for name in self.free if name != "pos_weight"]
        a = self.leaves(free)
        wide = torch.float64 if any(x.dtype == torch.float64 for x in a.values()) else torch.float32
        cast = {k: x.to(wide) for k, x in a.items()}
        positional = [cast[name] for name in self.loss.samplers]
        weight = cast.pop("weight", None)
        rest = {k: x for k, x in cast.items() if k not in self.loss.samplers}
        if weight is None:
            result = self.loss.torch(*positional, **rest, reduction=self.reduction)
        else:
            result = weighted_by_torch(self.loss, positional, rest, weight, self.reduction)
        gradients = torch.autograd.grad(result, [a[k] for k in free], self.grad_output(ours).to(wide))
        return result.to(ours.dtype), dict(zip(free, gradients, strict=True))

    def exact(self, ours: Tensor) -> tuple[oracle.Result, dict[str, oracle.Result]]:
        double = any(x.dtype == torch.float64 for x in self.given.values())
        precision = np.longdouble if double else np.float64
        arrays = {k: numbers(x, precision) for k, x in self.given.items()}
        weight = arrays.pop("weight", None)
        # A parameter takes part as a number of the dtype that is computed in.
        parameters = {
            k: v if isinstance(v, bool) else float(v if double else np.float32(v))
            for k, v in self.loss.parameters.items()
        }
        grad_output = numbers(self.grad_output(ours), precision)
        rounding = torch.finfo(torch.float64 if double else torch.float32).eps / 2
        return oracle.expected(self.loss.name, arrays, parameters, self.reduction, weight, grad_output, rounding)


# ---- shapes, dtypes, reductions, weights ---------------------------------------------------------------------------

ROWS, COLUMNS = 19, 67


def weights(shape: tuple[int, ...], dtype: torch.dtype) -> Iterator[Tensor | None]:
    generator = torch.Generator().manual_seed(7)
    yield None
    for form in (shape, (*shape[:-1], 1), shape[-1:], ()):
        yield positive(form, generator).to(dtype)


@EACH_DTYPE
@EACH_LOSS
def test_reductions_and_weights(loss: Loss, dtype: torch.dtype) -> None:
    operands, keywords = loss.sample((ROWS, COLUMNS), dtype)
    for weight, reduction in product(weights((ROWS, COLUMNS), dtype), loss.reductions):
        Call(loss, operands, keywords, weight, reduction).judge()
        if weight is not None and weight.dim() == 2:
            Call(loss, operands, keywords, weight, reduction, weight_too=True).judge()
    for reduction in loss.reductions:
        Call(loss, operands, keywords, None, reduction, factor=-0.37).judge()


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@EACH_LOSS
def test_many_elements(loss: Loss, dtype: torch.dtype, reduction: str) -> None:
    operands, keywords = loss.sample((17, 1000), dtype, seed=3, scale=2.0)
    Call(loss, operands, keywords, None, reduction).judge()


SIZES = [*range(1, 35), 63, 64, 65, 67, 2047, 2048, 2049, 16385, 2 * 16384 + 5]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@EACH_LOSS
def test_sizes_around_vectors_tiles_and_blocks(loss: Loss, dtype: torch.dtype) -> None:
    """The largest size is judged by the rule; any shorter part of it has the same gradients to the bit, and its sum is
    that of the same values."""
    operands, keywords = loss.sample((SIZES[-1],), dtype, seed=43)
    if loss.name == "gaussian_kl":  # one value a row
        operands = [x.unsqueeze(-1) for x in operands]
    whole = Call(loss, operands, keywords, None, "sum")
    whole.judge()
    gradients = whole.ours()[1]
    values = numbers(Call(loss, operands, keywords, None, "none").ours()[0], np.longdouble)
    for size in SIZES:
        part = [x[:size] for x in operands], {name: x[:size] for name, x in keywords.items()}
        total, of_part = Call(loss, *part, None, "sum").ours()
        error = np.abs(numbers(total, np.longdouble) - values[:size].sum())
        assert error <= FEW_ULPS * ulp(np.abs(values[:size]).sum(), dtype), f"sum of {size}"
        for name, gradient in of_part.items():
            assert torch.equal(gradient, gradients[name][:size]), f"d/d{name} of {size}"


@EACH_DTYPE
@EACH_LOSS
def test_no_axes_and_one_element(loss: Loss, dtype: torch.dtype) -> None:
    """One number is the same loss in any shape."""
    if loss.keyword_operands or loss.name == "gaussian_kl":
        pytest.skip("needs a last axis")
    operands, _ = loss.sample((1,), dtype)
    for reduction in loss.reductions:
        expected, expected_gradients = Call(loss, operands, {}, None, reduction).ours()
        for shape in [(), (1, 1, 1, 1, 1, 1)]:
            value, gradients = Call(loss, [x.view(shape) for x in operands], {}, None, reduction).ours()
            assert value.shape == (shape if reduction == "none" else ())
            assert torch.equal(value.flatten(), expected.flatten())
            for name in loss.differentiable:
                assert torch.equal(gradients[name], expected_gradients[name].view(shape))


@pytest.mark.parametrize("factor", [2.0**15, 2.0**-10])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@EACH_LOSS
def test_a_scaled_loss(loss: Loss, dtype: torch.dtype, factor: float) -> None:
    """A gradient is scaled before it is rounded: loss scaling keeps small ones, and none overflows on the way."""
    operands, keywords = loss.sample((100, 333), dtype, seed=47)
    Call(loss, operands, keywords, None, "mean" if factor > 1 else "sum", factor=factor).judge()


@EACH_DTYPE
@EACH_LOSS
def test_no_elements(loss: Loss, dtype: torch.dtype) -> None:
    """A sum of nothing is 0, its mean NaN, its gradient as empty as the operand."""
    for shape in [(0,), (3, 0), (0, 3)]:
        operands, keywords = loss.sample(shape, dtype)
        for reduction in loss.reductions:
            call = Call(loss, operands, keywords, None, reduction)
            value, gradients = call.ours()
            exact = call.exact(value)[0].value
            assert np.array_equal(numbers(value, exact.dtype), exact, equal_nan=True), (shape, reduction)
            for name in loss.differentiable:
                assert gradients[name].shape == shape


MIXED = [
    (torch.float32, torch.float64),
    (torch.float64, torch.float32),
    (torch.bfloat16, torch.float32),
    (torch.float32, torch.float16),
    (torch.bfloat16, torch.float16),
]


@pytest.mark.parametrize("dtypes", MIXED, ids=str)
@EACH_LOSS
def test_mixed_dtypes_promote(loss: Loss, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    (first, *others), keywords = loss.sample((ROWS, COLUMNS))
    operands = [first.to(dtypes[0]), *(x.to(dtypes[1]) for x in others)]
    for reduction in loss.reductions:
        call = Call(loss, operands, {k: x.to(dtypes[1]) for k, x in keywords.items()}, None, reduction)
        call.judge()
        assert call.ours()[0].dtype == torch.promote_types(*dtypes)


@pytest.mark.parametrize("target_dtype", [torch.int64, torch.uint8, torch.bool], ids=str)
@EACH_LOSS
def test_integer_targets(loss: Loss, target_dtype: torch.dtype) -> None:
    """A target of integers or bools counts as the floats that they are."""
    if loss.name == "gaussian_kl" or (loss.samplers["target"] is signs and target_dtype != torch.int64):
        pytest.skip("has no target of this type")
    for dtype in DTYPES:
        operands, keywords = loss.sample((ROWS, COLUMNS), dtype)
        at = list(loss.samplers).index("target")
        if loss.samplers["target"] is not signs:
            operands[at] = bits((ROWS, COLUMNS), torch.Generator().manual_seed(2)).to(dtype)
        integers = [x.to(target_dtype) if k == at else x for k, x in enumerate(operands)]
        for reduction in loss.reductions:
            result = loss(*integers, **keywords, reduction=reduction)
            assert result.dtype == dtype
            assert torch.equal(result, loss(*operands, **keywords, reduction=reduction))


# ---- layouts -------------------------------------------------------------------------------------------------------

SHAPE = (3, 5, 4, 35)


def transposed(x: Tensor) -> Tensor:
    return x.transpose(0, -1).contiguous().transpose(0, -1)


def stepped(x: Tensor) -> Tensor:
    return torch.stack([x, torch.full_like(x, math.nan)], dim=-1).flatten(-2)[..., ::2]


def rows_apart(x: Tensor) -> Tensor:
    return torch.cat([x, torch.full_like(x, math.nan)], dim=-1)[..., : x.shape[-1]]


def offset(x: Tensor) -> Tensor:
    """Not aligned to a vector."""
    return torch.cat([torch.full_like(x.flatten()[:1], math.nan), x.flatten()])[1:].view(x.shape)


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


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@EACH_LOSS
def test_layouts(loss: Loss, dtype: torch.dtype) -> None:
    """In every memory layout of every operand: all alike, the first alone, the others alone."""
    operands, keywords = loss.sample(SHAPE, dtype, seed=11)
    generator = torch.Generator().manual_seed(12)
    weight = positive(SHAPE, generator).to(dtype)
    for layout, which in product(LAYOUTS[1:], ("all", "first", "others")):
        laid_out = [
            layout(x) if which == "all" or (which == "first") == (k == 0) else x for k, x in enumerate(operands)
        ]
        reduction = "sum" if which == "all" else "none"
        Call(loss, laid_out, keywords, layout(weight) if which == "others" else weight, reduction).judge()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
@EACH_LOSS
def test_gradient_comes_in_any_layout(loss: Loss, dtype: torch.dtype) -> None:
    operands, keywords = loss.sample(SHAPE, dtype, seed=13)
    leaves = [x.requires_grad_(name in loss.differentiable) for name, x in zip(loss.samplers, operands, strict=True)]
    free = [x for x in leaves if x.requires_grad]
    result = loss(*leaves, **keywords, reduction="none")
    grad = normal(tuple(result.shape), torch.Generator().manual_seed(14)).to(dtype)
    straight = torch.autograd.grad(result, free, grad, retain_graph=True)
    layouts = [transposed, stepped, offset, *([channels_last] if result.dim() == 4 else [])]
    for layout in layouts:
        for a, b in zip(straight, torch.autograd.grad(result, free, layout(grad), retain_graph=True), strict=True):
            assert torch.equal(a, b), layout.__name__


# ---- ranges --------------------------------------------------------------------------------------------------------

TINY = {torch.float64: 1e-30, torch.float32: 1e-30, torch.bfloat16: 1e-30, torch.float16: 1e-6}
SUBNORMAL = {torch.float64: 1e-310, torch.float32: 1e-40, torch.bfloat16: 1e-40, torch.float16: 1e-6}
HUGE = {torch.float64: 1e12, torch.float32: 1e12, torch.bfloat16: 1e12, torch.float16: 1e4}
RANGES = {
    "tiny": TINY, "subnormal": SUBNORMAL, "small": dict.fromkeys(DTYPES, 1e-3), "large": dict.fromkeys(DTYPES, 30.0),
    "1e4": dict.fromkeys(DTYPES, 1e4), "huge": HUGE,
}  # fmt: skip


@pytest.mark.parametrize("name", list(RANGES))
@EACH_DTYPE
@EACH_LOSS
def test_ranges(loss: Loss, dtype: torch.dtype, name: str) -> None:
    for reduction in ("none", "mean"):
        operands, keywords = loss.sample((29, 91), dtype, seed=17, scale=RANGES[name][dtype])
        operands = [x.nan_to_num() for x in operands]  # infinite by rounding to float16
        Call(loss, operands, keywords, None, reduction).judge()


@EACH_DTYPE
@EACH_LOSS
def test_equal_operands(loss: Loss, dtype: torch.dtype) -> None:
    operands, keywords = loss.sample((29, 71), dtype, seed=19)
    first, second = list(loss.samplers.values())[:2]
    if first is not second:
        pytest.skip("the operands are of different kinds")
    operands[1] = operands[0].clone()
    for reduction in loss.reductions:
        Call(loss, operands, keywords, None, reduction).judge()


CORNERS: dict[Sampler, list[float]] = {
    normal: [-2.0, -1.0, -0.7, -0.6, -0.3, -1e-7, -0.0, 0.0, 1e-7, 0.3, 0.6, 0.7, 1.0, 2.0],
    positive: [0.0, 1e-8, 1e-7, 1e-6, 0.3, 0.6, 1.0, 2.0],
    counts: [0.0, 1.0, 2.0, 5.0],
    probability: [0.0, 1e-38, 1e-7, 0.3, 0.5, 0.9999, 1.0],
    bits: [0.0, 1.0],
    signs: [-1.0, 1.0],
    log_probability: [-200.0, -90.0, -1.0, -1e-7, 0.0],
}
INFINITIES: dict[Sampler, list[float]] = {
    normal: [-math.inf, -1.0, 0.0, 1.0, math.inf],
    positive: [0.0, 1.0, math.inf],
    counts: [0.0, 1.0, 3.0],
    log_probability: [-math.inf, -1.0, 0.0],
}


def grid(loss: Loss, values: dict[Sampler, list[float]], dtype: torch.dtype) -> tuple[list[Tensor], dict[str, Tensor]]:
    """All combinations of the values, one a row (and with every keyword operand's value, one a column)."""
    combinations = torch.tensor(list(product(*(values[s] for s in loss.samplers.values()))), dtype=torch.float64)
    operands = [column[:, None].expand(-1, 5).clone().to(dtype) for column in combinations.unbind(1)]
    levels = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=dtype)
    return operands, dict.fromkeys(loss.keyword_operands, levels)


@EACH_DTYPE
@EACH_LOSS
def test_corners(loss: Loss, dtype: torch.dtype) -> None:
    operands, keywords = grid(loss, CORNERS, dtype)
    Call(loss, operands, keywords, None, "none").judge()


@EACH_DTYPE
@EACH_LOSS
def test_infinities(loss: Loss, dtype: torch.dtype) -> None:
    operands, keywords = grid(loss, CORNERS | INFINITIES, dtype)
    Call(loss, operands, keywords, None, "none").judge(undefined_as_torchs=True)


# ---- promises on what stays finite ---------------------------------------------------------------------------------

FLOATS = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


@FLOATS
@pytest.mark.parametrize("gamma", [0.0, 1e-3, 0.5, 1.0, 1.5, 2.0, 5.0, 100.0, 1e6])
def test_focal_loss_is_finite_for_every_finite_logit(gamma: float, dtype: torch.dtype) -> None:
    # The derivative by the target is gamma times the logit, and may itself be out of range beyond this.
    largest = torch.finfo(dtype).max / (4 + 4 * gamma)
    sizes = [0.0, 1e-40, 1e-3, 1.0, 17.0, 37.0, 88.0, 89.0, 104.0, 110.0, 709.0, 746.0, 1e4, 1e30, largest]
    logits = torch.tensor([*sizes, *(-x for x in sizes)], dtype=dtype)
    for target in (0.0, 1e-30, 0.3, 0.5, 1 - 1e-7, 1.0):
        x = logits.clone().requires_grad_()
        y = torch.full_like(logits, target).requires_grad_()
        value = L.sigmoid_focal_loss(x, y, gamma=gamma)
        of_input, of_target = torch.autograd.grad(value.sum(), (x, y))
        for what, result in [("value", value), ("d/dinput", of_input), ("d/dtarget", of_target)]:
            assert result.isfinite().all(), f"{what} at target {target}: {logits[~result.isfinite()].tolist()}"


@FLOATS
@pytest.mark.parametrize("target", [0.0, 0.25, 1.0])
def test_bce_with_logits_at_the_end_of_the_range(target: float, dtype: torch.dtype) -> None:
    end = 3e38 if dtype == torch.float32 else 1.7e308
    x = torch.tensor([-end, end], dtype=dtype, requires_grad=True)
    y = torch.full_like(x, target)
    value = L.binary_cross_entropy_with_logits(x, y, reduction="none")
    exact = torch.tensor([target * end, (1 - target) * end], dtype=dtype)
    assert torch.allclose(value, exact, rtol=2 * torch.finfo(dtype).eps, atol=0)
    value.sum().backward()
    assert torch.equal(x.grad, torch.tensor([-target, 1 - target], dtype=dtype))


@FLOATS
def test_log_cosh_at_the_end_of_the_range(dtype: torch.dtype) -> None:
    end = 3e38 if dtype == torch.float32 else 1.7e308
    x = torch.tensor([-end, end], dtype=dtype, requires_grad=True)
    value = L.log_cosh_loss(x, torch.zeros_like(x), reduction="none")
    assert torch.equal(value, x.abs())
    value.backward(torch.ones_like(x))
    assert torch.equal(x.grad, torch.tensor([-1.0, 1.0], dtype=dtype))


@EACH_DTYPE
def test_kl_div_where_the_target_is_zero(dtype: torch.dtype) -> None:
    """0 log 0 = 0 whatever the input says of that outcome."""
    x = torch.tensor([-math.inf, -3.0, 0.0], dtype=dtype, requires_grad=True)
    for y, log_target in [(torch.zeros(3, dtype=dtype), False), (torch.full((3,), -math.inf, dtype=dtype), True)]:
        y = y.requires_grad_()
        value = L.kl_div(x, y, reduction="none", log_target=log_target)
        assert torch.equal(value, torch.zeros_like(value))
        for gradient in torch.autograd.grad(value.sum(), (x, y)):
            assert torch.equal(gradient, torch.zeros_like(gradient))


@EACH_DTYPE
@EACH_LOSS
def test_a_nan_stays_with_its_own_element(loss: Loss, dtype: torch.dtype) -> None:
    """It reaches its value, and changes no bit of any other value or gradient."""
    operands, keywords = loss.sample((3, 25), dtype, seed=23)
    clean = Call(loss, operands, keywords, None, "none")
    clean_sum = Call(loss, operands, keywords, None, "sum")
    others = torch.ones(3, 25, dtype=torch.bool)
    others[1, 4] = False
    for k, name in enumerate(loss.samplers):
        if name == "target" and loss.name == "hinge_embedding_loss":
            continue  # a label: neither 1 nor -1 adds both terms, as in torch
        dirty = [x.clone() for x in operands]
        dirty[k][1, 4] = math.nan
        value, gradients = Call(loss, dirty, keywords, None, "none").ours()
        expected, expected_gradients = clean.ours()
        kept = others if value.dim() == 2 else others.all(-1)
        assert value[~kept].isnan().all()
        assert torch.equal(value[kept], expected[kept])
        total, gradients_of_sum = Call(loss, dirty, keywords, None, "sum").ours()
        assert total.isnan()
        expected_of_sum = clean_sum.ours()[1]
        for operand in loss.differentiable:
            assert torch.equal(gradients[operand][others], expected_gradients[operand][others])
            assert torch.equal(gradients_of_sum[operand][others], expected_of_sum[operand][others])
