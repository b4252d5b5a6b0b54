"""Every loss and its derivatives against the oracle, by one rule: the error is at most twice torch's own, plus a few
units in the last place of the result.

torch's error is that of torch's loss (or of the formula in torch's ops) on the CPU, in the dtype of the computation,
rounded to the dtype of the result, on the same operands. A single element of torch's may be exact by luck, and the
largest error of a tensor may be a thousand times what is due at its easiest elements: compared is therefore with the
largest error that torch makes among the `NEIGHBOURS` elements (or a 16th of all, if that is more) that are about as
hard, measured by how far rounding the operands moves the result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusedloss.testing import oracle
from fusedloss.testing.catalogue import Loss
from fusedloss.testing.oracle import Array

# Beside twice torch's error: what a value composed of a handful of correctly rounded operations may lose.
FEW_ULPS = 4
NEIGHBOURS = 257


# ---- the rule ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """On one tensor: its largest error in units of the allowed one, and in words what is wrong, if anything is."""

    what: str
    error: float
    wrong: str | None = None


def ulp(size: Array, dtype: torch.dtype) -> Array:
    info = torch.finfo(dtype)
    exponent = np.frexp(np.maximum(size, size.dtype.type(info.smallest_normal)))[1] - 1
    unit: Array = np.ldexp(size.dtype.type(info.eps), exponent)
    return unit


def rounded_to_range(exact: Array, dtype: torch.dtype) -> Array:
    largest = exact.dtype.type(torch.finfo(dtype).max)
    beyond = largest * (1 + exact.dtype.type(torch.finfo(dtype).eps) / 4)
    return np.where(np.abs(exact) >= beyond, np.copysign(np.inf, exact), np.clip(exact, -largest, largest))


def running_maximum(values: Array, window: int) -> Array:
    """The largest of the `window` values around each; `values` are at least 0."""
    maximum, covered = np.pad(values, (window // 2, (window - 1) // 2)), 1
    while covered < window:
        step = min(covered, window - covered)
        maximum = np.maximum(maximum[:-step], maximum[step:])
        covered += step
    return maximum


def largest_nearby(error: Array, difficulty: Array) -> Array:
    """For every element the largest error among those that are about as difficult."""
    order = np.argsort(difficulty, kind="stable")
    result = np.empty_like(error)
    result[order] = running_maximum(error[order].astype(np.float64), max(NEIGHBOURS, error.size // 16))
    return result


def numbers(tensor: Tensor, precision: Any) -> Array:
    array: Array = tensor.detach().double().numpy(force=True).astype(precision)
    return array


def compare(what: str, ours: Tensor, torchs: Tensor | None, exact: oracle.Result, elements: int = 1) -> Verdict:
    """Applies the rule; `elements` is the number of those that a reduction goes over."""
    if ours.shape != exact.value.shape:
        return Verdict(what, np.inf, f"has the shape {tuple(ours.shape)} instead of {exact.value.shape}")
    if ours.numel() == 0:
        return Verdict(what, 0)
    precision = exact.value.dtype.type
    truth = rounded_to_range(exact.value, ours.dtype).ravel()
    size, got = exact.size.ravel(), numbers(ours, precision).ravel()
    finite = np.isfinite(truth)
    with np.errstate(invalid="ignore", over="ignore"):
        allowed = FEW_ULPS * ulp(np.where(finite, size, 0), ours.dtype)
        same = (got == truth) | (np.isnan(got) & np.isnan(truth))
        error = np.where(finite, np.abs(got - truth), np.where(same, 0, np.inf))
        if torchs is not None:
            if exact.sensitivity is None:
                raise ValueError("the error of torch tells nothing without the sensitivity of the result")
            theirs = numbers(torchs, precision).ravel()
            off = np.abs(theirs - truth)
            difficulty = exact.sensitivity.ravel() + ulp(np.where(finite, size, 0), ours.dtype)
            # Where torch is not finite and the truth is, its error excuses nothing, but at the end of the range, where
            # a sum or a factor overflows before it is divided.
            allowed = allowed + 2 * largest_nearby(np.where(np.isfinite(off), off, 0), difficulty)
            range_end = size * elements >= torch.finfo(ours.dtype).max / 4
            error = np.where(np.isinf(theirs) & (got == theirs) & range_end, 0, error)
        share = np.where(np.isnan(error), np.inf, error / allowed)
    worst, bad = int(np.argmax(share)), ~(error <= allowed)
    if not bad.any():
        return Verdict(what, float(share[worst]))
    by_torch = "" if torchs is None else f", torch {torchs.flatten()[worst].item()}"
    return Verdict(
        what,
        float(share[worst]),
        f"{bad.sum()} of {bad.size} elements; at {worst}: got {got[worst]!s}, exact {truth[worst]!s}"
        f"{by_torch}, error {error[worst]:.3g}, allowed {allowed[worst]:.3g}",
    )


def where_undefined(exact: oracle.Result, ours: Tensor, torchs: Tensor) -> oracle.Result:
    """The result, or NaN where both have it: at an infinite operand a limit may exist that torch does not take."""
    both = (ours.isnan() & torchs.isnan()).numpy()
    return oracle.Result(np.where(both, np.nan, exact.value), exact.size, exact.sensitivity)


# ---- one call three times ------------------------------------------------------------------------------------------


def on(device: str, x: Tensor) -> Tensor:
    """A copy that lies in that device's memory as x does in its own: strides, offset, overlaps and all."""
    memory = torch.empty(0, dtype=x.dtype).set_(x.detach().untyped_storage())
    return memory.to(device, copy=True).as_strided(x.shape, x.stride(), x.storage_offset())


