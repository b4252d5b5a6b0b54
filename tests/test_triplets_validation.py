"""Bad input to mined triplet losses: the type of the error, the argument it names, and the value it shows."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fusedloss
import fusedloss.functional as L

pytestmark = pytest.mark.core

COUNT, SIZE = 6, 3


def valid() -> dict[str, Any]:
    x = torch.randn(COUNT, SIZE, generator=torch.Generator().manual_seed(0))
    return {"embeddings": x, "labels": torch.arange(COUNT) % 2}


def refused(error: type[Exception] | tuple[type[Exception], ...], given: dict[str, Any], *shown: object) -> None:
    """Every reduction and rule refuses the call, with and without a gradient, in a message with those words in it."""
    for reduction, mining in (("none", "batch_hard"), ("mean", "semi_hard"), ("sum", "all"), ("mean_nonzero", "all")):
        for differentiable in (False, True):
            x = given["embeddings"]
            if isinstance(x, Tensor) and x.is_floating_point():
                given = given | {"embeddings": x.detach().requires_grad_(differentiable)}
            with pytest.raises(error) as raised:
                L.triplet_mining_loss(**({"reduction": reduction, "mining": mining} | given))
            for word in ("triplet_mining_loss", *shown):
                pattern = rf"(?<![\w.-]){re.escape(str(word))}(?![\w])"
                assert re.search(pattern, str(raised.value)), f"{word} is not in: {raised.value}"


# ---- tensors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [None, 0.5, [0.5], "x"], ids=repr)
@pytest.mark.parametrize("name", ["embeddings", "labels"])
def test_an_operand_that_is_no_tensor(name: str, bad: Any) -> None:
    refused(TypeError, valid() | {name: bad}, name)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn], ids=str)
def test_embeddings_of_a_dtype_that_is_not_offered(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=r"\bembeddings\b"):
        L.triplet_mining_loss(**valid() | {"embeddings": torch.zeros(COUNT, SIZE).to(dtype)})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bool, torch.complex64], ids=str)
def test_labels_of_another_dtype(dtype: torch.dtype) -> None:
    refused(TypeError, valid() | {"labels": valid()["labels"].to(dtype)}, "labels")


@pytest.mark.parametrize("shape", [(), (COUNT,), (COUNT, SIZE, 1), (2, 3, SIZE)], ids=str)
def test_embeddings_of_other_axes(shape: tuple[int, ...]) -> None:
    refused(ValueError, valid() | {"embeddings": torch.zeros(shape)}, "embeddings")


@pytest.mark.parametrize("shape", [(), (COUNT - 1,), (COUNT + 1,), (COUNT, 1), (1, COUNT), (0,), (1,)], ids=str)
def test_labels_of_another_shape(shape: tuple[int, ...]) -> None:
    refused(ValueError, valid() | {"labels": torch.zeros(shape, dtype=torch.long)}, "labels", COUNT)


@pytest.mark.parametrize("name", ["embeddings", "labels"])
def test_tensors_on_different_devices(name: str) -> None:
    given = valid()
    with pytest.raises(ValueError, match=r"\blabels\b.*(meta|cpu)"):
        L.triplet_mining_loss(**given | {name: given[name].to("meta")})


# ---- parameters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("margin", [-1.0, -1e-30, math.inf, -math.inf, math.nan, -3])
def test_a_margin_out_of_range(margin: float) -> None:
    refused(ValueError, valid() | {"margin": margin}, "margin")


def test_a_margin_is_shown() -> None:
    refused(ValueError, valid() | {"margin": -0.25}, "margin", -0.25)


@pytest.mark.parametrize("margin", ["1", None, [1.0]], ids=repr)
def test_a_margin_that_is_no_number(margin: Any) -> None:
    refused(TypeError, valid() | {"margin": margin}, "margin")


@pytest.mark.parametrize("mining", ["", "hard", "Batch_hard", "batch_hard ", "semihard"])
def test_an_unknown_mining(mining: str) -> None:
    refused(ValueError, valid() | {"mining": mining}, "mining", "batch_hard", "semi_hard", "all")
    with pytest.raises(ValueError, match=re.escape(repr(mining))):
        L.triplet_mining_loss(**valid(), mining=mining)


@pytest.mark.parametrize("mining", [0, 1.5, True, None, b"all"], ids=repr)
def test_a_mining_that_is_no_string(mining: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="mining"):
        L.triplet_mining_loss(**valid(), mining=mining)


@pytest.mark.parametrize("reduction", ["", "avg", "Mean", "none ", "batchmean", "rowmean", "_mean_or_zero"])
def test_an_unknown_reduction(reduction: str) -> None:
    with pytest.raises(ValueError, match=rf"reduction.*{re.escape(repr(reduction))}"):
        L.triplet_mining_loss(**valid(), reduction=reduction)


@pytest.mark.parametrize("reduction", [1, 0.5, True, None, b"mean"], ids=repr)
def test_a_reduction_that_is_no_string(reduction: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="reduction"):
        L.triplet_mining_loss(**valid(), reduction=reduction)


@pytest.mark.parametrize("flag", ["squared", "normalize"])
@pytest.mark.parametrize("bad", ["yes", None, 0.5, [True]], ids=repr)
def test_a_flag_that_is_none(flag: str, bad: Any) -> None:
    refused(TypeError, valid() | {flag: bad}, flag)


def test_other_losses_have_no_such_reduction() -> None:
    x = torch.randn(3)
    with pytest.raises(ValueError, match=r"mean_nonzero"):
        L.mse_loss(x, x, "mean_nonzero")
    with pytest.raises(ValueError, match=r"mean_nonzero"):
        L.cross_entropy(torch.randn(3, 2), torch.zeros(3, dtype=torch.long), reduction="mean_nonzero")
    with pytest.raises(ValueError, match=r"mean_nonzero"):
        L.ctc_loss(torch.zeros(3, 1, 2), torch.tensor([[1]]), [3], [1], reduction="mean_nonzero")


def test_normalize_is_given_by_name() -> None:
    with pytest.raises(TypeError):
        L.triplet_mining_loss(*valid().values(), 1.0, "all", False, "mean", True)  # type: ignore[misc]


# ---- the ops, called with what the function never passes -------------------------------------------------------------

NONE, MEAN = 0, 1


def op_arguments(reduction: int = NONE) -> tuple[Any, ...]:
    return (*valid().values(), 1.0, 0, False, False, reduction)


def op(suffix: str = "") -> Callable[..., Any]:
    found: Callable[..., Any] = getattr(torch.ops.fusedloss, "triplet_mining_loss" + suffix)
    return found


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int64, torch.bool, torch.complex64], ids=str)
@pytest.mark.parametrize("reduction", [NONE, MEAN], ids=["none", "mean"])
def test_a_result_of_a_dtype_that_is_not_offered(reduction: int, dtype: torch.dtype) -> None:
    rest, tangent = op_arguments(reduction), torch.ones(COUNT, SIZE)
    for suffix, first in (("", ()), ("_value_and_gradient", ([True],)), ("_jvp", (tangent,))):
        with pytest.raises((ValueError, TypeError), match=r"\bdtype\b"):
            op(suffix)(*first, *rest, dtype)


@pytest.mark.parametrize("shape", [(5,), (7,), (6, 6), (0,)], ids=str)
def test_an_incoming_gradient_of_another_shape(shape: tuple[int, ...]) -> None:
    wrong, tangent = torch.ones(shape), torch.ones(COUNT, SIZE)
    for reduction in (NONE, MEAN):
        for suffix, first in (("_backward", (wrong, [True])), ("_hvp", (wrong, tangent, [True]))):
            with pytest.raises(ValueError, match=r"\bgrad_output\b"):
                op(suffix)(*first, *op_arguments(reduction))


@pytest.mark.parametrize("shape", [(6, 4), (5, 3), (6,), (0,), (6, 3, 1)], ids=str)
def test_a_tangent_of_another_shape(shape: tuple[int, ...]) -> None:
    wrong = torch.ones(shape)
    for suffix, first in (("_jvp", (wrong,)), ("_hvp", (torch.ones(COUNT), wrong, [True]))):
        with pytest.raises(ValueError, match=r"\btangent0\b"):
            op(suffix)(*first, *op_arguments())


def test_a_derivative_along_nothing() -> None:
    for suffix, first in (("_jvp", (None,)), ("_hvp", (torch.ones(COUNT), None, [True]))):
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
    tangent, incoming = (torch.ones(s).to(dtype).to(device) for s in ((COUNT, SIZE), (COUNT,)))
    for suffix, first, named in (
        ("_backward", (incoming, [True]), "grad_output"),
        ("_jvp", (tangent,), "tangent0"),
        ("_hvp", (torch.ones(COUNT), tangent, [True]), "tangent0"),
    ):
        with pytest.raises((ValueError, TypeError, NotImplementedError), match=rf"\b{named}\b"):
            op(suffix)(*first, *op_arguments())


@pytest.mark.parametrize("reduction", [-1, 3, 4, 5, 7, 17])
def test_a_number_that_is_no_reduction(reduction: int) -> None:
    with pytest.raises(ValueError, match="reduction"):
        op()(*op_arguments(reduction))


@pytest.mark.parametrize("mining", [-1, 3, 2**40])
def test_a_number_that_is_no_mining(mining: int) -> None:
    with pytest.raises(ValueError, match="mining"):
        op()(*valid().values(), 1.0, mining, False, False, MEAN)


def test_the_module_refuses_what_the_function_refuses() -> None:
    for setting, value in (("margin", -1.0), ("mining", "hardest"), ("reduction", "average")):
        with pytest.raises((ValueError, TypeError), match=setting):
            fusedloss.TripletMiningLoss(**{setting: value})(**valid())
