"""What the losses over alignments are, independently of the library: the definition in the log domain, in numpy.

CTC sums over all ways to spend the frames of a sequence on the states of its labels: a blank, the first label, a blank,
the second label, ..., a blank. From frame to frame an alignment stays, goes on by one state, or goes on by two over a
blank between two labels that differ. Everything is computed in the dtype of the operand: float64 judges what was
computed in float32, longdouble what was computed in float64.

The derivative by log-probabilities is torch's, exp(log p) - posterior: that of -log Z + sum exp(log p). Second
derivatives are derivatives of just that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from fusedloss.testing.oracle import Array, Both, Result, constant
from fusedloss.testing.row_definitions import Softmax

# What is so far below the best of a frame's wanted classes is impossible: the library's exponents end there.
IMPOSSIBLE = -1e28
# A direction is taken in so many parts, of whose sizes the size of a second derivative is made: the parts of a sum are
# seldom all as small as the sum may be.
PARTS = 4


# ---- one sequence ----------------------------------------------------------------------------------------------------


def states_of(labels: Array, blank: int) -> tuple[Array, Array]:
    """The class of every state, and whether an alignment may come to it over the state before."""
    classes = np.full(2 * len(labels) + 1, blank)
    classes[1::2] = labels
    over = np.zeros(len(classes), bool)
    over[2:] = (classes[2:] != blank) & (classes[2:] != classes[:-2])
    return classes, over


def frames_needed(labels: Array) -> int:
    """One for every label, and one for the blank between two that are equal."""
    return len(labels) + int((labels[1:] == labels[:-1]).sum())


def band(frames: int, states: int, frame: int) -> slice:
    """The states that the first frame can reach by then and from which the last one can be reached."""
    return slice(max(0, states - 2 * (frames - frame)), min(states, 2 * frame + 2))


@dataclass(frozen=True)
class Walk:
    """For every frame, of the states in its band."""

    ways: list[Array]  # log of all ways to come to a state, but for its own emission; relative to the frame's best
    changes: list[Array]  # of these along each part of a direction: (parts, states)
    log_total: Any  # of all ways to the end


def walk(emissions: Array, over: Array, directions: Array) -> Walk:
    """From the first frame to the last. `emissions` are (frames, states), `directions` (parts, frames, states)."""
    frames, states = emissions.shape
    parts, dtype = len(directions), emissions.dtype
    # Two more states on the left, from which nothing comes.
    log, moved = np.full(states + 2, -np.inf, dtype), np.zeros((parts, states + 2), dtype)
    ways, changes, log_total = [], [], constant(0, emissions)
    for frame in range(frames):
        here = band(frames, states, frame)
        if frame == 0:
            way, change = np.zeros(here.stop - here.start, dtype), np.zeros((parts, here.stop - here.start), dtype)
        else:
            from_ = [slice(here.start + k, here.stop + k) for k in range(3)]  # two before, one before, the same
            came = np.stack([np.where(over[here], log[from_[0]], -np.inf), log[from_[1]], log[from_[2]]])
            way = np.logaddexp.reduce(came)
            change = np.zeros((parts, len(way)), dtype)
            if parts:
                share = np.exp(came - np.where(np.isneginf(way), 0, way))
                change = sum((share[k] * moved[:, from_[k]] for k in range(3)), change)
        ways.append(way)
        changes.append(change)
        there = way + emissions[frame, here]
        best = there.max()
        if np.isneginf(best):
            return Walk([], [], best)
        log_total += best
        log[:] = -np.inf
        log[here.start + 2 : here.stop + 2] = there - best
        moved[:, here.start + 2 : here.stop + 2] = change + directions[:, frame, here]
    return Walk(ways, changes, log_total + np.logaddexp.reduce(log[-2 if states > 1 else -1 :]))


@dataclass(frozen=True)
class Sample:
    """The loss of one sequence and its derivatives, or how both change along a direction; with their sizes."""

    value: Result
    slope: Result  # (frames, classes)
    possible: bool = True  # if not, derivatives are 0 whatever comes in


def constant_sample(value: float, like: Array, along: bool, possible: bool = True) -> Sample:
    """Of derivatives that are 0, or NaN if the value is."""
    zero = constant(np.nan if np.isnan(value) else 0, like)
    number = zero if along else constant(value, like)
    return Sample(Result(number, np.abs(number)), Result(*[np.full_like(like, zero)] * 2), possible)


def in_parts(direction: Array) -> Array:
    """Every entry in one of the parts, neighbours in others."""
    of = np.arange(direction.size).reshape(direction.shape) % PARTS
    return np.stack([np.where(of == k, direction, 0) for k in range(PARTS)])


def sample(
    x: Array,
    labels: Array,
    blank: int = 0,
    from_logits: bool = False,
    direction: Array | None = None,
    infinity: float = np.inf,
) -> Sample:
    """Of the frames that count, (frames, classes); `infinity` is the value where there is no alignment."""
    along = direction is not None
    if len(x) < frames_needed(labels):
        return constant_sample(infinity, x, along, possible=False)
    if len(x) == 0:
        return constant_sample(0.0, x, along)
    softmax = Softmax(x) if from_logits else None
    log_p, p = (x, np.exp(x)) if softmax is None else (softmax.log, softmax.p)
    classes, over = states_of(labels, blank)
    emissions = log_p[:, classes]
    if np.isnan(emissions).any() or np.isposinf(emissions).any():
        return constant_sample(np.nan, x, along)
    emissions = np.where(emissions <= emissions.max(1, keepdims=True) + IMPOSSIBLE, -np.inf, emissions)
    directions = in_parts(direction)[:, :, classes] if direction is not None else np.zeros((0, *emissions.shape))
    ahead = walk(emissions, over, directions)
    if np.isneginf(ahead.log_total):
        return constant_sample(infinity, x, along, possible=False)
    back = walk(emissions[::-1, ::-1], states_of(labels[::-1], blank)[1], directions[:, ::-1, ::-1])
    met = Met(classes, emissions, directions, ahead, back, x)
    slope, slope_size = p - met.posterior, p + met.posterior
    if direction is None:
        value = -ahead.log_total
        size = met.energy_size + np.abs(met.energy - value)  # of the energies, and of their entropy
        return Sample(Result(value, size), Result(slope, slope_size))
    size = np.abs(direction)
    change = Result((slope * direction).sum(), (slope_size * size).sum())
    moved = p * direction if softmax is None else softmax.centred(direction)
    moved_size = p * size if softmax is None else p * (size + (p * size).sum(1, keepdims=True))
    return Sample(change, Result(moved - met.change, moved_size + met.change_size))


class Met:
    """What is known where the walks from both ends meet: the share of every class in every frame, and its change."""

    def __init__(
        self, classes: Array, emissions: Array, directions: Array, ahead: Walk, back: Walk, like: Array
    ) -> None:
        self.posterior, self.change, self.change_size = (np.zeros_like(like) for _ in range(3))
        self.energy = self.energy_size = constant(0, like)
        frames, states = emissions.shape
        for t in range(frames):
            here = band(frames, states, t)
            log = ahead.ways[t] + emissions[t, here] + back.ways[-1 - t][::-1]
            share = np.exp(log - log.max())
            share = share / share.sum()
            energies = share * np.where(share > 0, -emissions[t, here], 0)
            self.energy += energies.sum()
            self.energy_size += np.abs(energies).sum()
            np.add.at(self.posterior[t], classes[here], share)
            if len(directions) == 0:
                continue
            terms = ahead.changes[t], directions[:, t, here], back.changes[-1 - t][:, ::-1]
            total = sum(terms, np.zeros_like(terms[0]))
            mean = (share * total).sum(1, keepdims=True)
            size = sum((np.abs(term) for term in terms), np.abs(mean))
            np.add.at(self.change[t], classes[here], share * (total - mean).sum(0))
            np.add.at(self.change_size[t], classes[here], share * size.sum(0))


def brute_force(log_p: Array, labels: Sequence[int], blank: int) -> tuple[Any, Array]:
    """-log Z and the posterior, by looking at every path of classes: classes ** frames of them."""
    frames, classes = log_p.shape
    total, of_entry = constant(0, log_p), np.zeros_like(log_p)
    for path in product(range(classes), repeat=frames):
        changes = [c for k, c in enumerate(path) if k == 0 or path[k - 1] != c]
        if [c for c in changes if c != blank] != list(labels):
            continue
        p = np.exp(sum((log_p[t, c] for t, c in enumerate(path)), constant(0, log_p)))
        total += p
        for t, c in enumerate(path):
            of_entry[t, c] += p
    with np.errstate(divide="ignore"):
        return -np.log(total), of_entry / total if total > 0 else of_entry


# ---- a batch ---------------------------------------------------------------------------------------------------------


def sequences(targets: Array, target_lengths: Array) -> list[Array]:
    """The labels of every sample, of targets that are padded (N, S) or concatenated."""
    if targets.ndim == 2:
        return [row[:length] for row, length in zip(targets, target_lengths, strict=True)]
    ends = np.cumsum(target_lengths)
    return [targets[end - length : end] for end, length in zip(ends, target_lengths, strict=True)]


@dataclass(frozen=True)
class Given:
    """The operands of one call, but for log-probabilities or logits, and its parameters."""

    targets: Array
    input_lengths: Array
    target_lengths: Array
    blank: int = 0
    zero_infinity: bool = False
    from_logits: bool = False

    def samples(self, x: Array, directions: Array | None) -> list[Sample]:
        """Of x of the shape (frames, samples, classes)."""
        found = []
        infinity = 0.0 if self.zero_infinity else np.inf
        labels = sequences(self.targets, self.target_lengths)
        for n, frames in enumerate(self.input_lengths):
            direction = None if directions is None else directions[:frames, n]
            found.append(sample(x[:frames, n], labels[n], self.blank, self.from_logits, direction, infinity))
        return found


def results(
    x: Array, given: Given, reduction: str, grad_output: Array | None = None, directions: Array | None = None
) -> Both:
    """The loss, and the derivative of sum(grad_output * loss) by log-probabilities or logits.

    With directions, how both change as these move along. x is (frames, samples, classes) or (frames, classes).
    """
    shape = x.shape
    batch = shape[1] if len(shape) == 3 else 1
    x = x.reshape(shape[0], batch, shape[-1])
    lengths = np.maximum(given.target_lengths, 1).astype(x.dtype)
    denominator = batch * lengths if reduction == "mean" else np.ones_like(lengths)
    with np.errstate(all="ignore"):
        samples = given.samples(x, None if directions is None else directions.reshape(x.shape))
        parts = (np.array([getattr(s.value, k) for s in samples], x.dtype) / denominator for k in ("value", "size"))
        if reduction != "none":
            # (torch's mean of nothing is NaN.)
            parts = (part.sum() if batch or reduction == "sum" else constant(np.nan, x) for part in parts)
        elif len(shape) == 2:
            parts = (part[0] for part in parts)
        value = Result(*(np.asarray(part) for part in parts))
        incoming = np.ones_like(value.value) if grad_output is None else grad_output
        g = np.broadcast_to(incoming, batch) / denominator
        slopes = [np.zeros_like(x), np.zeros_like(x)]
        for n, s in enumerate(samples):
            frames = int(given.input_lengths[n])
            slopes[0][:frames, n] = g[n] * s.slope.value if s.possible else 0
            slopes[1][:frames, n] = np.abs(g[n]) * s.slope.size if s.possible else 0
    return value, {"log_probs": Result(*(slope.reshape(shape) for slope in slopes))}


def expected(
    x: Array,
    given: Given,
    reduction: str,
    grad_output: Array | None = None,
    rounding: float = 0.0,
    directions: Array | None = None,
) -> Both:
    """`results`, with their sensitivity to relative changes of all of x by `rounding`, if one is given."""
    loss, slopes = results(x, given, reduction, grad_output, directions)
    if not rounding:
        return loss, slopes
    signs = 2 * np.random.default_rng(0).integers(0, 2, x.shape) - 1
    moved, moved_slopes = results(x * (1 + constant(rounding, x) * signs), given, reduction, grad_output, directions)
    with np.errstate(all="ignore"):
        pairs = (loss, moved), (slopes["log_probs"], moved_slopes["log_probs"])
        found = [replace(a, sensitivity=np.nan_to_num(np.abs(b.value - a.value))) for a, b in pairs]
    return found[0], {"log_probs": found[1]}
