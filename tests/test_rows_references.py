"""The oracle of the losses over rows, and the formulas in torch's ops, against torch and against Keras.

Nothing here calls the library.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fusedloss.testing import row_oracle
from fusedloss.testing.judge import numbers
from fusedloss.testing.oracle import Array, Result
from fusedloss.testing.row_cases import SHAPE, RowCall, integers, of_axes
from fusedloss.testing.row_catalogue import ROW_LOSSES, RowLoss
from fusedloss.testing.row_definitions import CLIP

EACH_LOSS = pytest.mark.parametrize("loss", [pytest.param(loss, id=loss.id) for loss in ROW_LOSSES])

TORCHS_ROUNDINGS = 100  # an oracle that is another function is off by far more


def assert_equal(what: str, theirs: Tensor, expected: Result) -> None:
    """Equal but for torch's roundings of what it added up; that is also 1 wherever it takes 1 from a probability."""
    assert tuple(theirs.shape) == expected.value.shape, what
    found = numbers(theirs, np.longdouble)
    same = (found == expected.value) | (np.isnan(found) & np.isnan(expected.value))
    with np.errstate(invalid="ignore"):
        error = np.where(same, 0, np.abs(found - expected.value))
    bound = TORCHS_ROUNDINGS * torch.finfo(theirs.dtype).eps * np.maximum(expected.size, 1)
    assert (same | (error <= bound)).all(), f"{what}: {error.max()} off"


def arrays_of(operands: dict[str, Tensor]) -> dict[str, Array]:
    return {k: numbers(x, np.longdouble) if x.is_floating_point() else integers(x) for k, x in operands.items()}


# ---- every record --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(19, 23), (7,), SHAPE, (1, 2)], ids=str)
@EACH_LOSS
def test_torch_agrees(loss: RowLoss, shape: tuple[int, ...]) -> None:
    """Value and gradients; by the formula in torch's ops those by weights too."""
    given = loss.given(of_axes(loss, shape) if len(shape) > 2 else shape, seed=1)
    for reduction, free in product(loss.reductions, (loss.differentiable, (*loss.differentiable, *loss.learned))):
        call = RowCall(loss, given, reduction, free=free)
        operands, keywords = loss.split(given)
        result = loss.torch(*operands, **keywords, reduction="mean" if reduction == "batchmean" else reduction)
        exact, exact_gradients = call.exact(result)
        value, gradients = call.torchs(result)
        assert_equal(f"value, {reduction}", value, exact)
        for name, gradient in gradients.items():
            assert_equal(f"d/d{name}, {reduction}", gradient, exact_gradients[name])


@EACH_LOSS
def test_second_derivatives_are_those_of_torch(loss: RowLoss) -> None:
    given = loss.given((19, 23), away=True, seed=2)
    for reduction in loss.reductions:
        call = RowCall(loss, given, reduction, second=True)
        operands, keywords = loss.split(given)
        result = loss.torch(*operands, **keywords, reduction="mean" if reduction == "batchmean" else reduction)
        exact, exact_gradients = call.exact(result)
        value, gradients = call.torchs(result)
        assert_equal(f"value, {reduction}", value, exact)
        for name, gradient in gradients.items():
            assert_equal(f"d/d{name}, {reduction}", gradient, exact_gradients[name])


# ---- torch's cross_entropy in all its combinations -------------------------------------------------------------------

GRID = list(product(["index", "ignored", "probabilities"], [False, True], [-100, 2], [0.0, 0.1, 1.0]))


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("shape", [(11, 5), (5,), (3, 5, 4), (2, 5, 3, 4)], ids=str)
def test_cross_entropy_of_torch(shape: tuple[int, ...], reduction: str) -> None:
    generator = torch.Generator().manual_seed(0)
    axis = 0 if len(shape) == 1 else 1
    rows = [n for d, n in enumerate(shape) if d != axis]
    for kind, with_weight, ignore_index, smoothing in GRID:
        x = torch.randn(shape, generator=generator, dtype=torch.float64) * 3
        y = torch.randn(shape, generator=generator, dtype=torch.float64).softmax(axis)
        if kind != "probabilities":
            y = torch.randint(0, 5, rows, generator=generator)
            y.view(-1)[1::3] = ignore_index if kind == "ignored" else 0
        elif ignore_index >= 0:
            continue  # torch refuses that
        w = torch.rand(5, generator=generator, dtype=torch.float64) + 0.1 if with_weight else None
        parameters = {"ignore_index": ignore_index, "label_smoothing": smoothing}
        leaves = [x.requires_grad_(), *([y.requires_grad_()] if y.is_floating_point() else [])]
        theirs = F.cross_entropy(x, y, w, **parameters, reduction=reduction)  # type: ignore[arg-type]
        incoming = torch.rand(theirs.shape, generator=generator, dtype=torch.float64)
        gradients = torch.autograd.grad(theirs, leaves, incoming)
        operands = arrays_of({"input": x, "target": y} | ({} if w is None else {"weight": w}))
        value, exact = row_oracle.results(
            "cross_entropy", operands, parameters, axis, reduction, numbers(incoming, np.longdouble)
        )
        assert_equal(f"value, {kind}, {parameters}", theirs, value)
        for name, gradient in zip(("input", "target"), gradients, strict=False):
            assert_equal(f"d/d{name}, {kind}, {parameters}", gradient, exact[name])


