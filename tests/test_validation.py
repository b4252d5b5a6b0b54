"""Bad input: the type of the error, the argument it names and the value it shows; and where a warning is given."""

from __future__ import annotations

import inspect
import re
import sys
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import fusedloss
import fusedloss.functional as L
from fusedloss.testing.catalogue import LOSSES, Loss

pytestmark = [pytest.mark.core, pytest.mark.filterwarnings("ignore:kl_div with reduction='mean'")]

EACH = [pytest.param(loss, id=loss.id) for loss in LOSSES]
DESCRIPTIONS = {about["name"]: about for about in fusedloss._C.losses()}
FIRST_BY_NAME = {loss.name: loss for loss in reversed(LOSSES)}
EACH_NAME = [pytest.param(loss, id=name) for name, loss in FIRST_BY_NAME.items()]

NAN, INF = float("nan"), float("inf")
OUTSIDE = {
    "positive": [0.0, -1.5, NAN],
    "nonnegative": [-0.25, NAN],
    "unit": [-0.25, 1.25, NAN],
    "open_unit": [0.0, 1.0, -0.5, 2.5, NAN],
    "at_most_one": [1.25, INF, NAN],
    "flag": [],  # a bool
    "any": [NAN],
}
BORDERS = {
    "positive": [1e-300, INF],
    "nonnegative": [0.0],
    "unit": [0.0, 1.0],
    "open_unit": [1e-9, 1 - 1e-9],
    "at_most_one": [1.0, 0.0, -3.0],
    "flag": [False, True],
    "any": [-2.5, 0.0, 100.0],
}
PARAMETERS = [
    (FIRST_BY_NAME[name], parameter["name"], parameter["domain"])
    for name, about in DESCRIPTIONS.items()
    for parameter in about["parameters"]
]


def cases(table: dict[str, list[float]]) -> list[Any]:
    return [
        pytest.param(loss, parameter, value, id=f"{loss.name}-{parameter}={value}")
        for loss, parameter, domain in PARAMETERS
        for value in table[domain]
    ]


def explained(error: pytest.ExceptionInfo[BaseException], argument: str, value: float | None = None) -> None:
    """The message names the argument as a word of its own, and shows the value."""
    message = str(error.value)
    assert re.search(rf"\b{argument}\b", message), f"{argument} is not named in: {message}"
    if value is not None:
        shown = re.search(r"got (-?[\w.+]+)", message)
        assert shown, f"no value is shown in: {message}"
        assert str(float(shown[1])) == str(value), message


def here() -> int:
    """The number of the line that calls this."""
    return sys._getframe(1).f_lineno


def float_call(loss: Loss) -> tuple[list[Tensor], dict[str, Tensor]]:
    return loss.sample((3, 4), torch.float32)


# ---- parameters ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("loss", "parameter", "value"), cases(OUTSIDE))
def test_a_parameter_outside_its_domain(loss: Loss, parameter: str, value: float) -> None:
    operands, _ = float_call(loss)
    with pytest.raises(ValueError) as error:
        loss.function(*operands, **{parameter: value})
    explained(error, parameter, value)
    assert loss.name in str(error.value)


@pytest.mark.parametrize(("loss", "parameter", "value"), cases(BORDERS))
def test_a_parameter_at_the_border_of_its_domain(loss: Loss, parameter: str, value: float) -> None:
    if parameter == "target_01" and value:
        operands = [torch.zeros(4), torch.tensor([0.0, 1.0, 1.0, 0.0])]
    else:
        operands, _ = float_call(loss)
    loss.function(*operands, **{parameter: value})


