"""The oracle of the losses over rows against their formulas in 80 digits, and its derivatives against differences.

Nothing here calls the library.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from mpmath import mp
from torch import Tensor

from fusedloss.testing import row_catalogue, row_definitions, row_oracle
from fusedloss.testing.cases import DTYPES
from fusedloss.testing.judge import numbers
from fusedloss.testing.oracle import STENCIL, STEP, Array, Result
from fusedloss.testing.row_cases import integers, row_cases
from fusedloss.testing.row_catalogue import IGNORED, ROW_LOSSES, RowLoss, apart, distribution, lists, logits, scores
from fusedloss.testing.row_definitions import CLIP, FORMULAS

EACH_LOSS = pytest.mark.parametrize("loss", [pytest.param(loss, id=loss.id) for loss in ROW_LOSSES])


@pytest.mark.parametrize("module", [row_oracle, row_definitions, row_catalogue])
def test_the_judge_knows_nothing_of_the_compiled_code(module: Any) -> None:
    tree = ast.parse(inspect.getsource(module))
    imported = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    oracles = {"numpy", "fusedloss.testing.oracle", "fusedloss.testing.row_definitions"}
    catalogues = {"torch", "torch.nn.functional", "fusedloss.testing", "fusedloss.testing.catalogue"}
    allowed = catalogues if module is row_catalogue else oracles
    assert {name for name in imported if name.split(".")[0] not in sys.stdlib_module_names} <= allowed


def test_every_record_has_its_own_name() -> None:
    assert len({loss.id for loss in ROW_LOSSES}) == len(ROW_LOSSES)
    assert {loss.name for loss in ROW_LOSSES} == set(FORMULAS)


# ---- the formulas in 80 digits, plain and unstable as they are in floating point ------------------------------------

Row = list[Any]


def softmax(x: Row) -> Row:
    total = sum(mp.exp(v) for v in x)
    return [mp.exp(v) / total for v in x]


def kl(p: Row, q: Row) -> Any:
    return sum(a * mp.log(a / b) for a, b in zip(p, q, strict=True) if a != 0)


def clipped(x: Row) -> Row:
    low, total = mp.mpf(CLIP), sum(x)
    return [min(max(v / total, low), 1 - low) for v in x]


def cross_entropy(
    x: Row, q: Row, w: Row, label_smoothing: Any = 0, z_loss: Any = 0, softcap: Any = None, **rest: Any
) -> Any:
    x = x if softcap is None else [softcap * mp.tanh(v / softcap) for v in x]
    lse = mp.log(sum(mp.exp(v) for v in x))
    smooth = [(1 - label_smoothing) * v + label_smoothing / len(x) for v in q]
    return sum(a * b * (lse - v) for a, b, v in zip(w, smooth, x, strict=True)) + z_loss * lse**2


def probabilities(x: Row, q: Row, w: Row, label_smoothing: Any = 0, from_logits: bool = False, **rest: Any) -> Any:
    p = softmax(x) if from_logits else clipped(x)
    smooth = [(1 - label_smoothing) * v + label_smoothing / len(x) for v in q]
    return -sum(a * b * mp.log(c) for a, b, c in zip(w, smooth, p, strict=True))


def focal(x: Row, q: Row, w: Row, gamma: Any = 2, **rest: Any) -> Any:
    return -sum(a * b * (1 - p) ** gamma * mp.log(p) for a, b, p in zip(w, q, softmax(x), strict=True))


def hinge(x: Row, q: Row, w: Row, **rest: Any) -> Any:
    """Labels have weights here, and the sampled ones in vectors have not."""
    if max(q) == 1 and rest["is_label"]:
        rivals = [v for v, t in zip(x, q, strict=True) if t == 0]
    else:
        rivals = [(1 - t) * v for v, t in zip(x, q, strict=True)]
    of_row = sum(a * t for a, t in zip(w, q, strict=True)) if rest["is_label"] else 1
    return of_row * max(0, 1 + max(rivals) - sum(t * v for v, t in zip(x, q, strict=True)))


def margins(x: Row, q: Row, w: Row, p: int = 1, margin: Any = 1, **rest: Any) -> Any:
    y = q.index(1)
    return w[y] * sum(max(0, margin - x[y] + v) ** p for c, v in enumerate(x) if c != y) / len(x)


def multilabel_margins(x: Row, target: Row, w: Row, **rest: Any) -> Any:
    true = target[: target.index(-1)] if -1 in target else target
    return sum(max(0, 1 - x[j] + v) for j in true for c, v in enumerate(x) if c not in true) / len(x)


def soft_margins(x: Row, q: Row, w: Row, **rest: Any) -> Any:
    terms = [t * mp.log1p(mp.exp(-v)) + (1 - t) * mp.log1p(mp.exp(v)) for v, t in zip(x, q, strict=True)]
    return sum(a * t for a, t in zip(w, terms, strict=True)) / len(x)


def kl_divergence(p: Row, q: Row, w: Row, from_logits: bool = False, temperature: Any = 1, **rest: Any) -> Any:
    if from_logits:
        p, q = (softmax([v / temperature for v in x]) for x in (p, q))
    return kl(p, q)


def js_divergence(
    p: Row, q: Row, w: Row, beta: Any = 0.5, from_logits: bool = False, temperature: Any = 1, **rest: Any
) -> Any:
    if from_logits:
        p, q = (softmax([v / temperature for v in x]) for x in (p, q))
    m = [beta * a + (1 - beta) * b for a, b in zip(p, q, strict=True)]
    return beta * kl(p, m) + (1 - beta) * kl(q, m)


PLAIN: dict[str, Callable[..., Any]] = {
    "cross_entropy": cross_entropy,
    "nll_loss": lambda x, q, w, **_: -sum(a * b * v for a, b, v in zip(w, q, x, strict=True)),
    "categorical_cross_entropy": probabilities,
    "sparse_categorical_cross_entropy": probabilities,
    "softmax_focal_loss": focal,
    "categorical_hinge_loss": hinge,
    "multi_margin_loss": margins,
    "multilabel_margin_loss": multilabel_margins,
    "multilabel_soft_margin_loss": soft_margins,
    "kl_divergence": kl_divergence,
    "js_divergence": js_divergence,
}

DIGITS = 80
UNITS_LOST = 2**8  # of the 29 bits that float64 has beyond float32, and of the 11 of longdouble beyond float64
ORACLES = [
    pytest.param(np.float64, torch.float32, id="float64 judges float32"),
    pytest.param(np.longdouble, torch.float64, id="longdouble judges float64"),
]
HARD = torch.tensor(
    [[-40.0, -3.125, 2.0**-13, 0.4375, 25.0], [0.25] * 5, [90.0, -90.0, 1.0, 2.0, -0.5], [3.0, 3.0, 2.9375, -1.0, 0.0]],
    dtype=torch.float64,
)


def hard_rows(loss: RowLoss) -> dict[str, Tensor]:
    """Of five classes each, exact in float32; differences of those that have corners are kept away from them."""
    given = loss.given(tuple(HARD.shape), torch.float32, seed=3, away=True)
    for k, name in enumerate(("input", "p", "q")):
        if name in given and loss.samplers[name] not in (distribution, scores) and not loss.cornered:
            given[name] = HARD.roll(k, 0)
    if "target" in given and loss.samplers["target"] is not lists and not given["target"].dim() > 1:
        given["target"] = torch.tensor([4, 1, 1, 0])
        if loss.cornered:
            given["input"] = apart(given["target"], tuple(HARD.shape), 1, torch.Generator().manual_seed(0))
    given.pop("sample_weight", None)
    given = {k: x for k, x in given.items() if not (k == "weight" and loss.name in row_oracle.DIVERGENCES)}
    return {k: x.double() if x.is_floating_point() else x for k, x in given.items()}


def loss_weight(loss: RowLoss) -> str:
    return "alpha" if loss.name == "softmax_focal_loss" else "weight"


def read(values: Row) -> Array:
    """By their decimals: numpy takes mpmath's numbers for float64."""
    return np.array([np.longdouble(mpmath.nstr(v, 30)) for v in values])


