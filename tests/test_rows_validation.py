"""Bad input to the losses over rows: the type of the error, the argument it names and the value it shows."""

from __future__ import annotations

import inspect
import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor

import fusedloss.functional as L
from fusedloss.testing.row_catalogue import ROW_LOSSES, RowLoss, distribution, labels, labels_or_none

pytestmark = pytest.mark.core

EACH = [pytest.param(loss, id=loss.id) for loss in ROW_LOSSES]
FIRST_BY_NAME = {loss.name: loss for loss in reversed(ROW_LOSSES)}
EACH_NAME = pytest.mark.parametrize("loss", [pytest.param(loss, id=name) for name, loss in FIRST_BY_NAME.items()])
OF_LABELS = pytest.mark.parametrize(
    "loss",
    [pytest.param(x, id=x.id) for x in ROW_LOSSES if x.samplers.get("target") in (labels, labels_or_none)],
)
# A temperature that is a tensor divides the logits before the op, by torch's own rules for what is divided.
EACH_BUT_DIVIDED = [p for p in EACH if "temperature" not in p.values[0].keyword_operands]  # type: ignore[union-attr]
DIVERGENCES = {"kl_divergence", "js_divergence"}
NAN = math.nan


def explained(error: pytest.ExceptionInfo[BaseException], argument: str, value: object = None) -> None:
    """The message names the argument as a word of its own, and shows the value."""
    message = str(error.value)
    assert re.search(rf"\b{argument}\b", message), f"{argument} is not named in: {message}"
    if isinstance(value, float):
        shown = re.search(r"got (-?[\w.+]+)", message)
        assert shown and str(float(shown[1])) == str(value), message
    elif value is not None:
        assert str(value) in message


def call(loss: RowLoss, given: dict[str, Any], **changed: Any) -> Tensor:
    """With what is changed, which may be a parameter that the record sets."""
    parameters = {k: v for k, v in loss.parameters.items() if k not in changed}
    return loss.function(**given | parameters | changed)


# ---- class indices -------------------------------------------------------------------------------------------------


@pytest.mark.host  # on CUDA the row is NaN, and named later
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8], ids=str)
@OF_LABELS
def test_a_class_index_out_of_range_is_shown_with_its_place(loss: RowLoss, dtype: torch.dtype) -> None:
    """The first of them, for rows in lanes and for long ones, whatever the reduction."""
    for shape, place in [((9, 5), (6,)), ((4, 100), (3,)), ((5,), ()), ((3, 5, 2, 4), (2, 1, 3))]:
        if len(shape) > loss.most_axes or (len(shape) == 1 and "axis" in loss.parameters):
            continue
        axis = loss.class_axis(shape)
        classes = shape[axis]
        if axis != 1 and len(shape) > 2:
            place = tuple(n - 1 for d, n in enumerate(shape) if d != axis)
        for bad in (
            classes,
            127,
            *([-1, -128] if dtype != torch.uint8 else [255]),
            *([2**40] if dtype == torch.int64 else []),
        ):
            target = loss.given(shape)["target"].clamp(min=0).to(dtype)
            target[place] = bad
            given = loss.given(shape, torch.float32) | {"target": target}
            for reduction in loss.reductions:
                for differentiable in (False, True):
                    given["input"].requires_grad_(differentiable)
                    with pytest.raises(IndexError) as error:
                        call(loss, given, reduction=reduction)
                    explained(error, "target", bad)
                    assert str(list(place)) in str(error.value)


