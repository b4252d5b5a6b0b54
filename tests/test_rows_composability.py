"""The losses over rows inside of everything else that torch offers: the dispatcher, the compiler, autocast, autograd's
graph and threads. Function transforms are in test_rows_transforms.py."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

import fusedloss
import fusedloss.functional as L
from fusedloss.testing.cases import transposed
from fusedloss.testing.row_catalogue import ROW_LOSSES, RowLoss
from op_recorder import Recorder, assert_same_bits

pytestmark = [
    # torch's own compiler and forward mode.
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*:FutureWarning"),
]

EACH = [pytest.param(loss, id=loss.id) for loss in ROW_LOSSES]
EACH_LOSS = pytest.mark.parametrize("loss", EACH)
FIRST_BY_NAME = {loss.name: loss for loss in reversed(ROW_LOSSES)}
EACH_NAME = pytest.mark.parametrize("loss", [pytest.param(loss, id=name) for name, loss in FIRST_BY_NAME.items()])
# One of every op and kind of target, with a weight wherever there is one.
KINDS = {
    (loss.name, loss.parameters.get("from_logits"), *loss.samplers.values()): loss
    for loss in sorted(ROW_LOSSES, key=lambda loss: len(loss.keyword_operands))
}
EACH_KIND = pytest.mark.parametrize("loss", [pytest.param(loss, id=loss.id) for loss in KINDS.values()])
REDUCED = pytest.mark.parametrize("reduction", ["none", "mean", "sum"])


def leaves_of(loss: RowLoss, given: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: x.detach().clone().requires_grad_(k in loss.differentiable) for k, x in given.items()}


def call(loss: RowLoss, given: dict[str, Tensor], reduction: str) -> Tensor:
    operands, keywords = loss.split(given)
    return loss(*operands, **keywords, reduction=reduction)


def step(loss: RowLoss, given: dict[str, Tensor], reduction: str) -> list[Tensor]:
    """The value and the gradients of its sum."""
    leaves = leaves_of(loss, given)
    result = call(loss, leaves, reduction)
    return [result.detach(), *torch.autograd.grad(result.sum(), [leaves[k] for k in loss.differentiable])]


# ---- the ops as torch.library sees them -----------------------------------------------------------------------------


def ops_called(loss: RowLoss, reduction: str) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """Every op that a loss comes to, by its name, with the arguments that it was called with."""
    given = loss.given((3, 4))
    first = next(iter(given))
    with Recorder() as recorder:
        call(loss, given, reduction)
        leaves = leaves_of(loss, given)
        result = call(loss, leaves, reduction)
        (gradient,) = torch.autograd.grad(result.sum(), leaves[first], create_graph=True)
        if gradient.requires_grad:
            torch.autograd.grad(gradient.sum(), leaves[first], allow_unused=True)
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(given[first], torch.ones_like(given[first]))
            call(loss, given | {first: dual}, reduction)
    return {func.name(): (func, args) for func, args in recorder.calls}


# Where the arguments stand by which an op has a derivative: operands, tangents and the incoming gradient; of the value
# the weight of classes too.
AT: dict[str, tuple[int, ...]] = {"_backward": (0, 2, 3), "_jvp": (0, 1, 2, 3), "_value_and_gradient": (), "_hvp": ()}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch hides that one by other means
@pytest.mark.parametrize("reduction", ["none", "mean"])
@EACH_KIND
def test_opcheck(loss: RowLoss, reduction: str) -> None:
    """Of the value, gradient, jvp and second-derivative ops, with the arguments that the functions give them."""
    calls = ops_called(loss, reduction)
    suffixes = {"_backward", "_jvp", "_hvp"} if reduction == "none" else {"_value_and_gradient"}
    for suffix in suffixes:
        assert any(name.endswith(suffix) for name in calls), f"{suffix} is not in {list(calls)}"
    for name, (func, args) in calls.items():
        if reduction == "mean" and name.endswith(("_backward", "_jvp", "_hvp")):
            continue  # the same op as that of 'none'
        suffix = next((x for x in AT if name.endswith(x)), "")
        leaves = [
            x.detach().clone().requires_grad_(k in AT.get(suffix, (0, 1, 2)) and x.is_floating_point())
            if isinstance(x, Tensor)
            else x
            for k, x in enumerate(args)
        ]
        results = torch.library.opcheck(func, tuple(leaves))
        assert set(results.values()) == {"SUCCESS"}, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@EACH_LOSS
def test_fake_and_meta_tensors_have_the_layout_of_real_ones(loss: RowLoss, dtype: torch.dtype) -> None:
    def layouts(given: dict[str, Tensor], reduction: str) -> list[tuple[Any, ...]]:
        return [(t.shape, t.dtype, t.stride()) for t in step(loss, given, reduction)]

    shape = (2, 3, 4, 5) if loss.most_axes > 2 else (6, 5)
    given = loss.given(shape, dtype)
    given = {k: x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x for k, x in given.items()}
    for reduction in loss.reductions:
        real = layouts(given, reduction)
        assert layouts({k: x.to("meta") for k, x in given.items()}, reduction) == real
        with FakeTensorMode() as mode:
            assert layouts({k: mode.from_tensor(x) for k, x in given.items()}, reduction) == real


# ---- torch.compile and torch.export ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("clean_dynamo")
@EACH_KIND
def test_compiles_as_one_graph(loss: RowLoss) -> None:
    given = loss.given((5, 4), torch.float32)
    keys = list(given)

    def total(*tensors: Tensor) -> Tensor:
        parts = [call(loss, dict(zip(keys, tensors, strict=True)), r).sum() for r in loss.reductions]
        return torch.stack(parts) @ torch.arange(1.0, len(parts) + 1)

    compiled = torch.compile(total, backend="aot_eager", fullgraph=True)
    one, other = leaves_of(loss, given), leaves_of(loss, given)
    result, expected = compiled(*one.values()), total(*other.values())
    torch.testing.assert_close(result, expected)
    for name in loss.differentiable:
        a, b = (torch.autograd.grad(r, x[name], retain_graph=True)[0] for r, x in ((result, one), (expected, other)))
        torch.testing.assert_close(a, b)


@pytest.mark.usefixtures("clean_dynamo")
def test_compiles_by_inductor_between_other_ops() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4))
    x, y, w = torch.randn(16, 3), torch.randint(0, 4, (16,)), torch.rand(4)

    def objective(x: Tensor, y: Tensor) -> Tensor:
        return L.cross_entropy(model(x) * 2, y, w, label_smoothing=0.1) + 1

    expected = objective(x, y)
    slopes = torch.autograd.grad(expected, list(model.parameters()))
    result = torch.compile(objective, fullgraph=True)(x, y)
    torch.testing.assert_close(result, expected)
    for a, b in zip(torch.autograd.grad(result, list(model.parameters())), slopes, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.usefixtures("clean_dynamo")
def test_one_graph_serves_all_sizes() -> None:
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda x, y: L.cross_entropy(x, y), backend=counter, fullgraph=True, dynamic=True)
    counts = []
    for rows, classes in ((5, 7), (3, 9), (11, 2), (64, 64)):
        x, y = torch.randn(rows, classes, requires_grad=True), torch.randint(0, classes, (rows,))
        result, expected = compiled(x, y), L.cross_entropy(x, y)
        torch.testing.assert_close(result, expected)
        torch.testing.assert_close(*(torch.autograd.grad(r, x)[0] for r in (result, expected)))
        counts.append(counter.frame_count)  # dynamo takes default floats for variables at first, and starts again
    assert set(counts) == {counts[0]}


@pytest.mark.usefixtures("clean_dynamo")
def test_an_exported_program_runs() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 4)
            self.criterion = fusedloss.CrossEntropyLoss(label_smoothing=0.1)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            result: Tensor = self.criterion(self.layer(x), y)
            return result

    model = Model()
    rows = torch.export.Dim("rows", min=2)
    example = torch.randn(5, 3), torch.randint(0, 4, (5,))
    program = torch.export.export(model, example, dynamic_shapes=({0: rows}, {0: rows}))
    assert any("fusedloss" in str(node.target) for node in program.graph.nodes)
    x, y = torch.randn(9, 3), torch.randint(0, 4, (9,))
    torch.testing.assert_close(program.module()(x, y), model(x, y))


# ---- autocast -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@EACH_LOSS
def test_autocast_widens_the_result_and_copies_nothing(loss: RowLoss, dtype: torch.dtype) -> None:
    if "temperature" in loss.keyword_operands:
        pytest.skip("a tensor divides the logits in a pass of its own")
    shape = (64, 32)
    given = loss.given(shape, dtype)
    wide = {k: x.float() if x.is_floating_point() else x for k, x in given.items()}
    for reduction in loss.reductions:
        leaves = leaves_of(loss, given)
        with (
            torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile,
            torch.autocast("cpu", dtype),
        ):
            result = call(loss, leaves, reduction)
        assert result.dtype == torch.float32
        copies = [e.name for e in profile.events() if e.name == "aten::_to_copy" and list(shape) in e.input_shapes]
        assert not copies
        value, *gradients = step(loss, wide, reduction)
        torch.testing.assert_close(result, value, rtol=1e-6, atol=1e-7)
        of_half = torch.autograd.grad(result.sum(), [leaves[k] for k in loss.differentiable])
        for gradient, of_wide in zip(of_half, gradients, strict=True):
            assert gradient.dtype == dtype
            torch.testing.assert_close(gradient, of_wide.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-7)


# ---- autograd's graph -----------------------------------------------------------------------------------------------


@REDUCED
@EACH_NAME
def test_a_graph_that_is_kept_gives_the_same_gradient_every_time(loss: RowLoss, reduction: str) -> None:
    given = loss.given((5, 4))
    leaves = leaves_of(loss, given)
    first = leaves[next(iter(leaves))]
    result = call(loss, leaves, reduction).sum()
    expected = step(loss, given, reduction)[1]
    for _ in range(2):
        (gradient,) = torch.autograd.grad(result, first, retain_graph=True)
        torch.testing.assert_close(gradient, expected)
        gradient.mul_(1000)  # it belongs to the caller
    result.backward(retain_graph=True)
    result.backward()
    torch.testing.assert_close(first.grad, 2 * expected)
    with pytest.raises(RuntimeError, match="second time"):
        result.backward()


@REDUCED
@EACH_NAME
def test_a_tensor_changed_before_backward_is_noticed(loss: RowLoss, reduction: str) -> None:
    for name in loss.given((5, 4)):
        given = loss.given((5, 4))
        leaf = torch.ones((), dtype=torch.float64, requires_grad=True)
        first = next(iter(given))
        tensors = given | {first: given[first] * leaf}
        result = call(loss, tensors, reduction).sum()
        tensors[name].detach().add_(0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            result.backward()


@EACH_NAME
def test_inference_mode_and_no_grad_record_nothing(loss: RowLoss) -> None:
    leaves = leaves_of(loss, loss.given((5, 4)))
    expected = call(loss, leaves, "sum")
    assert expected.grad_fn is not None
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            result = call(loss, leaves, "sum")
        assert not result.requires_grad and result.grad_fn is None
        torch.testing.assert_close(result, expected)
    assert result.is_inference()


@pytest.mark.parametrize("use_reentrant", [False, True])
@EACH_NAME
def test_checkpoints(loss: RowLoss, use_reentrant: bool) -> None:
    given = loss.given((5, 4))
    keys, leaves = list(given), leaves_of(loss, given)

    def total(*tensors: Tensor) -> Tensor:
        return call(loss, dict(zip(keys, tensors, strict=True)), "sum")

    checkpoint(total, *leaves.values(), use_reentrant=use_reentrant).backward()
    assert_same_bits([leaves[k].grad for k in loss.differentiable], step(loss, given, "sum")[1:])  # type: ignore[misc]


def test_the_node_says_whose_it_is() -> None:
    x = torch.randn(3, 4, requires_grad=True)
    result = L.cross_entropy(x, torch.tensor([0, 1, 2]))
    assert result.grad_fn.name() == "cross_entropy_backward"  # type: ignore[union-attr]
    (gradient,) = torch.autograd.grad(result, x, create_graph=True)
    assert "cross_entropy_double_backward" in str(gradient.grad_fn.name())  # type: ignore[union-attr]


# ---- the same bits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@EACH_KIND
def test_the_number_of_threads_changes_no_bit(loss: RowLoss, dtype: torch.dtype) -> None:
    """Of rows in lanes and of long rows, in dense and in transposed memory, and again on the same threads."""
    before = torch.get_num_threads()
    try:
        for shape in [(3001, 5), (70, 700)]:
            given = loss.given(shape, dtype, seed=29)
            crosswise = {k: transposed(x) if x.dim() == 2 else x for k, x in given.items()}
            for operands, reduction in [(given, "none"), (given, "mean"), (crosswise, "sum")]:
                results = []
                for count in (1, 2, 3, 2):
                    torch.set_num_threads(count)
                    results.append(step(loss, operands, reduction))
                for other in results[1:]:
                    assert_same_bits(results[0], other)
    finally:
        torch.set_num_threads(before)


@pytest.mark.host  # on CUDA a row's sums begin where 16 bytes do
@pytest.mark.parametrize("shape", [(77, 5), (77, 70), (5, 3000)], ids=str)
@EACH_LOSS
def test_a_row_does_not_see_its_place(loss: RowLoss, shape: tuple[int, int]) -> None:
    """A permutation of the rows permutes values and gradients to the bit."""
    given = loss.given(shape, torch.float32, seed=31)
    order = torch.randperm(shape[0], generator=torch.Generator().manual_seed(0))
    # What belongs to rows, and not to classes or to all, has them as its first axis.
    moved = {k: x[order] if x.dim() == 2 or loss.sampler(k).__name__ in OF_ROWS else x for k, x in given.items()}
    values, *gradients = step(loss, given, "none")
    assert_same_bits(step(loss, moved, "none"), [values[order], *(g[order] for g in gradients)])
    total, total_moved = (call(loss, x, "sum") for x in (given, moved))
    bound = 8 * torch.finfo(torch.float32).eps * values.abs().sum()
    assert (total - total_moved).abs() <= bound


OF_ROWS = {"labels", "labels_or_none", "of_each_row", "or_zero"}


def test_threads_share_nothing() -> None:
    """Eight threads at once, each with losses of its own."""
    from concurrent.futures import ThreadPoolExecutor

    works: list[Callable[[], list[Tensor]]] = []
    for loss in KINDS.values():
        works += [partial(step, loss, loss.given((50, 37), torch.float32), "mean")] * 8
    expected = [work() for work in works]
    with ThreadPoolExecutor(8) as pool:
        for found, known in zip(pool.map(lambda work: work(), works), expected, strict=True):
            assert_same_bits(found, known)