@pytest.mark.parametrize(("loss", "parameter", "value"), cases(OUTSIDE))
def test_a_parameter_is_checked_in_the_op_too(loss: Loss, parameter: str, value: float) -> None:
    """A call past the Python functions, as one from C++ or an exported program."""
    operands, _ = float_call(loss)
    about = DESCRIPTIONS[loss.name]
    valid = {
        "positive": 1.0,
        "nonnegative": 1.0,
        "unit": 0.5,
        "open_unit": 0.5,
        "at_most_one": 0.5,
        "flag": 0.0,
        "any": 1.0,
    }
    values = [value if p["name"] == parameter else valid[p["domain"]] for p in about["parameters"]]
    op = getattr(torch.ops.fusedloss, loss.name)
    extra = operands[2] if len(operands) == 3 else None
    with pytest.raises(ValueError) as error:
        op(operands[0], operands[1], extra, None, values, 1)
    explained(error, parameter, value)


@pytest.mark.parametrize("bad", ["0.5", None, [0.5], 1j], ids=["str", "None", "list", "complex"])
@pytest.mark.parametrize(
    ("loss", "parameter"),
    [pytest.param(loss, name, id=f"{loss.name}-{name}") for loss, name, domain in PARAMETERS if domain != "flag"],
)
def test_a_parameter_that_is_no_number(loss: Loss, parameter: str, bad: Any) -> None:
    operands, _ = float_call(loss)
    with pytest.raises(TypeError) as error:
        loss.function(*operands, **{parameter: bad})
    explained(error, parameter)


def test_a_number_of_numpy_or_a_tensor_of_one_element_is_a_number() -> None:
    numpy = pytest.importorskip("numpy")
    x, y = torch.tensor([3.0]), torch.tensor([0.0])
    for delta in (numpy.float32(0.5), numpy.float64(0.5), 1, torch.tensor(0.5)):
        assert L.huber_loss(x, y, delta=delta) == L.huber_loss(x, y, delta=float(delta))


def test_the_op_refuses_a_wrong_number_of_parameters() -> None:
    x = torch.zeros(3)
    for parameters in ([], [1.0, 2.0], [1.0, 2.0, 3.0, 4.0]):
        with pytest.raises(ValueError, match="huber_loss: expected 1 parameters, got"):
            torch.ops.fusedloss.huber_loss(x, x, None, None, parameters, 1)


# ---- reduction ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["", "avg", "Mean", "none ", "means", "rowmean"])
@pytest.mark.parametrize("loss", EACH)
def test_an_unknown_reduction(loss: Loss, reduction: str) -> None:
    operands, keywords = float_call(loss)
    with pytest.raises(ValueError) as error:
        loss(*operands, **keywords, reduction=reduction)
    explained(error, "reduction")
    assert repr(reduction) in str(error.value)


@pytest.mark.parametrize("loss", [p for p in EACH if "batchmean" not in p.values[0].reductions])  # type: ignore[union-attr]
def test_batchmean_belongs_to_divergences(loss: Loss) -> None:
    operands, keywords = float_call(loss)
    with pytest.raises(ValueError, match=r"reduction must be .* got 'batchmean'"):
        loss(*operands, **keywords, reduction="batchmean")


@pytest.mark.parametrize("reduction", [1, 0.5, True, None, b"mean", torch.tensor(1)], ids=repr)
@pytest.mark.parametrize("loss", EACH_NAME)
def test_a_reduction_that_is_no_string(loss: Loss, reduction: Any) -> None:
    operands, keywords = float_call(loss)
    with pytest.raises((TypeError, ValueError)) as error:
        loss(*operands, **keywords, reduction=reduction)
    explained(error, "reduction")


@pytest.mark.parametrize("reduction", [-1, 3, 4, 5, 2**40])
def test_the_op_refuses_an_unknown_reduction(reduction: int) -> None:
    x = torch.zeros(3)
    with pytest.raises(ValueError, match="reduction"):
        torch.ops.fusedloss.mse_loss(x, x, None, None, [], reduction)


LEGACY = [p for p in EACH_NAME if "reduce" in inspect.signature(p.values[0].function).parameters]  # type: ignore[union-attr]


