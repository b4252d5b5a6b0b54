"""Losses over pairs inside of everything else that torch offers: dispatcher, compiler, autocast, autograd's graph,
threads, modules. Function transforms are in test_pairs_transforms.py."""

from __future__ import annotations

import copy
import math
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
from fusedloss.testing.cases import rows_apart, transposed
from fusedloss.testing.pair_cases import SHAPE, laid_out
from fusedloss.testing.pair_catalogue import PAIR_LOSSES, PairLoss, vectors
from op_recorder import Recorder, assert_same_bits

pytestmark = [
    # torch's own compiler and forward mode.
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*:FutureWarning"),
]

LOSS = {loss.id: loss for loss in PAIR_LOSSES}
EACH_LOSS = pytest.mark.parametrize("loss", [pytest.param(loss, id=loss.id) for loss in PAIR_LOSSES])
WITH_OPS = pytest.mark.parametrize("loss", [pytest.param(loss, id=loss.id) for loss in PAIR_LOSSES if loss.has_ops])
FEW = [
    LOSS[name]
    for name in ("info_nce_loss", "info_nce_loss[own negatives, normalize]", "supervised_contrastive_loss",
                 "siglip_loss[normalize]")
]  # fmt: skip
SOME_LOSSES = pytest.mark.parametrize("loss", [pytest.param(loss, id=loss.id) for loss in FEW])


