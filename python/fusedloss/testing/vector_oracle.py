"""What the losses of two or three vectors are, independently of the library: numpy, straight from the formulas.

Everything is computed in the dtype of the operands: float64 judges what was computed in float32, longdouble what was
computed in float64. A distance comes with its derivatives by both vectors; a loss is made of distances.

Second derivatives are those of the first ones along a direction, by a step into the imaginary: of a formula of real
numbers f, the imaginary part of f(x + ihv) is h times its change along v, for an h so small that nothing is left of
its square. No difference is taken, so that no digit is lost. All formulas here hold for complex numbers whose imaginary
part is such a step: they compare by the real part alone.

Where a derivative does not exist, it is 0: of a norm at 0, of its terms that are 0, of a hinge at its corner. Numbers
that are largest together share the slope of a maximum, and two that are smallest together that of a minimum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from fusedloss.testing.oracle import Array, Both, Result, constant, sum_to

# torch's, in cosine_embedding_loss, cosine_similarity, pairwise_distance and normalize.
EPSILON_OF_SQUARES, EPSILON_OF_NORMS, EPSILON_OF_DIFFERENCES, EPSILON_OF_LENGTHS = 1e-12, 1e-8, 1e-6, 1e-12

# A direction is taken in so many parts, of whose sizes the size of a second derivative is made: the parts of a sum are
# seldom all as small as the sum may be.
PARTS = 4
# Its square is nothing beside any operand, and it is not lost beside any change.
STEP = 2.0**-300


# ---- real numbers that may have an imaginary step --------------------------------------------------------------------


def absolute(x: Array) -> Array:
    return np.where(x.real < 0, -x, x)


def or_one(x: Array) -> Array:
    """To divide by, where what is divided by 0 is not looked at."""
    return np.where(x.real == 0, constant(1, x), x)


def positive_part(x: Array) -> tuple[Array, Array]:
    """max(0, x) and its slope, which is 0 at the corner."""
    active = np.where(np.isnan(x.real), x.real, x.real > 0)
    return np.where(x.real > 0, x, x * active), active


def product(a: Array, b: Array) -> Array:
    """Of every row."""
    found: Array = (a * b).sum(-1)
    return found


# ---- distances of rows -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Distance:
    """Of the rows of two arrays (rows, D), with the slopes by both and the size of what was added up to each."""

    value: Array  # (rows,)
    size: Array
    slopes: tuple[Array, Array]  # (rows, D)
    sizes: tuple[Array, Array]


def of_difference(value: Array, slope: Array) -> Distance:
    size = np.abs(slope)
    return Distance(value, np.abs(value), (slope, -slope), (size, size))


def p_norm(a: Array, b: Array, p: float = 2.0, eps: float = 0.0) -> Distance:
    """(sum |a - b + eps|^p)^(1/p), or the largest |a - b + eps|"""
    r = a - b + constant(eps, a)
    size, sign = absolute(r), np.sign(r.real)
    if np.isinf(p):
        largest = size.real.max(-1, keepdims=True, initial=0)
        top = (size.real == largest) | np.isnan(size.real)
        share = top / np.maximum(top.sum(-1, keepdims=True), 1).astype(size.real.dtype)
        return of_difference((share * size).sum(-1), share * sign)
    if p == 2:
        norm = np.sqrt(product(r, r))
        return of_difference(norm, np.where(norm.real == 0, 0, 1)[..., None] * r / or_one(norm)[..., None])
    exponent = constant(p, size)
    nothing = size.real == 0
    powers = np.where(nothing, 0, or_one(size) ** exponent)
    norm = powers.sum(-1) ** (1 / exponent) if p != 1 else size.sum(-1)
    ratio = or_one(size) / or_one(norm)[..., None]
    return of_difference(norm, np.where(nothing, 0, sign * ratio ** (exponent - 1)))


def squared(a: Array, b: Array) -> Distance:
    r = a - b
    return of_difference(product(r, r), 2 * r)


def from_cosine(similarity: Distance) -> Distance:
    """1 - it"""
    (by_first, by_second), sizes = similarity.slopes, similarity.sizes
    return Distance(1 - similarity.value, 1 + similarity.size, (-by_first, -by_second), sizes)


def cosine(a: Array, b: Array, squares: tuple[Array, Array], moving: tuple[Array, Array]) -> Distance:
    """a b / sqrt(squares of a and of b), where squares that do not move with their vector are constants."""
    both = np.sqrt(squares[0])[..., None] * np.sqrt(squares[1])[..., None]
    value = product(a / both, b)
    slopes, sizes = [], []
    for one, other, square, moves in zip((a, b), (b, a), squares, moving, strict=True):
        back = (moves * value / square)[..., None] * one
        slopes.append(other / both - back)
        sizes.append(np.abs(other / both) + np.abs(back))
    return Distance(value, np.abs(a / both * b).sum(-1), (slopes[0], slopes[1]), (sizes[0], sizes[1]))


def cosine_similarity(a: Array, b: Array) -> Distance:
    """As torch's: norms are at least 1e-8."""
    least = constant(EPSILON_OF_NORMS, a) ** 2
    given = product(a, a), product(b, b)
    moving = [np.where(np.isnan(s.real), 1, s.real > least.real) for s in given]
    squares = [np.where(m == 1, s, least) for s, m in zip(given, moving, strict=True)]
    return cosine(a, b, (squares[0], squares[1]), (moving[0], moving[1]))