@dataclass(frozen=True)
class PlainRow:
    """The loss of one row as a function of its two operands."""

    loss: RowLoss
    weight: Row
    parameters: dict[str, Any]

    def value(self, operands: list[Row]) -> Row:
        return [PLAIN[self.loss.name](*operands, self.weight, **self.parameters)]

    def slopes(self, which: int, operands: list[Row]) -> Row:
        def along(c: int, v: Any) -> Any:
            x = operands[which]
            moved = [*x[:c], v, *x[c + 1 :]]
            return self.value([moved if k == which else o for k, o in enumerate(operands)])[0]

        return [mp.diff(partial(along, c), v) for c, v in enumerate(operands[which])]


def exact_and_unit(
    compute: Callable[[list[Row]], Row], operands: list[Row], moved: list[int], precision: Any
) -> tuple[Array, Array]:
    """Numbers, and what one rounding of each and of every operand, and the differences in 80 digits, come to."""
    exact, eps = compute(operands), mp.mpf(float(np.finfo(precision).eps))
    unit = [abs(v) * eps + mp.mpf(10) ** (20 - DIGITS) for v in exact]
    for which in moved:
        others = compute([[v * (1 + eps) for v in x] if k == which else x for k, x in enumerate(operands)])
        unit = [u + abs(a - b) for u, a, b in zip(unit, exact, others, strict=True)]
    return read(exact), read(unit)


