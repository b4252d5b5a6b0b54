"""That the judge judges: the rule's parts, second derivatives of the oracle, and where operands lie in memory."""

from __future__ import annotations

import ast
import inspect
import sys

import numpy as np
import pytest
import torch
from scipy.ndimage import maximum_filter1d

from fusedloss.testing import catalogue, oracle
from fusedloss.testing.cases import DTYPES, LAYOUTS, SHAPE, Layout, cases
from fusedloss.testing.catalogue import LOSSES, Loss
from fusedloss.testing.judge import Call, compare, numbers, on, running_maximum

EACH_LOSS = pytest.mark.parametrize("loss", [pytest.param(loss, id=loss.id) for loss in LOSSES])


@pytest.mark.parametrize("module", [oracle, catalogue])
def test_the_judge_knows_nothing_of_the_compiled_code(module: object) -> None:
    """But for what the catalogue calls, the public functions."""
    tree = ast.parse(inspect.getsource(module))  # type: ignore[arg-type]
    imported = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert "numpy" in imported or "torch" in imported
    allowed = {"numpy"} if module is oracle else {"torch", "torch.nn.functional", "fusedloss.functional"}
    assert {name for name in imported if name.split(".")[0] not in sys.stdlib_module_names} <= allowed


@pytest.mark.parametrize("window", [1, 2, 3, 16, 257, 2000])
def test_the_running_maximum_is_that_of_scipy(window: int) -> None:
    values = np.random.default_rng(0).random(1000)
    assert np.array_equal(running_maximum(values, window), maximum_filter1d(values, window))


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_a_copy_lies_as_the_original_does(layout: Layout) -> None:
    x = layout(torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)))
    copy = on("cpu", x)
    assert (copy.stride(), copy.storage_offset()) == (x.stride(), x.storage_offset())
    assert torch.equal(copy, x)
    assert copy.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()
    assert copy.data_ptr() % 64 == x.data_ptr() % 64


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_error_beyond_the_few_units_is_wrong(dtype: torch.dtype) -> None:
    """And one within them is not, in the units of what was added up."""
    eps = torch.finfo(dtype).eps
    exact = oracle.Result(np.ones(3, np.longdouble), np.ones(3, np.longdouble), np.zeros(3, np.longdouble))
    one = torch.ones(3, dtype=dtype)
    for units, wrong in [(0, False), (4, False), (5, True)]:
        got = one.clone()
        got[1] += units * eps
        verdict = compare("value", got, one, exact)
        assert (verdict.wrong is not None) == wrong
        assert verdict.error == units / 4
    assert "at 2: got nan" in str(compare("value", torch.tensor([1, 1, torch.nan], dtype=dtype), one, exact).wrong)
    assert "shape" in str(compare("value", one[:2], one, exact).wrong)


@EACH_LOSS
def test_second_derivatives_by_differences_are_those_of_torch(loss: Loss) -> None:
    """In longdouble against torch's in float64, on the operands that `check` uses."""
    operands, keywords = loss.sample_away_from_corners((19, 67), torch.float64)
    for reduction in loss.reductions:
        call = Call(loss, operands, keywords, None, reduction, second=True)
        result = loss.torch(*operands, **keywords, reduction=reduction)
        of_torch, exact = call.torchs(result), call.exact(result)
        for name, theirs in ({"": of_torch[0]} | of_torch[1]).items():
            known = exact[1][name] if name else exact[0]
            error = np.abs(numbers(theirs, np.longdouble) - known.value)
            assert (error <= 1e-13 * known.size + 1e-15).all(), f"{name or 'value'}, {reduction}: {error.max()}"


@EACH_LOSS
def test_samples_keep_away_from_the_corners(loss: Loss) -> None:
    for dtype in DTYPES:
        operands, keywords = loss.sample_away_from_corners((19, 67), dtype)
        assert all(x.shape == (19, 67) and x.dtype == dtype for x in operands)
        assert list(keywords) == list(loss.keyword_operands)
        if loss.corners is not None:
            assert loss.corners(*(x.double() for x in operands)).abs().min() > 0.01


@EACH_LOSS
def test_a_check_is_of_every_kind(loss: Loss) -> None:
    for quick in (False, True):
        calls = list(cases(loss, torch.float32, "cpu", quick))
        assert {call.reduction for call in calls} == set(loss.reductions)
        for second in (False, True):
            some = [call for call in calls if (call.directions is not None) == second]
            assert {"weight" in call.given for call in some} == {True, False}
            assert {call.given[next(iter(loss.samplers))].is_contiguous() for call in some} == {True, False}
        assert any(call.weight_too for call in calls)
