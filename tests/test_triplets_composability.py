"""Mined triplet losses inside of everything else that torch offers: dispatcher, compiler, autocast, autograd's graph,
threads, modules. Function transforms are in test_triplets_transforms.py."""

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
from fusedloss.testing.cases import transposed
from fusedloss.testing.triplet_cases import SHAPE
from fusedloss.testing.triplet_catalogue import TRIPLET_LOSSES, TripletLoss
from fusedloss.testing.triplet_oracle import RULES
from op_recorder import Recorder, assert_same_bits

pytestmark = [
    # torch's own compiler and forward mode.
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*:FutureWarning"),
]

EACH_LOSS = pytest.mark.parametrize("loss", [pytest.param(loss, id=loss.id) for loss in TRIPLET_LOSSES])
# Of each rule the plain one, and one with all settings.
FEW = [loss for loss in TRIPLET_LOSSES if len(loss.parameters) in (2, 4)]
FEW_LOSSES = pytest.mark.parametrize("loss", [pytest.param(loss, id=loss.id) for loss in FEW])
EACH_MINING = pytest.mark.parametrize("mining", list(RULES))


def step(loss: TripletLoss, given: dict[str, Tensor], reduction: str) -> list[Tensor]:
    """The value and the gradient of its sum."""
    leaf = given["embeddings"].detach().requires_grad_()
    result = loss(leaf, given["labels"], reduction=reduction)
    return [result.detach(), torch.autograd.grad(result.sum(), leaf)[0]]


# ---- the ops as torch.library sees them ------------------------------------------------------------------------------


def ops_called(loss: TripletLoss, given: dict[str, Tensor], reduction: str) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """Every op that a loss comes to, by its name, with the arguments that it was called with."""
    x, labels = given.values()
    with Recorder() as recorder:
        loss(x, labels, reduction=reduction)
        leaf = x.clone().requires_grad_()
        result = loss(leaf, labels, reduction=reduction)
        (gradient,) = torch.autograd.grad(result.sum(), leaf, create_graph=True)
        torch.autograd.grad(gradient.sum(), leaf)
        with torch.autograd.forward_ad.dual_level():
            loss(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)), labels, reduction=reduction)
    return {func.name(): (func, args) for func, args in recorder.calls}


# Which of the tensors among the arguments of an op it has a derivative by, counted from the first.
FREE: dict[str, tuple[int, ...]] = {
    "triplet_mining_loss": (0,),
    "triplet_mining_loss_value_and_gradient": (),
    "triplet_mining_loss_backward": (0, 2),
    "triplet_mining_loss_jvp": (0, 1),
    "triplet_mining_loss_hvp": (),
}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch hides that one by other means
@pytest.mark.parametrize("loss", [pytest.param(loss, id=loss.id) for loss in (FEW[0], FEW[-1])])
def test_opcheck(loss: TripletLoss) -> None:
    """Of all five ops, with the arguments that the function gives them."""
    given = loss.given((7, 3))
    calls = ops_called(loss, given, "none") | ops_called(loss, given, "mean_nonzero")
    assert {name.partition("::")[2] for name in calls} == set(FREE)
    for name, (func, args) in calls.items():
        free = FREE[name.partition("::")[2]]
        leaves = tuple(x.detach().clone().requires_grad_(k in free) if isinstance(x, Tensor) and x.is_floating_point()
                       else x for k, x in enumerate(args))  # fmt: skip
        results = torch.library.opcheck(func, leaves)
        assert set(results.values()) == {"SUCCESS"}, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@FEW_LOSSES
def test_fake_and_meta_tensors_have_the_layout_of_real_ones(loss: TripletLoss, dtype: torch.dtype) -> None:
    def layouts(given: dict[str, Tensor], reduction: str) -> list[tuple[Any, ...]]:
        return [(t.shape, t.dtype, t.stride()) for t in step(loss, given, reduction)]

    for layout in (torch.clone, transposed):
        given = loss.given(SHAPE, dtype)
        given["embeddings"] = layout(given["embeddings"])
        for reduction in loss.reductions:
            real = layouts(given, reduction)
            assert layouts({k: x.to("meta") for k, x in given.items()}, reduction) == real
            with FakeTensorMode() as mode:
                assert layouts({k: mode.from_tensor(x) for k, x in given.items()}, reduction) == real


# ---- torch.compile and torch.export ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("clean_dynamo")
@pytest.mark.parametrize("loss", [pytest.param(loss, id=loss.id) for loss in FEW[1:4]])
def test_compiles_as_one_graph(loss: TripletLoss) -> None:
    x, labels = loss.given(SHAPE, torch.float32).values()

    def total(x: Tensor, labels: Tensor) -> Tensor:
        parts = [loss(x, labels, reduction=r).sum() for r in loss.reductions]
        return torch.stack(parts) @ torch.arange(1.0, len(parts) + 1)

    compiled = torch.compile(total, backend="aot_eager", fullgraph=True)
    one, other = (x.clone().requires_grad_() for _ in range(2))
    result, expected = compiled(one, labels), total(other, labels)
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(*(torch.autograd.grad(r, y)[0] for r, y in ((result, one), (expected, other))))


