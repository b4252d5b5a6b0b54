"""What the mined triplet losses are, independently of the library: all distances as a dense matrix, in numpy.

A term is a triplet: an anchor a, a positive p of its label and a negative n of another one, of the loss
max(0, d(a, p) - d(a, n) + margin). The rules say which triplets are terms; what they choose has no derivative.
Everything is computed in the dtype of the operand: float64 judges what was computed in float32, longdouble what was
computed in float64.

A norm has the derivative 0 at 0, in both orders, and so has the hinge at its corner. A distance that is NaN is taken
for the farthest and for the nearest, so that it reaches every anchor that has a term.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fusedloss.testing.oracle import Array, Both, Result, constant

# torch.nn.functional.normalize divides by no smaller norm.
SMALLEST_NORM = 1e-12


@dataclass(frozen=True)
class Sized:
    """Numbers, and the size of what was added up to each, which says what an error is to be measured by."""

    value: Array
    size: Array

    def __add__(self, other: Sized) -> Sized:
        return Sized(self.value + other.value, self.size + other.size)

    def __sub__(self, other: Sized) -> Sized:
        return Sized(self.value - other.value, self.size + other.size)

    def __mul__(self, other: Sized) -> Sized:
        return Sized(self.value * other.value, self.size * other.size)

    def __truediv__(self, other: Sized) -> Sized:
        size = np.abs(other.value)
        return Sized(self.value / other.value, self.size / size * (other.size / size))

    def __getitem__(self, index: Any) -> Sized:
        return Sized(self.value[index], self.size[index])

    def times(self, factor: float) -> Sized:
        return Sized(self.value * factor, self.size * abs(factor))

    def sum(self, axis: int, keepdims: bool = False) -> Sized:
        return Sized(self.value.sum(axis, keepdims=keepdims), self.size.sum(axis, keepdims=keepdims))

    def where(self, mask: Array, other: Sized | None = None) -> Sized:
        """These where the mask is true, elsewhere 0 or others."""
        value, size = (0, 0) if other is None else (other.value, other.size)
        return Sized(np.where(mask, self.value, value), np.where(mask, self.size, size))


def exact(numbers: Array) -> Sized:
    return Sized(numbers, np.abs(numbers))


# ---- which triplets --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Given:
    """The labels of one call, and its parameters."""

    labels: Array
    margin: float = 1.0
    mining: str = "batch_hard"
    squared: bool = False
    normalize: bool = False


Chosen = tuple[Array, Array]  # the positives and the negatives of one anchor's terms
Rule = Callable[[Array, Array, Array], Chosen]


def batch_hard(d: Array, positives: Array, negatives: Array) -> Chosen:
    """The farthest positive and the nearest negative. (Of equal ones numpy takes the first, as of NaNs.)"""
    return positives[[np.argmax(d[positives])]], negatives[[np.argmin(d[negatives])]]


def semi_hard(d: Array, positives: Array, negatives: Array) -> Chosen:
    return positives, np.array([semi_hard_negative(d, p, negatives) for p in positives])


def semi_hard_negative(d: Array, positive: int, negatives: Array) -> int:
    """The nearest that is farther than the positive, or else the farthest."""
    farther = negatives[d[negatives] > d[positive]]
    if len(farther) == 0 or np.isnan(d[negatives]).any():
        return int(negatives[np.argmax(d[negatives])])
    return int(farther[np.argmin(d[farther])])


def all_of_them(d: Array, positives: Array, negatives: Array) -> Chosen:
    return np.repeat(positives, len(negatives)), np.tile(negatives, len(positives))


RULES: dict[str, Rule] = {"batch_hard": batch_hard, "semi_hard": semi_hard, "all": all_of_them}


@dataclass(frozen=True)
class Terms:
    """The triplets, and which of them have a loss: those at the corner have none, those that are NaN have one."""

    anchor: Array
    positive: Array
    negative: Array
    active: Array


def anchors(labels: Array) -> Iterator[tuple[int, Array, Array]]:
    """Those that have a positive and a negative, with all of these."""
    for a in range(len(labels)):
        alike = labels == labels[a]
        positives, negatives = np.flatnonzero(alike & (np.arange(len(labels)) != a)), np.flatnonzero(~alike)
        if len(positives) and len(negatives):
            yield a, positives, negatives


def mined(d: Array, given: Given) -> Terms:
    found = [np.zeros((3, 0), int)]
    for a, positives, negatives in anchors(given.labels):
        p, n = RULES[given.mining](d[a], positives, negatives)
        found.append(np.stack([np.full_like(p, a), p, n]))
    a, p, n = np.concatenate(found, axis=1)
    return Terms(a, p, n, ~(d[a, p] - d[a, n] + constant(given.margin, d) <= 0))


def clearance(x: Array, given: Given, of_choices_too: bool = True) -> float:
    """How near the nearest of the comparisons that decide something is to a tie, as a share of what is compared."""
    with np.errstate(all="ignore"):
        d = Pairs(Embeddings(x, None, given.normalize), given.squared).distance.value
        terms = mined(d, given)
        # What normalised vectors lose is a share of their norms.
        unit = 2.0 if given.normalize else 0.0
        to_positive, to_negative = d[terms.anchor, terms.positive], d[terms.anchor, terms.negative]
        found = [share(to_positive + given.margin, to_negative, unit)]
        for a, positives, negatives in anchors(given.labels) if of_choices_too else ():
            found += list(ties(d[a], positives, negatives, given.mining, unit))
    return min((float(gaps.min()) for gaps in found if len(gaps)), default=np.inf)


def ties(d: Array, positives: Array, negatives: Array, mining: str, unit: float) -> Iterator[Array]:
    """How near the others are to what one anchor's choices take."""
    if mining == "batch_hard":
        yield share(np.sort(d[positives])[-2:-1], d[positives].max(), unit)
        yield share(np.sort(d[negatives])[1:2], d[negatives].min(), unit)
    if mining == "semi_hard":
        for p in positives:
            yield share(d[negatives], d[p], unit)
            farther = np.sort(d[negatives][d[negatives] > d[p]])
            ordered = farther if len(farther) else np.sort(d[negatives])[::-1]
            yield share(ordered[1:2], ordered[0], unit)


