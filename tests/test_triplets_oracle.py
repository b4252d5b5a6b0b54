"""That the judge of mined triplet losses judges: the oracle against triplets looked at one by one, against differences
in longdouble and against the formula in torch's ops; and that its samples leave nothing to rounding."""

from __future__ import annotations

import ast
import inspect
import sys
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from fusedloss.testing import triplet_catalogue, triplet_formulas, triplet_oracle
from fusedloss.testing.cases import DTYPES
from fusedloss.testing.judge import compare, numbers
from fusedloss.testing.oracle import STENCIL, Array
from fusedloss.testing.triplet_cases import SHAPE, TripletCall, of_whole_numbers, triplet_cases
from fusedloss.testing.triplet_catalogue import CLEAR, TRIPLET_LOSSES, TripletLoss
from fusedloss.testing.triplet_oracle import RULES, Given, mined, results

EACH_LOSS = pytest.mark.parametrize("loss", [pytest.param(loss, id=loss.id) for loss in TRIPLET_LOSSES])
REDUCTIONS = ("none", "mean", "sum", "mean_nonzero")


@pytest.mark.parametrize("module", [triplet_oracle, triplet_catalogue, triplet_formulas])
def test_the_judge_knows_nothing_of_the_compiled_code(module: Any) -> None:
    tree = ast.parse(inspect.getsource(module))
    imported = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    allowed = {"numpy", "fusedloss.testing.oracle"}
    if module is not triplet_oracle:
        allowed |= {"torch", "torch.nn.functional", "fusedloss.testing", "fusedloss.testing.catalogue"}
        allowed |= {f"fusedloss.testing.triplet_{part}" for part in ("formulas", "oracle")}
    assert {name for name in imported if name.split(".")[0] not in sys.stdlib_module_names} <= allowed


# ---- one by one ------------------------------------------------------------------------------------------------------