INFINITE = torch.tensor(
    [
        [-np.inf, 1.0, 2.0],
        [0.0, -np.inf, -np.inf],
        [np.inf, 0.0, 1.0],
        [-np.inf, -np.inf, -np.inf],
        [1.0, np.nan, 0.0],
        [np.inf, np.inf, 0.0],
    ],
    dtype=torch.float64,
)


@pytest.mark.parametrize("label", [0, 1, 2])
def test_infinite_logits_are_those_of_torch(label: int) -> None:
    """A class of -inf cannot be; where one is +inf, or all are -inf, there is no distribution."""
    x = INFINITE.clone().requires_grad_()
    y = torch.full((len(x),), label)
    value = F.cross_entropy(x, y, reduction="none")
    (gradient,) = torch.autograd.grad(value.sum(), x)
    loss, gradients = row_oracle.results("cross_entropy", arrays_of({"input": x, "target": y}), {}, 1, "none")
    assert_equal("value", value, loss)
    assert_equal("gradient", gradient, gradients["input"])


# ---- what torch does not have, by its meaning ------------------------------------------------------------------------


def test_a_row_that_does_not_count_is_as_if_it_were_not_there() -> None:
    """Whether by its label, by the most probable class of its target or by a factor of 0; also where it is NaN."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    x[[1, 4]] = torch.tensor([[np.nan] * 4, [np.inf, -np.inf, 0.0, 1.0]], dtype=torch.float64)
    kept = [0, 2, 3, 5]
    labels = torch.tensor([0, -100, 2, 3, -100, 1])
    soft = torch.randn(6, 4, generator=generator, dtype=torch.float64).softmax(1)
    soft[:, 3] = torch.tensor([0.0, 1, 0, 0, 1, 0])
    factor = torch.tensor([0.5, 0.0, 2.0, 1.0, 0.0, 3.0], dtype=torch.float64)
    ones = torch.ones(6, dtype=torch.float64)
    for y, s, parameters in [
        (labels, ones, {}),
        (labels.clamp(min=0), factor, {}),
        (soft, ones, {"ignore_index": 3}),
        (soft, factor, {}),
    ]:
        operands = arrays_of({"input": x, "target": y, "sample_weight": s})
        fewer = arrays_of({"input": x[kept], "target": y[kept], "sample_weight": s[kept]})
        for reduction in ("mean", "sum"):
            loss, gradients = row_oracle.results("cross_entropy", operands, parameters, 1, reduction)
            without, slopes = row_oracle.results("cross_entropy", fewer, parameters, 1, reduction)
            assert np.abs(loss.value - without.value) <= 1e-18 * without.size
            assert np.abs(gradients["input"].value[kept] - slopes["input"].value).max() <= 1e-18
            assert not gradients["input"].value[[1, 4]].any()


@pytest.mark.parametrize("all_ignored", ["nan", "zero"])
def test_a_mean_over_nothing(all_ignored: str) -> None:
    x, y = torch.randn(3, 4).double(), torch.full((3,), -100)
    loss, gradients = row_oracle.results(
        "cross_entropy", arrays_of({"input": x, "target": y}), {"all_ignored": all_ignored}, 1, "mean"
    )
    assert np.isnan(loss.value) if all_ignored == "nan" else loss.value == 0
    assert not gradients["input"].value.any()


def test_what_cannot_be_adds_nothing() -> None:
    """0 log 0 = 0, and the divergence is infinite where q says that something cannot be that p says is."""
    p, q = np.array([[0.5, 0.5, 0.0]]), np.array([[1.0, 0.0, 0.0]])
    for one, other, kl in [(p, p, 0.0), (p, q, np.inf), (q, p, np.log(2))]:
        assert row_oracle.results("kl_divergence", {"p": one, "q": other}, {}, 1, "mean")[0].value == kl
        js = row_oracle.results("js_divergence", {"p": one, "q": other}, {}, 1, "mean")[0].value
        assert 0 <= js < np.log(2)
    logits = np.array([[1.0, 1.0, -np.inf]])
    for name in ("kl_divergence", "js_divergence"):
        both = {"p": logits, "q": logits + 1}
        loss, gradients = row_oracle.results(name, both, {"from_logits": True}, 1, "none")
        assert loss.value == 0 and not gradients["p"].value.any() and not gradients["q"].value.any()
    x, y = np.array([[-np.inf, 0.0]]), np.array([[0.0, 1.0]])
    loss, gradients = row_oracle.results("cross_entropy", {"input": x, "target": y}, {}, 1, "none")
    assert loss.value == 0 and not gradients["input"].value.any()


# ---- Keras -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def keras() -> Iterator[Any]:
    os.environ["KERAS_BACKEND"] = "torch"
    yield pytest.importorskip("keras", reason="keras, the oracle of its own losses, is not installed (extra 'test')")


def scores_and_targets(axis: int) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities that do not add up to 1, some beyond where they are clipped; soft targets and labels."""
    generator = torch.Generator().manual_seed(3)
    # Keras smooths by the size of the last axis, whichever has the classes: here they are the same.
    x = torch.rand(6, 4, 4, generator=generator, dtype=torch.float64)
    x[0], x[1, 2] = 0, 0
    x[0, 1], x[0, :, 1] = 1, 1e-9
    y = torch.randn(6, 4, 4, generator=generator, dtype=torch.float64).softmax(axis)
    rows = [n for d, n in enumerate(x.shape) if d != axis % 3]
    return x, y, torch.randint(0, x.shape[axis], rows, generator=generator)


