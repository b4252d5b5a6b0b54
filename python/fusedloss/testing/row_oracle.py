"""What every loss over rows of classes is, independently of the library.

``row_definitions`` has the formulas of one row; here is what all losses share: rows that do not count, factors of rows,
reductions with their denominators, and derivatives along a direction. All is numpy, in the dtype of the operands:
float64 judges what was computed in float32, longdouble what was computed in float64.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from fusedloss.testing.oracle import STENCIL, STEP, Array, Both, Result, constant, sum_to
from fusedloss.testing.row_definitions import FORMULAS, Rows, one_hot

DIVERGENCES = {"kl_divergence", "js_divergence"}
# Those whose mean over labels is divided by the sum of the weights of the labels.
MEAN_OF_WEIGHTS = {"cross_entropy", "nll_loss"}
ZERO_OF_NOTHING = {"sparse_categorical_cross_entropy"}


# ---- rows that count, and reductions -------------------------------------------------------------------------------


class Given:
    """The operands of one call, as rows."""

    def __init__(self, name: str, operands: dict[str, Array], parameters: dict[str, Any], axis: int) -> None:
        self.name, self.operands, self.axis = name, operands, axis
        (self.first, x), (self.second, y) = list(operands.items())[:2]
        self.shape = x.shape
        self.rows_shape = tuple(n for d, n in enumerate(x.shape) if d != axis % x.ndim)
        self.x = self.as_rows(x)
        self.y = self.as_rows(y) if y.ndim == x.ndim else y.reshape(-1)
        self.parameters = dict(parameters)
        self.zero_of_nothing = name in ZERO_OF_NOTHING or self.parameters.pop("all_ignored", "nan") == "zero"
        given_ignored = [self.parameters.pop(k, None) for k in ("ignore_index", "ignore_class")]
        ignored = next((k for k in given_ignored if k is not None), -100 if name not in ZERO_OF_NOTHING else None)
        self.counts = np.ones(len(self.x), bool)
        if ignored is not None and self.y.ndim == 1:
            self.counts = self.y != ignored
        elif ignored is not None and 0 <= ignored < self.x.shape[1]:
            self.counts = self.y.argmax(1) != ignored
        rest = dict(list(operands.items())[2:])
        self.row_factor_name = "weight" if name in DIVERGENCES else "sample_weight"
        self.class_weight_name = "alpha" if name == "softmax_focal_loss" else "weight"
        factor = rest.pop(self.row_factor_name, None)
        self.factor = np.ones_like(self.x[:, 0])
        if factor is not None:
            self.factor = np.broadcast_to(factor, self.rows_shape).reshape(-1)
        if name not in DIVERGENCES:
            self.counts = self.counts & (self.factor != 0)
            self.weight = rest.pop(self.class_weight_name, np.ones(self.x.shape[1], self.x.dtype))
        if "temperature" in rest:
            self.parameters["temperature"] = self.as_rows(np.broadcast_to(rest["temperature"], self.shape))

    def as_rows(self, x: Array) -> Array:
        return np.moveaxis(x, self.axis, -1).reshape(math.prod(self.rows_shape), x.shape[self.axis])

    def from_rows(self, x: Array) -> Array:
        return np.moveaxis(x.reshape(*self.rows_shape, x.shape[-1]), -1, self.axis)

    def made(self) -> Rows:
        weight = () if self.name in DIVERGENCES else (self.weight,)
        return FORMULAS[self.name](self.x, self.y, *weight, **self.parameters)


def results(
    name: str,
    operands: dict[str, Array],
    parameters: dict[str, Any],
    axis: int,
    reduction: str,
    grad_output: Array | None = None,
    directions: dict[str, Array] | None = None,
) -> Both:
    """The loss, and the derivative of sum(grad_output * loss) by every operand.

    With directions, how fast all of these change as the operands move along; no operand may be within STEP * 3 * its
    direction of a place where a derivative jumps.
    """
    given = Given(name, operands, parameters, axis)
    with np.errstate(all="ignore"):
        if directions is None:
            return reduced(given, given.made(), reduction, grad_output)
        total: Rows | None = None
        for steps, factor in [(sign * k, sign * factor) for k, factor in STENCIL.items() for sign in (1, -1)]:
            moved = {k: operands[k] + constant(steps * STEP, d) * d for k, d in directions.items()}
            made = scaled(Given(name, operands | moved, parameters, axis).made(), factor / (60 * STEP))
            total = made if total is None else added(total, made)
        assert total is not None  # STENCIL is not empty
        return reduced(given, replace(total, size=np.abs(total.value)), reduction, grad_output)


def scaled(made: Rows, factor: float) -> Rows:
    f = constant(factor, made.value)
    by_weight = None if made.by_weight is None else made.by_weight * f
    return Rows(made.value * f, made.size, {k: g * f for k, g in made.partials.items()}, {}, by_weight)


def added(one: Rows, other: Rows) -> Rows:
    by_weight = None if one.by_weight is None or other.by_weight is None else one.by_weight + other.by_weight
    partials = {k: g + other.partials[k] for k, g in one.partials.items()}
    return Rows(one.value + other.value, one.size, partials, {}, by_weight)


def reduced(given: Given, made: Rows, reduction: str, grad_output: Array | None) -> Both:
    counts, one = given.counts, np.ones_like(made.value)
    labels_share = given.name in MEAN_OF_WEIGHTS and given.y.ndim == 1
    share_by_weight = one_hot(given.y, given.x) if labels_share else np.zeros_like(given.x)
    share = (share_by_weight * given.weight).sum(1) if labels_share else one
    if given.name not in DIVERGENCES:
        share = np.where(counts, share, 0)
    weighted_share = share if given.name in DIVERGENCES else share * given.factor

    values = np.where(counts, given.factor * made.value, 0)
    sizes = np.where(counts, np.abs(given.factor) * made.size, 0)
    denominator = constant(1, one) if reduction in ("none", "sum") else weighted_share.sum()
    if reduction not in ("none", "sum") and denominator == 0 and given.zero_of_nothing:
        denominator = denominator + 1
    mean = 0 * denominator
    if reduction == "none":
        loss = Result(values.reshape(given.rows_shape), sizes.reshape(given.rows_shape))
    else:
        loss = Result(values.sum() / denominator, sizes.sum() / np.abs(denominator))
        mean = loss.value if reduction != "sum" else mean
    incoming = np.ones_like(loss.value) if grad_output is None else grad_output
    g = np.broadcast_to(incoming.reshape(-1), one.shape) / denominator

    of_row = np.where(counts, g * given.factor, 0)[:, None]
    gradients = {}
    for name, partial in made.partials.items():
        if name in given.operands and np.issubdtype(given.operands[name].dtype, np.floating):
            shape, size = given.operands[name].shape, made.sizes.get(name, np.abs(partial))
            full, sizes = (np.where(counts[:, None], f * x, 0) for f, x in ((of_row, partial), (np.abs(of_row), size)))
            gradients[name] = Result(*(sum_to(given.from_rows(x), shape).value for x in (full, sizes)))
    if given.row_factor_name in given.operands:
        terms = g * np.where(counts, made.value, 0), g * mean * (share if given.name not in DIVERGENCES else 0)
        shape = given.operands[given.row_factor_name].shape
        both = [t.reshape(given.rows_shape) for t in (terms[0] - terms[1], np.abs(terms[0]) + np.abs(terms[1]))]
        gradients[given.row_factor_name] = Result(sum_to(both[0], shape).value, sum_to(both[1], shape).value)
    if given.class_weight_name in given.operands and made.by_weight is not None:
        parts = of_row * made.by_weight, of_row * mean * share_by_weight
        parts = np.where(counts[:, None], parts[0], 0), np.where(counts[:, None], parts[1], 0)
        size = (np.abs(parts[0]) + np.abs(parts[1])).sum(0)
        gradients[given.class_weight_name] = Result((parts[0] - parts[1]).sum(0), size)
    return loss, gradients


def expected(
    name: str,
    operands: dict[str, Array],
    parameters: dict[str, Any],
    axis: int,
    reduction: str,
    grad_output: Array | None = None,
    rounding: float = 0.0,
    directions: dict[str, Array] | None = None,
) -> Both:
    """`results`, with their sensitivity to a relative change of the operands by `rounding`, if one is given."""
    rest = parameters, axis, reduction, grad_output, directions
    loss, gradients = results(name, operands, *rest)
    if not rounding:
        return loss, gradients
    if directions is not None:
        loss, gradients = with_sizes_along(
            (loss, gradients), [results(name, operands, *rest[:-1], part) for part in parts(directions, axis)]
        )
    step = rounding if directions is None else max(rounding, 2.0**-24)  # differences do not see a smaller one
    # All operands at once, one up and the next down, so that what they have in common does not hide a change.
    floats = [k for k, x in operands.items() if np.issubdtype(x.dtype, np.floating)]
    moved = {k: operands[k] * (1 + constant((-1) ** i * step, operands[k])) for i, k in enumerate(floats)}
    value, others = results(name, operands | moved, *rest)
    with np.errstate(all="ignore"):
        factor = constant(rounding / step, loss.value)
        return with_change(loss, value, factor), {k: with_change(x, others[k], factor) for k, x in gradients.items()}


def with_change(found: Result, moved: Result, factor: Any) -> Result:
    return replace(found, sensitivity=np.nan_to_num(np.abs(moved.value - found.value) * factor))


PARTS = 4


def parts(directions: dict[str, Array], axis: int) -> list[dict[str, Array]]:
    """The directions, every one with a quarter of the classes."""
    found = []
    for k in range(PARTS):
        part = {}
        for name, d in directions.items():
            classes = np.moveaxis(d, axis, -1) if d.ndim else d[None]
            mine = np.arange(classes.shape[-1]) % PARTS == k
            part[name] = np.moveaxis(classes * mine, -1, axis) if d.ndim else (classes * mine)[0]
        found.append(part)
    return found


def with_sizes_along(found: Both, of_parts: list[Both]) -> Both:
    """A change is the sum of what the classes of a direction do: of the size of what a few parts of them add up to."""
    loss, gradients = found
    size = sum(np.abs(one.value) for one, _ in of_parts)
    sizes = {k: sum(np.abs(others[k].value) for _, others in of_parts) for k in gradients}
    # A loss of many rows is also the sum of these.
    loss = replace(loss, size=np.maximum(loss.size, size))
    return loss, {k: replace(x, size=np.maximum(x.size, sizes[k])) for k, x in gradients.items()}
