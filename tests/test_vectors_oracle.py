"""That the judge of losses of vectors judges: the oracle against torch in float64, against differences in longdouble,
and where a derivative does not exist."""

from __future__ import annotations

import ast
import inspect
import math
import sys
from typing import Any

import numpy as np
import pytest
import torch

from fusedloss.testing import vector_catalogue, vector_oracle
from fusedloss.testing.cases import DTYPES
from fusedloss.testing.judge import compare, numbers
from fusedloss.testing.oracle import STENCIL, Array
from fusedloss.testing.vector_cases import VectorCall, vector_cases
from fusedloss.testing.vector_catalogue import VECTOR_LOSSES, VectorLoss
from fusedloss.testing.vector_oracle import along, cosine_similarity, p_norm, results, room

EACH_LOSS = pytest.mark.parametrize("loss", [pytest.param(loss, id=loss.id) for loss in VECTOR_LOSSES])
SHAPES = [(37, 21), (2, 3, 4), (5,), (4, 1), (2, 0)]


@pytest.mark.parametrize("module", [vector_oracle, vector_catalogue])
def test_the_judge_knows_nothing_of_the_compiled_code(module: Any) -> None:
    tree = ast.parse(inspect.getsource(module))
    imported = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    oracles = {"numpy", "torch", "fusedloss.testing.oracle"}
    catalogues = {"torch", "torch.nn.functional", "fusedloss.testing", "fusedloss.testing.catalogue"}
    catalogues |= {"fusedloss.testing.vector_oracle"}
    allowed = oracles if module is vector_oracle else catalogues
    assert {name for name in imported if name.split(".")[0] not in sys.stdlib_module_names} <= allowed


# ---- against torch ---------------------------------------------------------------------------------------------------


def assert_agrees(call: VectorCall, tolerance: float) -> None:
    """torch and the oracle, in all derivatives."""
    shape = torch.broadcast_shapes(*(call.given[k].shape for k in call.loss.vectors))[:-1]
    like = torch.zeros(shape if call.reduction == "none" else (), dtype=torch.float64)
    (value, gradients), (exact, slopes) = call.references(like)
    assert set(gradients) == set(call.free) <= set(slopes)
    for what, found, known in [("value", value, exact), *((k, x, slopes[k]) for k, x in gradients.items())]:
        bound = tolerance * np.maximum(known.size, 1)
        off = np.abs(numbers(found, np.longdouble) - known.value)
        assert (off <= bound).all(), f"{what} of {call}: {off.max()}"
        # The size is that of all that was added up, and everything is computed in longdouble.
        assert (known.size * (1 + 1e-15) >= np.abs(known.value)).all(), f"{what} of {call}"
        assert known.value.dtype == known.size.dtype == known.sensitivity.dtype == np.longdouble  # type: ignore[union-attr]


@EACH_LOSS
def test_the_oracle_is_torchs_own(loss: VectorLoss) -> None:
    """Value and gradient, with those by targets and weights."""
    for shape in SHAPES:
        if shape[-1] == 0 and loss.parameters.get("p") == math.inf:
            continue  # torch has no largest of nothing
        given = loss.given(shape, seed=len(shape))
        for reduction in loss.reductions:
            assert_agrees(VectorCall(loss, given, reduction, free=(*loss.differentiable, *loss.learned)), 1e-13)


@EACH_LOSS
def test_second_derivatives_are_torchs(loss: VectorLoss) -> None:
    for shape in SHAPES[:3]:
        given = loss.given(shape, seed=len(shape), away=True)
        for reduction in ("none", "mean"):
            assert_agrees(VectorCall(loss, given, reduction, second=True), 1e-11)


@EACH_LOSS
def test_vectors_of_other_shapes_are_broadcast(loss: VectorLoss) -> None:
    wide, (first, *others) = loss.given((3, 4, 5), seed=2), loss.vectors
    for shape in ((5,), (4, 1), (3, 1, 5)):
        narrow = loss.given(shape, seed=3)
        assert_agrees(VectorCall(loss, wide | {first: narrow[first]}, "none"), 1e-13)
        assert_agrees(VectorCall(loss, wide | {k: narrow[k] for k in others}, "mean"), 1e-13)
    for name in loss.learned:
        assert_agrees(VectorCall(loss, wide | {name: wide[name][0]}, "sum", free=(name,)), 1e-13)


