"""That the judge of losses over pairs judges: the oracle against torch's formulas in float64, against loops over single
logits and against differences in longdouble. Nothing here calls the library."""

from __future__ import annotations

import ast
import inspect
import sys
from typing import Any

import numpy as np
import pytest
import torch

from fusedloss.testing import pair_catalogue, pair_oracle
from fusedloss.testing.cases import DTYPES
from fusedloss.testing.judge import compare, numbers
from fusedloss.testing.oracle import STENCIL, Array
from fusedloss.testing.pair_cases import SHAPE, PairCall, integers, pair_cases
from fusedloss.testing.pair_catalogue import ALONE, PAIR_LOSSES, PairLoss

EACH_LOSS = pytest.mark.parametrize("loss", [pytest.param(loss, id=loss.id) for loss in PAIR_LOSSES])


@pytest.mark.parametrize("module", [pair_oracle, pair_catalogue])
def test_the_judge_knows_nothing_of_the_compiled_code(module: Any) -> None:
    tree = ast.parse(inspect.getsource(module))
    imported = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    oracles = {"numpy", "fusedloss.testing.oracle"}
    catalogues = {"torch", "fusedloss.testing", "fusedloss.testing.catalogue"}
    allowed = oracles if module is pair_oracle else catalogues
    assert {name for name in imported if name.split(".")[0] not in sys.stdlib_module_names} <= allowed


def arrays(given: dict[str, torch.Tensor]) -> dict[str, Array]:
    return {k: numbers(x, np.longdouble) if x.is_floating_point() else integers(x) for k, x in given.items()}


# ---- against loops ---------------------------------------------------------------------------------------------------


def used(x: Array, normalize: bool) -> Array:
    return x / max(np.sqrt((x * x).sum()), np.longdouble(1e-12)) if normalize else x


def minus_log_share(right: Any, logits: list[Any]) -> Any:
    """Of one logit among some, of which it is one."""
    return -np.log(np.exp(right) / sum(np.exp(z) for z in logits))


def by_loops(loss: PairLoss, x: dict[str, Array]) -> list[Any]:
    """The value of every row, logit by logit, as the catalogue of losses says it."""
    p, normalize = loss.parameters, loss.normalize
    v = {k: [used(row, normalize) for row in x[k]] for k in loss.tables if x[k].ndim == 2}
    if loss.name == "siglip_loss":
        scale, bias = x["logit_scale"].item(), x["logit_bias"].item()
        rows = range(len(v["image"]))
        z = [[scale * (a @ b) + bias for b in v["text"]] for a in v["image"]]
        return [sum(np.log(1 + np.exp(-z[i][j] if i == j else z[i][j])) for j in rows) for i in rows]
    if loss.name == "supervised_contrastive_loss":
        t, labels, found = np.longdouble(p.get("temperature", 0.1)), x["labels"], []
        for i, a in enumerate(v["embeddings"]):
            z = {j: a @ b / t for j, b in enumerate(v["embeddings"]) if j != i}
            mine = [minus_log_share(z[j], list(z.values())) for j in z if labels[j] == labels[i]]
            found.append(sum(mine) / len(mine) if mine else 0)
        return found
    one, other = loss.tables[:2]
    scale = x["logit_scale"].item() if "logit_scale" in x else 1 / np.longdouble(p.get("temperature", 0.1))
    if "negatives" in x:
        found = []
        for i, q in enumerate(v[one]):
            wrong = x["negatives"] if x["negatives"].ndim == 2 else x["negatives"][i]
            z = [scale * (q @ v[other][i]), *(scale * (q @ used(row, normalize)) for row in wrong)]
            found.append(minus_log_share(z[0], z))
        return found
    z = [[scale * (a @ b) for b in v[other]] for a in v[one]]
    forth = [minus_log_share(row[i], row) for i, row in enumerate(z)]
    back = [minus_log_share(row[i], list(row)) for i, row in enumerate(zip(*z, strict=True))]
    if loss.name == "clip_loss" or p.get("symmetric"):
        return [(a + b) / 2 for a, b in zip(forth, back, strict=True)]
    return forth