def cosine_of_embeddings(a: Array, b: Array) -> Distance:
    """As in torch's cosine_embedding_loss: 1e-12 is added to the squares of norms."""
    eps = constant(EPSILON_OF_SQUARES, a)
    squares = product(a, a) + eps, product(b, b) + eps
    return cosine(a, b, squares, (np.ones_like(squares[0]), np.ones_like(squares[1])))


# ---- losses of rows --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rows:
    """A loss at every row, without the weights of rows."""

    value: Array  # (rows,)
    size: Array
    partials: dict[str, Array]  # by vector, (rows, D)
    sizes: dict[str, Array]
    by_target: Array | None = None  # (rows,)


Vectors = dict[str, Array]


def chain(names: tuple[str, ...], like: Array, *terms: tuple[Array, Distance, str, str]) -> tuple[Vectors, Vectors]:
    """The slopes of a loss by its vectors: of every distance the loss's slope by it, and between which it is."""
    partials, sizes = ({name: np.zeros_like(x) for name in names} for x in (like, like.real))
    for slope, distance, *between in terms:
        for k, name in enumerate(between):
            moves = slope[..., None] != 0  # what does not move the loss has no part in it, whatever it is
            partials[name] = partials[name] + np.where(moves, slope[..., None] * distance.slopes[k], 0)
            sizes[name] = sizes[name] + np.where(moves, np.abs(slope[..., None]) * distance.sizes[k], 0)
    return partials, sizes


def contrastive_loss(vectors: Vectors, target: Array, margin: float = 1.0, p: float = 2.0) -> Rows:
    """y d^2 + (1 - y) max(margin - d, 0)^2"""
    first, second = names = tuple(vectors)
    d = p_norm(vectors[first], vectors[second], p)
    y = target + 0 * d.value
    far = constant(margin, d.value)
    gap, active = positive_part(far - d.value)
    value = y * d.value**2 + (1 - y) * gap**2
    size = np.abs(y) * d.size**2 + np.abs(1 - y) * np.abs(gap) * (np.abs(far) + d.size)
    slope = 2 * y * d.value - 2 * (1 - y) * gap
    of_slope = 2 * np.abs(y) * d.size + 2 * np.abs(1 - y) * active * (np.abs(far) + d.size)
    partials, _ = chain(names, vectors[first] + d.value[..., None] * 0, (slope, d, first, second))
    sizes = {name: of_slope[..., None] * d.sizes[k] for k, name in enumerate(names)}
    return Rows(value, size, partials, sizes, d.value**2 - gap**2)


