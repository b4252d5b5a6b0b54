"""torch's own sample and error inputs for its losses, given to ours of the same name."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import fusedloss.functional as L

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of what torch's test tools import
    from torch.testing._internal.common_methods_invocations import op_db

NAMES = [
    "mse_loss",
    "l1_loss",
    "huber_loss",
    "smooth_l1_loss",
    "poisson_nll_loss",
    "gaussian_nll_loss",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "soft_margin_loss",
    "hinge_embedding_loss",
    "margin_ranking_loss",
    "kl_div",
]
OPS = {op.name.removeprefix("nn.functional."): op for op in op_db if op.name.removeprefix("nn.functional.") in NAMES}
EACH_OP = pytest.mark.parametrize("name", NAMES)


def silently(function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    """Both libraries warn of the same broadcasts and reductions; that they do is tested elsewhere."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args, **kwargs)


def samples(name: str, dtype: torch.dtype) -> Iterator[tuple[list[Any], dict[str, Any]]]:
    found = False
    torch.manual_seed(0)
    for sample in OPS[name].sample_inputs("cpu", dtype, requires_grad=True):
        found = True
        yield [sample.input, *sample.args], sample.kwargs
    assert found


def floating_leaves(values: list[Any]) -> list[Tensor]:
    return [x for x in values if isinstance(x, Tensor) and x.requires_grad]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@EACH_OP
def test_sample_inputs(name: str, dtype: torch.dtype) -> None:
    """The same values and the same gradients."""
    for args, kwargs in samples(name, dtype):
        expected = silently(OPS[name].op, *args, **kwargs)
        result = silently(getattr(L, name), *args, **kwargs)
        torch.testing.assert_close(result, expected, msg=lambda m, kwargs=kwargs: f"{kwargs}: {m}")
        free = floating_leaves([*args, *kwargs.values()])
        if not expected.requires_grad:
            continue
        incoming = torch.linspace(0.5, 1.5, expected.numel(), dtype=dtype).view(expected.shape)
        theirs = torch.autograd.grad(expected, free, incoming, allow_unused=True)
        ours = torch.autograd.grad(result, free, incoming, allow_unused=True)
        for x, one, other in zip(free, ours, theirs, strict=True):
            if other is not None:
                assert one is not None, f"no gradient of shape {tuple(x.shape)} for {kwargs}"
                torch.testing.assert_close(one, other, msg=lambda m, kwargs=kwargs: f"gradient, {kwargs}: {m}")


@EACH_OP
def test_error_inputs(name: str) -> None:
    """An error wherever torch raises one."""
    op = OPS[name]
    if op.error_inputs_func is None:
        pytest.skip("torch lists no error inputs")
    for error in op.error_inputs("cpu"):
        sample = error.sample_input
        with pytest.raises(error.error_type):
            silently(op.op, sample.input, *sample.args, **sample.kwargs)
        with pytest.raises((ValueError, TypeError)):
            silently(getattr(L, name), sample.input, *sample.args, **sample.kwargs)


@EACH_OP
def test_parameters_have_torchs_names_order_and_defaults(name: str) -> None:
    """torch's parameters come first; only those that torch lacks stand behind them."""
    theirs = inspect.signature(getattr(torch.nn.functional, name)).parameters
    ours = inspect.signature(getattr(L, name)).parameters
    assert list(ours)[: len(theirs)] == list(theirs)
    for parameter in theirs:
        assert ours[parameter].default == theirs[parameter].default, parameter