@pytest.mark.parametrize(("precision", "dtype"), ORACLES)
@EACH_LOSS
def test_the_oracle_is_the_formula(loss: RowLoss, precision: Any, dtype: torch.dtype) -> None:
    given, names = hard_rows(loss), list(loss.samplers)
    as_number = float if dtype == torch.float64 else lambda v: float(np.float32(v))
    parameters = {k: as_number(v) if isinstance(v, float) else v for k, v in loss.parameters.items() if k != "axis"}
    parameters |= {"ignore_index": IGNORED} if "ignore_index" in parameters else {}
    arrays = {k: numbers(x, precision) if x.is_floating_point() else integers(x) for k, x in given.items()}
    result, gradients = row_oracle.results(loss.name, arrays, parameters, 1, "none")

    integral = not given[names[1]].is_floating_point()
    is_label = given[names[1]].dim() == 1
    free = [name for name in loss.differentiable if name in given]
    with mp.workdps(DIGITS):
        weight = [mp.mpf(v) for v in given.get(loss_weight(loss), torch.ones(5)).tolist()]
        temperature = {k: mp.mpf(x.item()) for k, x in given.items() if k == "temperature"}
        digits = {k: mp.mpf(v) if isinstance(v, float) else v for k, v in parameters.items()}
        plain = PlainRow(loss, weight, digits | temperature | {"is_label": is_label})
        for row in range(len(HARD)):
            first, second = (given[name][row].tolist() for name in names)
            target = [int(c == second) for c in range(5)] if is_label else second
            operands = [[mp.mpf(v) for v in first], target if integral else [mp.mpf(v) for v in target]]
            moved = [0] if integral else [0, 1]
            exact, unit = exact_and_unit(plain.value, operands, moved, precision)
            assert np.abs(result.value[row] - exact) <= UNITS_LOST * unit, f"value of row {row}, exact {exact}"
            for name in free:
                exact, unit = exact_and_unit(partial(plain.slopes, names.index(name)), operands, moved, precision)
                error = np.abs(gradients[name].value[row] - exact)
                assert (error <= UNITS_LOST * unit).all(), f"d/d{name} of row {row}, exact {exact}: {error / unit}"


# ---- derivatives against differences in longdouble -------------------------------------------------------------------


def difference(compute: Callable[[dict[str, Array]], Array], at: dict[str, Array], along: dict[str, Array]) -> Array:
    """The derivative along a direction, to the sixth power of the step."""
    total = np.longdouble(0)
    for k, factor in STENCIL.items():
        for sign in (1, -1):
            total = total + sign * factor * compute(at | {n: at[n] + sign * k * STEP * d for n, d in along.items()})
    return np.asarray(total / (60 * np.longdouble(STEP)))


