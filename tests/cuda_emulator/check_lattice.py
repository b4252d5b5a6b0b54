"""Holds the emulated CUDA kernels of ctc_loss against its recursion in float64, as check_rows.py does losses over rows;
`mutants.py` runs all. What other orders of threads give must be the same to the bit.

    python tests/cuda_emulator/check_lattice.py PATH_TO_EMU
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from check_kernels import ORDERS, TOLERANCE, load
from torch.nn.functional import pad

Tensor = torch.Tensor
Results = dict[str, Tensor]
NONE, MEAN, SUM = 0, 1, 2
# The logarithm of nothing, and below which that of a result is one of nothing.
NOTHING, IMPOSSIBLE = -1e30, -1e27
MASK = [True]
# How many kernels an op launches; a reduced value needs one more.
LAUNCHES = {"": 3, "_value_and_gradient": 5, "_backward": 5, "_jvp": 3, "_hvp": 5}


@dataclass
class Case:
    x: Tensor
    labels: Sequence[Sequence[int]]  # of every sample
    frames: Sequence[int]
    tangent: Tensor
    blank: int = 0
    from_logits: bool = True
    zero_infinity: bool = False
    reduction: int = NONE
    padded: bool = True
    grad_output: Tensor | None = None

    def __post_init__(self) -> None:
        if self.grad_output is None:
            one = torch.full((), -1.75, dtype=self.x.dtype)
            batch = self.x.shape[1:-1]
            self.grad_output = one if self.reduction else torch.rand(batch).to(self.x.dtype) + 0.5

    def __str__(self) -> str:
        given = f"{self.x.dtype} {tuple(self.x.shape)} by {self.x.stride()}, {list(self.frames)} frames"
        lengths = [len(row) for row in self.labels]
        return f"{given}, {lengths} labels, reduction {self.reduction}, logits {self.from_logits}, blank {self.blank}"

    @property
    def lengths(self) -> Tensor:
        return torch.tensor([len(row) for row in self.labels], dtype=torch.int64)

    @property
    def arguments(self) -> tuple[object, ...]:
        rows = [torch.tensor(row, dtype=torch.int64) for row in self.labels]
        most = int(self.lengths.max()) if rows else 0
        if self.padded and self.x.dim() == 3:
            targets = torch.stack([pad(row, (0, most - len(row)), value=-1) for row in rows])
        else:
            targets = torch.cat([torch.empty(0, dtype=torch.int64), *rows])
        of_frames = torch.tensor(self.frames, dtype=torch.int64)
        options = (self.blank, self.zero_infinity, self.from_logits, self.reduction)
        return (self.x, targets, of_frames, self.lengths, *options)


# ---- the oracle ---------------------------------------------------------------------------------------------------


def log_of_alignments(case: Case, log_p: Tensor) -> Tensor:
    """Of every sample: the states are a blank, the first label, a blank, the second label, ..., a blank."""
    samples, most = log_p.shape[1], int(case.lengths.max())
    classes = torch.full((samples, 2 * most + 1), case.blank)
    for n, row in enumerate(case.labels):
        classes[n, 1 : 2 * len(row) : 2] = torch.tensor(row, dtype=torch.int64)
    over = (classes != case.blank) & (classes != pad(classes, (2, 0), value=case.blank)[:, :-2])
    emissions = log_p.gather(2, classes.expand(len(log_p), -1, -1)).clamp(min=NOTHING)
    emissions = torch.where(emissions.isposinf(), math.nan, emissions)
    state = torch.full(classes.shape, NOTHING, dtype=torch.float64)
    state[:, 0] = 0  # before the first frame
    for t, emission in enumerate(emissions):
        before = [pad(state, (k, 0), value=NOTHING)[:, : state.shape[1]] for k in range(3)]
        ways = torch.stack([before[0], before[1], torch.where(over, before[2], NOTHING)]).logsumexp(0)
        state = torch.where(torch.tensor(case.frames)[:, None] > t, ways + emission, state)
    last = 2 * case.lengths[:, None]  # or the label before it, if there is one
    return torch.cat([each.gather(1, last) for each in (state, pad(state, (1, 0), value=NOTHING))], 1).logsumexp(1)


def expected(case: Case) -> Results:
    """By autograd. From log-probabilities the derivative is that of -log Z + sum exp(log p), as torch has it."""
    assert case.grad_output is not None
    batched = case.x if case.x.dim() == 3 else case.x[:, None]
    samples = batched.shape[1]
    counted = torch.arange(len(batched))[:, None] < torch.tensor(case.frames)
    x = torch.where(counted[:, :, None], batched.double(), 0).requires_grad_()
    tangent = case.tangent.double().reshape(batched.shape)
    log_p = x.log_softmax(2) if case.from_logits else x
    log = log_of_alignments(case, log_p)
    possible, is_nan = log > IMPOSSIBLE, log.isnan()
    energy = -log if case.from_logits else (x.exp().sum(2) * counted).sum(0) - log
    (slopes,) = torch.autograd.grad(energy.sum(), x, create_graph=True)
    along = (slopes * tangent).sum((0, 2))
    weight = torch.ones(samples, dtype=torch.float64)
    if case.reduction == MEAN:
        weight /= case.lengths.clamp(min=1) * samples
    incoming = weight * case.grad_output.double()

    def reduced(each: Tensor) -> Tensor:
        if case.reduction == NONE:
            return each.reshape(case.x.shape[1:-1])
        return (each * weight).sum()

    def finished(gradient: Tensor) -> Tensor:
        known = torch.where((possible & counted)[:, :, None], gradient, 0)
        return torch.where((is_nan & counted)[:, :, None], math.nan, known).reshape(case.x.shape)

    value = torch.where(possible | is_nan, -log, 0 if case.zero_infinity else math.inf)
    (seconds,) = torch.autograd.grad((along * incoming).sum(), x, materialize_grads=True)
    return {
        "": reduced(value).detach(),
        "_value_and_gradient": finished(slopes * weight[:, None]).detach(),
        "_backward": finished(slopes * incoming[:, None]).detach(),
        "_jvp": reduced(torch.where(possible, along, torch.where(is_nan, math.nan, 0))).detach(),
        "_hvp": finished(seconds),
    }


# ---- the kernels --------------------------------------------------------------------------------------------------


def launched(emulator: ModuleType, suffix: str, *arguments: object) -> object:
    """Calls an op that must have run all of its kernels."""
    before = emulator.statistics()
    result = getattr(torch.ops.fusedloss, "ctc_loss" + suffix)(*arguments)
    after = emulator.statistics()
    wanted = LAUNCHES[suffix] + (suffix in ("", "_value_and_gradient", "_jvp") and arguments[-1] != NONE)
    made = after["launches"] - before["launches"]
    assert made == wanted, f"ctc_loss{suffix} launched {made} kernels, not {wanted}"
    assert after["barriers"] > before["barriers"] and after["warp_operations"] > before["warp_operations"]
    return result


def computed(emulator: ModuleType, case: Case) -> Results:
    g, tangent, arguments = case.grad_output, case.tangent, case.arguments
    value, (gradient,) = launched(emulator, "_value_and_gradient", MASK, *arguments)
    return {
        "": value,
        "_value_and_gradient": gradient,
        "_jvp": launched(emulator, "_jvp", tangent, *arguments),
        "_hvp": launched(emulator, "_hvp", g, tangent, MASK, *arguments),
    }


def computed_apart(emulator: ModuleType, case: Case) -> Results:
    """By other ops, which run the same kernels."""
    value = launched(emulator, "", *case.arguments)
    return {"": value, "_backward": launched(emulator, "_backward", case.grad_output, MASK, *case.arguments)}


def same(a: Tensor, b: Tensor) -> bool:
    """To the bit."""
    bits = [x.contiguous().reshape(-1).view(torch.uint8) for x in (a, b)]
    return a.shape == b.shape and torch.equal(*bits)


def close(got: Tensor, want: Tensor, frames: int, scale: float) -> bool:
    """Up to rounding of the largest number, or of one of size `scale`; errors grow with the number of frames."""
    tolerance = TOLERANCE[got.dtype] + max(frames / 32, 1) * TOLERANCE[max(got.dtype, torch.float32, key=precision)]
    largest = max([scale, *want[want.isfinite()].abs().tolist()])
    return torch.allclose(got.double(), want, rtol=tolerance, atol=tolerance * largest, equal_nan=True)


def precision(dtype: torch.dtype) -> float:
    return -torch.finfo(dtype).eps


def check(case: Case, got: Results, want: Results) -> None:
    for suffix, a in got.items():
        b = want[suffix]
        differs = (a.double() != b) & ~(a.isnan() & b.isnan())
        at = int(torch.where(differs, (a.double() - b).abs().nan_to_num(math.inf), 0).argmax()) if b.numel() else 0
        values = f"{a.flatten()[at : at + 4].tolist()}, not {b.flatten()[at : at + 4].tolist()}, from {at} on"
        # Second derivatives are small where one alignment has nearly all: what cancels then is as large as this.
        scale = {"": 1.0, "_jvp": 1.0, "_hvp": want["_backward"].abs().nan_to_num(0).max().item()}.get(suffix, 0.0)
        assert a.shape == b.shape and close(a, b, len(case.x), scale), f"ctc_loss{suffix} is {values}, in {case}"


# ---- cases --------------------------------------------------------------------------------------------------------


def numbers(*shape: int, dtype: torch.dtype = torch.float32, from_logits: bool = True) -> Tensor:
    x = torch.randn(shape, dtype=torch.float64) * 2
    return (x if from_logits else x.log_softmax(-1)).to(dtype)


def direction(x: Tensor) -> Tensor:
    return torch.rand(x.shape).to(x.dtype) - 0.5


def case_of(x: Tensor, labels: Sequence[Sequence[int]], frames: Sequence[int], **more: object) -> Case:
    return Case(x, labels, frames, more.pop("tangent", direction(x)), **more)


def random_labels(count: int, classes: int) -> list[int]:
    """Any but the class 0."""
    return torch.randint(1, classes, (count,)).tolist()


# Frames and labels, of 6 classes without 0. In turn: a usual sample, labels that repeat, exactly the frames that are
# needed, one frame less, a single label and frame, no label, nothing at all, labels without a frame.
SAMPLES: tuple[tuple[int, list[int]], ...] = (
    (12, [3, 1, 4, 2]),
    (9, [2, 2, 5, 2, 3]),
    (6, [1, 2, 2, 3, 5]),
    (4, [4, 4, 1, 2]),
    (1, [5]),
    (7, []),
    (0, []),
    (0, [2, 3]),
)


def mixed() -> Iterator[Case]:
    """Samples of different lengths in a batch."""
    frames, labels = [t for t, _ in SAMPLES], [row for _, row in SAMPLES]
    for k, (dtype, from_logits) in enumerate(itertools.product(TOLERANCE, (True, False))):
        x = numbers(13, len(SAMPLES), 6, dtype=dtype, from_logits=from_logits)
        options = {"from_logits": from_logits, "padded": k // 2 % 2 == 0}
        if k % 4 < 2:
            yield case_of(x, labels, frames, **options, zero_infinity=k == 4)
        else:
            yield case_of(x, labels, frames, **options, zero_infinity=True, reduction=MEAN)
        if not from_logits:
            yield case_of(x[:, :3], labels[:3], frames[:3], **options, reduction=SUM)


def blanks() -> Iterator[Case]:
    """The blank is any class."""
    frames = [t for t, _ in SAMPLES]
    for blank, from_logits in ((2, True), (5, False)):
        labels = [[c if c > blank else c - 1 for c in row] for _, row in SAMPLES]
        x = numbers(12, len(SAMPLES), 6, from_logits=from_logits)
        yield case_of(x, labels, frames, blank=blank, from_logits=from_logits)


def many_labels() -> Iterator[Case]:
    """More classes and labels than a warp has lanes, exponents that are shifted, and labels that come often."""
    for dtype, classes in ((torch.float32, 4), (torch.float64, 70)):
        labels = [random_labels(40, classes), random_labels(33, classes)]
        x = numbers(135, 2, classes, dtype=dtype, from_logits=classes > 4)
        yield case_of(x, labels, [135, 131], from_logits=classes > 4, reduction=MEAN)


def many_places() -> Iterator[Case]:
    """As many as shared memory has room for, and one more. The first sample has all labels in the first half of its
    frames: its alignments are at the last places where the two programs meet."""
    for count, frames, dtype in ((255, 460, torch.float64), (256, 264, torch.float32)):
        row = torch.arange(count).remainder(5).add(1).tolist()
        x = numbers(frames, 1, 7, dtype=dtype)
        if frames > 400:
            x[:240, :, 0] -= 20
            x[240:, :, 0] += 20
        yield case_of(x, [row], [frames])


def layouts() -> Iterator[Case]:
    frames, labels = [6, 5, 6], [[1, 2], [3, 3], [2]]
    for k, dtype in enumerate(TOLERANCE):
        inputs = [
            numbers(3, 6, 4, dtype=dtype).transpose(0, 1),  # samples first
            numbers(4, 6, 3, dtype=dtype).permute(1, 2, 0),  # classes first
            numbers(12, 3, 9, dtype=dtype)[::2, :, 1::2],
        ]
        for j, x in enumerate(inputs):
            tangent = direction(x.transpose(0, 2)).transpose(0, 2)
            yield case_of(
                x, labels, frames, from_logits=(j + k) % 2 == 0, tangent=tangent, reduction=(NONE, MEAN)[k % 2]
            )
        x = numbers(4, 6, dtype=dtype).T  # of a single sample
        yield case_of(x, labels[1:2], [5], reduction=(MEAN, NONE)[k % 2])


def incoming() -> Iterator[Case]:
    """The gradient of every sample's value, as it may lie and of any type."""
    frames, labels = [6, 5, 6], [[1, 2], [3, 3], [2]]
    for g in (torch.rand(3, 2)[:, 1], torch.full((), 3.0).expand(3), torch.rand(3).double(), torch.rand(3).half()):
        yield case_of(numbers(6, 3, 4), labels, frames, grad_output=g)
    yield case_of(numbers(6, 3, 4), labels, frames, grad_output=torch.tensor(-2.0, dtype=torch.float64), reduction=SUM)