@pytest.mark.usefixtures("clean_dynamo")
def test_compiles_by_inductor_between_other_ops() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 5))
    x, labels = torch.randn(16, 3), torch.arange(16) % 4

    def objective(x: Tensor) -> Tensor:
        return L.triplet_mining_loss(model(x) * 2, labels, 0.7, "all", normalize=True) + 1

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
    compiled = torch.compile(
        lambda *given: L.triplet_mining_loss(*given), backend=counter, fullgraph=True, dynamic=True
    )
    loss, counts = TRIPLET_LOSSES[0], []
    for shape in ((9, 4), (7, 3), (20, 9), (30, 40)):
        x, labels = loss.given(shape, torch.float32).values()
        one, other = (x.clone().requires_grad_() for _ in range(2))
        result, expected = compiled(one, labels), L.triplet_mining_loss(other, labels)
        torch.testing.assert_close(result, expected)
        torch.testing.assert_close(*(torch.autograd.grad(r, y)[0] for r, y in ((result, one), (expected, other))))
        counts.append(counter.frame_count)
    assert set(counts) == {counts[0]}


@pytest.mark.usefixtures("clean_dynamo")
def test_a_compiled_call_refuses_what_the_function_refuses() -> None:
    x, labels = torch.randn(4, 3), torch.arange(4) % 2
    for keywords in ({"mining": "hardest"}, {"reduction": "batchmean"}, {"margin": -1.0}):
        compiled = torch.compile(partial(L.triplet_mining_loss, **keywords), backend="aot_eager")  # type: ignore[arg-type]
        with pytest.raises(Exception, match=next(iter(keywords))):
            compiled(x, labels)


@pytest.mark.usefixtures("clean_dynamo")
def test_an_exported_program_runs() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 5)
            self.criterion = fusedloss.TripletMiningLoss(mining="semi_hard", normalize=True)

        def forward(self, x: Tensor, labels: Tensor) -> Tensor:
            result: Tensor = self.criterion(self.layer(x), labels)
            return result

    model, count = Model(), torch.export.Dim("count", min=2)
    example = torch.randn(9, 3), torch.arange(9) % 3
    program = torch.export.export(model, example, dynamic_shapes=({0: count}, {0: count}))
    assert any("fusedloss" in str(node.target) for node in program.graph.nodes)
    other = torch.randn(14, 3), torch.arange(14) % 4
    torch.testing.assert_close(program.module()(*other), model(*other))


# ---- autocast --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@FEW_LOSSES
def test_autocast_widens_the_result_and_copies_nothing(loss: TripletLoss, dtype: torch.dtype) -> None:
    given = loss.given((17, 32), dtype)
    wide = given | {"embeddings": given["embeddings"].float()}
    x, labels = given.values()
    for reduction in loss.reductions:
        leaf = x.clone().requires_grad_()
        with (
            torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile,
            torch.autocast("cpu", dtype),
        ):
            result = loss(leaf, labels, reduction=reduction)
        assert result.dtype == torch.float32
        copies = [e.name for e in profile.events() if e.name == "aten::_to_copy" and list(x.shape) in e.input_shapes]
        assert not copies
        value, of_wide = step(loss, wide, reduction)
        torch.testing.assert_close(result.detach(), value, rtol=1e-6, atol=0)
        (gradient,) = torch.autograd.grad(result.sum(), leaf)
        assert gradient.dtype == dtype
        torch.testing.assert_close(gradient, of_wide.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-6)


# ---- autograd's graph ------------------------------------------------------------------------------------------------


@EACH_LOSS
def test_a_tensor_changed_before_backward_is_noticed(loss: TripletLoss) -> None:
    for reduction in loss.reductions:
        for name in loss.samplers:
            given = loss.given((9, 4))
            leaf = torch.ones((), dtype=torch.float64, requires_grad=True)
            tensors = given | {"embeddings": given["embeddings"] * leaf}
            result = loss(*tensors.values(), reduction=reduction).sum()
            tensors[name].detach().add_(0)
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                result.backward()


@EACH_MINING
def test_labels_that_change_behind_the_back_of_autograd(mining: str) -> None:
    """It counts the changes of a tensor but not those of its .data: the gradient is that of some labels, and finite."""
    for reduction in ("none", "mean", "mean_nonzero"):
        for create_graph in (False, True):
            x, labels = torch.randn(8, 3, requires_grad=True), torch.arange(8) % 3
            value = L.triplet_mining_loss(x, labels, mining=mining, reduction=reduction).sum()
            labels.data[2], labels.data[5] = 2**40, -1
            (gradient,) = torch.autograd.grad(value, x, create_graph=create_graph)
            assert gradient.isfinite().all()


@FEW_LOSSES
def test_inference_mode_and_no_grad_record_nothing(loss: TripletLoss) -> None:
    x, labels = loss.given(SHAPE).values()
    leaf = x.requires_grad_()
    expected = loss(leaf, labels, reduction="sum")
    assert expected.grad_fn is not None
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            result = loss(leaf, labels, reduction="sum")
        assert not result.requires_grad and result.grad_fn is None
        torch.testing.assert_close(result, expected)
    assert result.is_inference()