@EACH_LOSS
def test_the_oracle_is_the_sum_over_single_logits(loss: PairLoss) -> None:
    x = arrays(loss.given((9, 5), seed=1))
    values = np.array(by_loops(loss, x))
    found, _ = pair_oracle.results(loss.name, x, loss.parameters, "none")
    np.testing.assert_allclose(found.value, values, rtol=1e-15)
    total, _ = pair_oracle.results(loss.name, x, loss.parameters, "sum")
    np.testing.assert_allclose(total.value, values.sum(), rtol=1e-15)
    mean, _ = pair_oracle.results(loss.name, x, loss.parameters, "mean")
    anchors = (values != 0).sum() if loss.name == "supervised_contrastive_loss" else 9
    np.testing.assert_allclose(mean.value, values.sum() / anchors, rtol=1e-15)


def test_of_known_numbers() -> None:
    """Two pairs that are at right angles: the wrong logit is 0."""
    x = {"query": np.eye(2), "key": np.eye(2)}
    (value, _) = pair_oracle.results("info_nce_loss", x, {"temperature": 0.5}, "none")
    np.testing.assert_allclose(value.value, np.log(1 + np.exp(-2.0)))
    x = {"image": np.eye(2), "text": np.eye(2), "logit_scale": np.array(3.0), "logit_bias": np.array(-1.0)}
    (value, _) = pair_oracle.results("siglip_loss", x, {}, "mean")
    np.testing.assert_allclose(value.value, np.log(1 + np.exp(-2.0)) + np.log(1 + np.exp(-1.0)))
    x = {"embeddings": np.eye(3), "labels": np.array([5, 5, 2])}
    (value, slopes) = pair_oracle.results("supervised_contrastive_loss", x, {}, "mean")
    np.testing.assert_allclose(value.value, np.log(2))
    # The third is no anchor: it is pushed away by both others, along their own axes.
    np.testing.assert_allclose(slopes["embeddings"].value[2], [2.5, 2.5, 0.0])


# ---- against torch ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("second", [False, True], ids=["first", "second"])
@EACH_LOSS
def test_the_oracle_is_the_formula_in_ops(loss: PairLoss, second: bool) -> None:
    """Within what torch loses in float64."""
    for shape, reduction in ((SHAPE, "none"), ((5, 24), "mean"), ((4, 3), "sum")):
        call = PairCall(loss, loss.given(shape, seed=len(reduction)), reduction, second=second)
        like = torch.zeros(shape[0] if reduction == "none" else (), dtype=torch.float64)
        theirs, gradients = call.by_torch(like)
        value, slopes = call.by_oracle(like)
        np.testing.assert_allclose(numbers(theirs, np.longdouble), value.value, rtol=0, atol=1e-14 * value.size.max())
        assert set(gradients) == set(slopes) == set(loss.differentiable)
        for name, exact in slopes.items():
            bound = 1e-13 * exact.size.max()
            np.testing.assert_allclose(numbers(gradients[name], np.longdouble), exact.value, rtol=0, atol=bound)


# ---- against differences ---------------------------------------------------------------------------------------------

STEP = np.longdouble(2) ** -9


@EACH_LOSS
def test_derivatives_are_differences(loss: PairLoss) -> None:
    """Along a direction in all operands at once: of the value, and of every gradient."""
    given = loss.given((6, 4), seed=2)
    x = arrays(given)
    directions = {k: numbers(d, np.longdouble) / 8 for k, d in loss.directions(given).items()}

    def at(steps: int) -> Any:
        moved = {k: x[k] + steps * STEP * d for k, d in directions.items()}
        return pair_oracle.results(loss.name, x | moved, loss.parameters, "mean", np.asarray(np.longdouble(0.7)))

    def difference(part: Any) -> Array:
        terms = [factor * (part(at(k)).value - part(at(-k)).value) for k, factor in STENCIL.items()]
        return np.asarray(sum(terms) / (60 * STEP))

    along, changes = pair_oracle.results(
        loss.name, x, loss.parameters, "mean", np.asarray(np.longdouble(0.7)), directions
    )
    np.testing.assert_allclose(difference(lambda found: found[0]), along.value, rtol=0, atol=1e-12)
    _, slopes = at(0)
    product = sum((slopes[k].value * d).sum() for k, d in directions.items())
    np.testing.assert_allclose(along.value, product / np.longdouble(0.7), rtol=1e-15)
    for name, change in changes.items():
        np.testing.assert_allclose(difference(lambda found, k=name: found[1][k]), change.value, rtol=0, atol=1e-11)


