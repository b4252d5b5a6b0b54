"""Bad input to the losses of vectors: the type of the error, the argument it names and the value it shows."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fusedloss
import fusedloss.functional as L
from fusedloss.testing.vector_catalogue import VECTOR_LOSSES, VectorLoss

pytestmark = [
    pytest.mark.core,
    # torch's own forward mode compiles some of its formulas by it.
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
]

EACH_LOSS = pytest.mark.parametrize("loss", [pytest.param(loss, id=loss.id) for loss in VECTOR_LOSSES])
FIRST_BY_NAME = {loss.name: loss for loss in reversed(VECTOR_LOSSES)}
EACH_NAME = pytest.mark.parametrize("loss", [pytest.param(loss, id=name) for name, loss in FIRST_BY_NAME.items()])
NAN, INF = math.nan, math.inf


def explained(error: pytest.ExceptionInfo[BaseException], argument: str, value: object = None) -> None:
    """The message names the argument as a word of its own, and shows the value."""
    message = str(error.value)
    assert re.search(rf"\b{argument}\b", message), f"{argument} is not named in: {message}"
    if isinstance(value, float):
        shown = re.search(r"got (-?[\w.+]+)", message)
        assert shown and str(float(shown[1])) == str(value), message
    elif value is not None:
        assert str(value) in message


def call(loss: VectorLoss, given: dict[str, Any], **changed: Any) -> Tensor:
    """With what is changed, which may be a parameter that the record sets."""
    parameters = {k: v for k, v in loss.parameters.items() if k not in changed}
    return loss.function(**given | parameters | changed)


def refused(
    error: type[Exception] | tuple[type[Exception], ...],
    loss: VectorLoss,
    argument: str,
    shown: object = None,
    **changed: Any,
) -> None:
    """By every reduction, with and without a gradient."""
    for reduction in loss.reductions:
        for differentiable in (False, True):
            given: dict[str, Any] = loss.given((3, 4), torch.float32)
            given[loss.vectors[0]].requires_grad_(differentiable)
            with pytest.raises(error) as raised:
                call(loss, given, **({"reduction": reduction} | changed))
            explained(raised, argument, shown)
            assert loss.name in str(raised.value) or argument == "reduction", str(raised.value)


# ---- parameters ------------------------------------------------------------------------------------------------------

OUTSIDE: dict[tuple[str, str], list[float]] = {
    ("contrastive_loss", "margin"): [-0.5, NAN],
    ("contrastive_loss", "p"): [0.0, -1.0, NAN, -INF],
    ("cosine_embedding_loss", "margin"): [NAN],
    ("triplet_margin_loss", "margin"): [-0.5, NAN],
    ("triplet_margin_loss", "p"): [0.0, -1.0, NAN, -INF],
    ("triplet_margin_loss", "eps"): [NAN],
    ("triplet_margin_with_distance_loss", "margin"): [-0.5, NAN],
}


@pytest.mark.parametrize(
    ("name", "parameter", "value"), [(name, parameter, v) for (name, parameter), vs in OUTSIDE.items() for v in vs]
)
def test_a_parameter_outside_its_domain(name: str, parameter: str, value: float) -> None:
    refused(ValueError, FIRST_BY_NAME[name], parameter, value, **{parameter: value})


@pytest.mark.parametrize("bad", ["0.5", [0.5], 1j, None], ids=["str", "list", "complex", "None"])
@pytest.mark.parametrize(("name", "parameter"), OUTSIDE)
def test_a_parameter_that_is_no_number(name: str, parameter: str, bad: Any) -> None:
    refused(TypeError, FIRST_BY_NAME[name], parameter, **{parameter: bad})


@pytest.mark.parametrize("bad", ["yes", None, 0.5, [True]], ids=repr)
@EACH_NAME
def test_a_flag_that_is_none(loss: VectorLoss, bad: Any) -> None:
    flags = [k for k, p in inspect.signature(loss.function).parameters.items() if p.default is False]
    assert "normalize" in flags and ("swap" in flags) == loss.name.startswith("triplet")
    for flag in flags:
        refused((TypeError, ValueError), loss, flag, **{flag: bad})


def test_parameters_at_the_borders_of_their_domains() -> None:
    for loss in FIRST_BY_NAME.values():
        given = loss.given((3, 4), torch.float32)
        assert call(loss, given, margin=0).isfinite() and call(loss, given, margin=1e30).numel() == 1
        if "p" in inspect.signature(loss.function).parameters:
            for p in (0.1, 1, 2, 100, 1e6, INF):
                assert not call(loss, given, p=p).isnan(), p


@pytest.mark.parametrize("bad", ["manhattan", "", "Cosine", b"cosine", 2, [], torch.ones(3)], ids=repr)
def test_an_unknown_distance(bad: Any) -> None:
    loss = FIRST_BY_NAME["triplet_margin_with_distance_loss"]
    refused((ValueError, TypeError), loss, "distance_function", distance_function=bad)


def test_what_a_distance_of_the_users_gives() -> None:
    """Anything but a tensor is refused."""
    given = FIRST_BY_NAME["triplet_margin_loss"].given((3, 4)).values()
    for distance in (lambda a, b: 1.0, lambda a, b: None):
        with pytest.raises(TypeError, match="distance_function"):
            L.triplet_margin_with_distance_loss(*given, distance_function=distance)


# ---- reduction -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["", "avg", "Mean", "none ", "batchmean", "rowmean", "_mean_or_zero"])
@EACH_LOSS
def test_an_unknown_reduction(loss: VectorLoss, reduction: str) -> None:
    refused(ValueError, loss, "reduction", repr(reduction), reduction=reduction)


@pytest.mark.parametrize("reduction", [1, 0.5, True, None, b"mean"], ids=repr)
@EACH_NAME
def test_a_reduction_that_is_no_string(loss: VectorLoss, reduction: Any) -> None:
    refused((TypeError, ValueError), loss, "reduction", reduction=reduction)


def test_a_distance_of_the_users_takes_no_other_reduction() -> None:
    given = FIRST_BY_NAME["triplet_margin_loss"].given((3, 4)).values()
    for reduction in ("avg", "batchmean", "_mean_or_zero"):
        with pytest.raises(ValueError, match=f"reduction.*'{reduction}'"):
            L.triplet_margin_with_distance_loss(
                *given, distance_function=lambda a, b: (a - b).norm(dim=-1), reduction=reduction
            )


@pytest.mark.parametrize(
    "loss",
    [pytest.param(x, id=n) for n, x in FIRST_BY_NAME.items() if "reduce" in inspect.signature(x.function).parameters],
)
def test_the_deprecated_flags_warn_and_win(loss: VectorLoss) -> None:
    given = loss.given((3, 4), torch.float32)
    for flags, reduction in [({"size_average": False}, "sum"), ({"reduce": False}, "none"), ({"reduce": True}, "mean")]:
        with pytest.warns(UserWarning, match=f"deprecated.*reduction='{reduction}'") as record:
            old = loss.function(**given, **flags)
        assert [r.filename for r in record] == [__file__]
        assert torch.equal(old, call(loss, given, reduction=reduction))
    with pytest.raises(TypeError) as error:
        loss.function(**given, size_average=torch.ones(4))
    explained(error, "size_average")


# ---- tensors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [None, 0.5, [0.5], "x"], ids=["None", "float", "list", "str"])
@EACH_LOSS
def test_an_operand_that_is_no_tensor(loss: VectorLoss, bad: Any) -> None:
    for name in (*loss.samplers, "weight"):
        if name != "weight" or bad is not None:
            refused(TypeError, loss, name, **{name: bad})


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn, torch.uint16], ids=str)
@EACH_NAME
def test_a_dtype_that_is_not_offered(loss: VectorLoss, dtype: torch.dtype) -> None:
    given = loss.given((3, 4), torch.float32) | {"weight": torch.ones(3)}
    for name, x in given.items():
        refused(TypeError, loss, name, **{name: x.abs().to(dtype)})


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool], ids=str)
@EACH_NAME
def test_vectors_and_weights_are_not_integers(loss: VectorLoss, dtype: torch.dtype) -> None:
    for name in loss.vectors:
        refused(TypeError, loss, name, **{name: torch.ones(3, 4, dtype=dtype)})


@EACH_NAME
def test_shapes_that_do_not_fit(loss: VectorLoss) -> None:
    for name in loss.vectors[1:]:
        for shape in ((3, 5), (2, 4), (0, 4), (3, 0), (3, 1), (2, 1, 2, 4)):
            refused(ValueError, loss, name, shape[-1] if shape[-1] != 4 else None, **{name: torch.ones(shape)})
    for name in ("target", "weight"):
        if name == "target" and name not in loss.samplers:
            continue
        for shape in ((4,), (3, 4), (3, 1, 4), (0,), (2,)):
            refused(ValueError, loss, name, **{name: torch.ones(shape)})


@EACH_NAME
def test_vectors_without_an_axis(loss: VectorLoss) -> None:
    number = torch.tensor(1.0)
    refused(ValueError, loss, loss.vectors[0], **{loss.vectors[0]: number})
    with pytest.raises(ValueError):
        call(loss, loss.given((3, 4), torch.float32) | dict.fromkeys(loss.vectors, number))


@EACH_NAME
def test_tensors_on_different_devices(loss: VectorLoss) -> None:
    given = loss.given((3, 4), torch.float32) | {"weight": torch.ones(3)}
    for name, x in list(given.items())[1:]:
        refused(ValueError, loss, name, "meta", **{name: x.to("meta")})


@EACH_NAME
def test_arguments_that_do_not_exist(loss: VectorLoss) -> None:
    with pytest.raises(TypeError, match="exponent"):
        call(loss, loss.given((3, 4)), exponent=2)


# ---- modules ---------------------------------------------------------------------------------------------------------


@EACH_NAME
def test_a_module_refuses_what_its_function_refuses(loss: VectorLoss) -> None:
    given, _ = loss.sample((3, 4))
    with pytest.raises(ValueError, match="margin"):
        getattr(fusedloss, loss.module)(margin=NAN)(*given)
    with pytest.raises(ValueError, match="reduction"):
        getattr(fusedloss, loss.module)(reduction="average")(*given)


# ---- the ops, called with what the function never passes -------------------------------------------------------------


def ops_of(loss: VectorLoss) -> dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]:
    """The five ops, with arguments that are right: those of a call for 'none'."""
    from test_vectors_composability import ops_called

    calls = ops_called(loss, loss.given((3, 4), torch.float32), "none")
    calls |= ops_called(loss, loss.given((3, 4), torch.float32), "mean")
    return {name.partition("::")[2].removeprefix(loss.name): (func, args) for name, (func, args) in calls.items()}


@EACH_NAME
def test_an_op_refuses_an_incoming_gradient_or_a_tangent_that_does_not_fit(loss: VectorLoss) -> None:
    """In words, whatever it is; no such call reads or writes beyond a tensor."""
    calls = ops_of(loss)
    for suffix in ("_backward", "_jvp", "_hvp"):
        func, args = calls[suffix]
        first = next(k for k, x in enumerate(args) if isinstance(x, Tensor))
        right = args[first]
        for wrong in (
            torch.ones(7),
            torch.ones(2, 5),
            torch.ones(0),
            torch.ones(right.shape, dtype=torch.complex64),
            torch.ones(right.shape).to(torch.float8_e4m3fn),
            torch.ones(right.shape, device="meta"),
            torch.ones(right.shape).to_sparse() if right.dim() else torch.ones(3),
        ):
            with pytest.raises((ValueError, TypeError, NotImplementedError, RuntimeError)) as error:
                func(*args[:first], wrong, *args[first + 1 :])
            assert not isinstance(error.value, AssertionError)