@pytest.mark.parametrize("use_reentrant", [False, True])
@FEW_LOSSES
def test_checkpoints(loss: TripletLoss, use_reentrant: bool) -> None:
    given = loss.given(SHAPE)
    leaf = given["embeddings"].clone().requires_grad_()
    checkpoint(partial(loss, reduction="sum"), leaf, given["labels"], use_reentrant=use_reentrant).backward()
    assert leaf.grad is not None
    assert_same_bits([leaf.grad], step(loss, given, "sum")[1:])


def test_the_node_says_whose_it_is() -> None:
    x, labels = TRIPLET_LOSSES[0].given(SHAPE).values()
    leaf = x.requires_grad_()
    result = L.triplet_mining_loss(leaf, labels)
    assert result.grad_fn.name() == "triplet_mining_loss_backward"  # type: ignore[union-attr]
    (gradient,) = torch.autograd.grad(result, leaf, create_graph=True)
    assert "triplet_mining_loss_double_backward" in str(gradient.grad_fn.name())  # type: ignore[union-attr]


# ---- the same bits ---------------------------------------------------------------------------------------------------


def all_derivatives(loss: TripletLoss, given: dict[str, Tensor], reduction: str) -> list[Tensor]:
    """Value, gradient, second derivative, and the value without a gradient."""
    x, labels = given.values()
    leaf = x.detach().requires_grad_()
    result = loss(leaf, labels, reduction=reduction)
    (gradient,) = torch.autograd.grad(result.sum(), leaf, create_graph=True)
    (second,) = torch.autograd.grad(gradient, leaf, loss.directions(given)["embeddings"])
    return [*step(loss, given, reduction), gradient.detach(), second, loss(x, labels, reduction=reduction)]


@pytest.mark.host  # threads of the CPU
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
@FEW_LOSSES
def test_the_number_of_threads_changes_no_bit(loss: TripletLoss, dtype: torch.dtype) -> None:
    """Of many vectors and of long ones, with near ties and far from any, and again on the same threads."""
    before = torch.get_num_threads()
    try:
        for shape, reduction in [((300, 33), "none"), ((70, 900), "sum"), ((500, 5), "mean_nonzero")]:
            generator = torch.Generator().manual_seed(29)
            labels = torch.randint(0, shape[0] // 6, (shape[0],), generator=generator)
            given = {"embeddings": torch.randn(shape, generator=generator).to(dtype), "labels": labels}
            results = []
            for count in (1, 2, 3, 2):
                torch.set_num_threads(count)
                results.append(all_derivatives(loss, given, reduction))
            for other in results[1:]:
                assert_same_bits(results[0], other)
    finally:
        torch.set_num_threads(before)


@EACH_LOSS
def test_a_gradient_changes_no_bit_of_the_value(loss: TripletLoss) -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        given = loss.given((33, 6), dtype, seed=4)
        for reduction in loss.reductions:
            assert_same_bits(step(loss, given, reduction)[:1], [loss(*given.values(), reduction=reduction)])


def test_threads_share_nothing() -> None:
    """Eight threads at once, each with losses of its own."""
    works: list[Callable[[], list[Tensor]]] = []
    for loss in TRIPLET_LOSSES:
        works += [partial(all_derivatives, loss, loss.given((20, 7), torch.float32, seed=n), "mean") for n in range(4)]
    expected = [work() for work in works]
    with ThreadPoolExecutor(8) as pool:
        for found, known in zip(pool.map(lambda work: work(), works), expected, strict=True):
            assert_same_bits(found, known)


# ---- the module ------------------------------------------------------------------------------------------------------


def test_the_module_is_its_function() -> None:
    """And so are its copies, whose repr shows all settings."""
    x, labels = TRIPLET_LOSSES[0].given(SHAPE).values()
    module = fusedloss.TripletMiningLoss(0.5, "semi_hard", True, "sum", normalize=True)
    settings = "margin=0.5, mining='semi_hard', squared=True, reduction='sum', normalize=True"
    assert repr(module) == f"TripletMiningLoss({settings})"
    expected = L.triplet_mining_loss(x, labels, 0.5, "semi_hard", True, "sum", normalize=True)
    for twin in (
        module,
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        eval(repr(module), vars(fusedloss)),
    ):
        assert repr(twin) == repr(module)
        assert torch.equal(twin(x, labels), expected)
    assert list(module.parameters()) == list(module.state_dict()) == []


def test_the_module_has_the_functions_defaults() -> None:
    x, labels = TRIPLET_LOSSES[0].given(SHAPE).values()
    assert torch.equal(fusedloss.TripletMiningLoss()(x, labels), L.triplet_mining_loss(x, labels))
    assert torch.equal(fusedloss.TripletMiningLoss()(x, labels), L.triplet_mining_loss(x, labels, 1.0, "batch_hard"))
