"""Bad input to losses over pairs: the type of the error, the argument it names, and the value it shows."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import fusedloss
import fusedloss.functional as L
from fusedloss.testing.pair_catalogue import PAIR_LOSSES, PairLoss
from op_recorder import Recorder

pytestmark = [
    pytest.mark.core,
    # torch's own forward mode compiles some of its formulas by it.
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
]

SHAPE = (6, 4)
LOSS = {loss.id: loss for loss in PAIR_LOSSES}
WITH_OPS = pytest.mark.parametrize("loss", [pytest.param(loss, id=loss.id) for loss in PAIR_LOSSES if loss.has_ops])
NAMES = ["info_nce_loss", "supervised_contrastive_loss", "clip_loss", "siglip_loss"]
EACH_NAME = pytest.mark.parametrize("name", NAMES)
WITH_NEGATIVES = ["info_nce_loss[shared negatives]", "info_nce_loss[own negatives]"]
SCALED = ["clip_loss", "siglip_loss"]
TABLES = [pytest.param(loss, table, id=f"{loss.id}-{table}") for loss in PAIR_LOSSES for table in loss.tables]
EACH_TABLE = pytest.mark.parametrize(("loss", "table"), TABLES)


def valid(loss: PairLoss, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    return {**loss.given(SHAPE, dtype), **loss.parameters}


def refused(loss: PairLoss, error: type[Exception] | tuple[type[Exception], ...], *shown: object, **wrong: Any) -> None:
    """Every reduction refuses the call, with and without a gradient, and the message has those words in it."""
    for reduction in ("none", "mean", "sum"):
        for differentiable in (False, True):
            given = valid(loss) | {"reduction": reduction} | wrong
            for name in loss.tables:
                x = given[name]
                if isinstance(x, Tensor) and x.is_floating_point():
                    given[name] = x.detach().requires_grad_(differentiable)
            with pytest.raises(error) as raised:
                loss.function(**given)
            message = str(raised.value)
            for word in (loss.name, *shown):
                assert re.search(rf"(?<![\w.-]){re.escape(str(word))}(?![\w])", message), f"{word} is not in: {message}"


# ---- tensors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [None, 0.5, [[0.5]], "x"], ids=repr)
@EACH_TABLE
def test_an_operand_that_is_no_tensor(loss: PairLoss, table: str, bad: Any) -> None:
    if table == "negatives" and bad is None:
        return  # there are none
    refused(loss, TypeError, table, **{table: bad})


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn], ids=str)
@EACH_TABLE
def test_an_operand_of_a_dtype_that_is_not_offered(loss: PairLoss, table: str, dtype: torch.dtype) -> None:
    refused(loss, TypeError, table, **{table: torch.zeros(valid(loss)[table].shape).to(dtype)})


@pytest.mark.parametrize("shape", [(), (6,), (1, 6, 4), (2, 3, 4, 1)], ids=str)
@EACH_TABLE
def test_an_operand_of_other_axes(loss: PairLoss, table: str, shape: tuple[int, ...]) -> None:
    if table == "negatives" and len(shape) == 3:
        return
    refused(loss, ValueError, table, **{table: torch.zeros(shape)})


@pytest.mark.parametrize("shape", [(5, 4), (7, 4), (1, 4), (0, 4), (6, 3), (6, 5), (6, 1), (6, 0), (4, 6)], ids=str)
@pytest.mark.parametrize("name", ["info_nce_loss", "clip_loss", "siglip_loss", *WITH_NEGATIVES])
def test_tables_of_different_shapes(name: str, shape: tuple[int, ...]) -> None:
    """Row i belongs to row i: nothing is broadcast."""
    loss = LOSS[name]
    second = loss.tables[1]
    refused(loss, ValueError, second, **{second: torch.zeros(shape)})
    if name in WITH_NEGATIVES:
        return
    refused(loss, ValueError, second, **{loss.tables[0]: torch.zeros(shape)})


@pytest.mark.parametrize("shape", [(5, 3), (5, 5), (0, 3), (6, 5, 3), (5, 5, 4), (7, 5, 4), (1, 5, 4), (0, 5, 4)],
                         ids=str)  # fmt: skip
def test_negatives_of_another_shape(shape: tuple[int, ...]) -> None:
    refused(LOSS[WITH_NEGATIVES[0]], ValueError, "negatives", negatives=torch.zeros(shape))


@EACH_TABLE
def test_tensors_on_different_devices(loss: PairLoss, table: str) -> None:
    if len(loss.tables) == 1:
        return
    given = valid(loss)
    with pytest.raises(ValueError, match=rf"{loss.name}: .*meta"):
        loss.function(**given | {table: given[table].to("meta")})


# ---- negatives and what they exclude ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WITH_NEGATIVES)
def test_negatives_of_a_symmetric_loss(name: str) -> None:
    """They are compared with queries alone."""
    refused(LOSS[name], ValueError, "symmetric", "negatives", symmetric=True)


@pytest.mark.parametrize("name", WITH_NEGATIVES)
def test_negatives_in_a_group(name: str) -> None:
    refused(LOSS[name], ValueError, "group", "negatives", group=object())


# ---- labels ----------------------------------------------------------------------------------------------------------

SUPCON = LOSS["supervised_contrastive_loss"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.complex64], ids=str)
def test_labels_that_are_no_integers(dtype: torch.dtype) -> None:
    refused(SUPCON, TypeError, "labels", labels=torch.zeros(6).to(dtype))


@pytest.mark.parametrize("bad", [None, 3, [0, 0, 1, 1, 2, 2], "cat"], ids=repr)
def test_labels_that_are_no_tensor(bad: Any) -> None:
    refused(SUPCON, TypeError, "labels", labels=bad)


@pytest.mark.parametrize("shape", [(), (5,), (7,), (1,), (0,), (6, 1), (1, 6), (6, 6)], ids=str)
def test_labels_of_another_shape(shape: tuple[int, ...]) -> None:
    refused(SUPCON, ValueError, "labels", labels=torch.zeros(shape, dtype=torch.long))


def test_labels_on_another_device() -> None:
    with pytest.raises(ValueError, match=r"supervised_contrastive_loss: .*\blabels\b.*meta"):
        L.supervised_contrastive_loss(torch.zeros(6, 4), torch.zeros(6, dtype=torch.long, device="meta"))


# ---- temperature, scale and bias -------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [0.0, -0.1, -math.inf, math.nan, 0], ids=repr)
@pytest.mark.parametrize("name", ["info_nce_loss", "supervised_contrastive_loss", *WITH_NEGATIVES])
def test_a_temperature_that_is_not_above_zero(name: str, bad: float) -> None:
    refused(LOSS[name], ValueError, "temperature", f"got {float(bad):g}", temperature=bad)


@pytest.mark.parametrize("bad", [None, "warm", [0.1]], ids=repr)
@pytest.mark.parametrize("name", ["info_nce_loss", "supervised_contrastive_loss"])
def test_a_temperature_that_is_no_number(name: str, bad: Any) -> None:
    refused(LOSS[name], TypeError, "temperature", temperature=bad)


@pytest.mark.parametrize("shape", [(2,), (0,), (6, 1), (1, 2)], ids=str)
@pytest.mark.parametrize("name", SCALED)
def test_a_scale_of_more_or_less_than_one_element(name: str, shape: tuple[int, ...]) -> None:
    refused(LOSS[name], ValueError, "logit_scale", logit_scale=torch.ones(shape))
    if name == "siglip_loss":
        refused(LOSS[name], ValueError, "logit_bias", logit_bias=torch.ones(shape))


@pytest.mark.parametrize("bad", [None, "large", [1.0], torch.tensor(3), torch.tensor(1j)], ids=repr)
@pytest.mark.parametrize("name", SCALED)
def test_a_scale_that_is_no_number(name: str, bad: Any) -> None:
    refused(LOSS[name], TypeError, "logit_scale", logit_scale=bad)
    if name == "siglip_loss":
        refused(LOSS[name], TypeError, "logit_bias", logit_bias=bad)


@pytest.mark.parametrize("name", SCALED)
def test_a_scale_on_another_device(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}: .*\blogit_scale\b.*meta"):
        LOSS[name].function(**valid(LOSS[name]) | {"logit_scale": torch.ones((), device="meta")})


@pytest.mark.parametrize("name", SCALED)
def test_a_scale_must_be_given(name: str) -> None:
    image, text = torch.zeros(SHAPE), torch.zeros(SHAPE)
    with pytest.raises(TypeError, match="logit_scale"):
        getattr(L, name)(image, text)


# ---- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["", "avg", "Mean", "none ", "batchmean", "rowmean", "_mean_or_zero"])
@EACH_NAME
def test_an_unknown_reduction(name: str, reduction: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}: reduction.*{re.escape(repr(reduction))}"):
        LOSS[name].function(**valid(LOSS[name]), reduction=reduction)


@pytest.mark.parametrize("reduction", [1, 0.5, True, None, b"mean"], ids=repr)
@EACH_NAME
def test_a_reduction_that_is_no_string(name: str, reduction: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="reduction"):
        LOSS[name].function(**valid(LOSS[name]), reduction=reduction)


@pytest.mark.parametrize("bad", ["yes", None, 0.5, [True]], ids=repr)
@EACH_NAME
def test_a_flag_that_is_none(name: str, bad: Any) -> None:
    refused(LOSS[name], TypeError, "normalize", normalize=bad)
    if name == "info_nce_loss":
        refused(LOSS[name], TypeError, "symmetric", symmetric=bad)


@EACH_NAME
def test_normalize_is_given_by_name(name: str) -> None:
    signature = LOSS[name].function
    positional = {"info_nce_loss": 6, "supervised_contrastive_loss": 4, "clip_loss": 4, "siglip_loss": 5}[name]
    with pytest.raises(TypeError, match="positional"):
        signature(*[None] * positional, True)


# ---- the ops, called with what the function never passes -------------------------------------------------------------


@cache
def op_calls(name: str, reduction: str) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """Every op of a loss with the arguments that the function gives it, by what its name adds to the loss's."""
    loss = LOSS[name]
    given = loss.given(SHAPE, torch.float32)
    leaves = {k: x.requires_grad_(k in loss.differentiable) for k, x in given.items()}
    free = [leaves[k] for k in loss.differentiable]
    with Recorder() as recorder:
        gradients = torch.autograd.grad(loss(*leaves.values(), reduction=reduction).sum(), free, create_graph=True)
        torch.autograd.grad([x.sum() for x in gradients], free)
        with torch.no_grad():
            loss(*leaves.values(), reduction=reduction)
        plain = tuple(x.detach() for x in free)
        torch.func.jvp(lambda *t: loss(*(leaves | dict(zip(loss.differentiable, t, strict=True))).values(),
                                       reduction=reduction), plain, plain)  # fmt: skip
    return {func.name().partition("::")[2].removeprefix(loss.name): (func, args) for func, args in recorder.calls}


