"""CTC inside of everything else that torch offers: dispatcher, compiler, autocast, autograd's graph, threads, modules.
Function transforms are in test_lattice_transforms.py."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

import fusedloss
import fusedloss.functional as L
from fusedloss.testing.lattice_cases import SHAPE, batch_first, classes_first
from fusedloss.testing.lattice_catalogue import LATTICE_LOSSES, PADDING, LatticeLoss, padded, random_labels
from op_recorder import Recorder, assert_same_bits

pytestmark = [
    # torch's own compiler and forward mode.
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*:FutureWarning"),
]

EACH_LOSS = pytest.mark.parametrize("loss", [pytest.param(loss, id=loss.id) for loss in LATTICE_LOSSES])
LOG_PROBS, LOGITS = LATTICE_LOSSES[0], LATTICE_LOSSES[2]
BOTH = pytest.mark.parametrize("loss", [pytest.param(LOG_PROBS, id="log_probs"), pytest.param(LOGITS, id="logits")])
REDUCED = pytest.mark.parametrize("reduction", ["none", "mean", "sum"])


def step(loss: LatticeLoss, given: dict[str, Tensor], reduction: str) -> list[Tensor]:
    """The value and the gradient of its sum."""
    x, *rest = given.values()
    leaf = x.detach().requires_grad_()
    result = loss(leaf, *rest, reduction=reduction)
    return [result.detach(), torch.autograd.grad(result.sum(), leaf)[0]]


# ---- the ops as torch.library sees them ------------------------------------------------------------------------------


def ops_called(loss: LatticeLoss, given: dict[str, Tensor], reduction: str) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """Every op that a loss comes to, by its name, with the arguments that it was called with."""
    x, *rest = given.values()
    with Recorder() as recorder:
        loss(x, *rest, reduction=reduction)
        leaf = x.clone().requires_grad_()
        result = loss(leaf, *rest, reduction=reduction)
        (gradient,) = torch.autograd.grad(result.sum(), leaf, create_graph=True)
        torch.autograd.grad(gradient.sum(), leaf)
        with torch.autograd.forward_ad.dual_level():
            loss(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)), *rest, reduction=reduction)
    return {func.name(): (func, args) for func, args in recorder.calls}


# Which of the tensors among the arguments of an op it has a derivative by, counted from the first.
FREE: dict[str, tuple[int, ...]] = {
    "ctc_loss": (0,),
    "ctc_loss_value_and_gradient": (),
    "ctc_loss_backward": (0, 2),
    "ctc_loss_jvp": (0, 1),
    "ctc_loss_hvp": (),
}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch hides that one by other means
@pytest.mark.parametrize("shape", [(5, 3, 4), (5, 4)], ids=["batch", "one"])
@EACH_LOSS
def test_opcheck(loss: LatticeLoss, shape: tuple[int, ...]) -> None:
    """Of all five ops, with the arguments that the function gives them."""
    calls = ops_called(loss, loss.given(shape), "none") | ops_called(loss, loss.given(shape), "mean")
    assert {name.partition("::")[2] for name in calls} == set(FREE)
    for name, (func, args) in calls.items():
        free = FREE[name.partition("::")[2]]
        leaves = tuple(x.detach().clone().requires_grad_(k in free) if isinstance(x, Tensor) and x.is_floating_point()
                       else x for k, x in enumerate(args))  # fmt: skip
        results = torch.library.opcheck(func, leaves)
        assert set(results.values()) == {"SUCCESS"}, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@EACH_LOSS
def test_fake_and_meta_tensors_have_the_layout_of_real_ones(loss: LatticeLoss, dtype: torch.dtype) -> None:
    def layouts(given: dict[str, Tensor], reduction: str) -> list[tuple[Any, ...]]:
        return [(t.shape, t.dtype, t.stride()) for t in step(loss, given, reduction)]

    for shape, layout in (((9, 4), torch.clone), (SHAPE, torch.clone), (SHAPE, batch_first), (SHAPE, classes_first)):
        given = loss.given(shape, dtype)
        given["log_probs"] = layout(given["log_probs"])
        for reduction in loss.reductions:
            real = layouts(given, reduction)
            assert layouts({k: x.to("meta") for k, x in given.items()}, reduction) == real
            with FakeTensorMode() as mode:
                assert layouts({k: mode.from_tensor(x) for k, x in given.items()}, reduction) == real


# ---- torch.compile and torch.export ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("clean_dynamo")
@EACH_LOSS
def test_compiles_as_one_graph(loss: LatticeLoss) -> None:
    given = loss.given((9, 4, 5), torch.float32)
    x, *rest = given.values()

    def total(x: Tensor, *rest: Tensor) -> Tensor:
        parts = [loss(x, *rest, reduction=r).sum() for r in loss.reductions]
        return torch.stack(parts) @ torch.arange(1.0, len(parts) + 1)

    compiled = torch.compile(total, backend="aot_eager", fullgraph=True)
    one, other = (x.clone().requires_grad_() for _ in range(2))
    result, expected = compiled(one, *rest), total(other, *rest)
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(*(torch.autograd.grad(r, y)[0] for r, y in ((result, one), (expected, other))))


@pytest.mark.usefixtures("clean_dynamo")
def test_compiles_with_lengths_of_every_kind() -> None:
    """Numbers among the arguments are constants of the graph."""
    x, targets, frames, lengths = LOGITS.given((9, 2, 5), torch.float32).values()
    numbers = frames.tolist(), lengths.tolist()
    expected = L.ctc_loss(x, targets, frames, lengths, from_logits=True)
    for kind in (tuple, list):

        def call(x: Tensor, targets: Tensor, kind: Any = kind) -> Tensor:
            return L.ctc_loss(x, targets, kind(numbers[0]), kind(numbers[1]), from_logits=True)

        torch.testing.assert_close(torch.compile(call, backend="aot_eager", fullgraph=True)(x, targets), expected)

    def alone(x: Tensor, targets: Tensor) -> Tensor:
        return L.ctc_loss(x, targets, numbers[0][0], numbers[1][0], from_logits=True)

    compiled = torch.compile(alone, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x[:, 0], targets[0]), alone(x[:, 0], targets[0]))


@pytest.mark.usefixtures("clean_dynamo")
def test_compiles_by_inductor_between_other_ops() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 5))
    _, targets, frames, lengths = LOGITS.given((9, 4, 5)).values()
    x = torch.randn(4, 9, 3)

    def objective(x: Tensor) -> Tensor:
        logits = model(x).transpose(0, 1) * 2
        return L.ctc_loss(logits, targets, frames, lengths, from_logits=True) + 1

    expected = objective(x)
    slopes = torch.autograd.grad(expected, list(model.parameters()))
    result = torch.compile(objective, fullgraph=True)(x)
    torch.testing.assert_close(result, expected)
    for a, b in zip(torch.autograd.grad(result, list(model.parameters())), slopes, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("clean_dynamo")
def test_one_graph_serves_all_sizes() -> None:
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda *given: L.ctc_loss(*given), backend=counter, fullgraph=True, dynamic=True)
    counts = []
    for shape in ((9, 4, 5), (7, 3, 6), (20, 9, 3), (30, 12, 40)):
        x, *rest = LOG_PROBS.given(shape, torch.float32).values()
        one, other = (x.clone().requires_grad_() for _ in range(2))
        result, expected = compiled(one, *rest), L.ctc_loss(other, *rest)  # type: ignore[arg-type]
        torch.testing.assert_close(result, expected)
        torch.testing.assert_close(*(torch.autograd.grad(r, y)[0] for r, y in ((result, one), (expected, other))))
        counts.append(counter.frame_count)  # dynamo takes default numbers for variables at first, and starts again
    assert set(counts) == {counts[0]}


@pytest.mark.usefixtures("clean_dynamo")
def test_an_exported_program_runs() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 5)
            self.criterion = fusedloss.CTCLoss(from_logits=True)

        def forward(self, x: Tensor, targets: Tensor, frames: Tensor, lengths: Tensor) -> Tensor:
            result: Tensor = self.criterion(self.layer(x), targets, frames, lengths)
            return result

    def example(shape: tuple[int, ...]) -> tuple[Tensor, ...]:
        x, *rest = LOGITS.given(shape, torch.float32).values()
        return x[..., :3].contiguous(), *rest

    model = Model()
    frames, samples, columns = (torch.export.Dim(name, min=2) for name in ("frames", "samples", "columns"))
    shapes = {0: frames, 1: samples}, {0: samples, 1: columns}, {0: samples}, {0: samples}
    program = torch.export.export(model, example((9, 4, 5)), dynamic_shapes=shapes)
    assert any("fusedloss" in str(node.target) for node in program.graph.nodes)
    other = example((12, 7, 5))
    torch.testing.assert_close(program.module()(*other), model(*other))


# ---- autocast --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@EACH_LOSS
def test_autocast_widens_the_result_and_copies_nothing(loss: LatticeLoss, dtype: torch.dtype) -> None:
    given = loss.given((16, 8, 32), dtype)
    wide = given | {"log_probs": given["log_probs"].float()}
    x, *rest = given.values()
    for reduction in loss.reductions:
        leaf = x.clone().requires_grad_()
        with (
            torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile,
            torch.autocast("cpu", dtype),
        ):
            result = loss(leaf, *rest, reduction=reduction)
        assert result.dtype == torch.float32
        copies = [e.name for e in profile.events() if e.name == "aten::_to_copy" and list(x.shape) in e.input_shapes]
        assert not copies
        value, of_wide = step(loss, wide, reduction)
        torch.testing.assert_close(result.detach(), value, rtol=1e-6, atol=0)
        (gradient,) = torch.autograd.grad(result.sum(), leaf)
        assert gradient.dtype == dtype
        torch.testing.assert_close(gradient, of_wide.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-7)


# ---- autograd's graph ------------------------------------------------------------------------------------------------


@REDUCED
@EACH_LOSS
def test_a_tensor_changed_before_backward_is_noticed(loss: LatticeLoss, reduction: str) -> None:
    for name in loss.samplers:
        given = loss.given((9, 4, 5))
        leaf = torch.ones((), dtype=torch.float64, requires_grad=True)
        tensors = given | {"log_probs": given["log_probs"] * leaf}
        result = loss(*tensors.values(), reduction=reduction).sum()
        tensors[name].detach().add_(0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            result.backward()


@EACH_LOSS
def test_inference_mode_and_no_grad_record_nothing(loss: LatticeLoss) -> None:
    x, *rest = loss.given(SHAPE).values()
    leaf = x.requires_grad_()
    expected = loss(leaf, *rest, reduction="sum")
    assert expected.grad_fn is not None
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            result = loss(leaf, *rest, reduction="sum")
        assert not result.requires_grad and result.grad_fn is None
        torch.testing.assert_close(result, expected)
    assert result.is_inference()


@pytest.mark.parametrize("use_reentrant", [False, True])
@EACH_LOSS
def test_checkpoints(loss: LatticeLoss, use_reentrant: bool) -> None:
    given = loss.given(SHAPE)
    x, *rest = given.values()
    leaf = x.clone().requires_grad_()
    checkpoint(partial(loss, reduction="sum"), leaf, *rest, use_reentrant=use_reentrant).backward()
    assert leaf.grad is not None
    assert_same_bits([leaf.grad], step(loss, given, "sum")[1:])


def test_the_node_says_whose_it_is() -> None:
    x, *rest = LOG_PROBS.given(SHAPE).values()
    leaf = x.requires_grad_()
    result = L.ctc_loss(leaf, *rest)
    assert result.grad_fn.name() == "ctc_loss_backward"  # type: ignore[union-attr]
    (gradient,) = torch.autograd.grad(result, leaf, create_graph=True)
    assert "ctc_loss_double_backward" in str(gradient.grad_fn.name())  # type: ignore[union-attr]


# ---- the same bits ---------------------------------------------------------------------------------------------------


def all_derivatives(loss: LatticeLoss, given: dict[str, Tensor], reduction: str) -> list[Tensor]:
    """Value, gradient, second derivative, and the value without a gradient."""
    x, *rest = given.values()
    leaf = x.detach().requires_grad_()
    result = loss(leaf, *rest, reduction=reduction)
    (gradient,) = torch.autograd.grad(result.sum(), leaf, create_graph=True)
    (second,) = torch.autograd.grad(gradient, leaf, loss.directions(given)["log_probs"])
    return [*step(loss, given, reduction), gradient.detach(), second, loss(x, *rest, reduction=reduction)]


@pytest.mark.host  # threads of the CPU
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
@BOTH
def test_the_number_of_threads_changes_no_bit(loss: LatticeLoss, dtype: torch.dtype) -> None:
    """Of many short sequences and of few long ones, in dense memory and batch first, and again on the same threads."""
    before = torch.get_num_threads()
    try:
        for shape in [(24, 40, 30), (90, 3, 200), (70, 1, 400)]:  # worth three threads
            given = loss.given(shape, dtype, seed=29)
            crosswise = given | {"log_probs": batch_first(given["log_probs"])}
            for operands, reduction in [(given, "none"), (given, "mean"), (crosswise, "sum")]:
                results = []
                for count in (1, 2, 3, 2):
                    torch.set_num_threads(count)
                    results.append(all_derivatives(loss, operands, reduction))
                for other in results[1:]:
                    assert_same_bits(results[0], other)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@EACH_LOSS
def test_a_sample_does_not_see_its_place(loss: LatticeLoss, dtype: torch.dtype) -> None:
    """A permutation of the samples permutes values and gradients to the bit; so does leaving some out."""
    shape = (17, 23, 6)
    given = loss.given(shape, dtype, seed=31)
    frames, lengths = given["input_lengths"], given["target_lengths"]
    targets = given["targets"]
    if targets.dim() == 2:
        rows = [row[:n] for row, n in zip(targets, lengths.tolist(), strict=True)]
    else:
        rows = list(torch.split(targets, lengths.tolist()))
    value, gradient = step(loss, given, "none")
    generator = torch.Generator().manual_seed(0)
    for order in (
        torch.randperm(23, generator=generator),
        torch.randperm(23, generator=generator)[:9],
        torch.tensor([5]),
    ):
        moved = loss.of(given["log_probs"][:, order], [rows[n] for n in order], frames[order])
        assert_same_bits(step(loss, moved, "none"), [value[order], gradient[:, order]])
    for n in (0, 4, 22):  # and without a batch
        alone = loss.of(given["log_probs"][:, n], [rows[n]], frames[n : n + 1])
        assert_same_bits(step(loss, alone, "none"), [value[n], gradient[:, n]])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@BOTH
def test_padding_changes_no_bit(loss: LatticeLoss, dtype: torch.dtype) -> None:
    """More frames that do not count and more columns of targets, for all samples, or because another one needs them."""
    given = loss.given((11, 5, 6), dtype, seed=7)
    x, targets, frames, lengths = given.values()
    known = all_derivatives(loss, given, "none")
    rows = [row[:n] for row, n in zip(targets, lengths.tolist(), strict=True)]
    more = torch.cat([x, torch.full((30, 5, 6), float("nan"), dtype=dtype)])
    longer = random_labels(20, 6, 0, torch.Generator().manual_seed(1))
    wide = torch.cat([targets, torch.full((5, 40), PADDING)], dim=1)
    for other in (given | {"log_probs": more}, given | {"targets": wide}, given | {"targets": torch.cat(rows)}):
        found = all_derivatives_of_first(loss, other, 5, 11, x)
        assert_same_bits(found, known)
    # A sixth sample that is longer than all others.
    tail = loss.samplers["log_probs"]((41, 1, 6), torch.Generator().manual_seed(2)).to(dtype)
    together = {
        "log_probs": torch.cat([more, tail], dim=1),
        "targets": padded([*rows, longer], True),
        "input_lengths": torch.cat([frames, torch.tensor([41])]),
        "target_lengths": torch.cat([lengths, torch.tensor([20])]),
    }
    assert_same_bits(all_derivatives_of_first(loss, together, 5, 11, x), known)


def all_derivatives_of_first(
    loss: LatticeLoss, given: dict[str, Tensor], samples: int, frames: int, x: Tensor
) -> list[Tensor]:
    """As `all_derivatives`, of the first samples and frames alone, along the direction for these."""
    y, *rest = given.values()
    direction = torch.zeros_like(y)
    direction[:frames, :samples] = loss.directions({"log_probs": x})["log_probs"]
    leaf = y.detach().requires_grad_()
    result = loss(leaf, *rest, reduction="none")
    (gradient,) = torch.autograd.grad(result.sum(), leaf, create_graph=True)
    (second,) = torch.autograd.grad(gradient, leaf, direction)
    value, slope = step(loss, given, "none")
    for found in (slope, gradient, second):
        assert not found[frames:, :samples].any()
    first = (found[:frames, :samples] for found in (slope, gradient.detach(), second))
    return [value[:samples], *first, loss(y, *rest, reduction="none")[:samples]]


def test_threads_share_nothing() -> None:
    """Eight threads at once, each with losses of its own."""
    works: list[Callable[[], list[Tensor]]] = []
    for loss in LATTICE_LOSSES:
        works += [
            partial(all_derivatives, loss, loss.given((20, 9, 7), torch.float32, seed=n), "mean") for n in range(8)
        ]
    expected = [work() for work in works]
    with ThreadPoolExecutor(8) as pool:
        for found, known in zip(pool.map(lambda work: work(), works), expected, strict=True):
            assert_same_bits(found, known)


# ---- the module ------------------------------------------------------------------------------------------------------


def test_the_module_is_its_function() -> None:
    """And so are its copies, whose repr shows all settings; in torch's order of arguments."""
    x, *rest = LATTICE_LOSSES[3].given(SHAPE).values()
    module = fusedloss.CTCLoss(1, "sum", True, True)
    assert repr(module) == "CTCLoss(blank=1, reduction='sum', zero_infinity=True, from_logits=True)"
    expected = L.ctc_loss(x, *rest, blank=1, reduction="sum", zero_infinity=True, from_logits=True)
    for twin in (
        module,
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        eval(repr(module), vars(fusedloss)),
    ):
        assert repr(twin) == repr(module)
        assert torch.equal(twin(x, *rest), expected)
    assert list(module.parameters()) == list(module.state_dict()) == []


def test_the_module_has_torchs_defaults() -> None:
    x, *rest = LOG_PROBS.given(SHAPE).values()
    torch.testing.assert_close(fusedloss.CTCLoss()(x, *rest), nn.CTCLoss()(x, *rest), rtol=1e-13, atol=0)