def leaves_of(loss: PairLoss, given: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """All operands, and those of them that have a gradient."""
    leaves = {k: x.detach().clone().requires_grad_(k in loss.differentiable) for k, x in given.items()}
    return list(leaves.values()), [leaves[k] for k in loss.differentiable]


def step(loss: PairLoss, given: dict[str, Tensor], reduction: str) -> list[Tensor]:
    """The value and the gradients of its sum, of operands that lie where they do."""
    leaves = {k: x.detach().requires_grad_(k in loss.differentiable) for k, x in given.items()}
    result = loss(*leaves.values(), reduction=reduction)
    return [result.detach(), *torch.autograd.grad(result.sum(), [leaves[k] for k in loss.differentiable])]


# ---- the ops as torch.library sees them ------------------------------------------------------------------------------


def ops_called(loss: PairLoss, given: dict[str, Tensor], reduction: str) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """Every op that a loss comes to, by its name, with the arguments that it was called with."""
    with Recorder() as recorder:
        loss(*given.values(), reduction=reduction)
        operands, free = leaves_of(loss, given)
        result = loss(*operands, reduction=reduction)
        gradients = torch.autograd.grad(result.sum(), free, create_graph=True)
        torch.autograd.grad([x.sum() for x in gradients], free)
        with torch.autograd.forward_ad.dual_level():
            moving = {k: torch.autograd.forward_ad.make_dual(given[k], torch.ones_like(given[k]))
                      for k in loss.differentiable}  # fmt: skip
            loss(*(given | moving).values(), reduction=reduction)
    return {func.name(): (func, args) for func, args in recorder.calls}


DIFFERENTIABLE = ("", "_backward", "_jvp")  # what the names of ops with a derivative add to the loss's
FITS_CACHE = 8 << 20  # bytes


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch hides that one by other means
@WITH_OPS
def test_opcheck(loss: PairLoss) -> None:
    """Of all five ops, with the arguments that the function gives them."""
    given = loss.given((5, 3))
    calls = ops_called(loss, given, "none") | ops_called(loss, given, "mean")
    suffixes = {name.partition("::")[2].removeprefix(loss.name) for name in calls}
    assert suffixes == {"", "_value_and_gradient", "_backward", "_jvp", "_hvp"}
    for name, (func, args) in calls.items():
        free = name.partition("::")[2].removeprefix(loss.name) in DIFFERENTIABLE
        leaves = tuple(x.detach().clone().requires_grad_(free) if isinstance(x, Tensor) and x.is_floating_point()
                       else x for x in args)  # fmt: skip
        results = torch.library.opcheck(func, leaves)
        assert set(results.values()) == {"SUCCESS"}, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@WITH_OPS
def test_fake_and_meta_tensors_have_the_layout_of_real_ones(loss: PairLoss, dtype: torch.dtype) -> None:
    def layouts(given: dict[str, Tensor], reduction: str) -> list[tuple[Any, ...]]:
        return [(t.shape, t.dtype, t.stride()) for t in step(loss, given, reduction)]

    for layout in (torch.clone, transposed, rows_apart):
        given = laid_out(loss, loss.given(SHAPE, dtype), layout)
        for reduction in loss.reductions:
            real = layouts(given, reduction)
            assert layouts({k: x.to("meta") for k, x in given.items()}, reduction) == real
            with FakeTensorMode() as mode:
                assert layouts({k: mode.from_tensor(x) for k, x in given.items()}, reduction) == real


# ---- torch.compile and torch.export ----------------------------------------------------------------------------------


def assert_compiles(loss: PairLoss, call: Callable[..., Tensor], compiled: Callable[..., Tensor], shape: Any) -> None:
    given = loss.given(shape, torch.float32, seed=shape[0])
    (ours, ours_free), (eager, eager_free) = (leaves_of(loss, given) for _ in range(2))
    result, expected = compiled(*ours), call(*eager)
    torch.testing.assert_close(result, expected)
    slopes = torch.autograd.grad(result, ours_free), torch.autograd.grad(expected, eager_free)
    for one, other in zip(*slopes, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.usefixtures("clean_dynamo")
@EACH_LOSS
def test_compiles_as_one_graph(loss: PairLoss) -> None:
    def total(*operands: Tensor) -> Tensor:
        parts = [loss(*operands, reduction=r).sum() for r in loss.reductions]
        return torch.stack(parts) @ torch.arange(1.0, len(parts) + 1)

    assert_compiles(loss, total, torch.compile(total, backend="aot_eager", fullgraph=True), SHAPE)


@pytest.mark.usefixtures("clean_dynamo")
def test_compiles_with_scales_that_are_numbers() -> None:
    """Numbers among the arguments are constants of the graph."""
    image, text = (vectors(SHAPE, torch.Generator().manual_seed(k)).float() for k in (0, 1))

    def call(image: Tensor, text: Tensor) -> Tensor:
        return L.clip_loss(image, text, 3.0) + L.siglip_loss(image, text, 4, -2.0, normalize=True)

    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(image, text), call(image, text))


@pytest.mark.usefixtures("clean_dynamo")
def test_compiles_by_inductor_between_other_ops() -> None:
    torch.manual_seed(0)
    towers = nn.ModuleList([nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 5)) for _ in range(2)])
    log_scale = nn.Parameter(torch.tensor(1.0))
    one, other = torch.randn(2, 9, 3)
    free = [*towers.parameters(), log_scale]

    def objective(one: Tensor, other: Tensor) -> Tensor:
        return L.clip_loss(towers[0](one) * 2, towers[1](other), log_scale.exp(), normalize=True) + 1

    expected = objective(one, other)
    slopes = torch.autograd.grad(expected, free)
    result = torch.compile(objective, fullgraph=True)(one, other)
    torch.testing.assert_close(result, expected)
    for a, b in zip(torch.autograd.grad(result, free), slopes, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("clean_dynamo")
@SOME_LOSSES
def test_one_graph_serves_all_sizes(loss: PairLoss) -> None:
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("aot_eager")

    def call(*operands: Tensor) -> Tensor:
        return loss(*operands)

    compiled = torch.compile(call, backend=counter, fullgraph=True, dynamic=True)
    counts = []
    for shape in ((9, 4), (7, 3), (20, 9), (33, 17)):
        assert_compiles(loss, call, compiled, shape)
        counts.append(counter.frame_count)  # dynamo takes default numbers for variables at first, and starts again
    assert set(counts) == {counts[0]}


@pytest.mark.usefixtures("clean_dynamo")
def test_an_exported_program_runs() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(3, 5), nn.Linear(3, 5)
            self.log_scale, self.bias = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(-2.0))
            self.criterion = fusedloss.SigLIPLoss(normalize=True)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            result: Tensor = self.criterion(self.one(a), self.other(b), self.log_scale.exp(), self.bias)
            return result

    model, rows = Model(), torch.export.Dim("rows", min=2)
    program = torch.export.export(model, (torch.randn(9, 3), torch.randn(9, 3)), dynamic_shapes=({0: rows}, {0: rows}))
    assert any("fusedloss" in str(node.target) for node in program.graph.nodes)
    other = torch.randn(14, 3), torch.randn(14, 3)
    torch.testing.assert_close(program.module()(*other), model(*other))