def weighted_by_torch(
    loss: Loss, operands: list[Tensor], keywords: dict[str, Tensor], w: Tensor, reduction: str
) -> Tensor:
    """The weighted loss as a user of torch would write it."""
    if loss.name == "gaussian_kl":
        mean, log_var = operands
        values = -0.5 * (w * (1 + log_var - mean**2 - log_var.exp())).sum(-1)
    else:
        values = loss.torch(*operands, **keywords, reduction="none") * w
    if reduction in ("none", "sum"):
        return values if reduction == "none" else values.sum()
    if reduction == "batchmean" and loss.name != "gaussian_kl":
        return values.sum() / values.shape[0]
    if loss.name in oracle.MEAN_OF_WEIGHTS:
        return values.sum() / w.expand_as(values).sum()
    return values.mean()


def second_derivatives(
    result: Tensor, leaves: Sequence[Tensor], incoming: Tensor, directions: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """How the result and then its gradients change along the directions: what a second backward pass gives.

    The gradients are linear in the incoming one, so that the derivative by that one is the change of the result.
    """
    incoming = incoming.detach().requires_grad_()
    gradients = torch.autograd.grad(result, leaves, incoming, create_graph=True)
    return torch.autograd.grad(gradients, [incoming, *leaves], directions, materialize_grads=True)


class Call:
    """One loss on given operands: by the library on some device, by torch on the CPU, and by the oracle.

    With `second`, what is computed and judged of it are the second derivatives along some directions.
    """

    def __init__(
        self,
        loss: Loss,
        operands: list[Tensor],
        keywords: dict[str, Tensor] | None = None,
        weight: Tensor | None = None,
        reduction: str = "mean",
        weight_too: bool = False,
        factor: float = 1.0,
        device: str = "cpu",
        second: bool = False,
    ) -> None:
        self.loss, self.reduction, self.weight_too, self.factor = loss, reduction, weight_too, factor
        self.device = device
        self.given = dict(zip(loss.samplers, operands, strict=True)) | (keywords or {})
        if weight is not None:
            self.given["weight"] = weight
        self.free = [*loss.differentiable, *(keywords or {}), *(["weight"] if weight_too else [])]
        self.directions = loss.directions(self.given) if second else None

    def __str__(self) -> str:
        operands = [f"{name}: {_described(x)}" for name, x in self.given.items()]
        rest = [f"{name}={value!r}" for name, value in (self.loss.parameters | {"reduction": self.reduction}).items()]
        return f"{self.loss.name}({', '.join(operands + rest)}) on {self.device}"

    def judge(self, undefined_as_torchs: bool = False) -> None:
        """Raises AssertionError if anything is wrong."""
        for verdict in self.verdicts(undefined_as_torchs):
            if verdict.wrong is not None:
                raise AssertionError(f"{verdict.what} of {self}: {verdict.wrong}")

    def verdicts(self, undefined_as_torchs: bool = False) -> Iterator[Verdict]:
        """One on the value, with and without a gradient, and one on every derivative.

        With `undefined_as_torchs`, an operand may be infinite, and a result may be NaN where torch's is.
        """
        ours, our_gradients = self.ours()
        theirs, their_gradients = self.torchs(ours)
        loss, gradients = self.exact(ours)
        if undefined_as_torchs:
            undefined = {"": (ours, theirs)} | {k: (our_gradients[k], their_gradients[k]) for k in their_gradients}
            loss = where_undefined(loss, *undefined.pop(""))
            gradients = gradients | {k: where_undefined(gradients[k], *pair) for k, pair in undefined.items()}
        elements = max(x.numel() for x in self.given.values())
        along = " along a direction" if self.directions else ""
        yield compare(f"value{along}", ours, theirs, loss, elements)
        if self.reduction != "none" and not self.directions:  # without a gradient other code adds the values up
            with torch.no_grad():
                alone, _ = self.ours()
            yield compare("value without gradient", alone, theirs, loss, elements)
        for name in self.free:
            what, of_ours, of_theirs = f"d/d{name}{along}", our_gradients[name], their_gradients.get(name)
            if of_ours.dtype != self.given[name].dtype:
                yield Verdict(what, np.inf, f"has the dtype {of_ours.dtype}")
            elif not undefined_as_torchs or of_theirs is not None:
                yield compare(what, of_ours, of_theirs, gradients[name], elements)

    def grad_output(self, result: Tensor) -> Tensor:
        if self.reduction != "none":
            return torch.full_like(result, self.factor)
        generator = torch.Generator().manual_seed(5)
        return (torch.rand(result.shape, generator=generator) + 0.5).to(result.dtype) * self.factor

    def derivatives(
        self, result: Tensor, leaves: dict[str, Tensor], incoming: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The result and its gradients, or both along the directions; back on the CPU, the result in that dtype."""
        if self.directions is None:
            found = result, *torch.autograd.grad(result, list(leaves.values()), incoming)
        else:
            directions = [self.directions[k].to(result.device) for k in leaves]
            found = second_derivatives(result, list(leaves.values()), incoming, directions)
        value, *gradients = (x.cpu() for x in found)
        return value.to(dtype), dict(zip(leaves, gradients, strict=True))

    def ours(self) -> tuple[Tensor, dict[str, Tensor]]:
        a = {k: on(self.device, x).requires_grad_(k in self.free) for k, x in self.given.items()}
        positional = [a[name] for name in self.loss.samplers]
        rest = {k: x for k, x in a.items() if k not in self.loss.samplers}
        result = self.loss(*positional, **rest, reduction=self.reduction)
        if not torch.is_grad_enabled():
            return result.cpu(), {}
        incoming = self.grad_output(result.cpu()).to(self.device)
        return self.derivatives(result, {k: a[k] for k in self.free}, incoming, result.dtype)

    def torchs(self, ours: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss, free = self.loss, self.free
        if self.directions is not None and loss.in_ops is not None:
            loss = replace(loss, reference=loss.in_ops)
        else:  # torch has no derivative by pos_weight: there ours must be exact but for a few ulps
            free = [name for name in free if name != "pos_weight"]
        a = {k: x.detach().requires_grad_(k in free) for k, x in self.given.items()}
        wide = torch.float64 if self.double else torch.float32
        cast = {k: x.to(wide) for k, x in a.items()}
        positional = [cast[name] for name in loss.samplers]
        weight = cast.pop("weight", None)
        rest = {k: x for k, x in cast.items() if k not in loss.samplers}
        if weight is None:
            result = loss.torch(*positional, **rest, reduction=self.reduction)
        else:
            result = weighted_by_torch(loss, positional, rest, weight, self.reduction)
        return self.derivatives(result, {k: a[k] for k in free}, self.grad_output(ours).to(wide), ours.dtype)

    def exact(self, ours: Tensor) -> oracle.Both:
        precision = np.longdouble if self.double else np.float64
        arrays = {k: numbers(x, precision) for k, x in self.given.items()}
        weight = arrays.pop("weight", None)
        # A parameter takes part as a number of the dtype that is computed in.
        parameters = {
            k: v if isinstance(v, bool) else float(v if self.double else np.float32(v))
            for k, v in self.loss.parameters.items()
        }
        grad_output = numbers(self.grad_output(ours), precision)
        rounding = torch.finfo(torch.float64 if self.double else torch.float32).eps / 2
        directions = None
        if self.directions is not None:
            directions = {k: numbers(x, precision) for k, x in self.directions.items()}
        return oracle.expected(
            self.loss.name, arrays, parameters, self.reduction, weight, grad_output, rounding, directions
        )

    @property
    def double(self) -> bool:
        return any(x.dtype == torch.float64 for x in self.given.values())


class KnownCall(Call):
    """A call whose references are computed once, or taken from another of the same numbers that lie elsewhere."""

    same_as: KnownCall | None = None
    known: tuple[tuple[Tensor, dict[str, Tensor]], oracle.Both] | None = None

    def by_torch(self, ours: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        raise NotImplementedError

    def by_oracle(self, ours: Tensor) -> oracle.Both:
        raise NotImplementedError

    def torchs(self, ours: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self.references(ours)[0]

    def exact(self, ours: Tensor) -> oracle.Both:
        return self.references(ours)[1]

    def references(self, ours: Tensor) -> tuple[tuple[Tensor, dict[str, Tensor]], oracle.Both]:
        """What torch and the oracle say; `ours` gives the incoming gradient its shape and dtype."""
        if self.known is None:
            shared = self.same_as.references(ours) if self.same_as is not None else None
            self.known = shared or (self.by_torch(ours), self.by_oracle(ours))
        return self.known


def _described(x: Tensor) -> str:
    layout = "" if x.is_contiguous() else f" of strides {x.stride()}"
    offset = f" from {x.storage_offset()}" if x.storage_offset() else ""
    return f"{str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}{layout}{offset}"