# ---- against differences ---------------------------------------------------------------------------------------------


@EACH_LOSS
def test_derivatives_are_differences(loss: VectorLoss) -> None:
    """Of the value the first ones, along a direction; and of the first ones the second ones."""
    given = loss.given((11, 6), seed=4, away=True)
    operands = {k: numbers(x, np.longdouble) for k, x in given.items()}
    generator = np.random.default_rng(5)
    free = (*loss.differentiable, *loss.learned)
    directions = {k: generator.uniform(-1, 1, operands[k].shape).astype(np.longdouble) for k in free}
    step = np.longdouble(2) ** -13  # beside room of 0.01

    def compute(steps: int) -> dict[str, Array]:
        moved = {k: operands[k] + steps * step * d for k, d in directions.items()}
        value, slopes = results(loss.name, operands | moved, loss.parameters, "none")
        return {"": value.value} | {k: slopes[k].value for k in free}

    found = compute(0)
    difference = {k: np.zeros_like(x) for k, x in found.items()}
    for k, factor in STENCIL.items():
        ahead, behind = compute(k), compute(-k)
        for name in difference:
            difference[name] += factor * (ahead[name] - behind[name]) / (60 * step)
    with np.errstate(all="ignore"):
        change, slopes = along(directions, operands, loss.name, loss.parameters, "none")
    total = {"": change} | {k: slopes[k] for k in free}
    for name, x in total.items():
        np.testing.assert_allclose(difference[name], x.value, rtol=0, atol=1e-9 * max(1, np.abs(x.value).max()))
    of_rows = sum((found[k] * d).reshape(11, -1).sum(1) for k, d in directions.items())
    np.testing.assert_allclose(change.value, of_rows, rtol=1e-15, atol=1e-15)


# ---- conventions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.5, 1.0, 1.5, 2.0, 3.0, math.inf])
def test_a_norm_has_no_slope_at_0_and_shares_it_among_the_largest(p: float) -> None:
    with np.errstate(all="ignore"):
        nowhere = p_norm(np.ones((2, 3)), np.ones((2, 3)), p)
        assert not nowhere.value.any() and not nowhere.slopes[0].any()
        tied = p_norm(np.array([[3.0, 0.0, -3.0]]), np.zeros((1, 3)), p)
    assert tied.slopes[0][0, 1] == 0 and tied.slopes[0][0, 0] == -tied.slopes[0][0, 2] > 0
    if p == math.inf:
        assert tied.value == 3 and tied.slopes[0].tolist() == [[0.5, 0, -0.5]]
    assert (tied.slopes[1] == -tied.slopes[0]).all()


def test_a_cosine_of_nothing_is_0() -> None:
    zero, one = np.zeros((1, 3)), np.ones((1, 3))
    similarity = cosine_similarity(zero, one)
    assert similarity.value == 0
    np.testing.assert_allclose(similarity.slopes[0], 1e8 / np.sqrt(3) * one)
    assert not similarity.slopes[1].any()


@pytest.mark.parametrize("margin", [0.0, 1.0])
def test_a_hinge_has_no_slope_at_its_corner(margin: float) -> None:
    a, b = np.array([[0.0, 0.0]]), np.array([[3.0, 4.0]])
    same = {"anchor": a, "positive": b, "negative": b * (1 + margin / 5)}
    value, slopes = results("triplet_margin_loss", same, {"margin": margin, "eps": 0.0}, "sum")
    assert value.value == 0 and not any(x.value.any() for x in slopes.values())
    parallel = {"input1": b, "input2": b * 2, "target": np.array([-1])}
    parameters = {"margin": float(results("cosine_embedding_loss", parallel, {}, "sum")[0].value)}
    value, slopes = results("cosine_embedding_loss", parallel, parameters, "sum")
    assert value.value == 0 and not any(x.value.any() for x in slopes.values())