def cosine_embedding_loss(vectors: Vectors, target: Array, margin: float = 0.0) -> Rows:
    """1 - cos for a target of 1, max(cos - margin, 0) for one of -1"""
    first, second = names = tuple(vectors)
    similarity = cosine_of_embeddings(vectors[first], vectors[second])
    y, least = target.real + 0 * similarity.value.real, constant(margin, similarity.value)
    gap, active = positive_part(similarity.value - least)
    value = np.where(y == 1, 1 - similarity.value, 0) + np.where(y == -1, gap, 0)
    size = np.where(y == 1, 1 + similarity.size, 0) + np.where(y == -1, active * (similarity.size + np.abs(least)), 0)
    slope = np.where(y == -1, active, 0) - (y == 1)
    like = vectors[first] + similarity.value[..., None] * 0
    return Rows(value, size, *chain(names, like, (slope, similarity, first, second)))


def hinge_of_triplets(
    vectors: Vectors, distance: Callable[[Array, Array], Distance], margin: float, swap: bool
) -> Rows:
    """max(margin + d(anchor, positive) - d(anchor, negative), 0), or with d(positive, negative) if that is smaller"""
    anchor, positive, negative = names = tuple(vectors)
    near, far = (distance(vectors[anchor], vectors[name]) for name in (positive, negative))
    distant, size, of_far = far.value, far.size, np.ones_like(far.value.real)
    other = distance(vectors[positive], vectors[negative]) if swap else None
    if other is not None:
        undefined = np.isnan(far.value.real) | np.isnan(other.value.real)
        of_far = np.where(far.value.real < other.value.real, 1, np.where(far.value.real > other.value.real, 0, 0.5))
        of_far = np.where(undefined, np.nan, of_far).astype(size.dtype)
        distant = of_far * far.value + (1 - of_far) * other.value
        size = of_far * far.size + (1 - of_far) * other.size
    value, active = positive_part(constant(margin, distant) + near.value - distant)
    size = active * (np.abs(constant(margin, distant)) + near.size + size)
    terms = [(active, near, anchor, positive), (-active * of_far, far, anchor, negative)]
    if other is not None:
        terms.append((-active * (1 - of_far), other, positive, negative))
    like = sum(vectors.values()) * 0 + distant[..., None] * 0
    return Rows(value, size, *chain(names, like, *terms))


def triplet_margin_loss(
    vectors: Vectors, margin: float = 1.0, p: float = 2.0, eps: float = EPSILON_OF_DIFFERENCES, swap: bool = False
) -> Rows:
    return hinge_of_triplets(vectors, lambda a, b: p_norm(a, b, p, eps), margin, swap)


def triplet_margin_with_distance_loss(
    vectors: Vectors, distance_function: Any = None, margin: float = 1.0, swap: bool = False
) -> Rows:
    return hinge_of_triplets(vectors, distance_of(distance_function), margin, swap)


def distance_of(function: Any) -> Callable[[Array, Array], Distance]:
    """What a distance is that is named, or torch's own."""
    if function == "squared_euclidean":
        return squared
    if function == "cosine":
        return lambda a, b: from_cosine(cosine_similarity(a, b))
    if isinstance(function, torch.nn.PairwiseDistance):
        return lambda a, b: p_norm(a, b, function.norm, function.eps)
    return lambda a, b: p_norm(a, b, 2.0, EPSILON_OF_DIFFERENCES)


FORMULAS: dict[str, Callable[..., Rows]] = {
    "contrastive_loss": contrastive_loss,
    "cosine_embedding_loss": cosine_embedding_loss,
    "triplet_margin_loss": triplet_margin_loss,
    "triplet_margin_with_distance_loss": triplet_margin_with_distance_loss,
}


# ---- vectors that are divided by their length ------------------------------------------------------------------------


@dataclass(frozen=True)
class Normalized:
    """Of every row, x / max(||x||, 1e-12)."""

    vector: Array
    length: Array
    moves: Array  # whether the length moves with the vector

    def back(self, slope: Array, size: Array) -> tuple[Array, Array]:
        """A slope by the normalized vector as one by the given vector, and its size."""
        along = (self.moves * product(self.vector, slope))[..., None] * self.vector
        of_along = (self.moves * product(np.abs(self.vector), size))[..., None] * np.abs(self.vector)
        return (slope - along) / self.length[..., None], (size + of_along) / np.abs(self.length)[..., None]