def one_by_one(x: Array, given: Given) -> list[tuple[int, int, int, Any]]:
    """Every triplet that is a term with its loss, by the words of the definition."""
    norms = [max(np.sqrt((v**2).sum()), np.longdouble(1e-12)) for v in x]
    y = [v / norm if given.normalize else v for v, norm in zip(x, norms, strict=True)]
    everyone, terms = range(len(x)), []

    def d(i: int, j: int) -> Any:
        square = ((y[i] - y[j]) ** 2).sum()
        return square if given.squared else np.sqrt(square)

    for a in everyone:
        positives = [j for j in everyone if j != a and given.labels[j] == given.labels[a]]
        negatives = [j for j in everyone if given.labels[j] != given.labels[a]]
        if not positives or not negatives:
            continue
        if given.mining == "all":
            terms += list(product([a], positives, negatives))
        elif given.mining == "batch_hard":
            terms.append((a, max(positives, key=lambda j: d(a, j)), min(negatives, key=lambda j: d(a, j))))
        else:
            for p in positives:
                farther = [n for n in negatives if d(a, n) > d(a, p)]
                n = min(farther, key=lambda j: d(a, j)) if farther else max(negatives, key=lambda j: d(a, j))
                terms.append((a, p, n))
    margin = np.longdouble(given.margin)
    return [(a, p, n, max(np.longdouble(0), d(a, p) - d(a, n) + margin)) for a, p, n in terms]


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("mining", RULES)
def test_the_oracle_looks_at_the_right_triplets(mining: str, squared: bool, normalize: bool) -> None:
    """With equal distances among whole numbers, and with none; python's max and min take the first of equals too."""
    for seed in range(12):
        random = np.random.default_rng(seed)
        count, size = int(random.integers(1, 14)), int(random.integers(1, 4))
        x = random.integers(-2, 3, (count, size)) if seed % 2 and not normalize else random.normal(size=(count, size))
        labels = random.integers(0, max(count // 3, 1) + 1, count)
        given = Given(labels, 0.7, mining, squared, normalize)
        terms = one_by_one(x.astype(np.longdouble), given)
        total = sum((f for *_, f in terms), np.longdouble(0))
        positive = sum(f > 0 for *_, f in terms)
        known = {"sum": total, "mean": total / max(len(terms), 1), "mean_nonzero": total / max(positive, 1)}
        each = np.zeros(count, np.longdouble)
        for a, _, _, f in terms:
            each[a] += f
        for reduction in REDUCTIONS:
            value, _ = results(x.astype(np.longdouble), given, reduction)
            np.testing.assert_allclose(value.value, known.get(reduction, each), rtol=1e-17, atol=1e-17)


def test_the_lowest_index_is_chosen() -> None:
    """Of a positive and of a negative, in the order of the batch; semi-hard, where a negative is as far as the positive
    it does not count as farther, and where none is farther the farthest is taken."""
    positions = np.array([0, 2, -2, 3, -3, 3, 1, -1], float)
    labels = np.array([7, 7, 7, 5, 5, 5, 4, 4])
    d = np.abs(positions[:, None] - positions)
    hard = mined(d, Given(labels))
    assert list(zip(hard.anchor, hard.positive, hard.negative, strict=True))[:2] == [(0, 1, 6), (1, 2, 3)]
    semi = mined(d, Given(labels, mining="semi_hard"))
    triplets = list(zip(semi.anchor.tolist(), semi.positive.tolist(), semi.negative.tolist(), strict=True))
    assert triplets[:4] == [(0, 1, 3), (0, 2, 3), (1, 0, 7), (1, 2, 4)]
    lone = np.array([0.0, 4, 1, -2, 2]), np.array([0, 0, 1, 1, 1])
    fallback = mined(np.abs(lone[0][:, None] - lone[0]), Given(lone[1], mining="semi_hard"))
    assert fallback.negative[:1].tolist() == [3]  # of 3 and 4, both at 2


def test_corners_and_what_is_undefined() -> None:
    """A triplet at the corner of the hinge is not counted as positive; one that is NaN is."""
    x, labels = np.array([[0.0], [1.0], [2.0]]), np.array([0, 0, 1])
    value, gradient = results(x, Given(labels, margin=1.0, mining="all"), "none")
    assert value.value.tolist() == [0.0, 1.0, 0.0]  # 1 - 2 + 1, 1 - 1 + 1
    assert results(x, Given(labels, margin=1.0, mining="all"), "mean")[0].value == 0.5
    assert results(x, Given(labels, margin=1.0, mining="all"), "mean_nonzero")[0].value == 1.0
    assert gradient["embeddings"].value.tolist() == [[-1.0], [2.0], [-1.0]]
    for mining, bad in product(RULES, range(3)):
        spoilt = x.copy()
        spoilt[bad] = np.nan
        for reduction in REDUCTIONS:
            value, gradient = results(spoilt, Given(labels, mining=mining), reduction)
            expected = [True, True, False] if reduction == "none" else True
            assert np.isnan(value.value).tolist() == expected, (mining, bad, reduction)
            assert np.isnan(gradient["embeddings"].value[[0, 1, bad]]).all()
        for nobody in (np.arange(3), np.zeros(3)):
            value, gradient = results(spoilt, Given(nobody, mining=mining), "mean")
            assert value.value == 0 and not gradient["embeddings"].value.any()


# ---- against differences ---------------------------------------------------------------------------------------------

STEP = np.longdouble(2) ** -12


def difference(compute: Any, x: Array, direction: Array) -> Array:
    """The derivative along a direction, to the sixth power of the step."""
    total = np.longdouble(0)
    for k, factor in STENCIL.items():
        total = total + factor * (compute(x + k * STEP * direction) - compute(x - k * STEP * direction))
    return np.asarray(total / (60 * STEP))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@EACH_LOSS
def test_derivatives_are_differences(loss: TripletLoss, reduction: str) -> None:
    """Over a stretch in which the choices stay what they are."""
    sampled = loss.given((11, 4), seed=3)
    given, x = loss.for_oracle(sampled["labels"]), numbers(sampled["embeddings"], np.longdouble)
    direction = np.random.default_rng(4).uniform(-1, 1, x.shape).astype(np.longdouble) / 16
    incoming = np.linspace(-1, 2, 11).astype(np.longdouble) if reduction == "none" else np.longdouble(-0.7)
    along, second = results(x, given, reduction, incoming, direction)
    value, gradient = results(x, given, reduction, incoming)
    by_difference = difference(lambda at: results(at, given, reduction)[0].value, x, direction)
    np.testing.assert_allclose(by_difference, along.value, rtol=0, atol=1e-13)
    weighted = (incoming * along.value).sum()
    np.testing.assert_allclose(weighted, (gradient["embeddings"].value * direction).sum(), rtol=1e-15, atol=1e-17)
    by_difference = difference(lambda at: results(at, given, reduction, incoming)[1]["embeddings"].value, x, direction)
    np.testing.assert_allclose(by_difference, second["embeddings"].value, rtol=0, atol=1e-12)
    for found in (value, gradient["embeddings"], second["embeddings"]):
        assert (np.abs(found.value) <= found.size * (1 + 1e-15)).all()


def test_vectors_at_the_same_place_have_no_slope() -> None:
    """Of that pair, in both orders; squared, the second derivative is 2 all the same."""
    x, labels = np.array([[1.0, 2.0], [1.0, 2.0], [4.0, 6.0]]), np.array([0, 0, 1])
    direction = np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    _, gradient = results(x, Given(labels, margin=9.0), "sum")
    np.testing.assert_allclose(gradient["embeddings"].value, [[0.6, 0.8], [0.6, 0.8], [-1.2, -1.6]], rtol=1e-15)
    _, second = results(x, Given(labels, margin=9.0), "sum", directions=direction)
    np.testing.assert_allclose(second["embeddings"].value[1], 0)
    _, squared = results(x, Given(labels, margin=99.0, squared=True), "sum", directions=direction)
    np.testing.assert_allclose(squared["embeddings"].value, [[2.0, 0], [-4.0, 0], [2.0, 0]])


# ---- against the formula ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("second", [False, True], ids=["first", "second"])
@EACH_LOSS
def test_the_oracle_is_the_formula_in_ops(loss: TripletLoss, second: bool) -> None:
    """Values and derivatives, within what float64 loses; of equal distances too."""
    samples = [loss.given(SHAPE, seed=5)]
    if not loss.parameters.get("normalize"):
        samples.append(of_whole_numbers(loss, (20, 4), torch.float64))
    for given, reduction in product(samples, loss.reductions):
        call = TripletCall(loss, given, reduction, second=second)
        shape = (len(given["labels"]),) if reduction == "none" else ()
        found, gradients = call.by_torch(torch.zeros(shape, dtype=torch.float64))
        value, slopes = call.by_oracle(torch.zeros(shape, dtype=torch.float64))
        np.testing.assert_allclose(numbers(found, np.longdouble), value.value, rtol=0, atol=1e-14 * value.size.max())
        exact, gradient = slopes["embeddings"], numbers(gradients["embeddings"], np.longdouble)
        np.testing.assert_allclose(gradient, exact.value, rtol=0, atol=1e-14 * exact.size.max())


# ---- what `check` goes through ---------------------------------------------------------------------------------------


@EACH_LOSS
def test_a_check_is_of_every_kind(loss: TripletLoss) -> None:
    """Every reduction, first and second derivatives, memory that is not dense, vectors without components."""
    for quick in (False, True):
        calls = list(triplet_cases(loss, torch.float32, "cpu", quick))
        assert {call.reduction for call in calls} == set(loss.reductions)
        assert {call.directions is not None for call in calls} == {True, False}
        assert {call.given["embeddings"].is_contiguous() for call in calls} == {True, False}
        assert quick or {0, 1} <= {call.given["embeddings"].shape[1] for call in calls}


@EACH_LOSS
def test_samples_are_of_every_kind(loss: TripletLoss) -> None:
    """Anchors and others, terms with and without a loss, labels of any size; and no choice hangs on rounding."""
    for dtype in DTYPES:
        given = loss.given(SHAPE, dtype)
        x, labels = given.values()
        assert x.dtype == dtype and loss.clearance(given) > CLEAR[dtype]
        counts = labels.unique(return_counts=True)[1]
        assert counts.min() == 1 and counts.max() > 2 and labels.min() < -(2**33) and labels.max() > 2**33
        call = TripletCall(loss, given, "none")
        values = call.by_oracle(torch.zeros(SHAPE[0], dtype=dtype))[0].value
        assert (values > 0).any()
        terms = mined(np.asarray(triplet_formulas.distances(x.double(), False)), loss.for_oracle(labels))
        assert terms.active.any() and len(set(terms.anchor.tolist())) == SHAPE[0] - 1


def test_clearance_is_the_distance_from_the_nearest_tie() -> None:
    labels = np.array([0, 0, 0, 1, 1])
    x = np.array([[0.0], [1.0], [1.0 + 1e-6], [5.0], [6.0]])
    assert triplet_oracle.clearance(x, Given(labels)) < 1e-6
    x[2] = 2.5
    assert triplet_oracle.clearance(x, Given(labels, margin=0.6)) > 1e-2
    corner = Given(labels, margin=2.5 + 1e-7, mining="batch_hard")
    assert triplet_oracle.clearance(x, corner) < 1e-6
    assert triplet_oracle.clearance(x[:, :0], Given(labels)) > 0.1  # all at 0, whatever is rounded


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("what", ["value", "gradient", "second derivative"])
@EACH_LOSS
def test_the_judge_finds_a_small_error(loss: TripletLoss, what: str, dtype: torch.dtype) -> None:
    """What torch gives is right, and wrong if it is off by 256 units more."""
    call = TripletCall(loss, loss.given(SHAPE, dtype), "none", second=what == "second derivative")
    (value, gradients), (exact, slopes) = call.references(torch.zeros(SHAPE[0], dtype=dtype))
    found, known = (value, exact) if what == "value" else (gradients["embeddings"], slopes["embeddings"])
    assert compare(what, found, found, known).wrong is None
    assert compare(what, found * (1 + 256 * torch.finfo(dtype).eps), found, known).wrong is not None