@pytest.mark.parametrize("loss", LEGACY)
@pytest.mark.parametrize(
    ("flags", "reduction"),
    [
        ({"size_average": True}, "mean"),
        ({"size_average": False}, "sum"),
        ({"reduce": False}, "none"),
        ({"reduce": True}, "mean"),
        ({"reduce": False, "size_average": True}, "none"),
    ],
    ids=str,
)
def test_the_deprecated_flags_warn_and_win(loss: Loss, flags: dict[str, bool], reduction: str) -> None:
    operands, keywords = float_call(loss)
    with pytest.warns(UserWarning, match=f"deprecated.*reduction='{reduction}'") as record:
        old = loss(*operands, **keywords, **flags)
    assert [r.filename for r in record] == [__file__]  # the caller outside of the package
    assert torch.equal(old, loss(*operands, **keywords, reduction=reduction))


@pytest.mark.parametrize("loss", LEGACY)
@pytest.mark.parametrize("flag", ["size_average", "reduce"])
def test_a_deprecated_flag_that_is_no_bool(loss: Loss, flag: str) -> None:
    """A weight given by position lands there; read as true, it would be lost in silence."""
    operands, keywords = float_call(loss)
    with pytest.raises(TypeError) as error:
        loss(*operands, **keywords, **{flag: torch.ones(4)})
    explained(error, flag)


# ---- types --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [None, 0.5, [0.5], "x"], ids=["None", "float", "list", "str"])
@pytest.mark.parametrize("loss", EACH_NAME)
def test_an_operand_that_is_no_tensor(loss: Loss, bad: Any) -> None:
    for k, name in enumerate(loss.samplers):
        if name == "var" and isinstance(bad, float):
            continue  # a number is a variance
        operands: list[Any]
        operands, keywords = float_call(loss)
        operands[k] = bad
        with pytest.raises(TypeError) as error:
            loss(*operands, **keywords)
        explained(error, name)
        assert f"got {type(bad).__name__.removesuffix('Type')}" in str(error.value)


@pytest.mark.parametrize("bad", [0.5, [0.5], "x"], ids=["float", "list", "str"])
@pytest.mark.parametrize("loss", EACH_NAME)
def test_a_weight_that_is_no_tensor(loss: Loss, bad: Any) -> None:
    operands, keywords = float_call(loss)
    with pytest.raises(TypeError) as error:
        loss(*operands, **keywords, weight=bad)
    explained(error, "weight")


def test_a_numpy_array_is_no_tensor() -> None:
    numpy = pytest.importorskip("numpy")
    with pytest.raises(TypeError, match=r"target must be a torch.Tensor, got numpy.ndarray"):
        L.mse_loss(torch.zeros(3), numpy.zeros(3))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128, torch.float8_e4m3fn, torch.uint16], ids=str)
@pytest.mark.parametrize("loss", EACH_NAME)
def test_a_dtype_that_is_not_offered(loss: Loss, dtype: torch.dtype) -> None:
    for k, name in enumerate(loss.samplers):
        operands, keywords = float_call(loss)
        operands[k] = torch.zeros(3, 4).to(dtype)
        with pytest.raises(TypeError) as error:
            loss(*operands, **keywords)
        explained(error, name)
    operands, keywords = float_call(loss)
    with pytest.raises(TypeError) as error:
        loss(*operands, **keywords, weight=torch.zeros(3, 4).to(dtype))
    explained(error, "weight")


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool], ids=str)
@pytest.mark.parametrize("loss", EACH_NAME)
def test_operands_that_are_all_integers(loss: Loss, dtype: torch.dtype) -> None:
    operands = [torch.ones(3, 4).to(dtype) for _ in loss.samplers]
    with pytest.raises(TypeError) as error:
        loss(*operands)
    explained(error, next(iter(loss.samplers)))


@pytest.mark.parametrize(
    "make", [Tensor.to_sparse, Tensor.to_sparse_csr, Tensor.to_mkldnn], ids=["coo", "csr", "mkldnn"]
)
@pytest.mark.parametrize("loss", EACH_NAME)
@pytest.mark.filterwarnings("ignore:Sparse (CSR|invariant)")
def test_tensors_that_are_not_dense(loss: Loss, make: Callable[[Tensor], Tensor]) -> None:
    for k, name in enumerate(loss.samplers):
        operands, keywords = float_call(loss)
        operands[k] = make(operands[k])
        with pytest.raises((TypeError, NotImplementedError)) as error:
            loss(*operands, **keywords)
        explained(error, name)


