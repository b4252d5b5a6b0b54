"""What the losses over pairs of a batch are, independently of the library: dense matrices in numpy.

Every loss is a function of the logits of all pairs, the logits are products of two tables of vectors, and a vector may
be divided by its norm first. `Term` carries what every step makes: numbers, of what size they are composed, and how
both change along a direction, so that a second derivative is the product rule on the first. Everything is computed in
the dtype of the operands: float64 judges what was computed in float32, longdouble what was computed in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fusedloss.testing.oracle import Array, Both, Result, constant, sigmoid, softplus, times

NORM_MIN = 1e-12  # by which shorter vectors are divided


# ---- numbers that know their size and their change -------------------------------------------------------------------


@dataclass(frozen=True)
class Term:
    value: Array
    size: Array  # of what was added up
    change: Array | None = None  # along the direction; None does not move
    change_size: Array | None = None

    def __add__(self, other: Term) -> Term:
        return Term(
            self.value + other.value,
            self.size + other.size,
            added(self.change, other.change),
            added(self.change_size, other.change_size),
        )

    def __neg__(self) -> Term:
        return replace(self, value=-self.value, change=None if self.change is None else -self.change)

    def __sub__(self, other: Term) -> Term:
        return self + -other

    def __mul__(self, other: Term) -> Term:
        return bilinear(np.multiply, self, other)

    def __matmul__(self, other: Term) -> Term:
        return bilinear(np.matmul, self, other)

    def __getitem__(self, index: Any) -> Term:
        return self.linear(lambda x: x[index])

    def linear(self, function: Callable[[Array], Array]) -> Term:
        """A sum or a rearrangement of the numbers."""
        parts = (self.value, self.size, self.change, self.change_size)
        return Term(*(None if x is None else function(x) for x in parts))  # type: ignore[arg-type]

    def sum(self, *axes: int) -> Term:
        return self.linear(lambda x: np.asarray(x.sum(axes or None)))

    def reshaped(self, shape: tuple[int, ...] = ()) -> Term:
        return self.linear(lambda x: x.reshape(shape))

    @property
    def transposed(self) -> Term:
        return self.linear(lambda x: x.T)

    def result(self, along: bool) -> Result:
        if not along:
            return Result(self.value, self.size)
        if self.change is None or self.change_size is None:
            return Result(np.zeros_like(self.value), np.zeros_like(self.value))
        return Result(self.change, self.change_size)


def fixed(x: Array) -> Term:
    return Term(x, np.abs(x))


def added(one: Array | None, other: Array | None) -> Array | None:
    return other if one is None else one if other is None else one + other


def bilinear(multiply: Callable[[Array, Array], Array], a: Term, b: Term) -> Term:
    def product(x: Array | None, y: Array | None) -> Array | None:
        return None if x is None or y is None else multiply(x, y)

    return Term(
        multiply(a.value, b.value),
        multiply(a.size, b.size),
        added(product(a.change, b.value), product(a.value, b.change)),
        added(product(a.change_size, b.size), product(a.size, b.change_size)),
    )


def beside(a: Term, b: Term) -> Term:
    """The columns of both; they move together or not at all."""
    parts = (a.value, b.value), (a.size, b.size), (a.change, b.change), (a.change_size, b.change_size)
    return Term(*(None if x is None or y is None else np.hstack([x, y]) for x, y in parts))  # type: ignore[arg-type]


# ---- losses of logits ------------------------------------------------------------------------------------------------

# What a loss gives for the logits of all pairs and for what comes in for every row: the value of every row, and the
# derivative of the sum of both products by the logits.
OfLogits = tuple[Term, Term]


def cross_entropy(z: Term, incoming: Array, target: Array, counts: Array | bool = True) -> OfLogits:
    """-sum of target log softmax over the columns that count. A row whose target is all 0 is 0 itself."""
    used = target.any(1, keepdims=True)
    below = np.where(counts, z.value, -np.inf)
    largest = below.max(1, keepdims=True, initial=-np.inf)
    spread = np.exp(below - np.where(np.isneginf(largest), 0, largest))
    total = np.where(used, spread.sum(1, keepdims=True), 1)
    p = np.where(used, spread / total, 0)
    log_p = np.where(used, below - largest - np.log(total), 0)
    # The logarithm of the sum is the mean of the logits under p and the entropy of p.
    entropy = -times(p, np.where(p == 0, 0, log_p)).sum(1)
    values = Term(-times(target, log_p).sum(1), ((p + target) * z.size).sum(1) + entropy)
    # A probability is as certain as its logit's lead over the others, which is the sum of many products.
    of_others = (p * z.size).sum(1, keepdims=True) - p * z.size
    p_size = p * (1 + (1 - p) * z.size + of_others)
    slopes = Term(p - target, p_size + target)
    if z.change is not None and z.change_size is not None:
        mean, mean_size = ((p * x).sum(1, keepdims=True) for x in (z.change, z.change_size))
        values = Term(
            values.value,
            values.size,
            ((p - target) * z.change).sum(1),
            ((p_size + target) * z.change_size).sum(1),
        )
        slopes = Term(p - target, p_size + target, p * (z.change - mean), p_size * (z.change_size + mean_size))
    return values, slopes * fixed(incoming[:, None])


def own_column(z: Term, incoming: Array) -> OfLogits:
    return cross_entropy(z, incoming, np.eye(*z.value.shape, dtype=z.value.dtype))


def first_column(z: Term, incoming: Array) -> OfLogits:
    target = np.zeros_like(z.value)
    target[:, 0] = 1
    return cross_entropy(z, incoming, target)


def both_directions(z: Term, incoming: Array) -> OfLogits:
    (rows, by_rows), (columns, by_columns) = own_column(z, incoming), own_column(z.transposed, incoming)
    half = fixed(constant(0.5, z.value))
    return (rows + columns) * half, (by_rows + by_columns.transposed) * half


def positives(labels: Array, like: Array) -> Array:
    """The share of every other vector of an anchor's own class."""
    alike = (labels[:, None] == labels) & ~np.eye(len(labels), dtype=bool)
    shares: Array = alike / np.maximum(alike.sum(1, keepdims=True), 1).astype(like.dtype)
    return shares