@EACH_LOSS
def test_derivatives_are_differences(loss: RowLoss) -> None:
    """By every floating operand, weights included, of every reduction."""
    given = loss.given((7, 6), torch.float64, seed=5, away=True)
    arrays = {k: numbers(x, np.longdouble) if x.is_floating_point() else integers(x) for k, x in given.items()}
    parameters = {k: v for k, v in loss.parameters.items() if k != "axis"}
    axis = loss.class_axis((7, 6))
    random = np.random.default_rng(0)
    for reduction in loss.reductions:
        loss_result, _ = row_oracle.results(loss.name, arrays, parameters, axis, reduction)
        incoming = random.uniform(0.5, 1.5, loss_result.value.shape).astype(np.longdouble)
        _, gradients = row_oracle.results(loss.name, arrays, parameters, axis, reduction, incoming)

        def total(at: dict[str, Array], reduction: str = reduction, incoming: Array = incoming) -> Array:
            value = row_oracle.results(loss.name, at, parameters, axis, reduction)[0].value
            return np.asarray((value * incoming).sum())

        for name in (*loss.differentiable, *loss.learned):
            step = random.uniform(-1, 1, arrays[name].shape) / (8 if loss.cornered else 1)
            along = step * arrays[name] if loss.sampler(name) is not logits else step
            found = difference(total, arrays, {name: along.astype(np.longdouble)})
            exact = (gradients[name].value * along).sum()
            # What one rounding of every value comes to when it is divided by the step.
            unit = np.finfo(np.longdouble).eps / STEP * (loss_result.size * incoming).sum()
            assert np.abs(found - exact) <= 8 * unit, f"{name}, {reduction}: {np.abs(found - exact) / unit}"


@EACH_LOSS
def test_derivatives_along_a_direction_are_differences(loss: RowLoss) -> None:
    """Of the value and of every gradient, weights included, as all operands that may move do so at once."""
    given = loss.given((7, 6), torch.float64, seed=6, away=True)
    arrays = {k: numbers(x, np.longdouble) if x.is_floating_point() else integers(x) for k, x in given.items()}
    along = {k: numbers(x, np.longdouble) / 8 for k, x in loss.directions(given).items()}
    rest = {k: v for k, v in loss.parameters.items() if k != "axis"}, loss.class_axis((7, 6)), "mean"
    change, changes = row_oracle.results(loss.name, arrays, *rest, directions=along)

    def each(at: dict[str, Array]) -> dict[str, Result]:
        value, gradients = row_oracle.results(loss.name, at, *rest)
        return {"": value} | gradients

    for name, expected in ({"": change} | changes).items():
        found = difference(lambda at, name=name: each(at)[name].value, arrays, along)
        size = np.abs(expected.size) + np.abs(each(arrays)[name].size)
        assert (np.abs(found - expected.value) <= 1e-14 * size).all(), name or "value"


# ---- what `check` goes through ---------------------------------------------------------------------------------------


@EACH_LOSS
def test_a_check_is_of_every_kind(loss: RowLoss) -> None:
    """Every reduction, first and second derivatives, those by weights too, memory that is not dense."""
    for quick in (False, True):
        calls = list(row_cases(loss, torch.float32, "cpu", quick))
        assert {call.reduction for call in calls} == set(loss.reductions)
        assert {call.directions is not None for call in calls} == {True, False}
        assert {name for call in calls for name in call.free} == {*loss.differentiable, *loss.learned}
        assert {call.given[next(iter(loss.samplers))].is_contiguous() for call in calls} == {True, False}


@EACH_LOSS
def test_samples_keep_away_from_corners_and_are_exact(loss: RowLoss) -> None:
    """Second derivatives are differences over a step of 3/8192 of a direction of at most 1; in half types too."""
    for dtype in DTYPES:
        given = loss.given((37, 21), dtype, away=True)
        assert all(x.dtype == dtype for x in given.values() if x.is_floating_point())
        if loss.cornered:
            x = given["input"].double()
            assert torch.equal(x, loss.given((37, 21), torch.float64, away=True)["input"])
            assert x.abs().min() > 2.0**-8
            assert (x.sort(1).values.diff(dim=1) > 2.0**-6).all()