# ---- shapes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", EACH)
def test_shapes_that_do_not_broadcast(loss: Loss) -> None:
    for k, name in list(enumerate(loss.samplers))[1:]:
        operands, keywords = float_call(loss)
        operands[k] = loss.sample((3, 5), torch.float32)[0][k]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # whether there is one before the error is no matter
            with pytest.raises(ValueError) as error:
                loss(*operands, **keywords)
        explained(error, name)
        assert re.search(r"3, 5", str(error.value)) and re.search(r"3, 4", str(error.value)), str(error.value)


@pytest.mark.parametrize("loss", [p for p in EACH if DESCRIPTIONS[p.values[0].name]["shapes"] == "same"])  # type: ignore[union-attr]
@pytest.mark.parametrize("shape", [(4,), (3, 1), (1, 4), (1, 3, 4), (12,)], ids=str)
def test_shapes_that_must_be_the_same(loss: Loss, shape: tuple[int, ...]) -> None:
    operands, keywords = float_call(loss)
    operands[1] = torch.ones(shape)
    with pytest.raises(ValueError) as error:
        loss(*operands, **keywords)
    explained(error, "target")
    assert str(list(shape)) in str(error.value) and "[3, 4]" in str(error.value)


@pytest.mark.parametrize("shape", [(3,), (5, 1), (2, 3, 4), (1, 3, 4), (0,)], ids=str)
@pytest.mark.parametrize("loss", EACH)
def test_a_weight_that_does_not_broadcast_to_the_loss(loss: Loss, shape: tuple[int, ...]) -> None:
    operands, keywords = float_call(loss)
    for reduction in loss.reductions:
        with pytest.raises(ValueError) as error:
            loss(*operands, **keywords, weight=torch.ones(shape), reduction=reduction)
        explained(error, "weight")
        assert str(list(shape)) in str(error.value)
        with pytest.raises(ValueError) as error:  # the path that torch's own ops take
            loss(*operands, **keywords, weight=torch.ones(shape, requires_grad=True), reduction=reduction)
        explained(error, "weight")


@pytest.mark.parametrize("shape", [(), (1,), (4,), (3, 1), (1, 4), (3, 4), (1, 1)], ids=str)
@pytest.mark.parametrize("loss", EACH_NAME)
def test_a_weight_that_broadcasts_is_taken(loss: Loss, shape: tuple[int, ...]) -> None:
    operands, keywords = float_call(loss)
    weight = torch.rand(shape) + 0.5
    values = loss(*operands, **keywords, reduction="none", weight=weight.expand(3, 4).contiguous())
    assert torch.equal(loss(*operands, **keywords, reduction="none", weight=weight), values)


def test_a_weight_may_not_widen_a_loss_that_broadcasts() -> None:
    with pytest.warns(UserWarning, match="target size"), pytest.raises(ValueError, match="weight"):
        L.mse_loss(torch.zeros(1, 4), torch.zeros(4), weight=torch.ones(3, 1))


@pytest.mark.parametrize(
    "shapes", [((3,), (3, 1), (3,)), ((3, 4), (4,), (3, 4)), ((3, 4), (3, 4), (4,)), ((), (1,), (1,))]
)
def test_margin_ranking_wants_the_same_number_of_axes(shapes: tuple[tuple[int, ...], ...]) -> None:
    a, b, y = (torch.ones(shape) for shape in shapes)
    with pytest.raises(ValueError) as error:
        L.margin_ranking_loss(a, b, y)
    explained(error, "input2" if b.dim() != a.dim() else "target")
    with pytest.raises((ValueError, RuntimeError)):
        torch.nn.functional.margin_ranking_loss(a, b, y)


