"""The oracle against the formulas in 80 digits, and by these the second derivatives, which the oracle does not have.

The formulas here are written the plain way, unstable as they are in floating point, and derivatives are differences of
them. Whatever the oracle does for the sake of accuracy is thereby shown to be the same function.

A result that moves far where an operand moves by one rounding cannot be known better than that: the unit of every
comparison is what one rounding of the result and one of every operand come to.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations_with_replacement, product
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from mpmath import mp
from torch import Tensor

from fusedloss.testing import oracle
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
from fusedloss.testing.judge import FEW_ULPS

pytestmark = [pytest.mark.core, pytest.mark.filterwarnings("ignore:kl_div with reduction='mean'")]

DIGITS = 80
MOST_POINTS = 60
# The oracle has 29 bits more than float32 and 11 more than float64; of these it may lose 8 and leave the rest.
ORACLES = [
    pytest.param(np.float64, torch.float32, id="float64 judges float32"),
    pytest.param(np.longdouble, torch.float64, id="longdouble judges float64"),
]
UNITS_LOST = 2**8

EACH_LOSS = pytest.mark.parametrize("loss", [pytest.param(loss, id=loss.id) for loss in LOSSES])

# Exact in float32 and half a step away from every corner.
POINTS: dict[Sampler, list[float]] = {
    normal: [-40.0, -3.125, -0.25, 2.0**-13, 0.4375, 1.96875, 25.0],
    positive: [2.0**-10, 0.15625, 0.4375, 0.875, 1.75, 30.0],
    counts: [0.0, 1.0, 2.0, 7.0],
    probability: [2.0**-12, 0.15625, 0.5, 0.84375, 1 - 2.0**-10],
    bits: [0.0, 1.0],
    signs: [-1.0, 1.0],
    log_probability: [-30.0, -2.75, -0.5, -(2.0**-12)],
}

Array = np.ndarray[Any, Any]
Number = Any  # mpmath is not typed


def _softplus(x: Number) -> Number:
    return mp.log1p(mp.exp(x))


def _huber(x: Number, y: Number, delta: float) -> Number:
    r = abs(x - y)
    return r**2 / 2 if r <= delta else delta * r - mp.mpf(delta) ** 2 / 2


def _smooth_l1(x: Number, y: Number, beta: float) -> Number:
    r = abs(x - y)
    return r**2 / (2 * mp.mpf(beta)) if r < beta else r - mp.mpf(beta) / 2


def _poisson(x: Number, y: Number, log_input: bool = True, full: bool = False, eps: float = 1e-8) -> Number:
    value = mp.exp(x) - y * x if log_input else x - y * mp.log(x + mp.mpf(eps))
    return value + y * mp.log(y) - y + mp.log(2 * mp.pi * y) / 2 if full and y > 1 else value


def _gaussian(x: Number, y: Number, var: Number, full: bool = False, eps: float = 1e-6) -> Number:
    v = max(var, mp.mpf(eps))
    return (mp.log(v) + (x - y) ** 2 / v + (mp.log(2 * mp.pi) if full else 0)) / 2


def _with_logits(x: Number, y: Number, pos_weight: Number = 1, label_smoothing: float = 0.0) -> Number:
    s = mp.mpf(label_smoothing)
    y = y * (1 - s) + s / 2
    return pos_weight * y * _softplus(-x) + (1 - y) * _softplus(x)


def _focal(x: Number, y: Number, alpha: float, gamma: float) -> Number:
    wrong = y / (1 + mp.exp(x)) + (1 - y) / (1 + mp.exp(-x))
    a = mp.mpf(alpha)
    balance = 1 if alpha < 0 else a * y + (1 - a) * (1 - y)
    return balance * wrong ** mp.mpf(gamma) * _with_logits(x, y)


def _hinge(x: Number, y: Number, target_01: bool = False) -> Number:
    return max(0, 1 - (2 * y - 1 if target_01 else y) * x)


def _kl_div(x: Number, y: Number, log_target: bool = False) -> Number:
    p = mp.exp(y) if log_target else y
    return p * (mp.log(p) - x)


FORMULAS: dict[str, Callable[..., Number]] = {
    "mse_loss": lambda x, y: (x - y) ** 2,
    "l1_loss": lambda x, y: abs(x - y),
    "huber_loss": _huber,
    "smooth_l1_loss": _smooth_l1,
    "log_cosh_loss": lambda x, y: mp.log(mp.cosh(x - y)),
    "quantile_loss": lambda x, y, q: max(mp.mpf(q) * (y - x), (mp.mpf(q) - 1) * (y - x)),
    "mean_squared_log_error": lambda x, y: (mp.log(1 + max(x, 1e-7)) - mp.log(1 + max(y, 1e-7))) ** 2,
    "mean_absolute_percentage_error": lambda x, y: 100 * abs(y - x) / max(abs(y), 1e-7),
    "poisson_nll_loss": _poisson,
    "gaussian_nll_loss": _gaussian,
    "binary_cross_entropy": lambda p, y: -y * max(mp.log(p), -100) - (1 - y) * max(mp.log(1 - p), -100),
    "binary_cross_entropy_with_logits": _with_logits,
    "sigmoid_focal_loss": _focal,
    "hinge_loss": _hinge,
    "squared_hinge_loss": lambda *operands, **parameters: _hinge(*operands, **parameters) ** 2,
    "soft_margin_loss": lambda x, y: mp.log1p(mp.exp(-y * x)),
    "hinge_embedding_loss": lambda x, y, margin: x if y == 1 else max(0, mp.mpf(margin) - x),
    "margin_ranking_loss": lambda a, b, y, margin: max(0, -y * (a - b) + mp.mpf(margin)),
    "kl_div": _kl_div,
    "gaussian_kl": lambda mean, log_var: -(1 + log_var - mean**2 - mp.exp(log_var)) / 2,
}


Columns = dict[str, list[Number]]  # operands by name


def points(loss: Loss) -> dict[str, Tensor]:
    """Combinations of the operands' points that keep away from the corners."""
    samplers = loss.samplers | loss.keyword_operands
    table = torch.tensor(list(product(*(POINTS[s] for s in samplers.values()))), dtype=torch.float64)
    if loss.corners is not None:
        table = table[loss.corners(*table.unbind(1)[: len(loss.samplers)]).abs() > 1e-6]
    some = torch.randperm(len(table), generator=torch.Generator().manual_seed(0))[:MOST_POINTS]
    return dict(zip(samplers, table[some].unbind(1), strict=True))


