"""torch's own sample inputs for ctc_loss, given to ours."""

from __future__ import annotations

import warnings

import pytest
import torch

import fusedloss.functional as L

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of what torch's test tools import
    from torch.testing._internal.common_methods_invocations import op_db

OP = next(op for op in op_db if op.name == "nn.functional.ctc_loss")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_sample_inputs(dtype: torch.dtype) -> None:
    """The values and the gradients that torch gives in float64: in float32 its own are 1e-4 off."""
    torch.manual_seed(0)
    samples = list(OP.sample_inputs("cpu", dtype, requires_grad=True))
    assert samples
    for sample in samples:
        shown = f"{tuple(sample.input.shape)}, {sample.kwargs}: "
        leaf = sample.input.detach().double().requires_grad_()
        expected = OP.op(leaf, *sample.args, **sample.kwargs)
        result = L.ctc_loss(sample.input, *sample.args, **sample.kwargs)
        torch.testing.assert_close(result, expected.to(dtype), msg=lambda m, s=shown: s + m)
        incoming = torch.linspace(0.5, 1.5, expected.numel()).to(dtype).view(expected.shape)
        (theirs,) = torch.autograd.grad(expected, leaf, incoming.double())
        (ours,) = torch.autograd.grad(result, sample.input, incoming)
        torch.testing.assert_close(ours, theirs.to(dtype), msg=lambda m, s=shown: f"gradient, {s}{m}")