def sigmoids(z: Term, incoming: Array) -> OfLogits:
    """-log sigmoid of what is so on the diagonal, and of the opposite elsewhere."""
    y = 2 * np.eye(len(z.value), dtype=z.value.dtype) - 1
    terms, slopes = softplus(-y * z.value), -y * sigmoid(-y * z.value)
    values = Term(terms.sum(1), (terms + np.abs(slopes) * z.size).sum(1))
    # A logit is the sum of many products.
    curvature = sigmoid(z.value) * sigmoid(-z.value)
    size = np.abs(slopes) + curvature * z.size
    by_z = Term(slopes, size)
    if z.change is not None and z.change_size is not None:
        values = Term(
            values.value,
            values.size,
            (slopes * z.change).sum(1),
            (size * z.change_size).sum(1),
        )
        curvature_size = curvature * (1 + z.size)
        by_z = Term(slopes, size, curvature * z.change, curvature_size * z.change_size)
    return values, by_z * fixed(incoming[:, None])


# ---- vectors ---------------------------------------------------------------------------------------------------------


class Vectors:
    """The vectors of an operand as they take part, divided by their norm or not."""

    def __init__(self, given: Term, normalize: bool) -> None:
        self.normalize, self.used = normalize, given
        if not normalize:
            return
        x = given.value
        norm = np.sqrt((x * x).sum(-1, keepdims=True))
        self.long = (norm >= constant(NORM_MIN, x)) | np.isnan(norm)
        inverse = 1 / np.where(self.long, norm, constant(NORM_MIN, x))
        change = change_size = None
        if given.change is not None and given.change_size is not None:
            size = inverse * inverse
            turned, turned_size = x * inverse * given.change, np.abs(x) * inverse * given.change_size
            change = np.where(self.long, -turned.sum(-1, keepdims=True) * size, 0)
            change_size = np.where(self.long, turned_size.sum(-1, keepdims=True) * size, 0)
        self.inverse = Term(inverse, inverse, change, change_size)
        self.used = given * self.inverse

    def by_given(self, slopes: Term) -> Term:
        """The derivative by the vectors that were given, of that by those that took part."""
        if not self.normalize:
            return slopes
        lengthwise = (slopes * self.used).linear(lambda x: x.sum(-1, keepdims=True) * self.long)
        return (slopes - self.used * lengthwise) * self.inverse


# ---- the losses ------------------------------------------------------------------------------------------------------


Operands = dict[str, Term]
# The value of every row, and the derivative of the sum of these times what comes in by every operand.
Made = tuple[Term, dict[str, Term]]


def of_two_tables(
    names: tuple[str, str],
    given: Operands,
    scale: Term,
    of_logits: Callable[[Term, Array], OfLogits],
    incoming: Array,
    normalize: bool,
) -> Made:
    """A loss of scale * a @ b.T + logit_bias; `names` are those of the tables."""
    a, b = (Vectors(given[name], normalize) for name in names)
    products = a.used @ b.used.transposed
    scale = scale.reshaped()
    z = products * scale
    if "logit_bias" in given:
        z = z + given["logit_bias"].reshaped()
    values, by_z = of_logits(z, incoming)
    by_products = by_z * scale
    slopes = {
        names[0]: a.by_given(by_products @ b.used),
        names[1]: b.by_given(by_products.transposed @ a.used),
    }
    for name, terms in (("logit_scale", by_z * products), ("logit_bias", by_z)):
        if name in given:
            slopes[name] = terms.sum().reshaped(given[name].value.shape)
    return values, slopes


def divided(temperature: float, like: Array) -> Term:
    return fixed(np.asarray(1 / constant(temperature, like)))