def replaced(func: Any, args: tuple[Any, ...], **wrong: Any) -> Callable[[], Any]:
    names = [argument.name for argument in func._schema.arguments]
    return lambda: func(*(wrong.get(name, x) for name, x in zip(names, args, strict=False)))


@pytest.mark.parametrize("shape", [(5,), (7,), (6, 6), (0,)], ids=str)
@WITH_OPS
def test_an_incoming_gradient_of_another_shape(loss: PairLoss, shape: tuple[int, ...]) -> None:
    for reduction in ("none", "mean"):
        calls = op_calls(loss.id, reduction)
        for suffix in ("_backward", "_hvp"):
            with pytest.raises(ValueError, match=r"\bgrad_output\b"):
                replaced(*calls[suffix], grad_output=torch.ones(shape))()


@pytest.mark.parametrize("shape", [(5, 4), (6, 3), (6,), (6, 4, 1), (0,)], ids=str)
@WITH_OPS
def test_a_tangent_of_another_shape(loss: PairLoss, shape: tuple[int, ...]) -> None:
    calls = op_calls(loss.id, "none")
    for suffix in ("_jvp", "_hvp"):
        with pytest.raises(ValueError, match=r"\btangent0\b"):
            replaced(*calls[suffix], tangent0=torch.ones(shape))()


