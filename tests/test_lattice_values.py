"""CTC and its gradient against the oracle by the rule of fusedloss.testing.judge, and its edge cases against every path
of classes that a few frames can take."""

from __future__ import annotations

import math
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fusedloss.functional as L
from fusedloss.testing.cases import DTYPES, RANGES
from fusedloss.testing.judge import numbers
from fusedloss.testing.lattice_cases import LAYOUTS, SHAPE, SIZES, LatticeCall, batch_first, classes_first, laid_out
from fusedloss.testing.lattice_catalogue import LATTICE_LOSSES, PADDING, LatticeLoss, padded, random_labels
from fusedloss.testing.lattice_oracle import brute_force, frames_needed
from fusedloss.testing.oracle import Array

pytestmark = pytest.mark.core

EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)
EACH_LOSS = pytest.mark.parametrize("loss", [pytest.param(loss, id=loss.id) for loss in LATTICE_LOSSES])
LOG_PROBS, LOGITS = LATTICE_LOSSES[0], LATTICE_LOSSES[2]
BOTH = pytest.mark.parametrize("loss", [pytest.param(LOG_PROBS, id="log_probs"), pytest.param(LOGITS, id="logits")])


def random_rows(lengths: list[int], classes: int, blank: int = 0, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [random_labels(n, classes, blank, generator) for n in lengths]


def random_x(loss: LatticeLoss, shape: tuple[int, ...], dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return loss.samplers["log_probs"](shape, torch.Generator().manual_seed(seed)).to(dtype)


def value_and_gradient(loss: LatticeLoss, given: dict[str, Tensor], reduction: str = "none") -> tuple[Tensor, Tensor]:
    value, gradients = LatticeCall(loss, given, reduction).ours()
    return value.detach(), gradients["log_probs"]


def step(x: Tensor, *rest: Tensor, **keywords: object) -> tuple[Tensor, Tensor]:
    """The values of the samples and the gradient of their sum."""
    leaf = x.detach().requires_grad_()
    values = L.ctc_loss(leaf, *rest, **keywords, reduction="none")  # type: ignore[arg-type]
    return values.detach(), torch.autograd.grad(values.sum(), leaf)[0]


# ---- shapes, dtypes, reductions --------------------------------------------------------------------------------------


@EACH_DTYPE
@EACH_LOSS
def test_reductions(loss: LatticeLoss, dtype: torch.dtype) -> None:
    given = loss.given(SHAPE, dtype)
    for reduction in loss.reductions:
        LatticeCall(loss, given, reduction).judge()
        LatticeCall(loss, given, reduction, factor=-0.37).judge()


@EACH_DTYPE
@EACH_LOSS
def test_one_sequence_has_no_batch(loss: LatticeLoss, dtype: torch.dtype) -> None:
    """(frames, classes) are the same as a batch of one, to the bit, and a value without axes."""
    given = loss.given((SHAPE[0], SHAPE[2]), dtype, seed=1)
    x, targets, *lengths = given.values()
    for reduction in loss.reductions:
        LatticeCall(loss, given, reduction).judge()
        value, gradient = value_and_gradient(loss, given, reduction)
        assert value.shape == ()
        batch = loss.of(x[:, None], [targets], lengths[0][None])
        one = LatticeCall(loss, batch, reduction)
        one.grad_output = lambda result, r=reduction: (
            LatticeCall(loss, given, r)
            .grad_output(result.view(()))
            .view_as(  # type: ignore[method-assign, misc]
                result
            )
        )
        of_batch, gradients = one.ours()
        assert torch.equal(of_batch.view(()), value)
        assert torch.equal(gradients["log_probs"][:, 0], gradient)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@EACH_LOSS
def test_sizes(loss: LatticeLoss, dtype: torch.dtype) -> None:
    """Frames, samples, classes and labels around registers and tiles."""
    for frames, samples, classes, labels in SIZES:
        if loss.blank < classes:
            given = loss.given((frames, samples, classes), dtype, seed=frames, labels=labels)
            LatticeCall(loss, given, "none" if samples > 1 else "sum").judge()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@BOTH
def test_numbers_of_classes(loss: LatticeLoss, dtype: torch.dtype) -> None:
    for classes in (2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 65, 127, 129, 1025, 5000):
        LatticeCall(loss, loss.given((4, 3, classes), dtype, seed=classes), "none").judge()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@BOTH
def test_numbers_of_labels(loss: LatticeLoss, dtype: torch.dtype) -> None:
    """Around registers, of one batch: each sequence ends in its own frame and its own state."""
    lengths = [0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33]
    rows = random_rows(lengths, 6)
    frames = torch.tensor([frames_needed(row.numpy()) + 3 for row in rows])
    x = random_x(loss, (int(frames.max()), len(rows), 6), dtype)
    LatticeCall(loss, loss.of(x, rows, frames), "none").judge()


@pytest.mark.host  # what is kept at hand is a matter of the CPU's caches
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@BOTH
def test_more_frames_than_are_kept_at_hand(loss: LatticeLoss, dtype: torch.dtype) -> None:
    """Of a long sequence what the backward pass needs is computed anew, some frames at a time; the others are short."""
    LatticeCall(loss, loss.given((650, 3, 5), dtype, seed=1, labels=320), "none").judge()


@BOTH
def test_a_single_alignment_takes_every_frame(loss: LatticeLoss) -> None:
    """As many frames as are needed, and one more."""
    rows = random_rows([1, 2, 3, 8, 15, 16, 17, 40], 4, seed=1)
    for more in (0, 1):
        frames = torch.tensor([frames_needed(row.numpy()) + more for row in rows])
        x = random_x(loss, (int(frames.max()), len(rows), 4), torch.float32, seed=more)
        LatticeCall(loss, loss.of(x, rows, frames), "none").judge()
        # All is said in one way, so that the loss is the sum along it.
        if more == 0 and loss is LOG_PROBS:
            row = rows[-1]
            path = [
                c for a, b in zip([-1, *row.tolist()], row.tolist(), strict=False) for c in ([0, b] if a == b else [b])
            ]
            known = -x[torch.arange(len(path)), -1, torch.tensor(path)].double().sum()
            values, _ = value_and_gradient(loss, loss.of(x, rows, frames))
            torch.testing.assert_close(values[-1].double(), known, rtol=1e-6, atol=0)


@pytest.mark.parametrize("samples", [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33])
@BOTH
def test_numbers_of_samples(loss: LatticeLoss, samples: int) -> None:
    given = loss.given((7, samples, 5), torch.float32, seed=samples)
    LatticeCall(loss, given, "none" if samples % 2 else "mean").judge()


@pytest.mark.parametrize("blank", [0, 1, 3, 4])
@BOTH
def test_any_class_may_be_the_blank(loss: LatticeLoss, blank: int) -> None:
    rows = random_rows([3, 0, 5, 1], 5, blank)
    given = loss.of(random_x(loss, (11, 4, 5)), rows)
    x, *rest = given.values()
    from_logits = loss is LOGITS
    value, gradient = step(x, *rest, blank=blank, from_logits=from_logits)
    # The same with the blank moved to be the first class, which is judged.
    order = [blank, *(c for c in range(5) if c != blank)]
    place = torch.tensor([order.index(c) for c in range(5)])
    moved = loss.of(x[..., order].clone(), [place[row] for row in rows])
    LatticeCall(loss, moved, "none").judge()
    expected, slope = step(*moved.values(), from_logits=from_logits)
    torch.testing.assert_close(value, expected, rtol=1e-14, atol=0)
    torch.testing.assert_close(gradient[..., order], slope, rtol=0, atol=1e-14)


def test_the_mean_is_torchs() -> None:
    """Every value divided by the length of its target, of which 0 counts as 1; and then by the samples."""
    rows = random_rows([3, 0, 5], 5)
    given = LOG_PROBS.of(random_x(LOG_PROBS, (11, 3, 5)), rows)
    x, targets, *lengths = given.values()
    values = L.ctc_loss(x, targets, *lengths, reduction="none")
    mean = L.ctc_loss(x, targets, *lengths)
    torch.testing.assert_close(mean, (values / torch.tensor([3.0, 1.0, 5.0])).mean(), rtol=1e-14, atol=0)
    torch.testing.assert_close(mean, F.ctc_loss(x, targets, *lengths), rtol=1e-13, atol=0)
    torch.testing.assert_close(L.ctc_loss(x, targets, *lengths, reduction="sum"), values.sum(), rtol=1e-14, atol=0)


@pytest.mark.parametrize("factor", [2.0**15, 2.0**-10])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@EACH_LOSS
def test_a_scaled_loss(loss: LatticeLoss, dtype: torch.dtype, factor: float) -> None:
    """A gradient is scaled before it is rounded: loss scaling keeps small ones, and none overflows on the way."""
    given = loss.given((20, 5, 40), dtype, seed=47)
    LatticeCall(loss, given, "mean" if factor > 1 else "sum", factor=factor).judge()


@pytest.mark.host  # on CUDA 16 bytes are twice as many halves, which are added in another order
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@EACH_LOSS
def test_half_types_are_rounded_once(loss: LatticeLoss, dtype: torch.dtype) -> None:
    """The same bits as computing on a float32 copy and rounding its result."""
    for shape in [SHAPE, (9, 3, 700)]:
        given = loss.given(shape, dtype, seed=37)
        wide = given | {"log_probs": given["log_probs"].float()}
        for reduction in loss.reductions:
            (value, gradient), (full, slope) = (value_and_gradient(loss, g, reduction) for g in (given, wide))
            assert value.dtype == dtype and torch.equal(value, full.to(dtype)), reduction
            if reduction != "none":  # there the incoming gradient is rounded to the dtype of the result
                assert torch.equal(gradient, slope.to(dtype)), reduction


# ---- layouts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@EACH_LOSS
def test_layouts(loss: LatticeLoss, dtype: torch.dtype) -> None:
    given = loss.given(SHAPE, dtype, seed=11)
    straight = {reduction: LatticeCall(loss, given, reduction) for reduction in ("none", "sum")}
    for layout, reduction in product(LAYOUTS, straight):
        moved = laid_out(given, layout)
        same = torch.equal(moved["log_probs"], given["log_probs"])
        LatticeCall(loss, moved, reduction, same_as=straight[reduction] if same else None).judge()


@BOTH
def test_one_sequence_in_any_layout(loss: LatticeLoss) -> None:
    given = loss.given((9, 5), torch.float32, seed=3)
    x = given["log_probs"]
    straight = value_and_gradient(loss, given)
    for moved in (x.t().contiguous().t(), torch.stack([x, x * 0], -1)[..., 0], torch.cat([x * 0, x])[9:]):
        value, gradient = value_and_gradient(loss, given | {"log_probs": moved})
        torch.testing.assert_close(value, straight[0], rtol=1e-6, atol=0)
        torch.testing.assert_close(gradient, straight[1], rtol=0, atol=1e-6)


@BOTH
def test_the_gradient_lies_in_memory_as_the_input_does(loss: LatticeLoss) -> None:
    for layout in (batch_first, classes_first):
        given = laid_out(loss.given(SHAPE, torch.float32), layout)
        for reduction in loss.reductions:
            assert value_and_gradient(loss, given, reduction)[1].stride() == given["log_probs"].stride()


def test_targets_and_lengths_of_any_layout() -> None:
    """Strided, with an offset, and expanded: the same bits."""
    rows = [torch.tensor([1, 2, 2]), torch.tensor([1, 2, 2]), torch.tensor([1, 2, 2])]
    given = LOG_PROBS.of(random_x(LOG_PROBS, (9, 3, 4)), rows, torch.tensor([8, 8, 8]))
    x, targets, frames, lengths = given.values()
    expected = step(x, targets[:, :3].contiguous(), frames, lengths)
    spread = torch.full((3, 2, 4), PADDING)
    spread[:, 0, :3] = targets[:, :3]
    others = [
        (spread[:, 0], frames, lengths),
        (targets.t().contiguous().t(), frames, lengths),
        (targets[:1].expand(3, -1), frames[:1].expand(3), lengths[:1].expand(3)),
        (targets, torch.stack([frames, frames * 0], 1)[:, 0], torch.cat([lengths * 0, lengths])[3:]),
        (torch.cat(rows), frames, lengths),
        (torch.stack([torch.cat(rows), torch.zeros(9, dtype=torch.long)], 1)[:, 0], frames, lengths),
    ]
    for other in others:
        for one, known in zip(step(x, *other), expected, strict=True):
            assert torch.equal(one, known)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
@BOTH
def test_gradient_comes_in_any_layout(loss: LatticeLoss, dtype: torch.dtype) -> None:
    x, *rest = loss.given(SHAPE, dtype, seed=13).values()
    leaf = x.requires_grad_()
    result = loss(leaf, *rest, reduction="none")
    grad = torch.randn(len(result), generator=torch.Generator().manual_seed(14)).to(dtype)
    (straight,) = torch.autograd.grad(result, leaf, grad, retain_graph=True)
    for moved in (torch.stack([grad, grad * 0], 1)[:, 0], torch.cat([grad[:1], grad])[1:]):
        assert torch.equal(torch.autograd.grad(result, leaf, moved, retain_graph=True)[0], straight)
    spread = grad[:1].expand(len(grad))
    of_spread, of_copy = (
        torch.autograd.grad(result, leaf, g, retain_graph=True)[0] for g in (spread, spread.contiguous())
    )
    assert torch.equal(of_spread, of_copy)


# ---- ranges ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(RANGES))
@pytest.mark.parametrize(
    ("loss", "dtype"),
    [pytest.param(x, dtype, id=f"{x.id}-{dtype}") for x, dtype in product(LATTICE_LOSSES, DTYPES)
     if dtype == torch.float32 or not x.impossible],
)  # fmt: skip
def test_ranges(loss: LatticeLoss, dtype: torch.dtype, name: str) -> None:
    given = loss.given(SHAPE, dtype, seed=17, scale=RANGES[name][dtype])
    given["log_probs"] = given["log_probs"].nan_to_num()  # infinite by rounding
    LatticeCall(loss, given, "none").judge()
    if name in ("large", "huge"):
        LatticeCall(loss, given, "mean").judge()


def peaky(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Of either sign and size 1000: nearly all frames forbid nearly all classes, and nearly every alignment."""
    generator = torch.Generator().manual_seed(seed)
    return (2000.0 * torch.randint(0, 2, shape, generator=generator) - 1000).to(dtype)


@EACH_DTYPE
@EACH_LOSS
def test_peaky_logits(loss: LatticeLoss, dtype: torch.dtype) -> None:
    """Frame after frame at the end of what exp can tell from 0: per-frame rescaling alone would give infinity."""
    for seed in range(3):
        given = loss.given((30, 6, 6), dtype, seed=seed)
        x = peaky((30, 6, 6), dtype, seed)
        given["log_probs"] = x if loss.parameters.get("from_logits") else x.float().log_softmax(-1).to(dtype)
        call = LatticeCall(loss, given, "none")
        call.judge()
        value, gradients = call.ours()
        if not loss.impossible and dtype != torch.float16:
            assert value.isfinite().all()
        assert gradients["log_probs"].isfinite().all()


@pytest.mark.host  # some seconds of an emulated kernel
@pytest.mark.parametrize(
    ("loss", "sharp"), [pytest.param(LOG_PROBS, False, id="log_probs"), pytest.param(LOGITS, True, id="peaky logits")]
)
def test_twenty_thousand_frames(loss: LatticeLoss, sharp: bool) -> None:
    shape = (20_000, 1, 12)
    x = peaky(shape, torch.float32) if sharp else torch.randn(shape, generator=torch.Generator().manual_seed(0))
    x = x if loss is LOGITS else x.log_softmax(-1)
    call = LatticeCall(loss, loss.of(x, random_rows([50], 12)), "sum")
    call.judge()
    value, gradients = call.ours()
    assert value.isfinite() and gradients["log_probs"].isfinite().all()


@pytest.mark.host  # some seconds of an emulated kernel
def test_five_thousand_labels() -> None:
    rows = random_rows([5000], 90)
    x = torch.randn(5150, 1, 90, generator=torch.Generator().manual_seed(0))
    call = LatticeCall(LOGITS, LOGITS.of(x, rows), "sum")
    call.judge()
    assert call.ours()[0].isfinite()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_certain_sequences_cost_nothing(dtype: torch.dtype) -> None:
    """One alignment has all the probability: the loss is what the others have, and the gradient next to nothing."""
    path, labels = [0, 1, 1, 0, 1, 2, 0], [torch.tensor([1, 1, 2])]
    x = torch.full((7, 1, 3), -40.0, dtype=dtype)
    x[torch.arange(7), 0, torch.tensor(path)] = 0.0
    LatticeCall(LOGITS, LOGITS.of(x, labels), "none").judge()
    LatticeCall(LOG_PROBS, LOG_PROBS.of(x.log_softmax(-1), labels), "none").judge()


# ---- edge cases, against every path ----------------------------------------------------------------------------------


def assert_is_brute_force(
    x: Tensor, rows: list[list[int]], frames: list[int] | None = None, blank: int = 0, from_logits: bool = False
) -> tuple[Tensor, Tensor]:
    """Values and gradients are those of all paths added up, with and without `zero_infinity`, which are returned."""
    frames = [len(x)] * len(rows) if frames is None else frames
    loss = LOGITS if from_logits else LOG_PROBS
    given = loss.of(x, [torch.tensor(row, dtype=torch.long) for row in rows], torch.tensor(frames))
    values, gradient = step(*given.values(), blank=blank, from_logits=from_logits)
    zeroed, gradient_zeroed = step(*given.values(), blank=blank, from_logits=from_logits, zero_infinity=True)
    precise = numbers(x, np.longdouble)
    unit = 64 * torch.finfo(x.dtype).eps
    assert torch.equal(gradient, gradient_zeroed)
    assert torch.equal(zeroed, torch.where(values.isinf(), 0.0, values))
    for n, (row, count) in enumerate(zip(rows, frames, strict=True)):
        value, slope = of_all_paths(precise[:count, n], row, blank, from_logits)
        mine = numbers(gradient[:, n], np.longdouble)
        if np.isinf(value):
            assert values[n] == math.inf and not mine.any(), (row, count)
            continue
        assert abs(values[n].item() - value) <= unit * max(abs(value), 1), (row, count)
        np.testing.assert_allclose(mine[:count], slope, rtol=0, atol=unit, err_msg=f"{row}, {count} frames")
        assert not mine[count:].any()
    return values, gradient


def of_all_paths(x: Array, row: list[int], blank: int, from_logits: bool) -> tuple[float, Array]:
    log_p = x - np.log(np.exp(x).sum(1, keepdims=True)) if from_logits else x
    value, posterior = brute_force(log_p, row, blank)
    return value, np.zeros_like(posterior) if np.isinf(value) else np.exp(log_p) - posterior


@cache
def all_short_sequences() -> tuple[list[list[int]], list[int]]:
    """Up to four labels of two classes, in none to six frames."""
    rows = [list(row) for length in range(5) for row in product((1, 2), repeat=length)]
    return [row for row in rows for _ in range(7)], list(range(7)) * len(rows)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@BOTH
def test_possible_exactly_when_there_are_frames_for_labels_and_repeats(loss: LatticeLoss, dtype: torch.dtype) -> None:
    rows, frames = all_short_sequences()
    x = random_x(loss, (6, len(rows), 3), dtype)
    values, _ = assert_is_brute_force(x, rows, frames, from_logits=loss is LOGITS)
    enough = [count >= frames_needed(np.array(row, int)) for row, count in zip(rows, frames, strict=True)]
    assert values.isfinite().tolist() == enough


@BOTH
def test_no_frames(loss: LatticeLoss) -> None:
    """Nothing to say is said: 0. Something is not: infinite. Of a tensor of frames that do not count, and of none."""
    for frames in (0, 3):
        x = random_x(loss, (frames, 2, 4)) if frames else torch.zeros(0, 2, 4, dtype=torch.float64)
        values, gradient = assert_is_brute_force(x, [[], [1]], [0, 0], from_logits=loss is LOGITS)
        assert values.tolist() == [0.0, math.inf] and not gradient.any() and gradient.shape == x.shape
        assert math.copysign(1, values[0]) == 1


@BOTH
def test_no_labels(loss: LatticeLoss) -> None:
    """All frames are blanks. Padded to some columns, or to none."""
    x = random_x(loss, (5, 3, 4))
    values, _ = assert_is_brute_force(x, [[], [1], []], [5, 5, 2], from_logits=loss is LOGITS)
    nothing = torch.zeros(3, 0, dtype=torch.long)
    lengths = torch.tensor([5, 5, 2]), torch.tensor([0, 0, 0])
    for targets in (nothing, nothing[0]):
        alone, _ = step(x, targets, *lengths, from_logits=loss is LOGITS)
        assert torch.equal(alone[[0, 2]], values[[0, 2]])


@BOTH
def test_only_a_blank_among_the_classes(loss: LatticeLoss) -> None:
    x = random_x(loss, (4, 2, 1)) - (0.5 if loss is LOG_PROBS else 0.0)
    values, _ = assert_is_brute_force(x, [[], []], [4, 1], from_logits=loss is LOGITS)
    assert values.tolist() == ([2.0, 0.5] if loss is LOG_PROBS else [0.0, 0.0])


@pytest.mark.parametrize("blank", [0, 2])
@BOTH
def test_repeated_labels_have_a_blank_between_them(loss: LatticeLoss, blank: int) -> None:
    """[a a] is not [a], and a b a b repeats nothing."""
    a, b = 1, 2 - blank
    rows = [[a], [a, a], [a, a, a], [a, b, a, b], [a, a, b, b], [b, a, a]]
    x = random_x(loss, (6, len(rows), 3), seed=2)
    values, _ = assert_is_brute_force(x, rows, blank=blank, from_logits=loss is LOGITS)
    assert values.isfinite().all()
    shorter, _ = assert_is_brute_force(x[:4].clone(), rows, blank=blank, from_logits=loss is LOGITS)
    assert shorter.isfinite().tolist() == [True, True, False, True, False, True]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
@BOTH
def test_classes_that_cannot_be(loss: LatticeLoss, dtype: torch.dtype) -> None:
    """-inf where no label is: the others' values and gradients, and a gradient of exactly 0 there."""
    rows = random_rows([3, 0, 5, 2], 4)
    few = loss.of(random_x(loss, (11, 4, 4), dtype), rows, torch.tensor([11, 4, 10, 7]))
    place = torch.tensor([0, 2, 3, 6])
    many = torch.full((11, 4, 8), -math.inf, dtype=dtype)
    many[..., place] = few["log_probs"]
    given = loss.of(many, [place[row] for row in rows], few["input_lengths"])
    LatticeCall(loss, few, "none").judge()
    (value, gradient), (expected, slope) = value_and_gradient(loss, given), value_and_gradient(loss, few)
    unit = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(value, expected, rtol=unit, atol=0)
    torch.testing.assert_close(gradient[..., place], slope, rtol=0, atol=unit)
    assert not gradient[..., [1, 4, 5, 7]].any()


@pytest.mark.parametrize("impossible", [-math.inf, -2e28, -3e38])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_wanted_classes_that_cannot_be_in_some_frames(dtype: torch.dtype, impossible: float) -> None:
    """Some alignments fall away, and where all do the loss is infinite; no NaN, whatever is counted as -inf."""
    rows = [[1, 1, 2]] * 40
    x = random_x(LOG_PROBS, (5, 40, 3), dtype)
    off = torch.rand(x.shape, generator=torch.Generator().manual_seed(3)) < 0.25
    if impossible != -math.inf:  # counted from the best that the frame has
        off &= ~off.all(-1, keepdim=True)
    values, gradient = assert_is_brute_force(x.masked_fill(off, impossible), rows)
    assert values.isinf().any() and values.isfinite().any()
    assert gradient.isfinite().all() and not gradient[off].any()


def test_wanted_classes_whose_logits_are_minus_infinity() -> None:
    rows = [[1, 1, 2]] * 40
    x = random_x(LOGITS, (5, 40, 3))
    off = torch.rand(x.shape, generator=torch.Generator().manual_seed(4)) < 0.25
    off &= ~off.all(-1, keepdim=True)
    values, gradient = assert_is_brute_force(x.masked_fill(off, -math.inf), rows, from_logits=True)
    assert values.isinf().any() and values.isfinite().any()
    assert gradient.isfinite().all() and not gradient[off].any()


@pytest.mark.parametrize("spoilt", [math.nan, math.inf, -math.inf])
@EACH_DTYPE
@EACH_LOSS
def test_frames_past_the_end_are_not_looked_at(loss: LatticeLoss, dtype: torch.dtype, spoilt: float) -> None:
    """Whatever they hold, no bit of a value or gradient changes, and their own gradient is exactly 0."""
    given = loss.given(SHAPE, dtype, seed=19)
    past = torch.arange(SHAPE[0])[:, None] >= given["input_lengths"]
    assert past.any()
    x = given["log_probs"].masked_fill(past[..., None], spoilt)
    for reduction in loss.reductions:
        clean, dirty = (value_and_gradient(loss, given | {"log_probs": y}, reduction) for y in (given["log_probs"], x))
        assert torch.equal(clean[0], dirty[0]) and torch.equal(clean[1], dirty[1])
        assert not dirty[1][past].any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@BOTH
def test_impossible_sequences_are_infinite_and_have_no_gradient(loss: LatticeLoss, dtype: torch.dtype) -> None:
    """And those beside them are as they would be alone."""
    rows = [torch.tensor(r, dtype=torch.long) for r in ([1, 1, 1, 1], [1, 2], [2, 2, 2, 2], [])]
    x = random_x(loss, (6, 4, 3), dtype)
    given = loss.of(x, rows)
    values, gradient = value_and_gradient(loss, given)
    assert values.isinf().tolist() == [True, False, True, False] and (values > 0).all()
    assert not gradient[:, ::2].any() and gradient[:, 1::2].all()
    alone = value_and_gradient(loss, loss.of(x[:, 1::2].contiguous(), rows[1::2]), "sum")
    for reduction in ("mean", "sum"):
        value, slope = value_and_gradient(loss, given, reduction)
        assert value == math.inf and slope.isfinite().all() and not slope[:, ::2].any()
        if reduction == "sum":
            assert torch.equal(slope[:, 1::2], alone[1])


def test_without_samples_a_sum_is_nothing_and_a_mean_none() -> None:
    x, lengths = torch.zeros(5, 0, 3, requires_grad=True), torch.zeros(0, dtype=torch.long)
    for targets in (torch.zeros(0, 2, dtype=torch.long), torch.zeros(0, dtype=torch.long)):
        values = {r: L.ctc_loss(x, targets, lengths, lengths, reduction=r) for r in ("none", "mean", "sum")}
        assert values["none"].shape == (0,) and values["mean"].isnan() and values["sum"] == 0
        for value in values.values():
            assert torch.autograd.grad(value.sum(), x)[0].shape == x.shape


# ---- NaN and infinity ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@EACH_DTYPE
@EACH_LOSS
def test_a_nan_stays_with_its_own_sample(loss: LatticeLoss, dtype: torch.dtype, bad: float) -> None:
    """At a blank or a label, in the first, a middle and the last frame: value and gradient of that sample are NaN."""
    given = loss.given((9, 4, 5), dtype, seed=23)
    frames, sample = int(given["input_lengths"][1]), 1
    targets = given["targets"]
    row = targets[1, : given["target_lengths"][1]] if targets.dim() == 2 else targets[given["target_lengths"][0] :]
    columns = [loss.blank, *row[: given["target_lengths"][1]].tolist()[:1]]
    clean, clean_sum = (value_and_gradient(loss, given, r) for r in ("none", "sum"))
    others = torch.arange(4) != sample
    for frame, column in product((0, frames // 2, frames - 1), columns):
        x = given["log_probs"].clone()
        x[frame, sample, column] = bad
        value, gradient = value_and_gradient(loss, given | {"log_probs": x})
        total, gradient_of_sum = value_and_gradient(loss, given | {"log_probs": x}, "sum")
        assert value[sample].isnan() and total.isnan(), (frame, column)
        assert torch.equal(value[others], clean[0][others])
        for slope, known in ((gradient, clean[1]), (gradient_of_sum, clean_sum[1])):
            assert slope[:frames, sample].isnan().all() and not slope[frames:, sample].any(), (frame, column)
            assert torch.equal(slope[:, others], known[:, others])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_nan_of_a_class_that_no_one_wants(dtype: torch.dtype) -> None:
    """Of log-probabilities it reaches its own gradient alone; of logits the whole sample, by the softmax."""
    rows = [torch.tensor([1, 2]), torch.tensor([1, 1])]
    given = LOG_PROBS.of(random_x(LOG_PROBS, (6, 2, 4), dtype), rows)
    clean = value_and_gradient(LOG_PROBS, given)
    x = given["log_probs"].clone()
    x[3, 0, 3] = math.nan
    value, gradient = value_and_gradient(LOG_PROBS, given | {"log_probs": x})
    assert torch.equal(value, clean[0])
    assert torch.equal(gradient.isnan(), x.isnan())
    assert torch.equal(gradient[~x.isnan()], clean[1][~x.isnan()])
    value, gradient = value_and_gradient(LOGITS, given | {"log_probs": x})
    assert value.isnan().tolist() == [True, False]
    assert gradient[:, 0].isnan().all() and gradient[:, 1].isfinite().all()


@BOTH
def test_a_nan_of_a_sequence_without_an_alignment(loss: LatticeLoss) -> None:
    """With too few frames nothing is looked at; where classes that cannot be leave no alignment, NaN is NaN."""
    rows = [torch.tensor(row) for row in ([1, 1, 1, 1], [1, 2], [1, 2], [2, 2])]
    x = random_x(loss, (5, 4, 4))
    x[:, 1:3, 1] = -math.inf
    x[3, :, 2] = math.nan
    x[3, 2, 2] = 0.5
    for reduction in ("none", "sum"):
        LatticeCall(loss, loss.of(x, rows), reduction).judge()
    value, gradient = value_and_gradient(loss, loss.of(x, rows))
    assert value[0] == value[2] == math.inf and value[1::2].isnan().all()
    assert not gradient[:, ::2].any() and gradient[:, 1::2].isnan().all()


def test_logits_of_which_none_is_possible_are_no_distribution() -> None:
    x = random_x(LOGITS, (4, 2, 3))
    x[1, 0] = -math.inf
    value, gradient = value_and_gradient(LOGITS, LOGITS.of(x, random_rows([1, 1], 3)))
    assert value.isnan().tolist() == [True, False] and gradient[:, 1].isfinite().all()


# ---- what labels and lengths may be ----------------------------------------------------------------------------------


@EACH_LOSS
def test_labels_in_the_padding_are_not_looked_at(loss: LatticeLoss) -> None:
    rows = random_rows([3, 0, 5], 6, loss.blank)
    given = loss.of(random_x(loss, (11, 3, 6)), rows)
    targets = padded(rows, True)
    results = []
    for padding in (-1, 0, loss.blank, 5, 6, PADDING, 2**62):
        filled = torch.where(targets == PADDING, padding, targets)
        results.append(value_and_gradient(loss, given | {"targets": filled}))
    for other in results[1:]:
        assert torch.equal(other[0], results[0][0]) and torch.equal(other[1], results[0][1])
    concatenated = value_and_gradient(loss, given | {"targets": torch.cat(rows)})
    assert torch.equal(concatenated[0], results[0][0]) and torch.equal(concatenated[1], results[0][1])


def test_concatenated_targets_of_each_sample_are_its_own() -> None:
    """Sequences without labels between those that have some."""
    rows = random_rows([0, 3, 0, 0, 2, 0], 4, seed=5)
    x = random_x(LOG_PROBS, (7, 6, 4))
    lengths = torch.full((6,), 7), torch.tensor([len(row) for row in rows])
    together, _ = step(x, torch.cat(rows), *lengths)
    for n, row in enumerate(rows):
        alone, _ = step(x[:, n], row, lengths[0][n], lengths[1][n])
        assert torch.equal(alone, together[n])