def parameters_in(loss: Loss, dtype: torch.dtype) -> dict[str, Any]:
    """Each as the number of that dtype as which it takes part."""
    as_number = float if dtype == torch.float64 else lambda v: float(np.float32(v))
    return {k: v if isinstance(v, bool) else as_number(v) for k, v in loss.parameters.items()}


def derivative(loss: Loss, at: Columns, by: tuple[str, ...], parameters: dict[str, Any]) -> list[Number]:
    """The partial derivative of the loss by those operands (the loss itself by none), at every point."""
    positional = len(loss.samplers)
    orders = tuple(by.count(name) for name in at)

    def formula(*values: Number) -> Number:
        keywords = dict(zip(loss.keyword_operands, values[positional:], strict=True))
        return FORMULAS[loss.name](*values[:positional], **keywords, **parameters)

    rows = zip(*at.values(), strict=True)
    return [mp.diff(formula, row, orders) if by else formula(*row) for row in rows]


def read(numbers: list[Number]) -> Array:
    """By their decimals: numpy takes mpmath's numbers for float64."""
    return np.array([np.longdouble(mpmath.nstr(v, 30)) for v in numbers])


def exact_and_unit(
    loss: Loss, at: dict[str, Tensor], by: tuple[str, ...], dtype: torch.dtype, precision: Any
) -> tuple[Array, Array]:
    """A derivative, and what one rounding in that precision of itself and of every operand comes to."""
    parameters = parameters_in(loss, dtype)
    with mp.workdps(DIGITS):
        eps = mp.mpf(float(np.finfo(precision).eps))
        columns = {name: [mp.mpf(v) for v in column.tolist()] for name, column in at.items()}
        exact = derivative(loss, columns, by, parameters)
        left_by_differences = max(map(abs, exact)) * mp.mpf(10) ** (20 - DIGITS)
        unit = [abs(v) * eps + left_by_differences for v in exact]
        for name, column in columns.items():
            moved = derivative(loss, columns | {name: [v * (1 + eps) for v in column]}, by, parameters)
            unit = [u + abs(a - b) for u, a, b in zip(unit, exact, moved, strict=True)]
        return read(exact), read(unit)