# ---- edge cases ------------------------------------------------------------------------------------------------------


def test_without_anchors_there_is_nothing() -> None:
    nothing = {"embeddings": np.full((3, 2), np.nan), "labels": np.array([1, 2, 3])}
    for reduction in ("none", "mean", "sum"):
        value, slopes = pair_oracle.results("supervised_contrastive_loss", nothing, {}, reduction)
        assert not value.value.any() and not slopes["embeddings"].value.any()
        empty = {"query": np.zeros((0, 2)), "key": np.zeros((0, 2))}
        value, slopes = pair_oracle.results("info_nce_loss", empty, {}, reduction)
        assert not value.value.any() and slopes["key"].value.shape == (0, 2)


def test_without_negatives_all_is_right() -> None:
    for shape in ((0, 3), (4, 0, 3)):
        x = {"query": np.ones((4, 3)), "key": np.ones((4, 3)), "negatives": np.zeros(shape)}
        value, slopes = pair_oracle.results("info_nce_loss", x, {}, "none")
        assert not value.value.any() and not any(slope.value.any() for slope in slopes.values())


def test_a_vector_of_zeros_is_divided_by_the_least_norm() -> None:
    x = {"query": np.array([[0.0, 0.0], [3.0, 4.0]]), "key": np.array([[1.0, 2.0], [2.0, 1.0]])}
    value, slopes = pair_oracle.results("info_nce_loss", x, {"normalize": True}, "none")
    np.testing.assert_allclose(value.value[0], np.log(2))
    leaf = torch.tensor(x["query"]).requires_grad_()
    theirs = PAIR_LOSSES[0].reference(leaf, torch.tensor(x["key"]), normalize=True, reduction="sum")
    (gradient,) = torch.autograd.grad(theirs, leaf)
    np.testing.assert_allclose(slopes["query"].value, gradient.numpy(), rtol=1e-13)


# ---- what `check` goes through ---------------------------------------------------------------------------------------


@EACH_LOSS
def test_a_check_is_of_every_kind(loss: PairLoss) -> None:
    """Every reduction, first and second derivatives, memory that is not dense."""
    for quick in (False, True):
        calls = list(pair_cases(loss, torch.float32, "cpu", quick))
        assert {call.reduction for call in calls} == set(loss.reductions)
        assert {call.directions is not None for call in calls} == {True, False}
        assert {call.given[loss.tables[0]].is_contiguous() for call in calls} == {True, False}


def test_samples_are_of_every_kind() -> None:
    """Every argument of every loss, and classes with and without a second vector."""
    names = {(loss.name, name) for loss in PAIR_LOSSES for name in (*loss.samplers, *loss.parameters)}
    for name in ("info_nce_loss", "supervised_contrastive_loss", "clip_loss", "siglip_loss"):
        assert {k for of, k in names if of == name} >= {"normalize"}
    assert {k for of, k in names if of == "info_nce_loss"} >= {"negatives", "symmetric", "temperature"}
    for loss in PAIR_LOSSES:
        for dtype in DTYPES:
            given = loss.given(SHAPE, dtype)
            assert all(given[name].dtype == dtype for name in loss.differentiable)
        if "labels" in given:
            counts = given["labels"].unique(return_counts=True)[1]
            assert (given["labels"] == ALONE).sum() == 1 and (counts > 2).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("what", ["value", "gradient", "second derivative"])
@pytest.mark.parametrize("loss", [pytest.param(loss, id=loss.id) for loss in PAIR_LOSSES[::3]])
def test_the_judge_finds_a_small_error(loss: PairLoss, what: str, dtype: torch.dtype) -> None:
    """What torch gives is right, and wrong if it is off by some units more: of its own size, or of that of the many
    terms of a sum over all pairs."""
    call = PairCall(loss, loss.given(SHAPE, dtype), "none", second=what == "second derivative")
    (value, gradients), (exact, slopes) = call.references(torch.zeros(SHAPE[0], dtype=dtype))
    of = [(value, exact)] if what == "value" else [(gradients[k], slopes[k]) for k in loss.differentiable]
    unit = torch.finfo(dtype).eps
    for found, known in of:
        assert compare(what, found, found, known).wrong is None
        off = 2048 * unit * found if found.numel() > 1 else 16 * unit * torch.tensor(known.size.astype(float))
        assert compare(what, found + off.to(dtype), found, known).wrong is not None