@pytest.mark.parametrize("shape", [(3, 5), (4, 3), (3,), (2, 3, 4), (3, 4, 1)], ids=str)
def test_a_pos_weight_that_does_not_broadcast(shape: tuple[int, ...]) -> None:
    x = torch.zeros(3, 4)
    with pytest.raises(ValueError) as error:
        L.binary_cross_entropy_with_logits(x, x, pos_weight=torch.ones(shape))
    explained(error, "pos_weight")


@pytest.mark.parametrize("shape", [(), (2,), (1, 3), (3, 1), (4,)], ids=str)
def test_a_tensor_of_quantiles_of_a_wrong_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\bq\b") as error:
        L.quantile_loss(torch.zeros(4, 3), torch.zeros(4), q=torch.full(shape, 0.5))
    assert "(4, 3)" in str(error.value) and str(shape) in str(error.value)


@pytest.mark.parametrize("shape", [(4, 2), (5,), (1, 3, 3), (2, 1)], ids=str)
def test_a_target_that_does_not_fit_the_quantiles(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="target"):
        L.quantile_loss(torch.zeros(4, 3), torch.zeros(shape), q=torch.full((3,), 0.5))


@pytest.mark.parametrize("shape", [(5,), (4,), (3, 4, 1), (1, 1), (1, 3, 4)], ids=str)
def test_a_variance_of_a_shape_that_torch_refuses_too(shape: tuple[int, ...]) -> None:
    x = torch.zeros(3, 4)
    with pytest.raises(ValueError, match="var") as error:
        L.gaussian_nll_loss(x, x, torch.ones(shape))
    assert str(shape) in str(error.value) and "(3, 4)" in str(error.value)
    with pytest.raises(ValueError):
        torch.nn.functional.gaussian_nll_loss(x, x, torch.ones(shape))


@pytest.mark.parametrize("bad", [None, "1", [1.0]], ids=["None", "str", "list"])
def test_a_variance_that_is_neither_tensor_nor_number(bad: Any) -> None:
    x = torch.zeros(3, 4)
    with pytest.raises(TypeError, match="var"):
        L.gaussian_nll_loss(x, x, bad)


def test_gaussian_kl_needs_an_axis_to_sum_over() -> None:
    with pytest.raises(ValueError, match="mean must have at least one axis"):
        L.gaussian_kl(torch.tensor(1.0), torch.tensor(1.0))


# ---- elements -----------------------------------------------------------------------------------------------------

# On CUDA an error would have to wait for the device: there such an element makes its results NaN.
refused_on_the_host = pytest.mark.host


def spoil(tensor: Tensor, index: tuple[int, ...], value: float) -> Tensor:
    spoilt = tensor.clone(memory_format=torch.preserve_format)
    spoilt[index] = value
    return spoilt


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "dense": lambda t: t.contiguous(),
    "channels last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "transposed": lambda t: t.transpose(0, 3).contiguous().transpose(0, 3),
    "strided": lambda t: torch.stack([t, torch.full_like(t, 77.0)], -1)[..., 0],
    "offset": lambda t: torch.cat([torch.full_like(t[:1], 77.0), t])[1:],
}


@refused_on_the_host
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("grad", [False, True], ids=["", "grad"])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_a_probability_outside_of_0_and_1_is_named_by_its_place(
    layout: str, dtype: torch.dtype, grad: bool, reduction: str
) -> None:
    shape, place = (5, 7, 9, 11), (3, 1, 8, 4)
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(shape, generator=generator).to(dtype)
    for value in (1.5, -0.25, INF, -INF):
        input = LAYOUTS[layout](spoil(torch.rand(shape, generator=generator).to(dtype), place, value))
        with pytest.raises(ValueError) as error:
            L.binary_cross_entropy(input.requires_grad_(grad), target, reduction=reduction)
        message = str(error.value)
        explained(error, "input", value)
        assert str(list(place)) in message, message