def test_two_distances_that_are_equal_share_the_slope() -> None:
    """Anchor and positive mirror each other: the negative is as far from the one as from the other."""
    given = {"anchor": np.array([[1.0, 0.0]]), "positive": np.array([[-1.0, 0.0]]), "negative": np.array([[0.0, 1.0]])}
    (value, slopes), r = results("triplet_margin_loss", given, {"eps": 0.0, "swap": True}, "sum"), math.sqrt(0.5)
    np.testing.assert_allclose(value.value, 3 - 2 * r)
    np.testing.assert_allclose(slopes["anchor"].value, [[1 - r / 2, r / 2]])
    np.testing.assert_allclose(slopes["positive"].value, [[-1 + r / 2, r / 2]])
    np.testing.assert_allclose(slopes["negative"].value, [[0, -r]], atol=1e-16)


@EACH_LOSS
def test_rows_of_weight_0_do_not_count(loss: VectorLoss) -> None:
    given = {k: numbers(x, np.float64) for k, x in loss.given((4, 3)).items()} | {"weight": np.array([1.0, 0, 2, 0])}
    spoilt = given | {k: np.where(given["weight"][:, None] == 0, np.nan, given[k]) for k in loss.vectors}
    for reduction in loss.reductions:
        (value, slopes), (clean, known) = (results(loss.name, x, loss.parameters, reduction) for x in (spoilt, given))
        np.testing.assert_array_equal(value.value, clean.value)
        for name in loss.vectors:
            np.testing.assert_array_equal(slopes[name].value, known[name].value)
            assert not slopes[name].value[1::2].any()
    mean = results(loss.name, given, loss.parameters, "mean")[0].value
    np.testing.assert_allclose(mean, results(loss.name, given, loss.parameters, "sum")[0].value / 4)


# ---- what `check` goes through ---------------------------------------------------------------------------------------


@EACH_LOSS
def test_a_check_is_of_every_kind(loss: VectorLoss) -> None:
    """Every reduction, first and second derivatives, by weights too, memory that is not dense, a single entry."""
    for quick in (False, True):
        calls = list(vector_cases(loss, torch.float32, "cpu", quick))
        assert {call.reduction for call in calls} == set(loss.reductions)
        assert {call.directions is not None for call in calls} == {True, False}
        assert {set(loss.learned) <= set(call.free) for call in calls} >= {True}
        assert {call.given[loss.vectors[0]].is_contiguous() for call in calls} == {True, False}
        assert any(call.given[loss.vectors[0]].shape[-1] < 4 for call in calls)


@EACH_LOSS
def test_samples_are_of_every_kind(loss: VectorLoss) -> None:
    """Both sides of a hinge, of a swap and of a target; rows that do not count; and of other rows no corner is near."""
    for dtype in DTYPES:
        given, away = (loss.given((200, 9), dtype, away=x) for x in (False, True))
        assert all(given[k].dtype == dtype for k in (*loss.vectors, *loss.learned))
        assert all((given[k] == 0).any() and not (away[k] == 0).any() for k in loss.learned)
        free = room(loss.name, {k: away[k].double().numpy() for k in loss.vectors}, loss.parameters)
        assert (free > 0.01).all()
        values = loss.torch(*loss.split({k: x.double() for k, x in given.items()})[0], reduction="none")
        margin = loss.parameters.get("margin", 1.0)
        if loss.name.startswith("triplet") and margin < 1:
            assert (values == 0).any() and (values > 0).any()
        if "target" in given:
            assert len(given["target"].unique()) >= 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("what", ["value", "gradient", "second derivative"])
@EACH_LOSS
def test_the_judge_finds_a_small_error(loss: VectorLoss, what: str, dtype: torch.dtype) -> None:
    """What torch gives is right, and wrong if it is off by 256 units more."""
    second = what == "second derivative"
    call = VectorCall(loss, loss.given((37, 21), dtype, away=second), "none", second=second)
    (value, gradients), (exact, slopes) = call.references(torch.zeros(37, dtype=dtype))
    first = loss.vectors[0]
    found, known = (value, exact) if what == "value" else (gradients[first], slopes[first])
    assert compare(what, found, found, known).wrong is None
    off = 256 * torch.finfo(dtype).eps * (found.abs() if found.any() else 1)
    assert compare(what, found + off, found, known).wrong is not None