@pytest.mark.host  # on CUDA the row is NaN, and named later
def test_the_first_class_index_out_of_range_is_the_one_that_is_shown() -> None:
    """Of many rows, which several threads look at."""
    for rows in (10, 100_000):
        target = torch.zeros(rows, dtype=torch.long)
        target[rows // 2 :] = 77
        target[rows // 2] = 55
        with pytest.raises(IndexError, match=rf"55.*\[{rows // 2}\]"):
            L.cross_entropy(torch.zeros(rows, 3), target)


@pytest.mark.host  # on CUDA the row is NaN, and named later
def test_nothing_is_written_before_an_index_out_of_range_is_found() -> None:
    x = torch.randn(1000, 50, generator=torch.Generator().manual_seed(0))
    kept, y = x.clone(), torch.zeros(1000, dtype=torch.long)
    y[-1] = 50
    leaf = x.requires_grad_() * 1
    with pytest.raises(IndexError, match="50"):
        L.cross_entropy(leaf, y, inplace_backward=True)
    assert torch.equal(leaf, kept)


@pytest.mark.host  # on CUDA the row is NaN, and named later
@OF_LABELS
def test_a_class_index_that_leaves_the_range_before_the_backward_pass(loss: RowLoss) -> None:
    """Behind the back of autograd, which counts the changes of a tensor but not those of its .data."""
    for reduction in loss.reductions:
        given = loss.given((9, 5), torch.float32)
        given["input"].requires_grad_()
        value = call(loss, given, reduction=reduction)
        given["target"].data[6] = 2**40
        if reduction == "none":
            with pytest.raises(IndexError, match=str(2**40)):
                value.sum().backward()
        else:
            value.backward()
            assert given["input"].grad is not None and given["input"].grad.isfinite().all()


@pytest.mark.host  # on CUDA the row is NaN, and named later
def test_what_is_ignored_need_not_be_a_class() -> None:
    x = torch.randn(3, 4)
    for ignored in (-100, 4, 255, -(2**62)):
        y = torch.tensor([1, ignored, 2])
        assert L.cross_entropy(x, y, ignore_index=ignored).isfinite()
        assert L.softmax_focal_loss(x, y, ignore_index=ignored).isfinite()
        assert L.sparse_categorical_cross_entropy(x.softmax(1), y, ignore_class=ignored).isfinite()
        with pytest.raises(IndexError, match="target"):
            L.cross_entropy(x, y, ignore_index=77)


@pytest.mark.host  # on CUDA the row is NaN, and named later
def test_a_masked_row_may_not_hold_any_index() -> None:
    """Its factor is 0, but its target is still one: an index that is none is a mistake."""
    x, s = torch.randn(2, 4), torch.tensor([1.0, 0.0])
    with pytest.raises(IndexError, match="9"):
        L.cross_entropy(x, torch.tensor([1, 9]), sample_weight=s)


@pytest.mark.host  # on CUDA the row is NaN, and named later
def test_a_list_of_labels_ends_at_the_first_negative() -> None:
    x = torch.randn(3, 4)
    assert L.multilabel_margin_loss(x, torch.tensor([[0, -1, 9, 9], [3, 2, 1, 0], [-1, 7, 7, 7]])).isfinite()
    with pytest.raises(IndexError) as error:
        L.multilabel_margin_loss(x, torch.tensor([[0, -1, 9, 9], [0, 4, -1, 0], [-1, 0, 0, 0]]))
    explained(error, "target", 4)
    assert re.search(r"\b1\b.*\b1\b", str(error.value).split("got 4")[1])


# ---- parameters ----------------------------------------------------------------------------------------------------

OUTSIDE: dict[tuple[str, str], list[float]] = {
    ("cross_entropy", "label_smoothing"): [-0.1, 1.5, NAN],
    ("cross_entropy", "z_loss"): [-0.5, NAN],
    ("cross_entropy", "softcap"): [0.0, -2.0, NAN],
    ("categorical_cross_entropy", "label_smoothing"): [-0.1, 1.5, NAN],
    ("softmax_focal_loss", "gamma"): [-0.5, NAN],
    ("softmax_focal_loss", "alpha"): [-0.5, NAN],
    ("multi_margin_loss", "p"): [0.0, 1.5, 3.0, NAN],
    ("multi_margin_loss", "margin"): [NAN],
    ("kl_divergence", "temperature"): [0.0, -1.5, NAN],
    ("js_divergence", "beta"): [0.0, 1.0, -0.5, NAN],
}


@pytest.mark.parametrize(
    ("name", "parameter", "value"), [(name, parameter, v) for (name, parameter), vs in OUTSIDE.items() for v in vs]
)
def test_a_parameter_outside_its_domain(name: str, parameter: str, value: float) -> None:
    loss = FIRST_BY_NAME[name]
    logits: dict[str, Any] = {"from_logits": True} if parameter == "temperature" else {}
    with pytest.raises(ValueError) as error:
        call(loss, loss.given((3, 4), torch.float32), **{parameter: value}, **logits)
    explained(error, parameter, value)


def test_a_temperature_that_is_a_tensor_and_not_above_zero() -> None:
    """An error where its values are at hand; NaN where they are not, as under vmap."""
    a, b = torch.randn(2, 3, 4)
    for values in ([1.0, 0.0, 2.0], [1.0, -0.5, 2.0], [1.0, NAN, 2.0]):
        with pytest.raises(ValueError) as error:
            L.kl_divergence(a, b, True, torch.tensor(values)[:, None])
        explained(error, "temperature", values[1])

        def one(x: torch.Tensor, y: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return L.kl_divergence(x, y, True, t)

        found = torch.vmap(one)(a, b, torch.tensor(values))
        assert found.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("bad", ["0.5", [0.5], 1j], ids=["str", "list", "complex"])
@pytest.mark.parametrize(("name", "parameter"), OUTSIDE)
def test_a_parameter_that_is_no_number(name: str, parameter: str, bad: Any) -> None:
    loss = FIRST_BY_NAME[name]
    logits: dict[str, Any] = {"from_logits": True} if parameter == "temperature" else {}
    with pytest.raises(TypeError) as error:
        call(loss, loss.given((3, 4), torch.float32), **{parameter: bad}, **logits)
    explained(error, parameter)


def test_parameters_at_the_borders_of_their_domains() -> None:
    x, y = torch.randn(3, 4), torch.tensor([0, 1, 2])
    for keywords in ({"label_smoothing": 0.0}, {"label_smoothing": 1.0}, {"z_loss": 0.0}, {"softcap": 1e-3}):
        assert L.cross_entropy(x, y, **keywords).isfinite()  # type: ignore[arg-type]
    assert L.softmax_focal_loss(x, y, alpha=0.0) == 0
    assert L.softmax_focal_loss(x, y, gamma=0).isfinite()
    assert L.multi_margin_loss(x, y, margin=-1.0).isfinite()
    assert L.kl_divergence(x, x, from_logits=True, temperature=1e-3).isfinite()
    assert L.js_divergence(x.softmax(1), y.eq(0)[:, None] + x.softmax(1), beta=1e-6).isfinite()


def test_a_temperature_is_for_logits() -> None:
    p = torch.rand(3, 4)
    with pytest.raises(ValueError, match=r"temperature.*from_logits"):
        L.kl_divergence(p, p, temperature=2.0)


@pytest.mark.parametrize("all_ignored", ["one", "", "NaN"])
def test_an_unknown_mean_over_nothing(all_ignored: str) -> None:
    with pytest.raises(ValueError) as error:
        L.cross_entropy(torch.randn(3, 4), torch.tensor([0, 1, 2]), all_ignored=all_ignored)
    explained(error, "all_ignored", repr(all_ignored))


@pytest.mark.parametrize("bad", [1.5, "a", [1]], ids=repr)
def test_an_ignored_class_that_is_no_integer(bad: Any) -> None:
    x, y = torch.rand(3, 4), torch.tensor([0, 1, 2])
    for function, argument in [
        (L.cross_entropy, "ignore_index"),
        (L.nll_loss, "ignore_index"),
        (L.softmax_focal_loss, "ignore_index"),
        (L.sparse_categorical_cross_entropy, "ignore_class"),
    ]:
        with pytest.raises(TypeError) as error:
            function(x, y, **{argument: bad})
        explained(error, argument)


# ---- reduction -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["", "avg", "Mean", "none ", "rowmean", "mean_or_zero"])
@pytest.mark.parametrize("loss", EACH)
def test_an_unknown_reduction(loss: RowLoss, reduction: str) -> None:
    with pytest.raises(ValueError) as error:
        call(loss, loss.given((3, 4), torch.float32), reduction=reduction)
    explained(error, "reduction", repr(reduction))


@EACH_NAME
def test_batchmean_belongs_to_divergences(loss: RowLoss) -> None:
    given = loss.given((3, 4), torch.float32)
    if loss.name in DIVERGENCES:
        assert torch.equal(call(loss, given, reduction="batchmean"), call(loss, given, reduction="mean"))
    else:
        with pytest.raises(ValueError, match="reduction"):
            call(loss, given, reduction="batchmean")


@pytest.mark.parametrize("reduction", [1, 0.5, True, None, b"mean"], ids=repr)
@EACH_NAME
def test_a_reduction_that_is_no_string(loss: RowLoss, reduction: Any) -> None:
    with pytest.raises((TypeError, ValueError)) as error:
        call(loss, loss.given((3, 4), torch.float32), reduction=reduction)
    explained(error, "reduction")


@pytest.mark.parametrize(
    "loss",
    [pytest.param(x, id=n) for n, x in FIRST_BY_NAME.items() if "reduce" in inspect.signature(x.reference).parameters],
)
def test_the_deprecated_flags_warn_and_win(loss: RowLoss) -> None:
    given = loss.given((3, 4), torch.float32)
    for flags, reduction in [({"size_average": False}, "sum"), ({"reduce": False}, "none"), ({"reduce": True}, "mean")]:
        with pytest.warns(UserWarning, match=f"deprecated.*reduction='{reduction}'") as record:
            old = loss.function(**given, **flags)
        assert [r.filename for r in record] == [__file__]
        assert torch.equal(old, call(loss, given, reduction=reduction))
    with pytest.raises(TypeError) as error:
        loss.function(**given, size_average=torch.ones(4))
    explained(error, "size_average")


# ---- tensors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [None, 0.5, [0.5], "x"], ids=["None", "float", "list", "str"])
@pytest.mark.parametrize("loss", EACH)
def test_an_operand_that_is_no_tensor(loss: RowLoss, bad: Any) -> None:
    given = loss.given((3, 4), torch.float32)
    for name in given:
        if name not in loss.samplers and (bad is None or (name in ("temperature", "alpha") and bad == 0.5)):
            continue  # optional, or a number too
        with pytest.raises(TypeError) as error:
            call(loss, given, **{name: bad})
        explained(error, name)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn, torch.uint16], ids=str)
@pytest.mark.parametrize("loss", EACH_BUT_DIVIDED)
def test_a_dtype_that_is_not_offered(loss: RowLoss, dtype: torch.dtype) -> None:
    given = loss.given((3, 4), torch.float32)
    for name, x in given.items():
        with pytest.raises(TypeError) as error:
            call(loss, given, **{name: x.abs().to(dtype)})
        explained(error, name)


@pytest.mark.parametrize("loss", EACH_BUT_DIVIDED)
def test_labels_and_numbers_are_not_taken_for_each_other(loss: RowLoss) -> None:
    given = loss.given((3, 4), torch.float32)
    first, second = list(given)[:2]
    with pytest.raises(TypeError) as error:
        call(loss, given, **{first: given[first].long()})
    explained(error, first)
    if given[second].dim() == 1 or loss.name == "multilabel_margin_loss":
        for wrong in (given[second].float(), given[second].bool()):
            with pytest.raises(TypeError) as error:
                call(loss, given, **{second: wrong})
            explained(error, second)
        return
    # One-hot rows of integers, as torch gives them, count as the numbers that they are.
    whole = torch.arange(12).view(3, 4)
    assert torch.equal(call(loss, given, **{second: whole}), call(loss, given, **{second: whole.float()}))


@pytest.mark.parametrize("loss", EACH)
def test_shapes_that_do_not_fit(loss: RowLoss) -> None:
    given = loss.given((3, 4), torch.float32)
    larger = loss.given((3, 5), torch.float32) if loss.sampler(list(given)[1]) is distribution else {}
    taller = loss.given((5, 4), torch.float32)
    for name, x in list(given.items())[1:]:
        wrong = [torch.ones(2, 3, 4, dtype=x.dtype), taller[name]]
        if name in larger:
            wrong.append(larger[name])
        if name in ("weight", "alpha", "sample_weight"):
            wrong = [torch.ones(7, dtype=x.dtype), torch.ones(2, 3, 4, dtype=x.dtype)]
        if name == "temperature":
            continue
        for y in wrong:
            with pytest.raises(ValueError) as error:
                call(loss, given, **{name: y})
            explained(error, name)
    with pytest.raises(ValueError) as error:
        call(loss, given, **{next(iter(given)): torch.tensor(1.0)})
    explained(error, next(iter(given)))


def test_an_axis_that_the_input_does_not_have() -> None:
    p, y = torch.rand(3, 4), torch.tensor([0, 1, 2])
    for axis in (2, -3):
        with pytest.raises(IndexError, match=rf"axis.*{axis}"):
            L.categorical_cross_entropy(p, p, axis=axis)
        with pytest.raises(IndexError, match=rf"axis.*{axis}"):
            L.sparse_categorical_cross_entropy(p, y, axis=axis)


@pytest.mark.parametrize("loss", EACH)
def test_tensors_on_different_devices(loss: RowLoss) -> None:
    given = loss.given((3, 4), torch.float32)
    for name, x in list(given.items())[1:]:
        if x.dim():  # one number may be anywhere
            with pytest.raises(ValueError) as error:
                call(loss, given, **{name: x.to("meta")})
            explained(error, name, "meta")