# ---- autocast --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@EACH_LOSS
def test_autocast_widens_the_result_and_copies_no_large_table(loss: PairLoss, dtype: torch.dtype) -> None:
    """What fits a cache is converted there."""
    for reduction in loss.reductions:
        given = loss.given((1100, 2000) if loss.has_ops and reduction == "mean" else (33, 4), dtype)
        wide = {k: x.float() if x.is_floating_point() else x for k, x in given.items()}
        shapes = [list(given[k].shape) for k in loss.tables]
        operands, free = leaves_of(loss, given)
        with (
            torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile,
            torch.autocast("cpu", dtype),
        ):
            result = loss(*operands, reduction=reduction)
        assert result.dtype == torch.float32
        copies = [e.input_shapes[0] for e in profile.events() if e.name == "aten::_to_copy"]
        large = [shape for shape in copies if shape in shapes and 4 * math.prod(shape) > FITS_CACHE]
        assert not large or not loss.has_ops
        value, *of_wide = step(loss, wide, reduction)
        torch.testing.assert_close(result.detach(), value, rtol=1e-6, atol=1e-6)
        for gradient, expected in zip(torch.autograd.grad(result.sum(), free), of_wide, strict=True):
            assert gradient.dtype == dtype
            # Where products of bfloat16 are fast, the slopes of logits are rounded to it as well.
            one_rounding = torch.finfo(dtype).eps / 2 * expected.abs().max().item()
            torch.testing.assert_close(gradient, expected.to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=one_rounding)


@pytest.mark.parametrize("name", ["clip_loss", "siglip_loss"])
def test_autocast_as_a_model_is_trained(name: str) -> None:
    """Two towers in bfloat16, and a scale that stays in float32."""
    torch.manual_seed(0)
    one, other = nn.Linear(6, 4), nn.Linear(6, 4)
    scale = nn.Parameter(torch.tensor(4.0))
    x, y = torch.randn(2, 12, 6)
    with torch.autocast("cpu", torch.bfloat16):
        result = getattr(L, name)(one(x), other(y), scale, normalize=True)
    assert result.dtype == torch.float32
    result.backward()
    wide = getattr(L, name)(one(x).bfloat16().float(), other(y).bfloat16().float(), scale, normalize=True)
    torch.testing.assert_close(result, wide, rtol=0.02, atol=0.02)
    assert scale.grad is not None and scale.grad.dtype == torch.float32 and scale.grad.any()
    assert one.weight.grad is not None and one.weight.grad.any()


# ---- autograd's graph ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["none", "mean"])
@EACH_LOSS
def test_a_tensor_changed_before_backward_is_noticed(loss: PairLoss, reduction: str) -> None:
    for name in loss.samplers:
        leaf = torch.ones((), dtype=torch.float64, requires_grad=True)
        tensors = {k: x * leaf if k in loss.differentiable else x for k, x in loss.given((9, 4)).items()}
        result = loss(*tensors.values(), reduction=reduction).sum()
        tensors[name].detach().add_(0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            result.backward(create_graph=True)


@EACH_LOSS
def test_inference_mode_and_no_grad_record_nothing(loss: PairLoss) -> None:
    operands, _ = leaves_of(loss, loss.given(SHAPE))
    expected = loss(*operands, reduction="sum")
    assert expected.grad_fn is not None
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            result = loss(*operands, reduction="sum")
        assert not result.requires_grad and result.grad_fn is None
        torch.testing.assert_close(result, expected)
    assert result.is_inference()


@pytest.mark.parametrize("use_reentrant", [False, True])
@SOME_LOSSES
def test_checkpoints(loss: PairLoss, use_reentrant: bool) -> None:
    given = loss.given(SHAPE)
    operands, free = leaves_of(loss, given)
    checkpoint(partial(loss, reduction="sum"), *operands, use_reentrant=use_reentrant).backward()
    assert_same_bits([x.grad for x in free], step(loss, given, "sum")[1:])  # type: ignore[misc]


@WITH_OPS
def test_the_node_says_whose_it_is(loss: PairLoss) -> None:
    operands, free = leaves_of(loss, loss.given((5, 3)))
    result = loss(*operands)
    assert result.grad_fn.name() == f"{loss.name}_backward"
    gradient, *_ = torch.autograd.grad(result, free, create_graph=True)
    assert f"{loss.name}_double_backward" in str(gradient.grad_fn.name())  # type: ignore[union-attr]


# ---- the same bits ---------------------------------------------------------------------------------------------------


def all_derivatives(loss: PairLoss, given: dict[str, Tensor], reduction: str) -> list[Tensor]:
    """Value, gradients, second derivatives, and the value without a gradient."""
    operands, free = leaves_of(loss, given)
    result = loss(*operands, reduction=reduction)
    gradients = torch.autograd.grad(result.sum(), free, create_graph=True)
    seconds = torch.autograd.grad(gradients, free, list(loss.directions(given).values()))
    with torch.no_grad():
        alone = loss(*operands, reduction=reduction)
    return [*step(loss, given, reduction), *(x.detach() for x in gradients), *seconds, alone]


def assert_threads_change_nothing(loss: PairLoss, given: dict[str, Tensor], reduction: str) -> None:
    before = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3, 2):
            torch.set_num_threads(count)
            results.append(all_derivatives(loss, given, reduction))
        for other in results[1:]:
            assert_same_bits(results[0], other)
    finally:
        torch.set_num_threads(before)


