"""The losses of vectors inside of everything else that torch offers: the dispatcher, the compiler, autocast, autograd's
graph and threads. Function transforms are in test_vectors_transforms.py."""

from __future__ import annotations

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
from fusedloss.testing.vector_cases import SHAPE
from fusedloss.testing.vector_catalogue import VECTOR_LOSSES, VectorLoss
from op_recorder import Recorder, assert_same_bits

pytestmark = [
    # torch's own compiler and forward mode.
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*:FutureWarning"),
]

EACH_LOSS = pytest.mark.parametrize("loss", [pytest.param(loss, id=loss.id) for loss in VECTOR_LOSSES])
FIRST_BY_NAME = {loss.name: loss for loss in reversed(VECTOR_LOSSES)}
EACH_NAME = pytest.mark.parametrize("loss", [pytest.param(loss, id=name) for name, loss in FIRST_BY_NAME.items()])
# One of every loss and every kind of target and distance, with a weight wherever there is one.
KINDS = {
    (loss.name, loss.samplers.get("target"), str(loss.parameters.get("distance_function"))): loss
    for loss in sorted(VECTOR_LOSSES, key=lambda loss: len(loss.keyword_operands))
}
# One of every op and kind of target.
OF_OPS = {(loss.name, loss.samplers.get("target")): loss for loss in KINDS.values()}
EACH_OP = pytest.mark.parametrize("loss", [pytest.param(loss, id=loss.id) for loss in OF_OPS.values()])
EACH_KIND = pytest.mark.parametrize("loss", [pytest.param(loss, id=loss.id) for loss in KINDS.values()])
REDUCED = pytest.mark.parametrize("reduction", ["none", "mean", "sum"])


def leaves_of(loss: VectorLoss, given: dict[str, Tensor]) -> dict[str, Tensor]:
    free = {*loss.differentiable, *loss.learned}
    return {k: x.detach().clone().requires_grad_(k in free) for k, x in given.items()}


def call(loss: VectorLoss, given: dict[str, Tensor], reduction: str) -> Tensor:
    operands, keywords = loss.split(given)
    return loss(*operands, **keywords, reduction=reduction)


def step(loss: VectorLoss, given: dict[str, Tensor], reduction: str) -> list[Tensor]:
    """The value and the gradients of its sum."""
    leaves = leaves_of(loss, given)
    result = call(loss, leaves, reduction)
    return [result.detach(), *torch.autograd.grad(result.sum(), [x for x in leaves.values() if x.requires_grad])]


# ---- the ops as torch.library sees them ------------------------------------------------------------------------------


def ops_called(loss: VectorLoss, given: dict[str, Tensor], reduction: str) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """Every op that a loss comes to, by its name, with the arguments that it was called with."""
    first = loss.vectors[0]
    with Recorder() as recorder:
        call(loss, given, reduction)
        leaves = leaves_of(loss, given)
        free = [x for x in leaves.values() if x.requires_grad]
        result = call(loss, leaves, reduction)
        gradients = torch.autograd.grad(result.sum(), free, create_graph=True)
        torch.autograd.grad(gradients[0].sum(), free, allow_unused=True)
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(given[first], torch.ones_like(given[first]))
            call(loss, given | {first: dual}, reduction)
    return {func.name(): (func, args) for func, args in recorder.calls}


SUFFIXES = ("", "_value_and_gradient", "_backward", "_jvp", "_hvp")
# Ops that have a derivative, by every floating tensor that they take.
DIFFERENTIABLE = ("", "_backward", "_jvp")


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch hides that one by other means
@EACH_OP
def test_opcheck(loss: VectorLoss) -> None:
    """Of all five ops, with the arguments that the function gives them."""
    given = loss.given((3, 4), away=True)
    calls = ops_called(loss, given, "none") | ops_called(loss, given, "mean")
    names = {name.partition("::")[2] for name in calls}
    stem = min(names, key=len)
    assert names == {stem + suffix for suffix in SUFFIXES}
    for name, (func, args) in calls.items():
        free = name.partition("::")[2].removeprefix(stem) in DIFFERENTIABLE
        leaves = tuple(x.detach().clone().requires_grad_(free) if isinstance(x, Tensor) and x.is_floating_point()
                       else x for x in args)  # fmt: skip
        results = torch.library.opcheck(func, leaves)
        assert set(results.values()) == {"SUCCESS"}, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@EACH_KIND
