"""Equations between losses over rows, and with Keras: what must hold whatever the numbers are."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fusedloss.functional as L
from fusedloss.testing.row_catalogue import ROW_LOSSES

# Examples are drawn the same on every run, so that a failure is one for everybody.
quickly = settings(max_examples=25, deadline=None, derandomize=True, database=None)
sizes = st.tuples(st.integers(1, 20), st.integers(2, 40))
seeds = st.integers(0, 1000)


def logits(shape: tuple[int, ...], seed: int, scale: float = 2.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def labels_of(shape: tuple[int, int], seed: int) -> Tensor:
    return torch.randint(0, shape[1], shape[:1], generator=torch.Generator().manual_seed(seed))


def assert_close(one: Tensor, other: Tensor, size: Tensor | float = 1.0) -> None:
    """Within a hundred roundings of what was added up."""
    assert one.shape == other.shape
    error = (one - other).abs()
    assert bool((error <= 100 * torch.finfo(one.dtype).eps * (size + other.abs())).all()), error.max().item()


def with_gradient(x: Tensor, loss: Any, *args: Any, **keywords: Any) -> tuple[Tensor, Tensor]:
    leaf = x.detach().requires_grad_()
    value = loss(leaf, *args, **keywords)
    return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]


# ---- entropies -----------------------------------------------------------------------------------------------------


@quickly
@given(shape=sizes, seed=seeds)
def test_cross_entropy_is_entropy_and_divergence(shape: tuple[int, int], seed: int) -> None:
    """H(p, q) = H(p) + KL(p, q)"""
    a, b = logits(shape, seed), logits(shape, seed + 1)
    p = a.softmax(1)
    entropy = -(p * p.log()).sum(1)
    cross = L.cross_entropy(b, p, reduction="none")
    assert_close(cross, entropy + L.kl_divergence(p, b.softmax(1), reduction="none"), cross)
    assert_close(cross, entropy + L.kl_divergence(a, b, from_logits=True, reduction="none"), cross)
    assert_close(L.cross_entropy(a, p, reduction="none"), entropy)
    clipped = L.categorical_cross_entropy(b.softmax(1), p, reduction="none")
    far = (b.softmax(1) < 2e-7).any(1)
    assert_close(clipped[~far], cross[~far], cross[~far])


@quickly
@given(shape=sizes, seed=seeds, beta=st.sampled_from([0.1, 0.5, 0.8]))
def test_jensen_shannon_is_symmetric_and_bounded(shape: tuple[int, int], seed: int, beta: float) -> None:
    """Exchanging p and q exchanges beta and 1 - beta; at most the entropy of the choice between them; 0 of equals."""
    a, b = logits(shape, seed, 5.0), logits(shape, seed + 1, 5.0)
    bound = -(beta * math.log(beta) + (1 - beta) * math.log1p(-beta))
    for p, q, from_logits in [(a, b, True), (a.softmax(1), b.softmax(1), False)]:
        js = L.js_divergence(p, q, beta=beta, from_logits=from_logits, reduction="none")
        assert_close(js, L.js_divergence(q, p, beta=1 - beta, from_logits=from_logits, reduction="none"))
        assert (js >= 0).all() and (js <= bound * (1 + 1e-15)).all()
        same = L.js_divergence(p, p, beta=beta, from_logits=from_logits, reduction="none")
        assert_close(same, torch.zeros_like(same))
    assert_close(
        L.js_divergence(a, b, from_logits=True, beta=beta),
        L.js_divergence(a.softmax(1), b.softmax(1), beta=beta),
    )


def test_distributions_that_share_nothing_are_log_2_apart() -> None:
    p, q = torch.eye(3)[:1], torch.eye(3)[1:2]
    assert L.js_divergence(p, q).item() == pytest.approx(math.log(2), rel=1e-7)
    assert L.kl_divergence(p, q).item() == math.inf
    assert L.kl_divergence(p, p).item() == 0
    masked = torch.tensor([[0.0, -math.inf, 1.0]])
    assert L.kl_divergence(masked, masked, from_logits=True).item() == 0
    assert L.kl_divergence(torch.zeros(1, 3), masked, from_logits=True).item() == math.inf
    assert L.kl_divergence(masked, torch.zeros(1, 3), from_logits=True).isfinite()


@quickly
@given(shape=sizes, seed=seeds)
def test_divergences_are_not_negative_and_know_no_shift(shape: tuple[int, int], seed: int) -> None:
    """Adding a number to all logits of a row changes nothing."""
    a, b = logits(shape, seed), logits(shape, seed + 1)
    shift = logits((shape[0], 1), seed + 2, 10.0)
    for divergence in (L.kl_divergence, L.js_divergence):
        found = divergence(a, b, from_logits=True, reduction="none")
        assert (found > 0).all()
        moved = divergence(a + shift, b - shift, from_logits=True, reduction="none")
        assert_close(found, moved, 10 + shift.abs()[:, 0])


@quickly
@given(shape=sizes, seed=seeds, temperature=st.sampled_from([0.5, 1.0, 3.0]))
def test_a_temperature_is_a_division(shape: tuple[int, int], seed: int, temperature: float) -> None:
    a, b = logits(shape, seed), logits(shape, seed + 1)
    found = L.kl_divergence(a / temperature, b / temperature, from_logits=True, reduction="none")
    for t in (temperature, torch.tensor(temperature, dtype=torch.float64)):
        assert_close(found, L.kl_divergence(a, b, from_logits=True, temperature=t, reduction="none"))


# ---- weights, repeats and one-hot targets ---------------------------------------------------------------------------


@quickly
@given(repeats=st.lists(st.integers(0, 4), min_size=1, max_size=9).filter(any), seed=seeds)
def test_a_sample_weight_is_so_many_repeats(repeats: list[int], seed: int) -> None:
    """In value and in gradient, for 'mean' and 'sum', for labels and probabilities, with all the rest."""
    shape = (len(repeats), 7)
    x, y, times = logits(shape, seed), labels_of(shape, seed), torch.tensor(repeats)
    row = torch.arange(len(repeats)).repeat_interleave(times)
    w = torch.rand(7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1
    rest = {"label_smoothing": 0.1, "z_loss": 0.01, "weight": w}
    for target, reduction in product((y, logits(shape, seed + 1).softmax(1)), ("mean", "sum")):
        keywords: dict[str, Any] = rest | {"reduction": reduction}
        value, gradient = with_gradient(x, L.cross_entropy, target, sample_weight=times.double(), **keywords)
        expected, repeated = with_gradient(x[row], L.cross_entropy, target[row], **keywords)
        assert_close(value, expected)
        assert_close(gradient, torch.zeros_like(x).index_add(0, row, repeated))


@quickly
@given(repeats=st.lists(st.integers(0, 4), min_size=3, max_size=3).filter(any), seed=seeds)
def test_a_class_weight_is_so_many_repeats(repeats: list[int], seed: int) -> None:
    """Weighting a class is repeating its samples; the mean of weights is the mean of the repeats."""
    shape = (12, 3)
    x, y, times = logits(shape, seed), labels_of(shape, seed), torch.tensor(repeats)
    if not times[y].any():
        return
    row = torch.arange(12).repeat_interleave(times[y])
    for loss, reduction in product((L.cross_entropy, L.nll_loss), ("mean", "sum")):
        value, gradient = with_gradient(x, loss, y, times.double(), reduction=reduction)
        expected, repeated = with_gradient(x[row], loss, y[row], reduction=reduction)
        assert_close(value, expected, 10)
        assert_close(gradient, torch.zeros_like(x).index_add(0, row, repeated))


@quickly
@given(shape=sizes, seed=seeds, smoothing=st.sampled_from([0.0, 0.2]))
def test_one_hot_probabilities_are_labels(shape: tuple[int, int], seed: int, smoothing: float) -> None:
    x, y = logits(shape, seed), labels_of(shape, seed)
    one_hot = F.one_hot(y, shape[1]).double()
    w = torch.rand(shape[1], generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1
    for reduction in ("none", "sum"):  # torch's means of weighted losses differ
        keywords: dict[str, Any] = {"reduction": reduction, "label_smoothing": smoothing, "weight": w}
        for one, other in zip(
            with_gradient(x, L.cross_entropy, y, **keywords),
            with_gradient(x, L.cross_entropy, one_hot, **keywords),
            strict=True,
        ):
            assert_close(one, other)
    p = x.softmax(1)
    for one, other in zip(
        with_gradient(p, L.sparse_categorical_cross_entropy, y),
        with_gradient(p, L.categorical_cross_entropy, one_hot),
        strict=True,
    ):
        assert_close(one, other)


@quickly
@given(shape=sizes, seed=seeds)
def test_special_cases_of_one_loss_are_another(shape: tuple[int, int], seed: int) -> None:
    x, y = logits(shape, seed), labels_of(shape, seed)
    cross_entropy = L.cross_entropy(x, y, reduction="none")
    assert_close(L.softmax_focal_loss(x, y, gamma=0.0, reduction="none"), cross_entropy)
    assert_close(L.nll_loss(x.log_softmax(1), y, reduction="none"), cross_entropy)
    assert_close(L.sparse_categorical_cross_entropy(x, y, from_logits=True, reduction="none"), cross_entropy)
    assert_close(L.cross_entropy(x, y, softcap=1e9, reduction="none"), cross_entropy)
    z = L.cross_entropy(x, y, z_loss=0.5, reduction="none") - cross_entropy
    assert_close(z, 0.5 * x.logsumexp(1) ** 2, 100)
    two = torch.stack([torch.zeros_like(x[:, 0]), x[:, 0]], 1)
    assert_close(L.cross_entropy(two, y % 2), L.binary_cross_entropy_with_logits(x[:, 0], (y % 2).double()))
    # The hinge of the largest rival is that of the only one.
    hinge = L.categorical_hinge_loss(two, y % 2, reduction="none")
    assert_close(hinge, 2 * L.multi_margin_loss(two, y % 2, reduction="none"))
    lists = torch.cat([y[:, None], torch.full_like(y[:, None], -1).expand(-1, shape[1] - 1)], 1)
    assert_close(L.multilabel_margin_loss(x, lists), L.multi_margin_loss(x, y))


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_reductions_agree(reduction: str) -> None:
    """'mean' and 'sum' are made of 'none' and of the weights that count, for every record of the catalogue."""
    for loss in ROW_LOSSES:
        given_ = loss.given((12, 5), seed=3)
        operands, keywords = loss.split(given_)
        values = loss(*operands, **keywords, reduction="none")
        if reduction == "mean":
            counts = torch.ones(12, dtype=torch.float64)
            if loss.samplers.get("target") is not None and given_["target"].dim() == 1:
                counts = (given_["target"] >= 0).double()
                if loss.name in ("cross_entropy", "nll_loss") and "weight" in given_:
                    counts = counts * given_["weight"][given_["target"].clamp(min=0)]
            elif "ignore_index" in loss.parameters:
                counts = (given_["target"].argmax(1) != loss.parameters["ignore_index"]).double()
            counts = counts * given_.get("sample_weight", torch.ones(())) if loss.name == "cross_entropy" else counts
            expected = values.sum() / counts.sum()
        else:
            expected = values if reduction == "none" else values.sum()
        assert_close(loss(*operands, **keywords, reduction=reduction), expected, values.abs().sum())


# ---- Keras -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def keras() -> Iterator[Any]:
    os.environ["KERAS_BACKEND"] = "torch"
    yield pytest.importorskip("keras", reason="keras, the oracle of its own losses, is not installed (extra 'test')")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_categorical_cross_entropy_is_that_of_keras(keras: Any, dtype: torch.dtype) -> None:
    for axis, smoothing, from_logits, seed in product((-1, 1), (0.0, 0.1, 0.9), (False, True), range(3)):
        # Keras smooths by the size of the last axis, whichever has the classes: here they are the same.
        x, y = logits((5, 6, 6), seed).to(dtype), logits((5, 6, 6), seed + 1).softmax(axis).to(dtype)
        x = x if from_logits else (8 * x).softmax(axis) * 3  # some are clipped, and none sums to 1
        expected, slopes = with_gradient(
            x,
            lambda p: keras.losses.categorical_crossentropy(y, p, from_logits, smoothing, axis),  # noqa: B023
        )
        value, gradient = with_gradient(
            x, L.categorical_cross_entropy, y, from_logits, smoothing, axis=axis, reduction="none"
        )
        assert_close(value, expected)
        assert_close(gradient, slopes, slopes.abs().amax(axis, keepdim=True))
        mean = keras.losses.CategoricalCrossentropy(from_logits, smoothing, axis=axis)(y, x)
        torch.testing.assert_close(L.categorical_cross_entropy(x, y, from_logits, smoothing, axis).float(), mean)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_sparse_categorical_cross_entropy_is_that_of_keras(keras: Any, dtype: torch.dtype) -> None:
    for ignore_class, from_logits, seed in product((None, 0, 255), (False, True), range(3)):
        x = logits((5, 4, 6), seed).to(dtype)
        x = x if from_logits else (8 * x).softmax(-1) * 3
        y = torch.randint(0, 6, (5, 4), generator=torch.Generator().manual_seed(seed))
        if ignore_class is not None:
            y.view(-1)[::4] = ignore_class
        counts = y != ignore_class if ignore_class is not None else torch.ones_like(y, dtype=torch.bool)
        expected, slopes = with_gradient(
            x,
            lambda p: keras.losses.sparse_categorical_crossentropy(y, p, from_logits, ignore_class),  # noqa: B023
        )
        slopes = torch.where(counts.unsqueeze(-1), slopes, 0)  # NaN in Keras
        value, gradient = with_gradient(
            x, L.sparse_categorical_cross_entropy, y, from_logits, ignore_class, reduction="none"
        )
        assert_close(value, expected)
        assert_close(gradient, slopes, slopes.abs().amax(-1, keepdim=True))
        mean = keras.losses.SparseCategoricalCrossentropy(from_logits, ignore_class)(y, x)
        ours = L.sparse_categorical_cross_entropy(x, y, from_logits, ignore_class)
        torch.testing.assert_close(ours.float(), mean)


def test_categorical_hinge_is_that_of_keras(keras: Any) -> None:
    for seed in range(5):
        x, y = logits((30, 7), seed).float(), F.one_hot(labels_of((30, 7), seed), 7).float()
        for target in (y, 0.8 * y + 0.02):
            expected, slopes = with_gradient(x, lambda s: keras.losses.categorical_hinge(target, s))  # noqa: B023
            value, gradient = with_gradient(x, L.categorical_hinge_loss, target, reduction="none")
            assert_close(value, expected)
            assert_close(gradient, slopes)