def share(one: Array, other: Any, unit: float) -> Array:
    """(That both are 0 does not hang on rounding.)"""
    found: Array = np.where((one == 0) & (other == 0), np.inf, np.abs(one - other) / (one + other + unit))
    return found


# ---- distances -------------------------------------------------------------------------------------------------------


class Embeddings:
    """The vectors that are compared, and how they move along a direction: those that are given, or normalised ones."""

    def __init__(self, x: Array, direction: Array | None, normalize: bool) -> None:
        self.normalized = normalize
        self.value, self.moved = exact(x), exact(np.zeros_like(x) if direction is None else direction)
        if not normalize:
            return
        smallest = constant(SMALLEST_NORM, x)
        norm = np.sqrt((x * x).sum(1, keepdims=True))
        self.clamped = norm <= smallest
        self.norm = exact(np.maximum(norm, smallest))
        self.value = self.value / self.norm
        self.along = (self.value * self.moved).sum(1, keepdims=True)  # how the norm moves
        self.moved = self.across(self.moved, self.along)

    def across(self, slope: Sized, along: Sized) -> Sized:
        """What a change of the given vectors is for the normalised ones, which keep their norm; or a slope, back."""
        return (slope / self.norm).where(self.clamped, (slope - self.value * along) / self.norm)

    def differences(self, of: Sized) -> Sized:
        """Of any two vectors. Those of given numbers are rounded once, however much larger the numbers are."""
        found = of[:, None] - of[None]
        return found if self.normalized else exact(found.value)

    def slope(self, slope: Sized) -> Sized:
        """By the given vectors, from one by those that are compared."""
        return self.across(slope, (self.value * slope).sum(1, keepdims=True)) if self.normalized else slope

    def slope_moved(self, slope: Sized, moved: Sized) -> Sized:
        if not self.normalized:
            return moved
        y, dy = self.value, self.moved
        along = (y * slope).sum(1, keepdims=True)
        turned = dy * along + y * (dy * slope).sum(1, keepdims=True) + self.slope(slope) * self.along
        return self.slope(moved) - (turned / self.norm).where(~self.clamped)


class Pairs:
    """The distances of all vectors to all, their slopes by the first of two, and how both move along the direction."""

    def __init__(self, embeddings: Embeddings, squared: bool) -> None:
        e, moved = embeddings.differences(embeddings.value), embeddings.differences(embeddings.moved)
        square = (e * e).sum(-1)
        if squared:
            self.distance, self.slope = square, e.times(2)
            self.distance_moved, self.slope_moved = (self.slope * moved).sum(-1), moved.times(2)
            return
        root = np.sqrt(square.value)
        apart = ~(root == 0)
        length = Sized(root, root * (square.size / square.value)).where(apart)
        d = length[..., None]
        self.distance = length
        self.slope = (e / d).where(apart[..., None])
        self.distance_moved = (self.slope * moved).sum(-1)
        self.slope_moved = ((moved - self.slope * self.distance_moved[..., None]) / d).where(apart[..., None])