@pytest.mark.host  # threads of the CPU
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@EACH_LOSS
def test_the_number_of_threads_changes_no_bit(loss: PairLoss, dtype: torch.dtype) -> None:
    """Of few rows and of odd numbers of them, dense and crosswise; and again on the same threads."""
    for shape, reduction in (((3, 5), "none"), ((33, 17), "mean"), ((65, 3), "none")):
        given = loss.given(shape, dtype, seed=29)
        assert_threads_change_nothing(loss, given, reduction)
        assert_threads_change_nothing(loss, laid_out(loss, given, transposed), reduction)


@pytest.mark.host
@pytest.mark.parametrize("loss", [pytest.param(loss, id=loss.id) for loss in PAIR_LOSSES if loss.has_ops])
def test_the_number_of_threads_changes_no_bit_of_many_rows(loss: PairLoss) -> None:
    """Several tiles, of which the last is not full."""
    assert_threads_change_nothing(loss, loss.given((1057, 9), torch.float32, seed=30), "mean")


def test_threads_share_nothing() -> None:
    """Eight threads at once, each with losses of its own."""
    works: list[Callable[[], list[Tensor]]] = []
    for loss in PAIR_LOSSES:
        works += [
            partial(all_derivatives, loss, loss.given((20 + n, 9), torch.float32, seed=n), "mean") for n in range(8)
        ]
    expected = [work() for work in works]
    with ThreadPoolExecutor(8) as pool:
        for found, known in zip(pool.map(lambda work: work(), works), expected, strict=True):
            assert_same_bits(found, known)


# ---- modules ---------------------------------------------------------------------------------------------------------

MODULES = [
    (fusedloss.InfoNCELoss(0.5, True, "sum", normalize=True), LOSS["info_nce_loss"],
     "InfoNCELoss(temperature=0.5, symmetric=True, reduction='sum', normalize=True"),
    (fusedloss.InfoNCELoss(0.25), LOSS["info_nce_loss[shared negatives]"], "InfoNCELoss(temperature=0.25"),
    (fusedloss.SupervisedContrastiveLoss(0.5, "sum", normalize=True), LOSS["supervised_contrastive_loss"],
     "SupervisedContrastiveLoss(temperature=0.5, reduction='sum', normalize=True"),
    (fusedloss.CLIPLoss("sum", normalize=True), LOSS["clip_loss"], "CLIPLoss(reduction='sum', normalize=True"),
    (fusedloss.SigLIPLoss("none"), LOSS["siglip_loss"], "SigLIPLoss(reduction='none'"),
]  # fmt: skip


@pytest.mark.parametrize(("module", "loss", "shown"), MODULES)
def test_the_module_is_its_function(module: nn.Module, loss: PairLoss, shown: str) -> None:
    """And so are its copies, whose repr shows all settings."""
    operands = list(loss.given(SHAPE).values())
    settings = {k: getattr(module, k) for k in ("temperature", "symmetric", "normalize") if hasattr(module, k)}
    expected = loss.function(*operands, **settings, reduction=module.reduction)
    assert repr(module).startswith(shown)
    for twin in (
        module,
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        eval(repr(module), vars(fusedloss)),
    ):
        assert repr(twin) == repr(module)
        assert torch.equal(twin(*operands), expected)
    assert list(module.parameters()) == list(module.state_dict()) == []