def normalized(x: Array) -> Normalized:
    length, least = np.sqrt(product(x, x)), constant(EPSILON_OF_LENGTHS, x)
    moves = np.where(np.isnan(length.real), 1, length.real > least.real)
    length = np.where(moves == 1, length, least)
    return Normalized(x / length[..., None], length, moves)


def of_rows(name: str, vectors: Vectors, target: Array | None, parameters: dict[str, Any], normalize: bool) -> Rows:
    given = () if target is None else (target,)
    if not normalize:
        return FORMULAS[name](vectors, *given, **parameters)
    unit = {k: normalized(x) for k, x in vectors.items()}
    made = FORMULAS[name]({k: x.vector for k, x in unit.items()}, *given, **parameters)
    back = {k: x.back(made.partials[k], made.sizes[k]) for k, x in unit.items()}
    return replace(made, partials={k: x for k, (x, _) in back.items()}, sizes={k: x for k, (_, x) in back.items()})


# ---- rows that count, reductions, directions -------------------------------------------------------------------------


def results(
    name: str,
    operands: dict[str, Array],
    parameters: dict[str, Any],
    reduction: str,
    grad_output: Array | None = None,
) -> Both:
    """The loss, and the derivative of sum(grad_output * loss) by every vector, target and weight.

    Vectors are broadcast against each other, and target and weight to their rows. A row of weight 0 does not count.
    """
    rest = dict(operands)
    target, weight = rest.pop("target", None), rest.pop("weight", None)
    parameters = dict(parameters)
    normalize = parameters.pop("normalize", False)
    full = np.broadcast_shapes(*(x.shape for x in rest.values()))
    vectors = {k: np.broadcast_to(x, full) for k, x in rest.items()}
    rows = full[:-1]
    with np.errstate(all="ignore"):
        y = None if target is None else np.broadcast_to(target, rows)
        made = of_rows(name, vectors, y, parameters, normalize)
        w = np.ones(rows, made.size.dtype) if weight is None else np.broadcast_to(weight, rows)
        counts = w.real != 0
        values, size = np.where(counts, w * made.value, 0), np.where(counts, np.abs(w) * made.size, 0)
        count = constant(values.size if reduction == "mean" else 1, made.size)
        loss = Result(values, size) if reduction == "none" else Result(values.sum() / count, size.sum() / count)
        g = np.broadcast_to(np.ones_like(loss.value.real) if grad_output is None else grad_output, rows) / count
        factor = np.where(counts, g * w, 0)[..., None]
        gradients = {}
        for k, partial in made.partials.items():
            slope = np.where(counts[..., None], factor * partial, 0)
            of_slope = np.where(counts[..., None], np.abs(factor) * made.sizes[k], 0)
            gradients[k] = Result(sum_to(slope, rest[k].shape).value, sum_to(of_slope, rest[k].shape).value)
        if target is not None and made.by_target is not None:
            gradients["target"] = sum_to(np.where(counts, factor[..., 0] * made.by_target, 0), target.shape)
        if weight is not None:
            gradients["weight"] = sum_to(np.where(counts, g * made.value, 0), weight.shape)
    return loss, gradients


