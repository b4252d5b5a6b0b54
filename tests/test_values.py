"""Every loss and its gradients against the oracle, by the rule of fusedloss.testing.judge: the error is at most twice
torch's own, plus a few units in the last place of the result."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

import fusedloss.functional as L
from fusedloss.testing.cases import (
    COLUMNS,
    DTYPES,
    LAYOUTS,
    RANGES,
    ROWS,
    SHAPE,
    channels_last,
    offset,
    stepped,
    transposed,
    weights,
)
from fusedloss.testing.catalogue import (
    LOSSES,
    Loss,
    Sampler,
    bits,
    counts,
    log_probability,
    normal,
    positive,
    probability,
    signs,
)
from fusedloss.testing.judge import FEW_ULPS, Call, numbers, ulp

pytestmark = [
    pytest.mark.core,
    pytest.mark.filterwarnings("ignore:kl_div with reduction='mean'"),
    pytest.mark.filterwarnings("ignore:Using a (target|input) size"),
]

EACH = [pytest.param(loss, id=loss.id) for loss in LOSSES]
EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)
EACH_LOSS = pytest.mark.parametrize("loss", EACH)


# ---- shapes, dtypes, reductions, weights ---------------------------------------------------------------------------


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
