"""That the judge of losses over alignments judges: the oracle against every path of classes, against torch's own in
float64 and against differences in longdouble."""

from __future__ import annotations

import ast
import inspect
import sys
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from fusedloss.testing import lattice_catalogue, lattice_oracle
from fusedloss.testing.cases import DTYPES
from fusedloss.testing.judge import compare, numbers
from fusedloss.testing.lattice_cases import SHAPE, LatticeCall, for_oracle, lattice_cases
from fusedloss.testing.lattice_catalogue import LATTICE_LOSSES, PADDING, LatticeLoss
from fusedloss.testing.lattice_oracle import Given, brute_force, frames_needed, sample
from fusedloss.testing.oracle import STENCIL, Array

EACH_LOSS = pytest.mark.parametrize("loss", [pytest.param(loss, id=loss.id) for loss in LATTICE_LOSSES])
BLANK = 0


@pytest.mark.parametrize("module", [lattice_oracle, lattice_catalogue])
def test_the_judge_knows_nothing_of_the_compiled_code(module: Any) -> None:
    tree = ast.parse(inspect.getsource(module))
    imported = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    oracles = {"numpy", "fusedloss.testing.oracle", "fusedloss.testing.row_definitions"}
    catalogues = {"torch", "fusedloss.testing", "fusedloss.testing.catalogue"}
    allowed = oracles if module is lattice_oracle else catalogues
    assert {name for name in imported if name.split(".")[0] not in sys.stdlib_module_names} <= allowed


# ---- against every path ----------------------------------------------------------------------------------------------


def log_probabilities(frames: int, classes: int, seed: int = 0) -> Array:
    x = np.random.default_rng(seed).normal(size=(frames, classes)).astype(np.longdouble)
    found: Array = x - np.log(np.exp(x).sum(1, keepdims=True))
    return found


@pytest.mark.parametrize("frames", range(1, 7))
def test_the_oracle_is_the_sum_over_all_paths(frames: int) -> None:
    """Of every sequence of labels that can have an alignment, and some that cannot; blanks are the first or last."""
    for blank in (0, 2):
        labels = [c for c in range(3) if c != blank]
        log_p = log_probabilities(frames, 3, seed=frames)
        for length in range(min(frames, 4) + 2):
            for wanted in product(labels, repeat=length):
                value, posterior = brute_force(log_p, wanted, blank)
                found = sample(log_p, np.array(wanted, int), blank)
                assert np.isinf(value) == (frames < frames_needed(np.array(wanted, int)))
                if np.isinf(value):
                    assert np.isposinf(found.value.value) and not found.slope.value.any() and not found.possible
                    continue
                np.testing.assert_allclose(found.value.value, value, rtol=1e-17, atol=1e-17)
                np.testing.assert_allclose(found.slope.value, np.exp(log_p) - posterior, rtol=0, atol=1e-17)


def test_impossible_classes_are_left_out() -> None:
    """-inf at some entries: of the labels, of the blank, and of classes that are not wanted."""
    random = np.random.default_rng(1)
    for seed in range(40):
        log_p = log_probabilities(5, 4, seed)
        log_p[random.random((5, 4)) < 0.25] = -np.inf
        value, posterior = brute_force(log_p, [1, 1, 2], BLANK)
        found = sample(log_p, np.array([1, 1, 2]), BLANK)
        assert found.value.value == value if np.isinf(value) else abs(found.value.value - value) < 1e-16
        slope = 0 * posterior if np.isinf(value) else np.exp(log_p) - posterior
        np.testing.assert_allclose(found.slope.value, slope, rtol=0, atol=1e-16)


def test_sequences_of_nothing() -> None:
    nothing, labels = np.zeros((0, 3)), np.array([1, 2])
    empty = sample(nothing, labels[:0], BLANK)
    assert empty.value.value == 0 and empty.possible and empty.slope.value.shape == (0, 3)
    assert sample(nothing, labels, BLANK).value.value == np.inf
    log_p = log_probabilities(4, 3)
    only_blanks = sample(log_p, labels[:0], BLANK)
    np.testing.assert_allclose(only_blanks.value.value, -log_p[:, BLANK].sum(), rtol=1e-18)
    np.testing.assert_allclose(only_blanks.slope.value, np.exp(log_p) - (np.arange(3) == BLANK), atol=1e-18)


