"""torch.ops.fusedloss called with arguments that the Python functions never pass: an exported program or C++ may.

Whatever is given, an op answers with an error that names the argument, and neither reads nor writes beyond a tensor.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fusedloss
from fusedloss.testing.catalogue import LOSSES, Loss

pytestmark = pytest.mark.core

FIRST_BY_NAME = {loss.name: loss for loss in reversed(LOSSES)}
EACH_NAME = pytest.mark.parametrize("loss", [pytest.param(loss, id=name) for name, loss in FIRST_BY_NAME.items()])
ABOUT = {about["name"]: about for about in fusedloss._C.losses()}
VALID = {"positive": 1.0, "nonnegative": 0.5, "unit": 0.1, "open_unit": 0.5, "at_most_one": 0.25, "any": 0.5, "flag": 0}

NONE, MEAN, ROWMEAN = 0, 1, 4
MASK = [True, False, False]
DO_NOT_BROADCAST = [(2,), (4, 3), (2, 3, 4), (0,)]  # to (3, 4)


def arguments(loss: Loss, reduction: int = NONE) -> tuple[list[Tensor | None], list[Any]]:
    """The three operands and what follows them."""
    operands, _ = loss.sample((3, 4), torch.float32)
    parameters = [float(VALID[parameter["domain"]]) for parameter in ABOUT[loss.name]["parameters"]]
    return [*operands, None][:3], [None, parameters, reduction]


def op(loss: Loss, suffix: str = "") -> Callable[..., Any]:
    found: Callable[..., Any] = getattr(torch.ops.fusedloss, loss.name + suffix)
    return found


def refuses(call: Callable[..., Any], *given: Any, named: str) -> None:
    with pytest.raises((ValueError, TypeError)) as error:
        call(*given)
    assert re.search(rf"\b{named}\b", str(error.value)), str(error.value)


@EACH_NAME
def test_an_operand_that_the_loss_does_not_have(loss: Loss) -> None:
    operands, rest = arguments(loss)
    if operands[2] is not None or ABOUT[loss.name]["optional_operands"]:
        pytest.skip("has a third operand")
    refuses(op(loss), *operands[:2], torch.ones(3, 4), *rest, named="extra")


def test_the_mean_of_rows_of_a_tensor_without_axes() -> None:
    number = torch.tensor(1.0)
    refuses(torch.ops.fusedloss.gaussian_kl, number, number, None, None, [], ROWMEAN, named="mean")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int64, torch.bool, torch.complex64], ids=str)
@pytest.mark.parametrize("reduction", [NONE, MEAN], ids=["none", "mean"])
@EACH_NAME
def test_a_result_of_a_dtype_that_is_not_offered(loss: Loss, reduction: int, dtype: torch.dtype) -> None:
    operands, rest = arguments(loss, reduction)
    refuses(op(loss), *operands, *rest, dtype, named="dtype")
    refuses(op(loss, "_value_and_gradient"), MASK, *operands, *rest, dtype, named="dtype")
    refuses(op(loss, "_jvp"), torch.ones(3, 4), None, None, *operands, *rest, dtype, named="dtype")


@pytest.mark.parametrize("shape", DO_NOT_BROADCAST, ids=str)
@EACH_NAME
def test_an_incoming_gradient_that_does_not_broadcast_to_the_loss(loss: Loss, shape: tuple[int, ...]) -> None:
    operands, rest = arguments(loss)
    wrong = torch.ones(shape)
    refuses(op(loss, "_backward"), wrong, MASK, *operands, *rest, named="grad_output")
    tangents = [torch.ones(3, 4), None, None]
    refuses(op(loss, "_hvp"), wrong, *tangents, MASK, *operands, *rest, named="grad_output")


@pytest.mark.parametrize("shape", [(3, 4), (0,)], ids=str)
@EACH_NAME
def test_an_incoming_gradient_of_a_mean_is_one_number(loss: Loss, shape: tuple[int, ...]) -> None:
    operands, rest = arguments(loss, MEAN)
    refuses(op(loss, "_backward"), torch.ones(shape), MASK, *operands, *rest, named="grad_output")


@pytest.mark.parametrize("shape", DO_NOT_BROADCAST, ids=str)
@EACH_NAME
def test_a_tangent_that_does_not_broadcast_to_the_loss(loss: Loss, shape: tuple[int, ...]) -> None:
    operands, rest = arguments(loss)
    for k in range(2):
        tangents = [torch.ones(shape) if i == k else None for i in range(3)]
        refuses(op(loss, "_jvp"), *tangents, *operands, *rest, named=f"tangent{k}")
        refuses(op(loss, "_hvp"), torch.ones(3, 4), *tangents, MASK, *operands, *rest, named=f"tangent{k}")


STRANGE = [
    pytest.param(torch.ones(3, 4, dtype=torch.complex64), id="complex"),
    pytest.param(torch.ones(3, 4).to(torch.uint16), id="uint16"),
    pytest.param(torch.ones(3, 4).to(torch.float8_e4m3fn), id="float8"),
    pytest.param(torch.ones(3, 4, device="meta"), id="on meta"),
    pytest.param(torch.ones(3, 4).to_sparse(), id="sparse"),
]


@pytest.mark.parametrize("strange", STRANGE)
@EACH_NAME
def test_tangents_and_incoming_gradients_are_dense_and_real_and_on_the_device(loss: Loss, strange: Tensor) -> None:
    operands, rest = arguments(loss)
    calls = [
        (op(loss, "_backward"), [strange, MASK], "grad_output"),
        (op(loss, "_jvp"), [strange, None, None], "tangent0"),
        (op(loss, "_hvp"), [torch.ones(3, 4), strange, None, None, MASK], "tangent0"),
    ]
    for call, first, named in calls:
        with pytest.raises((ValueError, TypeError, NotImplementedError)) as error:
            call(*first, *operands, *rest)
        assert named in str(error.value) or "Sparse" in str(error.value), str(error.value)