@pytest.mark.parametrize("from_logits", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("axis", [-1, 1])
def test_categorical_cross_entropy_of_keras(keras: Any, axis: int, smoothing: float, from_logits: bool) -> None:
    x, y, _ = scores_and_targets(axis)
    leaves = x.requires_grad_(), y.requires_grad_()
    theirs = keras.losses.categorical_crossentropy(y, x, from_logits, smoothing, axis)
    gradients = torch.autograd.grad(theirs.sum(), leaves)
    parameters = {"from_logits": from_logits, "label_smoothing": smoothing}
    value, exact = row_oracle.results(
        "categorical_cross_entropy", arrays_of({"input": x, "target": y}), parameters, axis, "none"
    )
    assert_equal("value", theirs, value)
    for name, gradient in zip(("input", "target"), gradients, strict=True):
        assert_equal(f"d/d{name}", gradient, exact[name])


@pytest.mark.parametrize("from_logits", [False, True])
@pytest.mark.parametrize("ignore_class", [None, 2, 255])
def test_sparse_categorical_cross_entropy_of_keras(keras: Any, ignore_class: int | None, from_logits: bool) -> None:
    x, _, labels = scores_and_targets(-1)
    if ignore_class is not None:
        labels.view(-1)[::4] = ignore_class
    x[(x == 0).all(-1)] = 1  # a row without a sum is NaN, and remains one in Keras where it is ignored
    x.requires_grad_()
    theirs = keras.losses.sparse_categorical_crossentropy(labels, x, from_logits, ignore_class)
    (gradient,) = torch.autograd.grad(theirs.sum(), x)
    parameters = {"from_logits": from_logits, "ignore_class": ignore_class}
    operands = arrays_of({"input": x, "target": labels})
    value, exact = row_oracle.results("sparse_categorical_cross_entropy", operands, parameters, -1, "none")
    assert_equal("value", theirs, value)
    # Keras sets the probabilities of ignored rows to 0, and their gradient is NaN.
    counts = (labels != ignore_class).unsqueeze(-1) if ignore_class is not None else torch.tensor(True)
    assert_equal("gradient", torch.where(counts, gradient, 0), exact["input"])
    mean = keras.losses.SparseCategoricalCrossentropy(from_logits, ignore_class)(labels, x)
    loss, _ = row_oracle.results("sparse_categorical_cross_entropy", operands, parameters, -1, "mean")
    # Keras adds its epsilon to the number of rows that count, and reduces in float32.
    assert mean.item() == pytest.approx(float(loss.value), rel=2 * CLIP)


def test_categorical_hinge_of_keras(keras: Any) -> None:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(30, 7, generator=generator, dtype=torch.float64)
    one_hot = F.one_hot(torch.randint(0, 7, (30,), generator=generator), 7).double()
    for y in (one_hot, 0.9 * one_hot + 0.01, torch.rand(30, 7, generator=generator).double()):
        leaves = x.requires_grad_(), y.requires_grad_()
        theirs = keras.losses.categorical_hinge(y, x)
        gradients = torch.autograd.grad(theirs.sum(), leaves)
        value, exact = row_oracle.results("categorical_hinge_loss", arrays_of({"input": x, "target": y}), {}, 1, "none")
        assert_equal("value", theirs, value)
        for name, gradient in zip(("input", "target"), gradients, strict=True):
            assert_equal(f"d/d{name}", gradient, exact[name])
