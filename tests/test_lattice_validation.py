"""Bad input to CTC: the type of the error, the argument it names, and the value and the place it shows."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fusedloss
import fusedloss.functional as L
from fusedloss.testing.lattice_catalogue import PADDING

pytestmark = pytest.mark.core

FRAMES, SAMPLES, CLASSES = 7, 3, 5
LABELS = [[1, 2, 2], [3], [4, 1]]
LENGTHS = [3, 1, 2]
INTEGERS = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8]
FORMS = pytest.mark.parametrize("form", ["padded", "concatenated"])


def targets(form: str, labels: list[list[int]] | None = None, dtype: torch.dtype = torch.int64) -> Tensor:
    rows = LABELS if labels is None else labels
    if form == "concatenated":
        return torch.tensor([label for row in rows for label in row], dtype=dtype)
    most = max(map(len, rows)) + 1
    return torch.tensor([row + [0] * (most - len(row)) for row in rows], dtype=dtype)


def valid(form: str = "padded") -> dict[str, Any]:
    return {
        "log_probs": torch.randn(FRAMES, SAMPLES, CLASSES, generator=torch.Generator().manual_seed(0)).log_softmax(-1),
        "targets": targets(form),
        "input_lengths": torch.tensor([7, 5, 6]),
        "target_lengths": torch.tensor(LENGTHS),
    }


def one() -> dict[str, Any]:
    """A sequence without a batch."""
    x = torch.randn(FRAMES, CLASSES, generator=torch.Generator().manual_seed(1)).log_softmax(-1)
    return {"log_probs": x, "targets": torch.tensor([1, 2, 2]), "input_lengths": 7, "target_lengths": 3}


def refused(error: type[Exception] | tuple[type[Exception], ...], given: dict[str, Any], *shown: object) -> str:
    """Every reduction refuses the call, with and without a gradient, and the message has those words in it."""
    message = ""
    for reduction in ("none", "mean", "sum"):
        for differentiable in (False, True):
            x = given["log_probs"]
            if isinstance(x, Tensor) and x.is_floating_point():
                given = given | {"log_probs": x.detach().requires_grad_(differentiable)}
            with pytest.raises(error) as raised:
                L.ctc_loss(**({"reduction": reduction} | given))
            message = str(raised.value)
            for word in ("ctc_loss", *shown):
                assert re.search(rf"(?<![\w.-]){re.escape(str(word))}(?![\w])", message), f"{word} is not in: {message}"
    return message


# ---- labels ----------------------------------------------------------------------------------------------------------


@FORMS
@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
@pytest.mark.parametrize(("sample", "position"), [(0, 0), (0, 2), (1, 0), (2, 1)])
def test_a_label_out_of_range_is_shown_with_its_place(
    form: str, dtype: torch.dtype, sample: int, position: int
) -> None:
    wrong = [CLASSES, 127, *([255] if dtype == torch.uint8 else [-1, -128])]
    if dtype == torch.int64:
        wrong += [2**31, 2**32 + 1, 2**40, -(2**62)]  # which are 1 and others if only 32 bits are looked at
    for bad in wrong:
        labels = [list(row) for row in LABELS]
        labels[sample][position] = bad
        given = valid() | {"targets": targets(form, labels, dtype)}
        refused(IndexError, given, "targets", f"got {bad}", f"sample {sample}", f"position {position}", CLASSES - 1)


@FORMS
@pytest.mark.parametrize("blank", [0, 2, CLASSES - 1])
def test_a_blank_among_the_labels_is_shown_with_its_place(form: str, blank: int) -> None:
    labels = [[3, 1, 1], [1], [3, blank]]
    given = valid() | {"targets": targets(form, labels), "blank": blank}
    refused(IndexError, given, "targets", "blank", f"got {blank}", "sample 2", "position 1")


def test_of_one_sequence_too() -> None:
    for bad in (0, CLASSES, -1):
        given = one() | {"targets": torch.tensor([1, bad, 2])}
        refused(IndexError, given, "targets", f"got {bad}", "sample 0", "position 1")


@FORMS
def test_the_first_wrong_label_is_the_one_that_is_shown(form: str) -> None:
    given = valid() | {"targets": targets(form, [[1, 2, 2], [77], [88, 0]])}
    refused(IndexError, given, "got 77", "sample 1", "position 0")


def test_labels_that_are_not_looked_at_may_be_anything() -> None:
    """Those in the padding, and those of a sequence without an alignment are looked at all the same."""
    given = valid()
    expected = L.ctc_loss(**given)
    for anything in (-1, 0, CLASSES, PADDING, 2**62):
        spoilt = given["targets"].clone()
        spoilt[0, 3:], spoilt[1, 1:], spoilt[2, 2:] = anything, anything, anything
        assert torch.equal(L.ctc_loss(**given | {"targets": spoilt}), expected)
    given["input_lengths"] = torch.tensor([0, 5, 6])
    given["targets"][0, 1] = 9
    refused(IndexError, given, "got 9", "sample 0", "position 1")


def test_labels_that_leave_the_range_before_the_backward_pass() -> None:
    """Behind the back of autograd, which counts the changes of a tensor but not those of its .data."""
    for reduction in ("none", "mean"):
        for create_graph in (False, True):
            given = valid()
            leaf = given["log_probs"].requires_grad_()
            value = L.ctc_loss(**given, reduction=reduction).sum()
            given["targets"].data[1, 0] = 2**40
            try:
                (gradient,) = torch.autograd.grad(value, leaf, create_graph=create_graph)
            except IndexError as error:
                assert str(2**40) in str(error)
            else:  # it was made before
                assert gradient.isfinite().all()


# ---- the blank -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blank", [-1, CLASSES, 2**31, 2**40, -(2**62)])
def test_a_blank_that_is_no_class(blank: int) -> None:
    refused(IndexError, valid() | {"blank": blank}, "blank", f"got {blank}")
    refused(IndexError, one() | {"blank": blank}, "blank", f"got {blank}")


def test_without_classes_there_is_no_blank() -> None:
    given = valid() | {"log_probs": torch.zeros(FRAMES, SAMPLES, 0), "targets": torch.zeros(3, 0, dtype=torch.long)}
    refused((IndexError, ValueError), given | {"target_lengths": torch.zeros(3, dtype=torch.long)}, "blank")


@pytest.mark.parametrize("blank", [1.0, "0", None, [0]], ids=repr)
def test_a_blank_that_is_no_integer(blank: Any) -> None:
    refused(TypeError, valid() | {"blank": blank}, "blank")


# ---- lengths ---------------------------------------------------------------------------------------------------------


@FORMS
@pytest.mark.parametrize("bad", [FRAMES + 1, -1, 2**31, 2**32 + 3, 2**40, -(2**62)])
def test_an_input_length_out_of_range_is_shown_with_its_sample(form: str, bad: int) -> None:
    for sample in range(SAMPLES):
        lengths = [7, 5, 6]
        lengths[sample] = bad
        for given_as in (torch.tensor(lengths), lengths, tuple(lengths)):
            given = valid(form) | {"input_lengths": given_as}
            refused(IndexError, given, "input_lengths", f"got {bad}", f"sample {sample}", FRAMES)
    refused(IndexError, one() | {"input_lengths": bad}, "input_lengths", f"got {bad}", FRAMES)


@pytest.mark.parametrize("bad", [5, -1, 2**31, 2**32 + 3, 2**40, -(2**62)])
def test_a_target_length_out_of_range_is_shown_with_its_sample(bad: int) -> None:
    for sample in range(SAMPLES):
        lengths = list(LENGTHS)
        lengths[sample] = bad
        given = valid() | {"target_lengths": torch.tensor(lengths)}
        refused(IndexError, given, "target_lengths", f"got {bad}", f"sample {sample}", given["targets"].shape[1])
    refused(IndexError, one() | {"target_lengths": bad}, "target_lengths", f"got {bad}", 3)


@pytest.mark.parametrize("bad", [-1, 7, 2**40, -(2**62)])
def test_a_target_length_of_concatenated_ones_out_of_range(bad: int) -> None:
    for sample in range(SAMPLES):
        lengths = list(LENGTHS)
        lengths[sample] = bad
        given = valid("concatenated") | {"target_lengths": torch.tensor(lengths)}
        refused(IndexError, given, "target_lengths", f"got {bad}", f"sample {sample}")


@pytest.mark.parametrize("lengths", [[3, 1, 1], [3, 2, 2], [0, 0, 0], [6, 6, 6]], ids=str)
def test_target_lengths_that_do_not_add_up_to_the_targets(lengths: list[int]) -> None:
    given = valid("concatenated") | {"target_lengths": torch.tensor(lengths)}
    refused((ValueError, IndexError), given, "target_lengths", f"got {sum(lengths)}", 6)


def test_one_sequence_may_have_labels_behind_its_last() -> None:
    given = one()
    expected = L.ctc_loss(**given)
    more = given | {"targets": torch.tensor([1, 2, 2, PADDING])}
    assert torch.equal(L.ctc_loss(**more), expected)


def test_lengths_of_every_accepted_type() -> None:
    """Tensors of any integer type, tuples, lists, and of their numbers what has an index."""
    for form in ("padded", "concatenated"):
        given = valid(form)
        expected = L.ctc_loss(**given, reduction="none")
        for frames, labels in [
            *((given["input_lengths"].to(dtype), given["target_lengths"].to(dtype)) for dtype in INTEGERS),
            ((7, 5, 6), (3, 1, 2)),
            ([7, 5, 6], [3, 1, 2]),
            (torch.tensor([7, 5, 6], dtype=torch.int32), (3, 1, 2)),
            ([np.int32(7), np.int64(5), torch.tensor(6)], torch.tensor(LENGTHS, dtype=torch.int16)),
        ]:
            found = L.ctc_loss(**given | {"input_lengths": frames, "target_lengths": labels}, reduction="none")
            assert torch.equal(found, expected), (frames, labels)


def test_lengths_of_one_sequence_of_every_accepted_type() -> None:
    given = one()
    expected = L.ctc_loss(**given)
    assert torch.equal(expected, L.ctc_loss(given["log_probs"][:, None], given["targets"][None], [7], [3])[()])
    for frames, labels in [
        (torch.tensor(7), torch.tensor(3)),
        (torch.tensor([7]), torch.tensor([3])),
        ((7,), [3]),
        (np.int64(7), np.int32(3)),
        (torch.tensor(7, dtype=torch.int32), 3),
    ]:
        found = L.ctc_loss(**given | {"input_lengths": frames, "target_lengths": labels})
        assert torch.equal(found, expected), (frames, labels)


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_targets_of_any_integer_type(dtype: torch.dtype) -> None:
    for form in ("padded", "concatenated"):
        given = valid(form)
        assert torch.equal(L.ctc_loss(**given), L.ctc_loss(**given | {"targets": given["targets"].to(dtype)}))


@pytest.mark.parametrize("name", ["input_lengths", "target_lengths"])
@pytest.mark.parametrize("bad", [None, "7", 7.0, [7.0, 5.0, 6.0], ["7", "5", "6"], {7: 5}, [[7, 5, 6]]], ids=repr)
def test_lengths_that_are_no_integers(name: str, bad: Any) -> None:
    refused(TypeError, valid() | {name: bad}, name)


@pytest.mark.parametrize("name", ["targets", "input_lengths", "target_lengths"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bool, torch.complex64], ids=str)
def test_labels_and_lengths_of_another_dtype(name: str, dtype: torch.dtype) -> None:
    given = valid()
    refused(TypeError, given | {name: given[name].to(dtype)}, name)


# ---- tensors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [None, 0.5, [0.5], "x"], ids=repr)
@pytest.mark.parametrize("name", ["log_probs", "targets"])
def test_an_operand_that_is_no_tensor(name: str, bad: Any) -> None:
    refused(TypeError, valid() | {name: bad}, name)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn], ids=str)
def test_log_probs_of_a_dtype_that_is_not_offered(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=r"\blog_probs\b"):
        L.ctc_loss(**valid() | {"log_probs": torch.zeros(FRAMES, SAMPLES, CLASSES).to(dtype)})


@pytest.mark.parametrize("shape", [(), (FRAMES,), (FRAMES, SAMPLES, CLASSES, 1)], ids=str)
def test_log_probs_of_other_axes(shape: tuple[int, ...]) -> None:
    refused(ValueError, valid() | {"log_probs": torch.zeros(shape)}, "log_probs")


@pytest.mark.parametrize("shape", [(), (2, 4), (4, 4), (3, 4, 1)], ids=str)
def test_targets_of_another_shape(shape: tuple[int, ...]) -> None:
    refused(ValueError, valid() | {"targets": torch.ones(shape, dtype=torch.long)}, "targets")


@pytest.mark.parametrize("name", ["input_lengths", "target_lengths"])
@pytest.mark.parametrize("shape", [(), (2,), (4,), (3, 1), (1, 3), (0,)], ids=str)
def test_lengths_of_another_shape(name: str, shape: tuple[int, ...]) -> None:
    lengths = torch.ones(shape, dtype=torch.long)
    refused(ValueError, valid() | {name: lengths}, name)
    if len(shape) < 2:
        refused(ValueError, valid() | {name: lengths.tolist()}, name)


@pytest.mark.parametrize("name", ["input_lengths", "target_lengths"])
def test_lengths_of_one_sequence_are_one_number(name: str) -> None:
    for lengths in (torch.tensor([3, 3]), [3, 3], torch.zeros(0, dtype=torch.long), ()):
        refused(ValueError, one() | {name: lengths}, name)
    refused(ValueError, one() | {"targets": torch.ones(2, 3, dtype=torch.long)}, "targets")


@pytest.mark.parametrize("name", ["targets", "input_lengths", "target_lengths"])
def test_tensors_on_different_devices(name: str) -> None:
    given = valid()
    with pytest.raises(ValueError, match=rf"\b{name}\b.*meta"):
        L.ctc_loss(**given | {name: given[name].to("meta")})


# ---- parameters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["", "avg", "Mean", "none ", "batchmean", "rowmean", "_mean_or_zero"])
def test_an_unknown_reduction(reduction: str) -> None:
    with pytest.raises(ValueError, match=rf"reduction.*{re.escape(repr(reduction))}"):
        L.ctc_loss(**valid(), reduction=reduction)


@pytest.mark.parametrize("reduction", [1, 0.5, True, None, b"mean"], ids=repr)
def test_a_reduction_that_is_no_string(reduction: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="reduction"):
        L.ctc_loss(**valid(), reduction=reduction)


@pytest.mark.parametrize("flag", ["zero_infinity", "from_logits"])
@pytest.mark.parametrize("bad", ["yes", None, 0.5, [True]], ids=repr)
def test_a_flag_that_is_none(flag: str, bad: Any) -> None:
    refused(TypeError, valid() | {flag: bad}, flag)


# ---- the ops, called with what the function never passes -------------------------------------------------------------

NONE, MEAN = 0, 1


def op_arguments(reduction: int = NONE) -> tuple[Any, ...]:
    given = valid()
    return (*given.values(), 0, False, False, reduction)


def op(suffix: str = "") -> Callable[..., Any]:
    found: Callable[..., Any] = getattr(torch.ops.fusedloss, "ctc_loss" + suffix)
    return found


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int64, torch.bool, torch.complex64], ids=str)
@pytest.mark.parametrize("reduction", [NONE, MEAN], ids=["none", "mean"])
def test_a_result_of_a_dtype_that_is_not_offered(reduction: int, dtype: torch.dtype) -> None:
    rest = op_arguments(reduction)
    tangent = torch.ones(FRAMES, SAMPLES, CLASSES)
    for suffix, first in (("", ()), ("_value_and_gradient", ([True],)), ("_jvp", (tangent,))):
        with pytest.raises((ValueError, TypeError), match=r"\bdtype\b"):
            op(suffix)(*first, *rest, dtype)


@pytest.mark.parametrize("shape", [(2,), (4,), (3, 3), (0,)], ids=str)
def test_an_incoming_gradient_of_another_shape(shape: tuple[int, ...]) -> None:
    wrong, tangent = torch.ones(shape), torch.ones(FRAMES, SAMPLES, CLASSES)
    for reduction in (NONE, MEAN):
        for suffix, first in (("_backward", (wrong, [True])), ("_hvp", (wrong, tangent, [True]))):
            with pytest.raises(ValueError, match=r"\bgrad_output\b"):
                op(suffix)(*first, *op_arguments(reduction))


@pytest.mark.parametrize("shape", [(7, 3, 4), (6, 3, 5), (7, 2, 5), (7, 5), (0,)], ids=str)
def test_a_tangent_of_another_shape(shape: tuple[int, ...]) -> None:
    wrong = torch.ones(shape)
    for suffix, first in (("_jvp", (wrong,)), ("_hvp", (torch.ones(SAMPLES), wrong, [True]))):
        with pytest.raises(ValueError, match=r"\btangent0\b"):
            op(suffix)(*first, *op_arguments())


def test_a_derivative_along_nothing() -> None:
    for suffix, first in (("_jvp", (None,)), ("_hvp", (torch.ones(SAMPLES), None, [True]))):
        with pytest.raises(TypeError, match=r"\btangent0\b.*None"):
            op(suffix)(*first, *op_arguments())


STRANGE = [
    pytest.param(torch.complex64, "cpu", id="complex"),
    pytest.param(torch.uint16, "cpu", id="uint16"),
    pytest.param(torch.float8_e4m3fn, "cpu", id="float8"),
    pytest.param(torch.float32, "meta", id="on meta"),
]


@pytest.mark.parametrize(("dtype", "device"), STRANGE)
def test_tangents_and_incoming_gradients_are_real_and_on_the_device(dtype: torch.dtype, device: str) -> None:
    tangent, incoming = (torch.ones(s).to(dtype).to(device) for s in ((FRAMES, SAMPLES, CLASSES), (SAMPLES,)))
    for suffix, first, named in (
        ("_backward", (incoming, [True]), "grad_output"),
        ("_jvp", (tangent,), "tangent0"),
        ("_hvp", (torch.ones(SAMPLES), tangent, [True]), "tangent0"),
    ):
        with pytest.raises((ValueError, TypeError, NotImplementedError), match=rf"\b{named}\b"):
            op(suffix)(*first, *op_arguments())


@pytest.mark.parametrize("reduction", [-1, 3, 4, 5, 17])
def test_a_number_that_is_no_reduction(reduction: int) -> None:
    with pytest.raises(ValueError, match="reduction"):
        op()(*op_arguments(reduction))


def test_the_module_refuses_what_the_function_refuses() -> None:
    given = valid()
    with pytest.raises(IndexError, match=r"blank.*got 9"):
        fusedloss.CTCLoss(blank=9)(**given)
    with pytest.raises((ValueError, TypeError), match="reduction"):
        fusedloss.CTCLoss(reduction="average")(**given)