@pytest.mark.parametrize(
    ("dtype", "device"), [(torch.complex64, "cpu"), (torch.float8_e4m3fn, "cpu"), (torch.float32, "meta")]
)
@EACH_NAME
def test_tangents_and_incoming_gradients_are_real_and_on_the_device(name: str, dtype: torch.dtype, device: str) -> None:
    calls = op_calls(name, "none")
    strange = {
        "grad_output": torch.ones(6).to(dtype).to(device),
        "tangent0": torch.ones(SHAPE).to(dtype).to(device),
    }
    for suffix, named in (("_backward", "grad_output"), ("_jvp", "tangent0"), ("_hvp", "tangent0")):
        with pytest.raises((ValueError, TypeError, NotImplementedError), match=rf"\b{named}\b"):
            replaced(*calls[suffix], **{named: strange[named]})()


@pytest.mark.parametrize("reduction", [-1, 3, 4, 5, 17])
@EACH_NAME
def test_a_number_that_is_no_reduction(name: str, reduction: int) -> None:
    with pytest.raises(ValueError, match="reduction"):
        replaced(*op_calls(name, "none")[""], reduction=reduction)()


# ---- modules ---------------------------------------------------------------------------------------------------------


def test_a_module_refuses_what_the_function_refuses() -> None:
    q, k = torch.zeros(SHAPE), torch.zeros(SHAPE)
    with pytest.raises(ValueError, match=r"temperature.*got -1"):
        fusedloss.InfoNCELoss(temperature=-1.0)(q, k)
    with pytest.raises(ValueError, match="symmetric"):
        fusedloss.InfoNCELoss(symmetric=True)(q, k, k)
    with pytest.raises(ValueError, match="logit_scale"):
        fusedloss.CLIPLoss()(q, k, torch.ones(2))
    with pytest.raises((ValueError, TypeError), match="reduction"):
        fusedloss.SigLIPLoss(reduction="average")(q, k, 1.0)
    with pytest.raises(TypeError, match="labels"):
        fusedloss.SupervisedContrastiveLoss()(q, torch.zeros(6))