def test_undefined_entries() -> None:
    """NaN where a state has it; of a class that no state has, only the slope there."""
    log_p, labels = log_probabilities(4, 4), np.array([1, 3])
    for bad, column in product((np.nan, np.inf), (0, 1, 3)):
        spoilt = log_p.copy()
        spoilt[2, column] = bad
        found = sample(spoilt, labels, BLANK)
        assert np.isnan(found.value.value) and np.isnan(found.slope.value).all()
    spoilt = log_p.copy()
    spoilt[2, 2] = np.nan
    found, clean = sample(spoilt, labels, BLANK), sample(log_p, labels, BLANK)
    assert found.value.value == clean.value.value
    assert (np.isnan(found.slope.value) == np.isnan(spoilt)).all()
    with np.errstate(all="ignore"):
        assert np.isnan(sample(spoilt, labels, BLANK, from_logits=True).value.value)


# ---- against torch ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "reduction"), [(SHAPE, "none"), (SHAPE, "mean"), ((40, 5, 3), "sum"), ((200, 1, 30), "mean")]
)
@EACH_LOSS
def test_the_oracle_is_torchs_own(loss: LatticeLoss, shape: tuple[int, ...], reduction: str) -> None:
    """Within what torch loses in float64; its derivative where there is no alignment is not asked for."""
    call = LatticeCall(loss, loss.given(shape, seed=len(reduction)), reduction)
    theirs, gradients = call.by_torch(torch.zeros(shape[1] if reduction == "none" else (), dtype=torch.float64))
    value, slopes = call.by_oracle(theirs)
    np.testing.assert_allclose(numbers(theirs, np.longdouble), value.value, rtol=1e-13)
    gradient = numbers(gradients["log_probs"], np.longdouble)
    np.testing.assert_allclose(gradient, slopes["log_probs"].value, rtol=0, atol=1e-12)


@pytest.mark.parametrize("second", [False, True], ids=["first", "second"])
@EACH_LOSS
def test_derivatives_are_those_of_the_formula_in_ops(loss: LatticeLoss, second: bool) -> None:
    """Second ones judge where torch has none."""
    given = loss.given(SHAPE, seed=5)
    call = LatticeCall(loss, given, "mean" if second else "none", second=second)
    leaf = given["log_probs"].clone().requires_grad_()
    assert loss.in_ops is not None
    result = loss.in_ops(leaf, *list(given.values())[1:], **loss.parameters, reduction=call.reduction)
    found, gradients = call.derivatives(result, {"log_probs": leaf}, call.grad_output(result), torch.float64)
    value, slopes = call.by_oracle(result)
    np.testing.assert_allclose(numbers(found, np.longdouble), value.value, rtol=0, atol=1e-13 * value.size.max())
    gradient = numbers(gradients["log_probs"], np.longdouble)
    np.testing.assert_allclose(gradient, slopes["log_probs"].value, rtol=0, atol=1e-13)


# ---- against differences ---------------------------------------------------------------------------------------------

STEP = np.longdouble(2) ** -8


def difference(compute: Any, x: Array, direction: Array) -> Array:
    """The derivative along a direction, to the sixth power of the step."""
    total = np.longdouble(0)
    for k, factor in STENCIL.items():
        total = total + factor * (compute(x + k * STEP * direction) - compute(x - k * STEP * direction))
    return np.asarray(total / (60 * STEP))


@pytest.mark.parametrize("from_logits", [False, True])
def test_derivatives_are_differences(from_logits: bool) -> None:
    """The first ones of -log Z + sum exp(log p), for log-probabilities; the second ones of the first."""
    labels = np.array([2, 2, 1, 3])
    x = log_probabilities(12, 5, seed=3)
    direction = np.random.default_rng(4).uniform(-1, 1, x.shape).astype(np.longdouble)

    def potential(at: Array) -> Array:
        value = sample(at, labels, BLANK, from_logits).value.value
        return np.asarray(value if from_logits else value + np.exp(at).sum())

    along = sample(x, labels, BLANK, from_logits, direction)
    by_difference = difference(potential, x, direction)
    np.testing.assert_allclose(by_difference, along.value.value, rtol=0, atol=1e-13)
    slope = sample(x, labels, BLANK, from_logits).slope.value
    np.testing.assert_allclose(along.value.value, (slope * direction).sum(), rtol=1e-17)
    by_difference = difference(lambda at: sample(at, labels, BLANK, from_logits).slope.value, x, direction)
    np.testing.assert_allclose(by_difference, along.slope.value, rtol=0, atol=1e-13)