def info_nce_loss(
    given: Operands, incoming: Array, temperature: float = 0.1, symmetric: bool = False, normalize: bool = False
) -> Made:
    scale = divided(temperature, given["query"].value)
    if "negatives" not in given:
        of_logits = both_directions if symmetric else own_column
        return of_two_tables(("query", "key"), given, scale, of_logits, incoming, normalize)
    q, k, others = (Vectors(given[name], normalize) for name in ("query", "key", "negatives"))
    right = (q.used * k.used).linear(lambda x: x.sum(1, keepdims=True))
    shared = others.used.value.ndim == 2
    wrong = q.used @ others.used.transposed if shared else (others.used @ q.used[:, :, None])[:, :, 0]
    z = beside(right, wrong) * scale
    values, by_z = first_column(z, incoming)
    by_right, by_wrong = (by_z * scale)[:, :1], (by_z * scale)[:, 1:]
    if shared:
        by_query, by_others = by_wrong @ others.used, by_wrong.transposed @ q.used
    else:
        by_query, by_others = (by_wrong[:, None, :] @ others.used)[:, 0], by_wrong[:, :, None] * q.used[:, None, :]
    slopes = {
        "query": q.by_given(by_right * k.used + by_query),
        "key": k.by_given(by_right * q.used),
        "negatives": others.by_given(by_others),
    }
    return values, slopes


def supervised_contrastive_loss(
    given: Operands, incoming: Array, labels: Array, temperature: float = 0.1, normalize: bool = False
) -> Made:
    x = given["embeddings"]
    shares = positives(labels, x.value)
    others = ~np.eye(len(labels), dtype=bool)
    values, slopes = of_two_tables(
        ("anchors", "others"),
        {"anchors": x, "others": x},
        divided(temperature, x.value),
        lambda z, g: cross_entropy(z, g, shares, others),
        incoming,
        normalize,
    )
    return values, {"embeddings": slopes["anchors"] + slopes["others"]}


def clip_loss(given: Operands, incoming: Array, normalize: bool = False) -> Made:
    return of_two_tables(("image", "text"), given, given["logit_scale"], both_directions, incoming, normalize)


def siglip_loss(given: Operands, incoming: Array, normalize: bool = False) -> Made:
    return of_two_tables(("image", "text"), given, given["logit_scale"], sigmoids, incoming, normalize)


LOSSES: dict[str, Callable[..., Made]] = {
    "info_nce_loss": info_nce_loss,
    "supervised_contrastive_loss": supervised_contrastive_loss,
    "clip_loss": clip_loss,
    "siglip_loss": siglip_loss,
}


# ---- one call --------------------------------------------------------------------------------------------------------


def results(
    name: str,
    operands: dict[str, Array],
    parameters: dict[str, Any],
    reduction: str,
    grad_output: Array | None = None,
    directions: dict[str, Array] | None = None,
) -> Both:
    """The loss, and the derivative of sum(grad_output * loss) by every floating operand.

    With directions, how both change as these operands move along.
    """
    given, rest = {}, dict(parameters)
    for operand, x in operands.items():
        if not np.issubdtype(x.dtype, np.floating):
            rest[operand] = x
            continue
        d = None if directions is None else directions.get(operand)
        given[operand] = Term(x, np.abs(x), d, None if d is None else np.abs(d))
    first = next(iter(given.values())).value
    rows, along = len(first), directions is not None
    with np.errstate(all="ignore"):
        unit = np.ones(rows, first.dtype)
        counted = rows
        if name == "supervised_contrastive_loss":
            counted = int(positives(rest["labels"], first).any(1).sum())
        if counted == 0:
            zeros = {k: np.zeros_like(x.value) for k, x in given.items()}
            value = np.zeros(rows if reduction == "none" else (), first.dtype)
            return Result(value, value), {k: Result(x, x) for k, x in zeros.items()}
        denominator = constant(counted if reduction == "mean" else 1, first)
        incoming = unit / denominator * (constant(1, first) if grad_output is None else grad_output)
        values, slopes = LOSSES[name](given, incoming, **rest)
        if reduction != "none":
            values = values.sum() * fixed(1 / denominator)
        return values.result(along), {k: x.result(along) for k, x in slopes.items()}


def expected(
    name: str,
    operands: dict[str, Array],
    parameters: dict[str, Any],
    reduction: str,
    grad_output: Array | None = None,
    rounding: float = 0.0,
    directions: dict[str, Array] | None = None,
) -> Both:
    """`results`, with their sensitivity to relative changes of all operands by `rounding`, if one is given."""
    rest = parameters, reduction, grad_output, directions
    loss, slopes = results(name, operands, *rest)
    if not rounding:
        return loss, slopes
    random = np.random.default_rng(0)
    moved = {
        k: x * (1 + constant(rounding, x) * (2 * random.integers(0, 2, x.shape) - 1))
        for k, x in operands.items()
        if np.issubdtype(x.dtype, np.floating)
    }
    value, others = results(name, operands | moved, *rest)
    return sensitive(loss, value), {k: sensitive(x, others[k]) for k, x in slopes.items()}


def sensitive(found: Result, moved: Result) -> Result:
    with np.errstate(all="ignore"):
        return replace(found, sensitivity=np.nan_to_num(np.abs(moved.value - found.value)))
