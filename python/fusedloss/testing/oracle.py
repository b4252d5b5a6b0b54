"""What every loss is, independently of the library: numpy, straight from the formulas of the catalogue.

``elementwise(name, operands, parameters)`` gives the value of a loss at every element and its derivative by every
operand, in the dtype of the operands: float64 judges what was computed in float32, longdouble what was computed in
float64. ``expected`` adds weights, reductions and the summation of derivatives over broadcast axes.

Where a derivative does not exist the convention is the one that LOSSES.md and torch lay down, and it is written here
again, as a formula.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Elementwise = tuple[Array, dict[str, Array]]

LOG_2 = np.log(np.longdouble(2))
HALF_LOG_2_PI = np.log(8 * np.arctan(np.longdouble(1))) / 2


def constant(value: Any, like: Array) -> Any:
    """The number in the precision of `like`, so that a longdouble formula is not held back by a float64 constant."""
    return like.dtype.type(value)


def softplus(x: Array) -> Array:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def sigmoid(x: Array) -> Array:
    small = np.exp(-np.abs(x))
    return np.where(x < 0, small / (1 + small), 1 / (1 + small))


def times(a: Array, b: Array) -> Array:
    """a b, where a = 0 is stronger than an infinite b: what is absent adds nothing."""
    return np.where((a == 0) & ~np.isnan(b), a * 0, a * b)


def mse_loss(input: Array, target: Array) -> Elementwise:
    r = input - target
    return r * r, {"input": 2 * r, "target": -2 * r}


def l1_loss(input: Array, target: Array) -> Elementwise:
    r = input - target
    return np.abs(r), {"input": np.sign(r), "target": -np.sign(r)}


def huber_loss(input: Array, target: Array, delta: float = 1.0) -> Elementwise:
    r = input - target
    slope = np.where(np.abs(r) <= delta, r, delta * np.sign(r))
    return np.where(np.abs(r) <= delta, r * r / 2, delta * (np.abs(r) - constant(delta, r) / 2)), {
        "input": slope,
        "target": -slope,
    }


def smooth_l1_loss(input: Array, target: Array, beta: float = 1.0) -> Elementwise:
    if beta == 0:
        return l1_loss(input, target)
    r = input - target
    slope = np.where(np.abs(r) < beta, r / beta, np.sign(r))
    return np.where(np.abs(r) < beta, r * r / (2 * beta), np.abs(r) - beta / 2), {"input": slope, "target": -slope}


def log_cosh_loss(input: Array, target: Array) -> Elementwise:
    r = input - target
    size = np.abs(r)
    # cosh r = 1 + 2 sinh^2(r / 2) near 0, exp|r| (1 + exp(-2|r|)) / 2 elsewhere
    near = np.log1p(2 * np.sinh(np.minimum(size, 1) / 2) ** 2)
    far = size + np.log1p(np.exp(-2 * size)) - constant(LOG_2, r)
    return np.where(size < 1, near, far), {"input": np.tanh(r), "target": -np.tanh(r)}


def quantile_loss(input: Array, target: Array, q: Array | float = 0.5) -> Elementwise:
    d = target - input
    side = np.where(d < 0, q - np.ones_like(d), q * np.ones_like(d))
    slope = np.where(d == 0, 0, np.where(np.isnan(d), d, side))
    return d * side, {"input": -slope, "target": slope, "q": d}


def mean_squared_log_error(input: Array, target: Array) -> Elementwise:
    x, y = np.maximum(input, 1e-7), np.maximum(target, 1e-7)
    d = np.log1p(x) - np.log1p(y)
    return d * d, {
        "input": np.where(input < 1e-7, 0, 2 * d / (1 + x)),
        "target": np.where(target < 1e-7, 0, -2 * d / (1 + y)),
    }


def mean_absolute_percentage_error(input: Array, target: Array) -> Elementwise:
    r = input - target
    scale = np.maximum(np.abs(target), 1e-7)
    by_input = 100 * np.sign(r) / scale
    # above eps -by_input - value sign(target) / |target|, which cancels to this
    by_target = -by_input * np.where(np.abs(target) < 1e-7, 1, input / np.where(target == 0, 1, target))
    return 100 * (np.abs(r) / scale), {"input": by_input, "target": by_target}


def poisson_nll_loss(
    input: Array, target: Array, log_input: bool = True, full: bool = False, eps: float = 1e-8
) -> Elementwise:
    if log_input:
        rate = np.exp(input)
        value, by_input, by_target = rate - target * input, rate - target, -input * np.ones_like(target)
    else:
        rate = input + constant(eps, input)
        value, by_input, by_target = input - target * np.log(rate), 1 - target / rate, -np.log(rate)
    if full:
        t = np.where(target > 1, target, 1)
        stirling = t * np.log(t) - t + np.log(t) / 2 + constant(HALF_LOG_2_PI, t)
        value = value + np.where(target > 1, stirling, 0)
        by_target = by_target + np.where(target > 1, np.log(t) + 1 / (2 * t), 0)
    return value, {"input": by_input, "target": by_target}


def gaussian_nll_loss(input: Array, target: Array, var: Array, full: bool = False, eps: float = 1e-6) -> Elementwise:
    r = input - target
    v = np.maximum(var, eps)
    value = (np.log(v) + r * (r / v)) / 2 + (constant(HALF_LOG_2_PI, r) if full else 0)
    # torch lets the derivative through below eps as well.
    return value, {"input": r / v, "target": -r / v, "var": (1 - r * (r / v)) / (2 * v)}


def binary_cross_entropy(input: Array, target: Array) -> Elementwise:
    log_p, log_q = np.maximum(np.log(input), -100), np.maximum(np.log1p(-input), -100)
    slope = (input - target) / np.maximum(input * (1 - input), 1e-12)
    return -(target * log_p + (1 - target) * log_q), {"input": slope, "target": log_q - log_p}


def binary_cross_entropy_with_logits(
    input: Array, target: Array, pos_weight: Array | float = 1.0, label_smoothing: float = 0.0
) -> Elementwise:
    kept = 1 - constant(label_smoothing, input)
    y = target * kept + constant(label_smoothing, input) / 2
    w = pos_weight * np.ones_like(y)
    positive, negative = softplus(-input), softplus(input)
    value = times(1 - y, negative) + times(w * y, positive)
    # softplus(-x) - softplus(x) = -x exactly, which matters near 0
    difference = np.where(np.isinf(input), w * positive - negative, times(w - 1, positive) - input)
    return value, {
        "input": (1 - y) * sigmoid(input) - w * y * sigmoid(-input),
        "target": kept * difference,
        "pos_weight": times(y, positive),
    }


def sigmoid_focal_loss(input: Array, target: Array, alpha: float = 0.25, gamma: float = 2.0) -> Elementwise:
    if alpha < 0:
        a, slope_of_a = np.ones_like(target), 0.0
    else:
        a, slope_of_a = alpha * target + (1 - alpha) * (1 - target), 2 * constant(alpha, input) - 1
    p, not_p = sigmoid(input), sigmoid(-input)
    q = p * (1 - target) + not_p * target  # the probability given to the wrong side
    bce = times(1 - target, softplus(input)) + times(target, softplus(-input))
    # q is exp(log_q), with the logarithm exact where q is too small for its exponent: one side alone is left there.
    log_q = np.where(target == 1, -softplus(input), np.where(target == 0, -softplus(-input), np.log(q)))
    focus = np.exp(gamma * log_q)
    # p (1 - p) / q is 1 - q for a target that is 0 or 1
    relative = np.where(target == 1, p, np.where(target == 0, not_p, p * not_p / q))
    by_input = a * focus * (gamma * relative * (1 - 2 * target) * bce + p * (1 - target) - not_p * target)
    # d(focus)/d(target) = gamma q^(gamma - 1) (1 - 2 p), where bce / q tends to 1 as both vanish
    ratio = np.where(q > 0, bce / np.where(q > 0, q, 1), 1)
    by_target = focus * (slope_of_a * bce + a * (-gamma * np.tanh(input / 2) * ratio - input))
    return a * focus * bce, {"input": by_input, "target": by_target}


def hinge_loss(input: Array, target: Array, target_01: bool = False) -> Elementwise:
    y = 2 * target - 1 if target_01 else target
    margin = 1 - y * input
    active = np.where(np.isnan(margin), margin, margin > 0)
    return np.maximum(margin, 0), {"input": -y * active}


def squared_hinge_loss(input: Array, target: Array, target_01: bool = False) -> Elementwise:
    y = 2 * target - 1 if target_01 else target
    margin = np.maximum(1 - y * input, 0)
    return margin * margin, {"input": -2 * y * margin}


def soft_margin_loss(input: Array, target: Array) -> Elementwise:
    z = -target * input
    return softplus(z), {"input": -target * sigmoid(z), "target": -input * sigmoid(z)}


def hinge_embedding_loss(input: Array, target: Array, margin: float = 1.0) -> Elementwise:
    gap = constant(margin, input) - input
    alike = np.where(np.isnan(gap), gap, 1.0)
    different = np.where(np.isnan(gap), gap, np.where(gap >= 0, -1.0, 0.0))  # -1 at the corner, as torch's
    value = np.where(target == -1, 0, input) + np.where(target == 1, 0, np.maximum(gap, 0))
    return value, {"input": np.where(target == -1, 0, alike) + np.where(target == 1, 0, different)}


def margin_ranking_loss(input1: Array, input2: Array, target: Array, margin: float = 0.0) -> Elementwise:
    lead = input1 - input2
    gap = constant(margin, lead) - target * lead
    active = np.where(np.isnan(gap), gap, gap >= 0)  # not 0 at the corner, as torch's
    return np.maximum(gap, 0), {"input1": -target * active, "input2": target * active, "target": -lead * active}


def kl_div(input: Array, target: Array, log_target: bool = False) -> Elementwise:
    if log_target:
        p, log_p = np.exp(target), target
    else:
        p, log_p = target, np.log(np.where(target == 0, 1, target))
    excess = np.where((p == 0) & ~np.isnan(input), 0, log_p - input)
    by_target = np.where((p == 0) & ~np.isnan(input), 0, p * (excess + 1) if log_target else excess + 1)
    return p * excess, {"input": -p * np.ones_like(input), "target": by_target}


def gaussian_kl(mean: Array, log_var: Array) -> Elementwise:
    growth = np.expm1(log_var)
    return (mean * mean + (growth - log_var)) / 2, {"mean": mean, "log_var": growth / 2}


FORMULAS: dict[str, Callable[..., Elementwise]] = {
    formula.__name__: formula
    for formula in (
        mse_loss,
        l1_loss,
        huber_loss,
        smooth_l1_loss,
        log_cosh_loss,
        quantile_loss,
        mean_squared_log_error,
        mean_absolute_percentage_error,
        poisson_nll_loss,
        gaussian_nll_loss,
        binary_cross_entropy,
        binary_cross_entropy_with_logits,
        sigmoid_focal_loss,
        hinge_loss,
        squared_hinge_loss,
        soft_margin_loss,
        hinge_embedding_loss,
        margin_ranking_loss,
        kl_div,
        gaussian_kl,
    )
}

# Those whose weighted mean is divided by the sum of the weights, as torch's is.
MEAN_OF_WEIGHTS = {"mse_loss", "l1_loss"}


def elementwise(name: str, operands: dict[str, Array], parameters: dict[str, Any]) -> Elementwise:
    with np.errstate(all="ignore"):
        value, partials = FORMULAS[name](**operands, **parameters)
        shape = np.broadcast_shapes(*(x.shape for x in operands.values()))
        return np.broadcast_to(value, shape), {k: np.broadcast_to(g, shape) for k, g in partials.items()}


# Differences off by the sixth power of the step. Along a direction that is small beside the distance to the next
# singularity, they have all the digits of float64 when computed in longdouble, and those of float32 when in float64.
STEP = 2.0**-10
STENCIL = {1: 45, 2: -9, 3: 1}  # 60ths of the difference between so many steps to either side


def elementwise_along(
    name: str, operand: str, direction: Array, operands: dict[str, Array], parameters: dict[str, Any]
) -> Elementwise:
    """How fast the loss and its derivatives change at every element, as one operand moves in a direction."""
    _, partials = elementwise(name, operands, parameters)
    change = {k: np.zeros_like(x) for k, x in partials.items()}

    def slopes(steps: int) -> dict[str, Array]:
        moved = operands[operand] + constant(steps * STEP, direction) * direction
        return elementwise(name, operands | {operand: moved}, parameters)[1]

    with np.errstate(all="ignore"):
        for steps, factor in STENCIL.items():
            ahead, behind = slopes(steps), slopes(-steps)
            for k, x in change.items():
                x += (ahead[k] - behind[k]) * constant(factor, x) / constant(60 * STEP, x)
        return partials[operand] * direction, change


@dataclass(frozen=True)
class Result:
    """Numbers that are expected, the size of what was added up to each (its own size where nothing was), and how far
    each moves when the operands are rounded once, as a measure of how hard it is to compute."""

    value: Array
    size: Array
    sensitivity: Array | None = None

    def __add__(self, other: Result) -> Result:
        with np.errstate(all="ignore"):
            return Result(self.value + other.value, self.size + other.size)


Both = tuple[Result, dict[str, Result]]  # of a loss, and of its derivatives by name


def sum_to(terms: Array, shape: tuple[int, ...]) -> Result:
    """Sums over the axes that broadcasting a tensor of that shape made."""
    lead = terms.ndim - len(shape)
    axes = tuple(range(lead)) + tuple(lead + d for d, n in enumerate(shape) if n == 1 and terms.shape[lead + d] != 1)
    with np.errstate(all="ignore"):
        if not axes:
            return Result(terms.reshape(shape), np.abs(terms).reshape(shape))
        return Result(terms.sum(axis=axes).reshape(shape), np.abs(terms).sum(axis=axes).reshape(shape))


def results(
    name: str,
    operands: dict[str, Array],
    parameters: dict[str, Any],
    reduction: str,
    weight: Array | None = None,
    grad_output: Array | None = None,
) -> Both:
    """The loss, and the derivative of sum(grad_output * loss) with respect to every operand and the weight."""
    made = elementwise(name, operands, parameters)
    return reduced(name, made, operands, reduction, weight, grad_output)


def results_along(
    name: str,
    directions: dict[str, Array],
    operands: dict[str, Array],
    parameters: dict[str, Any],
    reduction: str,
    weight: Array | None = None,
    grad_output: Array | None = None,
) -> Both:
    """The derivative of both `results` as the operands move in a direction: a jvp, and the second derivatives times it.

    No operand may be within STEP * 3 * its direction of a place where a derivative jumps.
    """
    total: Both | None = None
    for operand in directions:
        moving = elementwise_along(name, operand, directions[operand], operands, parameters)
        part = reduced(name, moving, operands, reduction, weight, grad_output)
        total = part if total is None else (total[0] + part[0], {k: total[1][k] + x for k, x in part[1].items()})
    if total is None:
        raise ValueError("no direction is given")
    return total


def reduced(
    name: str,
    made: Elementwise,
    operands: dict[str, Array],
    reduction: str,
    weight: Array | None,
    grad_output: Array | None,
) -> Both:
    """What weight, reduction and incoming gradient make of a value and its derivatives at every element."""
    f, partials = made
    w = np.ones_like(f) if weight is None else np.broadcast_to(weight, f.shape)
    with np.errstate(all="ignore"):
        weighted = f if weight is None else w * f
        if reduction in ("none", "sum"):
            denominator = constant(1, f)
        elif name == "gaussian_kl":
            denominator = constant(math.prod(f.shape[:-1]), f)
        elif reduction == "batchmean":
            denominator = constant(f.shape[0] if f.ndim else 1, f)
        elif name in MEAN_OF_WEIGHTS and weight is not None:
            denominator = w.sum()
        else:
            denominator = constant(f.size, f)

        if reduction != "none":
            loss = Result(weighted.sum() / denominator, np.abs(weighted).sum() / np.abs(denominator))
        elif name == "gaussian_kl":
            loss = Result(weighted.sum(-1), np.abs(weighted).sum(-1))
        else:
            loss = Result(weighted, np.abs(weighted))

        g = np.ones_like(loss.value) if grad_output is None else grad_output
        g = np.broadcast_to(g[..., None] if reduction == "none" and name == "gaussian_kl" else g, f.shape)
        g = g / denominator
        gradients = {
            operand: sum_to(g * partials[operand] if weight is None else g * w * partials[operand], x.shape)
            for operand, x in operands.items()
            if operand in partials
        }
        if weight is not None:
            by_mean = reduction == "mean" and name in MEAN_OF_WEIGHTS
            size = sum_to(g * (np.abs(f) + np.abs(loss.value)) if by_mean else g * f, weight.shape).size
            gradients["weight"] = Result(sum_to(g * (f - loss.value) if by_mean else g * f, weight.shape).value, size)
    return loss, gradients


def expected(
    name: str,
    operands: dict[str, Array],
    parameters: dict[str, Any],
    reduction: str,
    weight: Array | None = None,
    grad_output: Array | None = None,
    rounding: float = 0.0,
    directions: dict[str, Array] | None = None,
) -> Both:
    """`results`, or `results_along` the directions where they are given.

    With their sensitivity to a relative change of the operands by `rounding`, if one is given.
    """
    rest = parameters, reduction, weight, grad_output

    def compute(at: dict[str, Array]) -> Both:
        return results(name, at, *rest) if directions is None else results_along(name, directions, at, *rest)

    loss, gradients = compute(operands)
    if not rounding:
        return loss, gradients
    step = rounding if directions is None else max(rounding, 2.0**-24)  # differences do not see a smaller one
    found = {"": loss} | gradients
    change = {k: np.zeros_like(x.value) for k, x in found.items()}
    for operand, x in operands.items():
        with np.errstate(all="ignore"):
            one, others = compute(operands | {operand: x * (1 + constant(step, x))})
            for k, other in ({"": one} | others).items():
                change[k] += np.abs(other.value - found[k].value) * constant(rounding / step, x)
    found = {k: replace(x, sensitivity=np.nan_to_num(change[k])) for k, x in found.items()}
    return found.pop(""), found