def test_fake_and_meta_tensors_have_the_layout_of_real_ones(loss: VectorLoss, dtype: torch.dtype) -> None:
    def layouts(given: dict[str, Tensor], reduction: str) -> list[tuple[Any, ...]]:
        return [(t.shape, t.dtype, t.stride()) for t in step(loss, given, reduction)]

    dense = loss.given(SHAPE, dtype)
    crosswise = {k: transposed(x) if k in loss.vectors else x for k, x in dense.items()}
    narrow = dense | {loss.vectors[1]: dense[loss.vectors[1]][:, :1]}
    for given in (dense, crosswise, narrow, loss.given((5,), dtype), loss.given((0, 5), dtype)):
        for reduction in loss.reductions:
            real = layouts(given, reduction)
            assert layouts({k: x.to("meta") for k, x in given.items()}, reduction) == real
            with FakeTensorMode() as mode:
                assert layouts({k: mode.from_tensor(x) for k, x in given.items()}, reduction) == real


# ---- torch.compile and torch.export ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("clean_dynamo")
@EACH_KIND
def test_compiles_as_one_graph(loss: VectorLoss) -> None:
    given = loss.given((5, 4), torch.float32)
    keys = list(given)

    def total(*tensors: Tensor) -> Tensor:
        parts = [call(loss, dict(zip(keys, tensors, strict=True)), r).sum() for r in loss.reductions]
        return torch.stack(parts) @ torch.arange(1.0, len(parts) + 1)

    compiled = torch.compile(total, backend="aot_eager", fullgraph=True)
    one, other = leaves_of(loss, given), leaves_of(loss, given)
    result, expected = compiled(*one.values()), total(*other.values())
    torch.testing.assert_close(result, expected)
    free = [k for k, x in one.items() if x.requires_grad]
    found, known = (torch.autograd.grad(r, [x[k] for k in free]) for r, x in ((result, one), (expected, other)))
    for a, b in zip(found, known, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.usefixtures("clean_dynamo")
def test_a_distance_of_the_users_compiles() -> None:
    def objective(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return L.triplet_margin_with_distance_loss(a, b, c, distance_function=lambda x, y: (x - y).abs().amax(-1))

    given = FIRST_BY_NAME["triplet_margin_loss"].given((5, 4), torch.float32).values()
    torch.testing.assert_close(torch.compile(objective, backend="aot_eager", fullgraph=True)(*given), objective(*given))


@pytest.mark.usefixtures("clean_dynamo")
def test_compiles_by_inductor_between_other_ops() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4))
    x, y, z = torch.randn(3, 16, 3)

    def objective(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        return L.triplet_margin_loss(model(x) * 2, model(y), model(z), swap=True, normalize=True) + 1

    expected = objective(x, y, z)
    slopes = torch.autograd.grad(expected, list(model.parameters()))
    result = torch.compile(objective, fullgraph=True)(x, y, z)
    torch.testing.assert_close(result, expected)
    for a, b in zip(torch.autograd.grad(result, list(model.parameters())), slopes, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("clean_dynamo")
def test_one_graph_serves_all_sizes() -> None:
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda x, y, t: L.contrastive_loss(x, y, t), backend=counter, fullgraph=True, dynamic=True)
    counts = []
    for rows, length in ((5, 7), (3, 9), (11, 2), (64, 64)):
        x, y, t = FIRST_BY_NAME["contrastive_loss"].given((rows, length), torch.float32).values()
        x.requires_grad_()
        result, expected = compiled(x, y, t), L.contrastive_loss(x, y, t)
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
            self.criterion = fusedloss.CosineEmbeddingLoss(margin=0.1)

        def forward(self, x: Tensor, y: Tensor, t: Tensor) -> Tensor:
            result: Tensor = self.criterion(self.layer(x), self.layer(y), t)
            return result

    def example(rows: int) -> tuple[Tensor, ...]:
        return torch.randn(rows, 3), torch.randn(rows, 3), torch.randint(0, 2, (rows,)) * 2 - 1

    model, rows = Model(), torch.export.Dim("rows", min=2)
    program = torch.export.export(model, example(5), dynamic_shapes=({0: rows},) * 3)
    assert any("fusedloss" in str(node.target) for node in program.graph.nodes)
    other = example(9)
    torch.testing.assert_close(program.module()(*other), model(*other))


# ---- autocast --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@EACH_LOSS
def test_autocast_widens_the_result_and_copies_nothing(loss: VectorLoss, dtype: torch.dtype) -> None:
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
        torch.testing.assert_close(result.detach(), value, rtol=1e-6, atol=1e-7)
        of_half = torch.autograd.grad(result.sum(), [x for x in leaves.values() if x.requires_grad])
        for gradient, of_wide in zip(of_half, gradients, strict=True):
            assert gradient.dtype == dtype
            torch.testing.assert_close(gradient, of_wide.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-7)


# ---- autograd's graph ------------------------------------------------------------------------------------------------


@REDUCED
@EACH_KIND
def test_a_graph_that_is_kept_gives_the_same_gradient_every_time(loss: VectorLoss, reduction: str) -> None:
    given = loss.given((5, 4))
    leaves = leaves_of(loss, given)
    free = [x for x in leaves.values() if x.requires_grad]
    result = call(loss, leaves, reduction).sum()
    expected = step(loss, given, reduction)[1:]
    for _ in range(2):
        for found, known in zip(torch.autograd.grad(result, free, retain_graph=True), expected, strict=True):
            torch.testing.assert_close(found, known)
            found.mul_(1000)  # it belongs to the caller
    result.backward(retain_graph=True)
    result.backward()
    for leaf, known in zip(free, expected, strict=True):
        torch.testing.assert_close(leaf.grad, 2 * known)
    with pytest.raises(RuntimeError, match="second time"):
        result.backward()


@REDUCED
@EACH_KIND
def test_an_operand_that_is_given_twice(loss: VectorLoss, reduction: str) -> None:
    """Its gradient is the sum of both; it need not lie in memory twice."""
    given = loss.given((5, 4))
    first, second = loss.vectors[:2]
    apart = step(loss, given | {second: given[first]}, reduction)
    leaf = given[first].clone().requires_grad_()
    result = call(loss, given | {first: leaf, second: leaf}, reduction)
    torch.testing.assert_close(torch.autograd.grad(result.sum(), leaf)[0], apart[1] + apart[2])


@REDUCED
@EACH_KIND
def test_a_tensor_changed_before_backward_is_noticed(loss: VectorLoss, reduction: str) -> None:
    for name in loss.given((5, 4)):
        given = loss.given((5, 4))
        leaf = torch.ones((), dtype=torch.float64, requires_grad=True)
        first = loss.vectors[0]
        tensors = given | {first: given[first] * leaf}
        result = call(loss, tensors, reduction).sum()
        tensors[name].detach().add_(0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            result.backward()


@EACH_KIND
def test_inference_mode_and_no_grad_record_nothing(loss: VectorLoss) -> None:
    leaves = leaves_of(loss, loss.given((5, 4)))
    expected = call(loss, leaves, "sum")
    assert expected.grad_fn is not None
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            result = call(loss, leaves, "sum")
        assert not result.requires_grad and result.grad_fn is None
        torch.testing.assert_close(result, expected.detach())
    assert result.is_inference()


@pytest.mark.parametrize("use_reentrant", [False, True])
@EACH_KIND
def test_checkpoints(loss: VectorLoss, use_reentrant: bool) -> None:
    given = loss.given((5, 4))
    keys, leaves = list(given), leaves_of(loss, given)

    def total(*tensors: Tensor) -> Tensor:
        return call(loss, dict(zip(keys, tensors, strict=True)), "sum")

    checkpoint(total, *leaves.values(), use_reentrant=use_reentrant).backward()
    gradients = [x.grad for x in leaves.values() if x.requires_grad]
    assert_same_bits(gradients, step(loss, given, "sum")[1:])  # type: ignore[arg-type]


@EACH_NAME
def test_the_node_says_whose_it_is(loss: VectorLoss) -> None:
    leaves = leaves_of(loss, loss.given((5, 4)))
    result = call(loss, leaves, "mean")
    assert result.grad_fn.name() == f"{loss.name}_backward"  # type: ignore[union-attr]
    (gradient,) = torch.autograd.grad(result, leaves[loss.vectors[0]], create_graph=True)
    assert f"{loss.name}_double_backward" in str(gradient.grad_fn.name())  # type: ignore[union-attr]


# ---- distances of the user's -----------------------------------------------------------------------------------------


class TwiceTheDistance(nn.PairwiseDistance):
    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        return 2 * super().forward(x1, x2)


@pytest.mark.parametrize(
    ("distance", "fused"),
    [
        (None, True),
        ("euclidean", True),
        ("squared_euclidean", True),
        ("cosine", True),
        (nn.functional.pairwise_distance, True),
        (nn.PairwiseDistance(3.0, 1e-3), True),
        (TwiceTheDistance(), False),
        (nn.PairwiseDistance(keepdim=True), False),
        (lambda a, b: (a - b).abs().amax(-1), False),
        (lambda a, b: 1 - nn.functional.cosine_similarity(a, b), False),
        (nn.CosineSimilarity(), False),
    ],
    ids=lambda x: getattr(x, "__name__", None) or str(x),
)
def test_what_is_fused(distance: Any, fused: bool) -> None:
    given = FIRST_BY_NAME["triplet_margin_loss"].given((6, 5))
    with Recorder() as recorder:
        L.triplet_margin_with_distance_loss(*given.values(), distance_function=distance)
    assert bool(recorder.calls) == fused
    if isinstance(distance, str):
        return
    for swap in (False, True):
        found = []
        for function in (L.triplet_margin_with_distance_loss, nn.functional.triplet_margin_with_distance_loss):
            for reduction in ("none", "mean", "sum"):
                leaves = [x.clone().requires_grad_() for x in given.values()]
                value = function(*leaves, distance_function=distance, swap=swap, reduction=reduction)
                found.append([value.detach(), *torch.autograd.grad(value.sum(), leaves)])
        for ours, theirs in zip(found[:3], found[3:], strict=True):
            for one, other in zip(ours, theirs, strict=True):
                torch.testing.assert_close(one, other)


def test_a_distance_of_the_users_takes_weights_and_normalized_vectors() -> None:
    given = FIRST_BY_NAME["triplet_margin_loss"].given((6, 5))
    weight = torch.tensor([1.0, 0, 2, 0, 0.5, 3], dtype=torch.float64)
    spoilt = {k: torch.where(weight[:, None] == 0, float("nan"), x) for k, x in given.items()}

    def distance(a: Tensor, b: Tensor) -> Tensor:
        return nn.functional.pairwise_distance(a, b)

    for reduction in ("none", "mean", "sum"):
        found = []
        for function in (distance, None):
            leaves = [x.clone().requires_grad_() for x in spoilt.values()]
            value = L.triplet_margin_with_distance_loss(
                *leaves, distance_function=function, weight=weight, normalize=True, reduction=reduction
            )
            found.append([value.detach(), *torch.autograd.grad(value.sum(), leaves)])
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other)


# ---- the same bits ---------------------------------------------------------------------------------------------------


def all_derivatives(loss: VectorLoss, given: dict[str, Tensor], reduction: str) -> list[Tensor]:
    """Value, gradients, second derivatives, and the value without a gradient."""
    leaves = leaves_of(loss, given)
    free = {k: x for k, x in leaves.items() if x.requires_grad}
    result = call(loss, leaves, reduction)
    gradients = torch.autograd.grad(result.sum(), list(free.values()), create_graph=True)
    along = list(loss.directions(given).values())
    second = torch.autograd.grad(gradients, list(free.values()), along, materialize_grads=True)
    return [*step(loss, given, reduction), *(g.detach() for g in gradients), *second, call(loss, given, reduction)]


@EACH_KIND
def test_the_number_of_threads_changes_no_bit(loss: VectorLoss) -> None:
    """Of many short and of few long vectors, in dense and in transposed memory, and again on the same threads."""
    dtype = (torch.float32, torch.float16, torch.float64)[VECTOR_LOSSES.index(loss) % 3]
    before = torch.get_num_threads()
    try:
        for shape in [(3001, 5), (300, 130), (5, 20011)]:
            given = loss.given(shape, dtype, seed=29)
            crosswise = {k: transposed(x) if x.dim() == 2 else x for k, x in given.items()}
            one_for_all = given | {loss.vectors[1]: given[loss.vectors[1]][:1]}
            for operands, reduction in [(given, "none"), (given, "mean"), (crosswise, "sum"), (one_for_all, "mean")]:
                results = []
                for count in (1, 2, 3, 2):
                    torch.set_num_threads(count)
                    results.append(all_derivatives(loss, operands, reduction))
                for other in results[1:]:
                    assert_same_bits(results[0], other)
    finally:
        torch.set_num_threads(before)


@pytest.mark.host  # on CUDA a row's sums begin where 16 bytes do
@pytest.mark.parametrize("shape", [(77, 5), (77, 70), (5, 3000)], ids=str)
@EACH_LOSS
def test_a_row_does_not_see_its_place(loss: VectorLoss, shape: tuple[int, int]) -> None:
    """A permutation of the rows permutes values and gradients to the bit."""
    given = loss.given(shape, torch.float32, seed=31)
    order = torch.randperm(shape[0], generator=torch.Generator().manual_seed(0))
    values, *gradients = step(loss, given, "none")
    moved = step(loss, {k: x[order] for k, x in given.items()}, "none")
    assert_same_bits(moved, [values[order], *(g[order] for g in gradients)])


def test_threads_share_nothing() -> None:
    """Eight threads at once, each with losses of its own."""
    works: list[Callable[[], list[Tensor]]] = []
    for loss in KINDS.values():
        works += [partial(step, loss, loss.given((50, 37), torch.float32), "mean")] * 8
    expected = [work() for work in works]
    with ThreadPoolExecutor(8) as pool:
        for found, known in zip(pool.map(lambda work: work(), works), expected, strict=True):
            assert_same_bits(found, known)