# ---- the loss --------------------------------------------------------------------------------------------------------


def results(
    x: Array,
    given: Given,
    reduction: str,
    grad_output: Array | None = None,
    directions: Array | None = None,
    terms: Terms | None = None,
) -> Both:
    """The loss, and the derivative of sum(grad_output * loss) by the embeddings (N, D).

    With directions, how both change as these move along. With terms, those are taken, whatever x would choose.
    """
    with np.errstate(all="ignore"):
        embeddings = Embeddings(x, directions, given.normalize)
        pairs = Pairs(embeddings, given.squared)
        terms = mined(pairs.distance.value, given) if terms is None else terms
        along = directions is not None
        d = pairs.distance_moved if along else pairs.distance
        margin = np.full(len(terms.anchor), 0 if along else given.margin, x.dtype)
        f = d[terms.anchor, terms.positive] - d[terms.anchor, terms.negative] + exact(margin)
        counted = {"mean": len(terms.anchor), "mean_nonzero": int(terms.active.sum())}
        denominator = constant(max(counted.get(reduction, 1), 1), x)
        value = reduced(f.where(terms.active), terms.anchor, len(x) if reduction == "none" else None, denominator)
        g = np.ones_like(value.value) if grad_output is None else grad_output
        by_distance, used = slopes(terms, (g[terms.anchor] if reduction == "none" else g) / denominator, x)
        slope = (by_distance * pairs.slope).where(used).sum(1)
        if along:
            slope_moved = (by_distance * pairs.slope_moved).where(used).sum(1)
            gradient = embeddings.slope_moved(slope, slope_moved)
        else:
            gradient = embeddings.slope(slope)
    return Result(value.value, value.size), {"embeddings": Result(gradient.value, gradient.size)}


def reduced(f: Sized, anchor: Array, places: int | None, denominator: Any) -> Sized:
    """The sum of all terms, or of each anchor's."""
    if places is None:
        return Sized(np.asarray(f.value.sum() / denominator), np.asarray(f.size.sum() / denominator))
    found = exact(np.zeros(places, f.value.dtype))
    np.add.at(found.value, anchor, f.value)
    np.add.at(found.size, anchor, f.size)
    return found


def slopes(terms: Terms, incoming: Array, like: Array) -> tuple[Sized, Array]:
    """By the distance of any two vectors, (N, N, 1), each counted for both; and which distances have one at all."""
    n = len(like)
    g = np.broadcast_to(incoming, terms.anchor.shape)
    found, used = exact(np.zeros((n, n), like.dtype)), np.zeros((n, n), bool)
    for other, sign in ((terms.positive, 1), (terms.negative, -1)):
        pair = terms.anchor[terms.active], other[terms.active]
        np.add.at(found.value, pair, sign * g[terms.active])
        np.add.at(found.size, pair, np.abs(g[terms.active]))
        used[pair] = True
    both = Sized(found.value + found.value.T, found.size + found.size.T)
    return both[..., None], (used | used.T)[..., None]


def expected(
    x: Array,
    given: Given,
    reduction: str,
    grad_output: Array | None = None,
    rounding: float = 0.0,
    directions: Array | None = None,
) -> Both:
    """`results`, with their sensitivity to relative changes of all of x by `rounding`, if one is given."""
    loss, gradients = results(x, given, reduction, grad_output, directions)
    if not rounding:
        return loss, gradients
    signs = 2 * np.random.default_rng(0).integers(0, 2, x.shape) - 1
    with np.errstate(all="ignore"):
        terms = mined(Pairs(Embeddings(x, None, given.normalize), given.squared).distance.value, given)
        nearby = x * (1 + constant(rounding, x) * signs)
        moved, moved_gradients = results(nearby, given, reduction, grad_output, directions, terms)
        pairs = (loss, moved), (gradients["embeddings"], moved_gradients["embeddings"])
        found = [replace(a, sensitivity=np.nan_to_num(np.abs(b.value - a.value))) for a, b in pairs]
    return found[0], {"embeddings": found[1]}