def spoilt() -> Iterator[Case]:
    """Samples that are NaN and others that are impossible stand beside good ones, which do not notice."""
    frames, labels = [6, 5, 6, 6, 0], [[1, 2], [3, 3], [2], [3, 1], []]
    for from_logits, bad in itertools.product((True, False), (math.nan, math.inf)):
        x = numbers(6, 5, 4, from_logits=from_logits)
        x[3, 1, 3], x[5, 1] = bad, math.nan  # the latter does not count
        x[:, 2, 2] = -math.inf
        x[2, 3, 0] = -math.inf
        x[:, 4] = math.nan
        yield case_of(x, labels, frames, from_logits=from_logits, zero_infinity=math.isinf(bad))
    for chosen in (slice(0, 3), slice(2, 5)):
        yield case_of(x[:, chosen], labels[chosen], frames[chosen], from_logits=False, reduction=MEAN)
    x = numbers(6, 5, 4)
    x[3, 1, 2] = math.nan  # of a class that is no label
    yield case_of(x, labels, frames)


def far_apart() -> Iterator[Case]:
    """Probabilities that no number holds, and logits that are large."""
    for from_logits in (True, False):
        x = numbers(70, 2, 5) * 300
        labels = [random_labels(30, 5), random_labels(25, 5)]
        yield case_of(x if from_logits else x.log_softmax(2), labels, [70, 66], from_logits=from_logits)