@refused_on_the_host
def test_the_first_of_many_is_named() -> None:
    """First in the order of indices, in whichever thread and block it was found."""
    input = torch.full((300, 400), 0.5)
    for place in ((299, 399), (250, 7), (123, 45), (200, 0)):
        input[place] = 1.5 + place[0]
    with pytest.raises(ValueError, match=r"got 124.5 at index \[123, 45\]"):
        L.binary_cross_entropy(input, torch.zeros(300, 400))
    with pytest.raises(ValueError, match=r"got 201.5 at index \[0, 200\]"):
        L.binary_cross_entropy(input.t(), torch.zeros(400, 300))
    input[0, 0] = 2.0
    with pytest.raises(ValueError, match=r"got 2 at index \[0, 0\]"):
        L.binary_cross_entropy(input, torch.zeros(300, 400))


@refused_on_the_host
def test_an_element_of_a_tensor_without_axes_is_named() -> None:
    with pytest.raises(ValueError, match=r"input.*got 1.5"):
        L.binary_cross_entropy(torch.tensor(1.5), torch.tensor(1.0))


@refused_on_the_host
@pytest.mark.parametrize("size", [1, 2, 7, 8, 15, 16, 17, 31, 33, 63, 2047, 2048, 2049, 16384, 40001])
def test_no_place_escapes_the_check(size: int) -> None:
    """The last elements of a vector, of a tile and of a block."""
    target = torch.zeros(size)
    for place in {0, size // 2, size - 1}:
        input = torch.full((size,), 0.5)
        input[place] = 1.0 + 2.0**-23
        with pytest.raises(ValueError, match=rf"at index \[{place}\]"):
            L.binary_cross_entropy(input, target)


ELEMENTS: list[tuple[str, Callable[..., Tensor], str, float, Tensor, Tensor]] = [
    ("hinge", L.hinge_loss, "target", 0.5, torch.zeros(4), torch.ones(4)),
    ("hinge 0", L.hinge_loss, "target", 0.0, torch.zeros(4), torch.ones(4)),
    ("hinge 0/1", partial(L.hinge_loss, target_01=True), "target", -1.0, torch.zeros(4), torch.ones(4)),
    ("squared hinge", L.squared_hinge_loss, "target", 0.5, torch.zeros(4), torch.ones(4)),
    ("squared hinge 0/1", partial(L.squared_hinge_loss, target_01=True), "target", 2.0, torch.zeros(4), torch.ones(4)),
]


@refused_on_the_host
@pytest.mark.parametrize(
    ("call", "argument", "value", "input", "target"), [pytest.param(*c[1:], id=c[0]) for c in ELEMENTS]
)
def test_a_target_that_is_no_label(
    call: Callable[..., Tensor], argument: str, value: float, input: Tensor, target: Tensor
) -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        with pytest.raises(ValueError) as error:
            call(input, spoil(target.to(dtype), (2,), value))
        explained(error, argument, value)
        assert "[2]" in str(error.value)
    if value == int(value):
        with pytest.raises(ValueError) as error:
            call(input, spoil(target.long(), (2,), int(value)))
        explained(error, argument, value)


@refused_on_the_host
def test_a_bool_target_of_a_hinge_is_no_sign() -> None:
    with pytest.raises(ValueError, match=r"target must be -1 or 1, got 0 at index \[1\]"):
        L.hinge_loss(torch.zeros(3), torch.tensor([True, False, True]))
    L.hinge_loss(torch.zeros(3), torch.tensor([True, False, True]), target_01=True)


@refused_on_the_host
def test_an_element_of_a_broadcast_target_is_named_by_its_own_index() -> None:
    with pytest.warns(UserWarning, match="target size"), pytest.raises(ValueError, match=r"got 0.5 at index \[0, 2\]"):
        L.hinge_loss(torch.zeros(3, 4), torch.tensor([[1.0, -1.0, 0.5, 1.0]]))


@refused_on_the_host
@pytest.mark.parametrize("value", [1.2, 0.0, 1.0, -0.5])
def test_a_quantile_outside_of_0_and_1(value: float) -> None:
    q = torch.tensor([0.1, value, 0.9], dtype=torch.float64)
    with pytest.raises(ValueError) as error:
        L.quantile_loss(torch.zeros(4, 3), torch.zeros(4), q=q)
    explained(error, "q", value)
    assert "[1]" in str(error.value)


@refused_on_the_host
@pytest.mark.parametrize("shape", [(3, 4), (3, 1), (3,)], ids=str)
def test_a_negative_variance(shape: tuple[int, ...]) -> None:
    x = torch.zeros(3, 4)
    var = torch.ones(shape)
    var.view(-1)[2] = -0.5
    with pytest.raises(ValueError) as error:
        L.gaussian_nll_loss(x, x, var)
    explained(error, "var", -0.5)
    with pytest.raises(ValueError) as error:
        L.gaussian_nll_loss(x, x, -0.5)
    explained(error, "var", -0.5)


@pytest.mark.device
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_on_cuda_an_element_outside_makes_its_results_nan(layout: str, dtype: torch.dtype) -> None:
    shape, place = (5, 7, 9, 11), (3, 1, 8, 4)
    inside = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    for value in (1.5, -0.25, INF, -INF):
        input = LAYOUTS[layout](spoil(inside, place, value))
        each = L.binary_cross_entropy(input, inside, reduction="none")
        assert each.isnan().nonzero().tolist() == [list(place)]
        assert L.binary_cross_entropy(input, inside).isnan()
        for reduction in ("none", "sum"):
            leaf = input.detach().requires_grad_()
            L.binary_cross_entropy(leaf, inside, reduction=reduction).sum().backward()
            assert leaf.grad is not None
            assert leaf.grad.isnan().nonzero().tolist() == [list(place)]


@pytest.mark.device
def test_on_cuda_a_target_that_is_no_label_makes_the_loss_nan() -> None:
    for _, call, _, value, input, target in ELEMENTS:
        assert call(input, target).isfinite()
        assert call(input, spoil(target, (2,), value)).isnan()


@pytest.mark.device
@pytest.mark.parametrize("value", [1.2, 0.0, 1.0, -0.5])
def test_on_cuda_a_quantile_outside_of_0_and_1_spoils_its_own_column(value: float) -> None:
    q = torch.tensor([0.1, value, 0.9])
    each = L.quantile_loss(torch.zeros(4, 3), torch.ones(4), q=q, reduction="none")
    assert each.isnan().tolist() == [[False, True, False]] * 4


@pytest.mark.parametrize("loss", EACH)
def test_nan_is_no_error(loss: Loss) -> None:
    """It is a value of the data, and the result says so; a label is one of two."""
    for k, name in enumerate(loss.samplers):
        if loss.name in ("hinge_loss", "squared_hinge_loss") and name == "target":
            continue
        operands, keywords = float_call(loss)
        operands[k][1, 2] = NAN
        if name in loss.differentiable:
            assert loss(*operands, **keywords, reduction="sum").isnan()
        else:
            loss(*operands, **keywords, reduction="sum")


@refused_on_the_host
def test_a_tensor_that_is_refused_leaves_no_trace() -> None:
    """Neither a gradient nor a changed operand, and the next call works."""
    input = torch.tensor([0.5, 1.5], requires_grad=True)
    with pytest.raises(ValueError):
        L.binary_cross_entropy(input, torch.zeros(2))
    assert input.grad is None and input.tolist() == [0.5, 1.5] and input._version == 0
    assert L.binary_cross_entropy(input[:1], torch.zeros(1)).isfinite()


@pytest.mark.parametrize("loss", EACH_NAME)
def test_parameters_and_shapes_are_checked_before_elements(loss: Loss) -> None:
    """Reading all elements first would make a large wrong call slow; on meta tensors there are none to read."""
    operands = [torch.empty(3, 4, device="meta") for _ in loss.samplers]
    with pytest.raises(ValueError, match="weight"):
        loss(*operands, weight=torch.empty(5, device="meta"))
    for parameter in DESCRIPTIONS[loss.name]["parameters"]:
        for value in OUTSIDE[parameter["domain"]]:
            with pytest.raises(ValueError, match=parameter["name"]):
                loss.function(*operands, **{parameter["name"]: value})


# ---- devices ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", EACH_NAME)
def test_tensors_on_two_devices(loss: Loss) -> None:
    for k, name in list(enumerate(loss.samplers))[1:]:
        operands, keywords = float_call(loss)
        operands[k] = operands[k].to("meta")
        with pytest.raises(ValueError) as error:
            loss(*operands, **keywords)
        explained(error, name)
        assert "meta" in str(error.value) and "cpu" in str(error.value)
    operands, keywords = float_call(loss)
    with pytest.raises(ValueError) as error:
        loss(*operands, **keywords, weight=torch.ones(3, 4, device="meta"))
    explained(error, "weight")


# ---- warnings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", EACH_NAME)
def test_a_target_of_another_shape_warns_where_torch_does_so(loss: Loss) -> None:
    about = DESCRIPTIONS[loss.name]
    if about["shapes"] == "same":
        pytest.skip("refused")
    operands, _ = float_call(loss)
    operands[1:] = [operand[:1] for operand in operands[1:]]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        line = here() + 1
        loss.function(*operands, reduction="sum")
    if about["shapes"] != "broadcast_warn":
        assert not caught
        return
    assert [w.category for w in caught] == [UserWarning]
    message = str(caught[0].message)
    assert "target size ([1, 4])" in message and "input size ([3, 4])" in message
    assert (caught[0].filename, caught[0].lineno) == (__file__, line)


@pytest.mark.parametrize("loss", EACH)
def test_equal_shapes_do_not_warn(loss: Loss) -> None:
    operands, keywords = float_call(loss)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(*operands, **keywords, reduction="sum")


@pytest.mark.parametrize("shape", [(5, 3), (5,), (5, 1)], ids=str)
def test_a_target_that_all_quantiles_share_does_not_warn(shape: tuple[int, ...]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        L.quantile_loss(torch.zeros(5, 3), torch.zeros(shape), q=torch.tensor([0.1, 0.5, 0.9]))


def test_the_warning_of_a_module_names_the_line_that_called_the_module() -> None:
    loss = fusedloss.KLDivLoss()
    x = torch.zeros(2, 3)
    with pytest.warns(UserWarning, match="batchmean") as record:
        line = here() + 1
        loss(x, x)
    assert (record[0].filename, record[0].lineno) == (__file__, line)
    with pytest.warns(UserWarning, match="target size") as record:
        line = here() + 1
        fusedloss.MSELoss()(x, x[:1])
    assert (record[0].filename, record[0].lineno) == (__file__, line)


def test_kl_div_warns_of_mean_alone() -> None:
    x = torch.zeros(2, 3)
    with pytest.warns(UserWarning, match="kl_div with reduction='mean'") as record:
        L.kl_div(x, x)
    assert record[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for reduction in ("none", "sum", "batchmean"):
            L.kl_div(x, x, reduction=reduction)


@pytest.mark.filterwarnings("error:Using a target size")
def test_a_warning_made_an_error_is_raised() -> None:
    with pytest.raises(UserWarning, match="target size"):
        L.mse_loss(torch.zeros(2, 1), torch.zeros(2))


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize(
    "call",
    [
        lambda w: L.mse_loss(torch.ones(3), torch.ones(4), weight=w),
        lambda w: L.mse_loss(torch.ones(3), torch.ones(3) * 1j, weight=w),
        lambda w: L.margin_ranking_loss(torch.ones(3), torch.ones(3), torch.ones(1, 3), weight=w),
        lambda w: torch.ops.fusedloss.margin_ranking_loss(torch.ones(3), torch.ones(3), None, w, [0.0], 1),
        lambda w: torch.ops.fusedloss.huber_loss(torch.ones(3), torch.ones(3), None, w, [-1.0], 1),
    ],
    ids=["shapes", "complex", "rank", "missing operand", "parameter"],
)
def test_a_weight_that_requires_grad_changes_no_message(call: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises((ValueError, TypeError)) as plain:
        call(torch.ones(3))
    with pytest.raises((ValueError, TypeError)) as active:
        call(torch.ones(3, requires_grad=True))
    assert (active.type, str(active.value)) == (plain.type, str(plain.value))
