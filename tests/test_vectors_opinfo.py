"""torch's own sample and error inputs for its losses of vectors, given to ours of the same name."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import fusedloss.functional as L

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of what torch's test tools import
    from torch.testing._internal.common_methods_invocations import op_db

NAMES = ["cosine_embedding_loss", "triplet_margin_loss", "triplet_margin_with_distance_loss"]
OPS = {op.name.removeprefix("nn.functional."): op for op in op_db if op.name.removeprefix("nn.functional.") in NAMES}
EACH_OP = pytest.mark.parametrize("name", NAMES)


def samples(name: str, dtype: torch.dtype) -> Iterator[tuple[list[Any], dict[str, Any]]]:
    found = False
    torch.manual_seed(0)
    for sample in OPS[name].sample_inputs("cpu", dtype, requires_grad=True):
        found = True
        yield [sample.input, *sample.args], sample.kwargs
    assert found


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@EACH_OP
def test_sample_inputs(name: str, dtype: torch.dtype) -> None:
    """The same values and the same gradients."""
    for args, kwargs in samples(name, dtype):
        shown = f"{[tuple(x.shape) for x in args if isinstance(x, Tensor)]}, {kwargs}: "
        expected, result = OPS[name].op(*args, **kwargs), getattr(L, name)(*args, **kwargs)
        torch.testing.assert_close(result, expected, equal_nan=True, msg=lambda m, s=shown: s + m)
        incoming = torch.linspace(0.5, 1.5, expected.numel(), dtype=dtype).view(expected.shape)
        free = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.requires_grad]
        theirs = torch.autograd.grad(expected, free, incoming, allow_unused=True)
        ours = torch.autograd.grad(result, free, incoming, allow_unused=True)
        for one, other in zip(ours, theirs, strict=True):
            if other is not None:
                assert one is not None, f"{shown}no gradient"
                torch.testing.assert_close(one, other, equal_nan=True, msg=lambda m, s=shown: f"gradient, {s}{m}")


@EACH_OP
def test_error_inputs(name: str) -> None:
    """An error wherever torch raises one."""
    op = OPS[name]
    if op.error_inputs_func is None:
        pytest.skip("torch lists no error inputs")
    for error in op.error_inputs("cpu"):
        sample = error.sample_input
        with pytest.raises(error.error_type):
            op.op(sample.input, *sample.args, **sample.kwargs)
        with pytest.raises((ValueError, TypeError, IndexError)):
            getattr(L, name)(sample.input, *sample.args, **sample.kwargs)


@EACH_OP
def test_parameters_have_torchs_names_order_and_defaults(name: str) -> None:
    """torch's parameters come first; only those that torch lacks stand behind them."""
    theirs = inspect.signature(getattr(torch.nn.functional, name)).parameters
    ours = inspect.signature(getattr(L, name)).parameters
    assert list(ours)[: len(theirs)] == list(theirs)
    for parameter in theirs:
        assert ours[parameter].default == theirs[parameter].default, parameter
        assert ours[parameter].kind == theirs[parameter].kind, parameter
