"""What every loss over rows of classes is at one row, independently of the library: numpy, straight from the formulas.

Operands are (rows, classes), labels and values (rows,). Everything is computed in the dtype of the operands.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fusedloss.testing.oracle import Array, constant, sigmoid, softplus, times

CLIP = 1e-7  # Keras's epsilon


@dataclass(frozen=True)
class Rows:
    """A loss at every row, with the weights of classes and without the factors of rows."""

    value: Array  # (rows,)
    size: Array  # (rows,), of what was added up to the value
    partials: dict[str, Array]  # by operand, (rows, classes)
    sizes: dict[str, Array]  # of what was added up to partials, where something was
    by_weight: Array | None = None  # (rows, classes): by the weight of each class


# ---- softmax -------------------------------------------------------------------------------------------------------


class Softmax:
    """Of every row, its largest class apart: what is close to 1 is accurate by what it lacks to 1."""

    def __init__(self, x: Array) -> None:
        is_class = np.arange(x.shape[1])
        self.top = is_class == x.argmax(1)[:, None]
        largest = x[self.top][:, None]
        self.below = x - largest
        others = np.where(self.top, -np.inf, self.below)
        second = others.max(1, keepdims=True)
        spread = np.exp(others - np.where(np.isneginf(second), 0, second)).sum(1, keepdims=True)
        # NaN where the largest is infinite: then no class has a probability, as in torch
        undefined = np.where(self.top, self.below, 0).sum(1, keepdims=True)
        self.log_rest = second + np.log(spread) + undefined  # of all the others beside exp(0) of the largest
        rest = np.exp(self.log_rest)
        log_sum = np.log1p(rest)
        self.log_sum_exp = (largest + log_sum)[:, 0]
        self.log = self.below - log_sum
        self.p = np.exp(self.below) / (1 + rest)
        self.not_p = np.where(self.top, rest / (1 + rest), 1 - self.p)
        self.log_not_p = np.where(self.top, self.log_rest - log_sum, np.log1p(-self.p))

    def minus(self, total: Array, q: Array) -> Array:
        """p total - q, where q adds up to the total."""
        others = np.where(self.top, 0, q).sum(1, keepdims=True)
        found: Array = np.where(self.top, others - self.not_p * total, self.p * total - q)
        return found

    def centred(self, v: Array) -> Array:
        """p (v - sum p v)"""
        of_top = np.where(self.top, v, 0).sum(1, keepdims=True)
        small = np.where(self.top, 0, self.p * (of_top - v)).sum(1, keepdims=True)  # v of the largest beyond the mean
        found: Array = self.p * np.where(self.top, small, v - of_top + small)
        return found


def one_hot(y: Array, x: Array) -> Array:
    """The target as a number for every class; those that are no labels are that already."""
    return (np.arange(x.shape[1]) == y[:, None]).astype(x.dtype) if y.ndim == 1 else y


def weighted(
    w: Array, terms: Array, partials: dict[str, Array], size: Array | None = None, extra: Array | float = 0.0
) -> Rows:
    """The sum of the weighted terms of every class; `size` is that of the derivative by input."""
    all_terms = times(w * np.ones_like(terms), terms)
    of_value = np.abs(all_terms).sum(1) + np.abs(extra)
    return Rows(all_terms.sum(1) + extra, of_value, partials, {} if size is None else {"input": size}, terms)


# ---- cross-entropies -----------------------------------------------------------------------------------------------


def cross_entropy(
    x: Array, y: Array, w: Array, label_smoothing: float = 0.0, z_loss: float = 0.0, softcap: float | None = None
) -> Rows:
    slope, kept = np.ones_like(x), 1 - constant(label_smoothing, x)
    if softcap is not None:
        slope, x = 1 / np.cosh(x / softcap) ** 2, constant(softcap, x) * np.tanh(x / softcap)
    s, q = Softmax(x), one_hot(y, x) * kept + constant(label_smoothing, x) / x.shape[1]
    total = (w * q).sum(1, keepdims=True)
    by_x, size, extra = s.minus(total, w * q), s.p * total + w * q, np.zeros_like(s.log_sum_exp)
    if z_loss:
        extra = constant(z_loss, x) * s.log_sum_exp**2
        by_lse = 2 * constant(z_loss, x) * s.log_sum_exp[:, None] * s.p
        by_x, size = by_x + by_lse, size + np.abs(by_lse)
    partials = {"input": by_x * slope, "target": kept * times(w * np.ones_like(x), -s.log)}
    return weighted(w, times(q, -s.log), partials, size * slope, extra)


def nll_loss(x: Array, y: Array, w: Array) -> Rows:
    label = one_hot(y, x)
    return weighted(w, np.where(label == 1, -x, 0), {"input": -w * label})


def categorical_cross_entropy(
    x: Array, y: Array, w: Array, from_logits: bool = False, label_smoothing: float = 0.0
) -> Rows:
    if from_logits:
        return cross_entropy(x, y, w, label_smoothing)
    kept = 1 - constant(label_smoothing, x)
    q = one_hot(y, x) * kept + constant(label_smoothing, x) / x.shape[1]
    total = x.sum(1, keepdims=True)
    p, low = x / total, constant(CLIP, x)
    minus_log = -np.log(np.clip(p, low, 1 - low))
    by_p = np.where((p >= low) & (p <= 1 - low) | np.isnan(p), -w * q / p, 0)
    common = (by_p * p).sum(1, keepdims=True)  # of one sign: by_p is not positive
    partials = {"input": (by_p - common) / total, "target": kept * w * minus_log}
    return weighted(w, times(q, minus_log), partials, np.abs(by_p + common) / np.abs(total))


def softmax_focal_loss(x: Array, y: Array, w: Array, gamma: float = 2.0) -> Rows:
    s, q = Softmax(x), one_hot(y, x)
    focus = np.exp(times(np.full_like(x, gamma), s.log_not_p))
    # As p tends to 1, log p / (1 - p) tends to -1.
    ratio = np.where(s.not_p > 0, times(s.p, s.log) / np.where(s.not_p > 0, s.not_p, 1), s.not_p - 1)
    by_log_p = times(w * q, focus * (gamma * ratio - 1))
    others = by_log_p.sum(1, keepdims=True) - by_log_p
    by_x = by_log_p * s.not_p - s.p * others
    size = np.abs(by_log_p) + s.p * np.abs(by_log_p).sum(1, keepdims=True)
    return weighted(w, times(q, -focus * s.log), {"input": by_x, "target": -w * focus * s.log}, size)


# ---- margins -------------------------------------------------------------------------------------------------------


def positive_part(margin: Array) -> tuple[Array, Array]:
    """max(0, margin) and its slope, which is 0 at the corner."""
    return np.maximum(margin, 0), np.where(np.isnan(margin), margin, margin > 0)


def categorical_hinge_loss(x: Array, y: Array, w: Array) -> Rows:
    if y.ndim == 1:
        label = one_hot(y, x)
        rivals = np.where(label == 1, -np.inf, x)
        hits, by_rival, by_y = np.where(label == 1, x, 0).sum(1), 1 - label, np.zeros_like(x)
    else:
        label, rivals = y, (1 - y) * x
        hits, by_rival, by_y = (y * x).sum(1), 1 - y, -x
    largest = rivals.max(1, keepdims=True)
    share = (rivals == largest) / np.maximum((rivals == largest).sum(1, keepdims=True), 1).astype(x.dtype)
    loss, active = positive_part(1 + largest[:, 0] - hits)
    of_row = (w * label).sum(1) if y.ndim == 1 else np.ones_like(loss)
    partials = {
        "input": (of_row * active)[:, None] * (share * by_rival - label),
        "target": active[:, None] * (share * by_y - x),
    }
    return Rows(of_row * loss, np.abs(of_row * loss), partials, {}, label * loss[:, None])


def multi_margin_loss(x: Array, y: Array, w: Array, p: int = 1, margin: float = 1.0) -> Rows:
    label, classes = one_hot(y, x), x.shape[1]
    hit = np.where(label == 1, x, 0).sum(1, keepdims=True)
    gap, active = positive_part(constant(margin, x) - hit + x)
    gap = np.where(label == 1, 0, gap)
    slope = np.where(label == 1, 0, active if p == 1 else 2 * gap)
    by_x = (slope - label * slope.sum(1, keepdims=True)) / classes
    return weighted(w, label * (gap**p).sum(1, keepdims=True) / classes, {"input": (w * label).sum(1)[:, None] * by_x})


def multilabel_margin_loss(x: Array, y: Array, w: Array) -> Rows:
    rows, classes = np.arange(len(x)), x.shape[1]
    listed = np.cumprod(y >= 0, axis=1) == 1
    most, false = listed.sum(1).max(initial=0), np.ones_like(x)
    for k in range(most):
        false[rows[listed[:, k]], y[listed[:, k], k]] = 0
    value, by_x = np.zeros_like(x[:, 0]), np.zeros_like(x)
    for k in range(most):
        true = np.where(listed[:, k], y[:, k], 0)
        gap, active = positive_part(1 - x[rows, true][:, None] + x)
        counts = false * listed[:, k, None]
        value += (counts * gap).sum(1)
        by_x += counts * active
        by_x[rows, true] -= (counts * active).sum(1)
    return Rows(value / classes, value / classes, {"input": by_x / classes}, {})


def multilabel_soft_margin_loss(x: Array, y: Array, w: Array) -> Rows:
    classes = x.shape[1]
    terms = (times(y, softplus(-x)) + times(1 - y, softplus(x))) / classes
    up, down = w * (1 - y) * sigmoid(x) / classes, w * y * sigmoid(-x) / classes
    return weighted(w, terms, {"input": up - down, "target": -w * x / classes}, up + down)


# ---- divergences ---------------------------------------------------------------------------------------------------


# A divergence is a difference of entropies: of that size is what is added up. The logarithm of a probability that was
# rounded is off by its rounding over it, a unit of 1; and a probability below the normal numbers by a unit of these.
NORMAL = {np.dtype(np.float64): 2.0**-126, np.dtype(np.longdouble): 2.0**-1022}  # of the dtype that is judged


def log(x: Array) -> Array:
    """0 where x is 0, for what is 0 times that is 0."""
    return np.log(np.where(x == 0, 1, x))


def kl_divergence(p: Array, q: Array, from_logits: bool = False, temperature: Array | float = 1.0) -> Rows:
    t = np.asarray(temperature, p.dtype)
    a, b = Softmax(p / t), Softmax(q / t)
    x, log_x, log_y = (a.p, a.log, b.log) if from_logits else (p, log(p), np.log(q))
    log_ratio = np.where(x == 0, 0, log_x - log_y)
    size = np.where(x == 0, 0, np.abs(log_x) + np.abs(log_y) + int(from_logits))
    value, value_size = (x * log_ratio).sum(1), (x * size).sum(1)
    if not from_logits:
        partials = {"p": np.where(p == 0, 0, log_ratio + 1), "q": np.where(p == 0, 0, -p / q)}
        return Rows(value, value_size, partials, {"p": size + 1})
    of_p = np.maximum(x, NORMAL[x.dtype]) * (size + value_size[:, None])
    partials = {"p": a.centred(log_ratio) / t, "q": b.minus(np.ones_like(p[:, :1]), a.p) / t}
    sizes = {"p": of_p / t, "q": (a.p + b.p) / t}
    partials["temperature"] = -(times(partials["p"], p) + times(partials["q"], q)) / t
    sizes["temperature"] = (times(sizes["p"], np.abs(p)) + times(sizes["q"], np.abs(q))) / t
    return Rows(value, value_size, partials, sizes)


def js_divergence(p: Array, q: Array, beta: float = 0.5, from_logits: bool = False) -> Rows:
    both = Softmax(p), Softmax(q)
    shares = constant(beta, p), 1 - constant(beta, p)
    x = [s.p for s in both] if from_logits else [p, q]
    mixed = shares[0] * x[0] + shares[1] * x[1]
    slopes = [share * (log(v) - np.where(v == 0, 0, np.log(mixed))) for share, v in zip(shares, x, strict=True)]
    sizes = [
        share * (np.abs(log(v)) + np.where(v == 0, 0, np.abs(np.log(mixed)) + 1))
        for share, v in zip(shares, x, strict=True)
    ]
    value = sum((v * g).sum(1) for v, g in zip(x, slopes, strict=True))
    value_size = sum((v * g).sum(1) for v, g in zip(x, sizes, strict=True))
    if not from_logits:
        return Rows(value, value_size, dict(zip("pq", slopes, strict=True)), dict(zip("pq", sizes, strict=True)))
    both_sizes = [
        np.maximum(s.p, NORMAL[s.p.dtype]) * (size + (s.p * size).sum(1, keepdims=True))
        for s, size in zip(both, sizes, strict=True)
    ]
    partials = {name: s.centred(g) for name, s, g in zip("pq", both, slopes, strict=True)}
    return Rows(value, value_size, partials, dict(zip("pq", both_sizes, strict=True)))


FORMULAS: dict[str, Callable[..., Rows]] = {
    "cross_entropy": cross_entropy,
    "nll_loss": nll_loss,
    "categorical_cross_entropy": categorical_cross_entropy,
    "sparse_categorical_cross_entropy": categorical_cross_entropy,
    "softmax_focal_loss": softmax_focal_loss,
    "categorical_hinge_loss": categorical_hinge_loss,
    "multi_margin_loss": multi_margin_loss,
    "multilabel_margin_loss": multilabel_margin_loss,
    "multilabel_soft_margin_loss": multilabel_soft_margin_loss,
    "kl_divergence": kl_divergence,
    "js_divergence": js_divergence,
}