def test_reductions_and_incoming_gradients() -> None:
    """'mean' divides by the lengths of the targets and then by the samples; what comes in is a factor of each."""
    x = np.stack([log_probabilities(6, 4, seed) for seed in range(3)], axis=1)
    given = Given(np.array([[1, 2, 3], [1, 1, 0], [0, 0, 0]]), np.array([6, 5, 4]), np.array([3, 2, 0]))
    values, slopes = lattice_oracle.results(x, given, "none")
    each = [sample(x[:n, k], given.targets[k, :m]) for k, (n, m) in enumerate([(6, 3), (5, 2), (4, 0)])]
    assert values.value.tolist() == [s.value.value for s in each]
    assert not slopes["log_probs"].value[5:, 1].any() and not slopes["log_probs"].value[4:, 2].any()
    np.testing.assert_array_equal(slopes["log_probs"].value[:5, 1], each[1].slope.value)
    mean, mean_slopes = lattice_oracle.results(x, given, "mean", np.asarray(-2.0))
    lengths = np.array([3, 2, 1])
    np.testing.assert_allclose(mean.value, (values.value / lengths).mean(), rtol=1e-18)
    expected = -2 * slopes["log_probs"].value / lengths[:, None] / 3
    np.testing.assert_allclose(mean_slopes["log_probs"].value, expected, rtol=1e-18)
    incoming = np.array([1.0, np.nan, 3.0])
    of_nan = lattice_oracle.results(x, given, "none", incoming)[1]["log_probs"].value
    assert np.isnan(of_nan[:5, 1]).all() and not np.isnan(of_nan[:, [0, 2]]).any() and not of_nan[5:, 1].any()


def test_concatenated_targets_are_padded_ones() -> None:
    x = np.stack([log_probabilities(6, 4, seed) for seed in range(3)], axis=1)
    lengths = np.array([3, 0, 2]), np.array([6, 6, 6])
    padded = Given(np.array([[1, 2, 3], [9, 9, 9], [1, 1, 9]]), lengths[1], lengths[0])
    concatenated = Given(np.array([1, 2, 3, 1, 1]), lengths[1], lengths[0])
    one, other = (lattice_oracle.results(x, given, "none")[0].value for given in (padded, concatenated))
    np.testing.assert_array_equal(one, other)


# ---- what `check` goes through ---------------------------------------------------------------------------------------


@EACH_LOSS
def test_a_check_is_of_every_kind(loss: LatticeLoss) -> None:
    """Every reduction, first and second derivatives, one sequence alone, memory that is not dense."""
    for quick in (False, True):
        calls = list(lattice_cases(loss, torch.float32, "cpu", quick))
        assert {call.reduction for call in calls} == set(loss.reductions)
        assert {call.directions is not None for call in calls} == {True, False}
        assert {call.given["log_probs"].dim() for call in calls} == {2, 3}
        assert {call.given["log_probs"].is_contiguous() for call in calls} == {True, False}


@EACH_LOSS
def test_samples_are_of_every_kind(loss: LatticeLoss) -> None:
    """Frames past the end, sequences without labels, labels twice in a row, what must not be read behind them."""
    for dtype in DTYPES:
        given = loss.given((30, 40, 4), dtype)
        targets, frames, lengths = list(given.values())[1:]
        assert given["log_probs"].dtype == dtype
        labels = lattice_oracle.sequences(targets.numpy(), lengths.numpy())
        assert all(((y >= 0) & (y < 4) & (y != loss.blank)).all() for y in labels)
        assert (frames < 30).any() and (frames <= 30).all() and (lengths == 0).any()
        repeats = [frames_needed(y) - len(y) for y in labels]
        assert max(repeats) > 0
        possible = [frames_needed(y) <= n for y, n in zip(labels, frames.tolist(), strict=True)]
        assert all(possible) != loss.impossible and any(possible)
        assert (targets == PADDING).any() == (targets.dim() == 2)
        assert for_oracle(loss, given).blank == loss.blank


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("what", ["value", "gradient", "second derivative"])
@pytest.mark.parametrize("loss", [LATTICE_LOSSES[0], LATTICE_LOSSES[2]], ids=["log_probs", "logits"])
def test_the_judge_finds_a_small_error(loss: LatticeLoss, what: str, dtype: torch.dtype) -> None:
    """What torch gives is right, and wrong if it is off by 256 units more."""
    call = LatticeCall(loss, loss.given(SHAPE, dtype), "none", second=what == "second derivative")
    (value, gradients), (exact, slopes) = call.references(torch.zeros(SHAPE[1], dtype=dtype))
    found, known = (value, exact) if what == "value" else (gradients["log_probs"], slopes["log_probs"])
    assert compare(what, found, found, known).wrong is None
    assert compare(what, found * (1 + 256 * torch.finfo(dtype).eps), found, known).wrong is not None