def along(directions: dict[str, Array], operands: dict[str, Array], *rest: Any) -> Both:
    """How both `results` change as the operands move along, with the size of what a few parts of the direction do."""

    def change(part: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
        name, *others = rest
        moved = {k: operands[k] + 1j * constant(STEP, d) * d for k, d in part.items()}
        loss, gradients = results(name, operands | moved, *others)
        imaginary = {k: np.imag(x.value) for k, x in ({"": loss} | gradients).items()}
        found = {k: x / constant(STEP, x) for k, x in imaginary.items()}
        return found.pop(""), found

    value, slopes = change(directions)
    parts = [change({k: in_part(d, n, i) for i, (k, d) in enumerate(directions.items())}) for n in range(PARTS)]
    size = np.abs([one for one, _ in parts]).sum(0)
    sizes = {k: np.abs([others[k] for _, others in parts]).sum(0) for k in slopes}
    return Result(value, size), {k: Result(x, sizes[k]) for k, x in slopes.items()}


def in_part(direction: Array, part: int, operand: int) -> Array:
    """Neighbours lie in different parts, and so do those of different operands."""
    of = (np.arange(direction.size).reshape(direction.shape) + operand) % PARTS
    return np.where(of == part, direction, 0)


def expected(
    name: str,
    operands: dict[str, Array],
    parameters: dict[str, Any],
    reduction: str,
    grad_output: Array | None = None,
    rounding: float = 0.0,
    directions: dict[str, Array] | None = None,
) -> Both:
    """`results`, or how they change along the directions, with their sensitivity to a relative change by `rounding`."""

    def compute(at: dict[str, Array]) -> Both:
        rest = name, parameters, reduction, grad_output
        if directions is None:
            return results(name, at, *rest[1:])
        with np.errstate(all="ignore"):
            return along(directions, at, *rest)

    loss, gradients = compute(operands)
    if not rounding:
        return loss, gradients
    generator = np.random.default_rng(0)
    moved = {}
    for k, x in operands.items():
        signs = 2 * generator.integers(0, 2, x.shape) - 1
        moved[k] = x * (1 + constant(rounding, x) * signs) if np.issubdtype(x.dtype, np.floating) else x
    value, others = compute(moved)
    return with_change(loss, value), {k: with_change(x, others[k]) for k, x in gradients.items()}


def with_change(found: Result, moved: Result) -> Result:
    with np.errstate(all="ignore"):
        return replace(found, sensitivity=np.nan_to_num(np.abs(moved.value - found.value)))


# ---- how far from a corner -------------------------------------------------------------------------------------------


def room(name: str, vectors: Vectors, parameters: dict[str, Any]) -> Array:
    """Of every row, about how far its vectors may move before a derivative jumps or ceases to exist."""
    if parameters.get("normalize", False):
        vectors = {k: normalized(x).vector for k, x in vectors.items()}
    x = list(vectors.values())
    found: Array
    if name == "cosine_embedding_loss":
        found = np.abs(cosine_of_embeddings(x[0], x[1]).value - parameters.get("margin", 0.0))
    elif name == "contrastive_loss":
        p = parameters.get("p", 2.0)
        gap = parameters.get("margin", 1.0) - p_norm(x[0], x[1], p).value
        found = np.minimum(np.abs(gap), room_of_norm(x[0] - x[1], p))
    else:
        found = room_of_triplets(x, parameters)
    return found


def room_of_triplets(x: list[Array], parameters: dict[str, Any]) -> Array:
    distance, p, eps = distance_of_triplets(parameters)
    between, swap = ((0, 1), (0, 2), (1, 2)), parameters.get("swap", False)
    near, far, other = (distance(x[i], x[j]).value for i, j in between)
    distant = np.minimum(far, other) if swap else far
    found: Array = np.abs(parameters.get("margin", 1.0) + near - distant)
    for i, j in between if swap else between[:2]:
        found = np.minimum(found, room_of_norm(x[i] - x[j] + eps, p))
    return np.minimum(found, np.abs(far - other)) if swap else found


def distance_of_triplets(parameters: dict[str, Any]) -> tuple[Callable[[Array, Array], Distance], float, float]:
    """With its p and eps."""
    function = parameters.get("distance_function")
    if isinstance(function, torch.nn.PairwiseDistance):
        return distance_of(function), function.norm, function.eps
    p, eps = parameters.get("p", 2.0), parameters.get("eps", EPSILON_OF_DIFFERENCES)
    return (lambda a, b: p_norm(a, b, p, eps)) if function is None else distance_of(function), p, eps


def room_of_norm(r: Array, p: float) -> Array:
    size: Array = np.sort(np.abs(r), axis=-1)
    if np.isinf(p) and size.shape[-1] > 1:
        size = size[..., 1:] - size[..., :-1]
    found: Array = size[..., -1] if p == 2 or np.isinf(p) else size[..., 0]
    return found