CASES: tuple[Callable[[], Iterator[Case]], ...] = (
    mixed,
    blanks,
    many_labels,
    many_places,
    layouts,
    incoming,
    spoilt,
    far_apart,
)


# ---- what no formula says -----------------------------------------------------------------------------------------


def check_empty() -> None:
    """No samples, no frames."""
    for reduction, value in ((SUM, 0.0), (MEAN, math.nan)):
        case = Case(numbers(5, 0, 4), [], [], numbers(5, 0, 4), reduction=reduction, padded=False)
        got, (gradient,) = torch.ops.fusedloss.ctc_loss_value_and_gradient(MASK, *case.arguments)
        assert str(got.item()) == str(value) and gradient.shape == case.x.shape, got
    case = Case(numbers(0, 2, 4), [[], [1]], [0, 0], numbers(0, 2, 4))
    value, (gradient,) = torch.ops.fusedloss.ctc_loss_value_and_gradient(MASK, *case.arguments)
    assert value.tolist() == [0, math.inf] and gradient.shape == case.x.shape, value


def check_rescaled() -> None:
    """Autograd keeps what the forward pass made, or makes it when it knows what comes in."""
    for dtype, reduction in itertools.product((torch.float32, torch.float16), (NONE, MEAN, SUM)):
        case = case_of(numbers(6, 2, 4, dtype=dtype), [[1, 2], [3]], [6, 5], reduction=reduction)
        leaf = case.x.clone().requires_grad_()
        value = torch.ops.fusedloss.ctc_loss(leaf, *case.arguments[1:])
        (gradient,) = torch.autograd.grad(value, leaf, case.grad_output)
        assert close(gradient, expected(case)["_backward"], 6, 0.0), (gradient, case)


def main(path: str) -> None:
    emulator = load(path)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    cases = [case for family in CASES for case in family()]
    first: list[Results] = []
    for order in ORDERS:
        emulator.set_order(order)
        for k, case in enumerate(cases):
            got = computed(emulator, case)
            if order == ORDERS[0]:
                first.append(got)
                apart, want = computed_apart(emulator, case), expected(case)
                check(case, got, want)
                check(case, apart, want)
                assert same(apart[""], got[""]), f"with gradients the value is {got['']}, not {apart['']}, in {case}"
            for suffix, result in got.items():
                assert same(result, first[k][suffix]), f"ctc_loss{suffix} depends on the order of threads, in {case}"
        check_empty()
        check_rescaled()
    print(f"{Path(path).name}: lattices as expected; {emulator.statistics()}")


if __name__ == "__main__":
    main(sys.argv[1])