@pytest.mark.parametrize(("precision", "dtype"), ORACLES)
@EACH_LOSS
def test_the_oracle_is_the_formula(loss: Loss, precision: Any, dtype: torch.dtype) -> None:
    at = points(loss)
    operands = {name: column.numpy().astype(precision) for name, column in at.items()}
    value, partials = oracle.elementwise(loss.name, operands, parameters_in(loss, dtype))
    free = [*loss.differentiable, *loss.keyword_operands]
    assert set(free) <= set(partials)
    for by, found in [((), value), *(((name,), partials[name]) for name in free)]:
        exact, unit = exact_and_unit(loss, at, by, dtype, precision)
        lost = np.abs(found - exact) > UNITS_LOST * unit
        assert not lost.any(), f"derivative by {by}: got {found[lost]}, exact {exact[lost]}"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@EACH_LOSS
def test_second_derivatives_are_those_of_the_formula(loss: Loss, dtype: torch.dtype) -> None:
    """By the rule of judge.py, for every element on its own: twice torch's error, plus a few units."""
    at = points(loss)
    free = [*loss.differentiable, *loss.keyword_operands]

    def second(call: Callable[..., Tensor], one: str, other: str) -> Array:
        leaves = {k: x.to(dtype).requires_grad_(k in (one, other)) for k, x in at.items()}
        positional = [leaves[name] for name in loss.samplers]
        total = call(*positional, **{k: leaves[k] for k in loss.keyword_operands}, reduction="none").sum()
        (slope,) = torch.autograd.grad(total, leaves[one], create_graph=True)
        if not slope.requires_grad:
            return np.zeros(len(slope))
        (change,) = torch.autograd.grad(slope.sum(), leaves[other], materialize_grads=True)
        return change.double().numpy(force=True)  # zeros may have no memory

    precision = np.float64 if dtype == torch.float64 else np.float32
    for one, other in combinations_with_replacement(free, 2):
        exact, unit = exact_and_unit(loss, at, (one, other), dtype, precision)
        allowed = FEW_ULPS * np.maximum(unit, torch.finfo(dtype).tiny * torch.finfo(dtype).eps)
        if "pos_weight" not in (one, other):  # by which torch has no derivative
            theirs = np.abs(second(loss.torch, one, other) - exact)
            allowed += 2 * np.where(np.isfinite(theirs), theirs, 0)
        for a, b in {(one, other), (other, one)}:
            ours = second(loss, a, b)
            off = ~(np.abs(ours - exact) <= allowed)
            assert not off.any(), (
                f"d2/d{a}d{b} at {[(k, x[off].tolist()) for k, x in at.items()]}: got {ours[off]}, "
                f"exact {exact[off]}, allowed {allowed[off]}"
            )


LABELLED = [p for p in LOSSES if "target" in p.samplers and "target" not in p.differentiable]


# A label of hinge_embedding_loss chooses between two formulas and has no slope.
@pytest.mark.parametrize(
    "loss", [pytest.param(loss, id=loss.id) for loss in LABELLED if loss.name != "hinge_embedding_loss"]
)
def test_a_label_that_requires_its_gradient_has_the_slope_of_the_formula(loss: Loss) -> None:
    """Finite differences cannot tell: a label between two others is refused."""
    at = points(loss)
    exact, unit = exact_and_unit(loss, at, ("target",), torch.float64, np.float64)
    leaves = {name: column.clone().requires_grad_(name == "target") for name, column in at.items()}
    (slope,) = torch.autograd.grad(loss(*leaves.values(), reduction="sum"), leaves["target"])
    assert (np.abs(slope.numpy() - exact) <= FEW_ULPS * unit).all()
    assert slope.any()
