"""What holds for every loss whatever the numbers are: shapes, strides and broadcasting, one reduction against another,
the same bits for every number of threads, order of rows and precision of the operands."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fusedloss.testing.cases import transposed
from fusedloss.testing.catalogue import LOSSES, Loss, positive

pytestmark = [
    pytest.mark.core,
    pytest.mark.filterwarnings("ignore:kl_div with reduction='mean'"),
    pytest.mark.filterwarnings("ignore:Using a (target|input) size"),
]

EACH_LOSS = pytest.mark.parametrize("loss", [pytest.param(loss, id=loss.id) for loss in LOSSES])
REDUCTIONS = ["none", "mean", "sum"]
SAME_SHAPE = {"binary_cross_entropy", "binary_cross_entropy_with_logits", "sigmoid_focal_loss"}
# Examples are drawn the same on every run, so that a failure is one for everybody.
quickly = settings(
    max_examples=20, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip

shapes = st.lists(st.integers(1, 5), min_size=1, max_size=5).map(tuple)
seeds = st.integers(0, 1000)


def evaluate(
    loss: Loss, operands: list[Tensor], keywords: dict[str, Tensor], reduction: str, weight: Tensor | None = None
) -> tuple[Tensor, list[Tensor]]:
    """The loss and its gradients by the differentiable operands and the keyword operands."""
    leaves = [
        x.detach().requires_grad_(name in loss.differentiable) for name, x in zip(loss.samplers, operands, strict=True)
    ]
    more = {name: x.detach().requires_grad_() for name, x in keywords.items()}
    result = loss(*leaves, **more, reduction=reduction, weight=weight)
    free = [x for x in (*leaves, *more.values()) if x.requires_grad]
    incoming = torch.linspace(0.5, 1.5, result.numel(), dtype=result.dtype).view(result.shape)
    return result.detach(), list(torch.autograd.grad(result, free, incoming if reduction == "none" else None))


def assert_same_bits(one: tuple[Tensor, list[Tensor]], other: tuple[Tensor, list[Tensor]]) -> None:
    assert torch.equal(one[0], other[0])
    for a, b in zip(one[1], other[1], strict=True):
        assert torch.equal(a, b)


def assert_close(one: Tensor, other: Tensor, size: Tensor | float = 0.0, ulps: float = 64) -> None:
    """Equal within rounding of sums of numbers whose sizes add up to `size`."""
    bound = ulps * torch.finfo(one.dtype).eps * (other.abs() + size)
    assert one.shape == other.shape
    assert bool(((one - other).abs() <= bound).all()), f"{one} and {other}"


# ---- shapes and strides --------------------------------------------------------------------------------------------


@st.composite
def broadcasting_shapes(draw: st.DrawFn, count: int) -> list[tuple[int, ...]]:
    """Shapes that broadcast together, the first of full rank: sizes of 1 and missing leading axes."""
    full = draw(shapes)
    found = []
    for k in range(count):
        kept = tuple(n if draw(st.booleans()) else 1 for n in full)
        found.append(kept[draw(st.integers(0, len(full) - 1)) if k else 0 :])
    return found


@EACH_LOSS
@quickly
@given(data=st.data())
def test_broadcasting_is_that_of_torch(loss: Loss, data: st.DataObject) -> None:
    """The same as on operands that torch broadcast; gradients are summed over what was broadcast."""
    if loss.name in SAME_SHAPE or loss.keyword_operands or loss.name == "gaussian_nll_loss":
        return  # these refuse other shapes, or have rules of their own
    sizes = data.draw(broadcasting_shapes(len(loss.samplers)))
    if loss.name == "margin_ranking_loss":
        sizes = [(1,) * (len(sizes[0]) - len(s)) + s for s in sizes]
    seed = data.draw(seeds)
    operands = [loss.sample(s, seed=seed + k)[0][k] for k, s in enumerate(sizes)]
    wide = [x.contiguous() for x in torch.broadcast_tensors(*operands)]
    for reduction in REDUCTIONS:
        value, gradients = evaluate(loss, operands, {}, reduction)
        expected, expected_gradients = evaluate(loss, wide, {}, reduction)
        assert_close(value, expected, evaluate(loss, wide, {}, "none")[0].abs().sum())
        free = [x for name, x in zip(loss.samplers, operands, strict=True) if name in loss.differentiable]
        for x, gradient, terms in zip(free, gradients, expected_gradients, strict=True):
            assert_close(gradient, terms.sum_to_size(x.shape), terms.abs().sum_to_size(x.shape))


@st.composite
def strided_views(draw: st.DrawFn, shape: tuple[int, ...]) -> Any:
    """A function that returns a tensor's values in memory of drawn order, gaps and offset."""
    order = draw(st.permutations(range(len(shape))))
    gaps = [draw(st.integers(1, 3)) for _ in shape]
    start = draw(st.integers(0, 3))

    def view(x: Tensor) -> Tensor:
        room = [x.shape[d] * gaps[d] for d in order]
        memory = torch.full((start + int(torch.tensor(room).prod()),), float("nan"), dtype=x.dtype)
        place = memory[start:].view(room)[tuple(slice(None, None, gaps[d]) for d in order)]
        place = place.permute([order.index(d) for d in range(len(shape))])
        place.copy_(x)
        return place

    return view


@EACH_LOSS
@quickly
@given(data=st.data())
def test_strides_change_nothing(loss: Loss, data: st.DataObject) -> None:
    shape = data.draw(shapes)
    operands, keywords = loss.sample(shape, torch.float32, seed=data.draw(seeds))
    laid_out = [data.draw(strided_views(shape))(x) for x in operands]
    straight, strided = evaluate(loss, operands, keywords, "none"), evaluate(loss, laid_out, keywords, "none")
    assert torch.equal(straight[0], strided[0])
    count = len(loss.differentiable)
    for a, b in zip(straight[1][:count], strided[1][:count], strict=True):
        assert torch.equal(a, b)
    size = straight[0].abs().sum()
    for reduction in ("mean", "sum"):
        a, b = evaluate(loss, operands, keywords, reduction), evaluate(loss, laid_out, keywords, reduction)
        assert_close(a[0], b[0], size)
        for x, y in zip(a[1][:count], b[1][:count], strict=True):
            assert torch.equal(x, y)


# ---- reductions and weights ----------------------------------------------------------------------------------------


@EACH_LOSS
@quickly
@given(shape=shapes, seed=seeds)
def test_reductions_agree(loss: Loss, shape: tuple[int, ...], seed: int) -> None:
    """mean n = sum = the sum of 'none', for value and gradients."""
    operands, keywords = loss.sample(shape, seed=seed)
    values, _ = evaluate(loss, operands, keywords, "none")
    (total, total_gradients), (mean, mean_gradients) = (evaluate(loss, operands, keywords, r) for r in ("sum", "mean"))
    size = values.abs().sum()
    count = values.numel()
    assert_close(total, values.sum(), size)
    assert_close(mean * count, total, size)
    # Those by keyword operands are sums that may cancel: test_values.py judges them.
    elementwise = slice(len(loss.differentiable))
    for a, b in zip(mean_gradients[elementwise], total_gradients[elementwise], strict=True):
        assert_close(a * count, b, ulps=4)
    if "batchmean" in loss.reductions:
        batch, batch_gradients = evaluate(loss, operands, keywords, "batchmean")
        rows = count if loss.name == "gaussian_kl" else shape[0]
        assert_close(batch * rows, total, size)
        for a, b in zip(batch_gradients[elementwise], total_gradients[elementwise], strict=True):
            assert_close(a * rows, b, ulps=4)


# On CUDA a weight that broadcasts takes the kernel for strided tensors, which sums in another order.
@pytest.mark.host
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@EACH_LOSS
def test_weights_of_one_are_no_weights(loss: Loss, dtype: torch.dtype) -> None:
    operands, keywords = loss.sample((130, 257), dtype)
    for reduction in loss.reductions:
        plain = evaluate(loss, operands, keywords, reduction)
        for shape in [(130, 257), (130, 1), (257,), ()]:
            assert_same_bits(plain, evaluate(loss, operands, keywords, reduction, torch.ones(shape, dtype=dtype)))


@EACH_LOSS
@quickly
@given(repeats=st.lists(st.integers(0, 4), min_size=1, max_size=9).filter(any), seed=seeds)
def test_an_integer_weight_is_so_many_repeats(loss: Loss, repeats: list[int], seed: int) -> None:
    operands, keywords = loss.sample((len(repeats), 3), seed=seed)
    times = torch.tensor(repeats)
    weight = times.double()[:, None]
    repeated = [x.repeat_interleave(times, dim=0) for x in operands]
    weighted, gradients = evaluate(loss, operands, keywords, "sum", weight)
    expected, expected_gradients = evaluate(loss, repeated, keywords, "sum")
    assert_close(weighted, expected, evaluate(loss, repeated, keywords, "none")[0].abs().sum())
    row = torch.arange(len(repeats)).repeat_interleave(times)
    for k in range(len(loss.differentiable)):
        summed = torch.zeros_like(operands[0]).index_add(0, row, expected_gradients[k])
        assert_close(gradients[k], summed)
    if loss.name in ("mse_loss", "l1_loss"):  # a mean of weights is then the mean of the repeats
        weighted, _ = evaluate(loss, operands, keywords, "mean", weight)
        assert_close(weighted, evaluate(loss, repeated, keywords, "mean")[0])


# ---- the same bits -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(33, 70), (65, 3, 40), (2, 128, 2, 64), (1000, 32)], ids=str)
@EACH_LOSS
def test_memory_crosswise_changes_nothing(loss: Loss, shape: tuple[int, ...]) -> None:
    """Where tensors lie in memory along different axes, the walk goes in boxes: whole ones and pieces of them."""
    operands, keywords = loss.sample(shape, torch.float32, seed=37)
    weight = positive(shape, torch.Generator().manual_seed(41))
    straight = {reduction: evaluate(loss, operands, keywords, reduction, weight) for reduction in ("none", "sum")}
    for which in range(len(operands) + 1):
        laid_out = [transposed(x) if k == which else x for k, x in enumerate([*operands, weight])]
        for reduction, plain in straight.items():
            value, gradients = evaluate(loss, laid_out[:-1], keywords, reduction, laid_out[-1])
            # Sums go in another order (those of gaussian_kl over a row too).
            if value.shape == shape:
                assert torch.equal(value, plain[0])
            else:
                assert_close(value, plain[0], straight["none"][0].abs().sum(), ulps=8)
            for a, b in zip(gradients, plain[1], strict=True):
                assert torch.equal(a, b)


@pytest.mark.parametrize("classes", [1, 64, 65, 2048, 4096])
@EACH_LOSS
def test_a_number_for_each_class_is_that_number_everywhere(loss: Loss, classes: int) -> None:
    """Where tiles are a whole number of rows all see the same of it, and it is read once."""
    shape = (3 * 4096 // classes + 1, classes)
    operands, keywords = loss.sample(shape, torch.float32, seed=43)
    if loss.name not in SAME_SHAPE | {"gaussian_nll_loss"}:
        operands[1] = operands[1][:1]
    weight = positive((classes,), torch.Generator().manual_seed(47)).to(torch.bfloat16)
    broadcast = evaluate(loss, operands, keywords, "none", weight)
    everywhere = [x.expand(shape).contiguous() for x in operands]
    whole = evaluate(loss, everywhere, keywords, "none", weight.expand(shape).contiguous())
    assert torch.equal(broadcast[0], whole[0])
    assert torch.equal(broadcast[1][0], whole[1][0])


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
@EACH_LOSS
def test_the_number_of_threads_changes_no_bit(loss: Loss, dtype: torch.dtype) -> None:
    """Over several blocks of sums, in dense and in transposed memory, and again on the same threads."""
    operands, keywords = loss.sample((311, 333), dtype, seed=29)
    crosswise = [transposed(x) if k else x for k, x in enumerate(operands)]
    weight = positive((311, 1), torch.Generator().manual_seed(31)).to(dtype)
    for reduction in loss.reductions:
        for given_operands, given_weight in [(operands, None), (crosswise, weight)]:
            results = []
            for count in (1, 2, 3, 2):
                torch.set_num_threads(count)
                results.append(evaluate(loss, given_operands, keywords, reduction, given_weight))
            for other in results[1:]:
                assert_same_bits(results[0], other)


@EACH_LOSS
@quickly
@given(size=st.integers(1, 3000), seed=seeds)
def test_an_element_does_not_see_its_place(loss: Loss, size: int, seed: int) -> None:
    """A permutation of the rows permutes values and gradients to the bit, and keeps sums within rounding."""
    operands, keywords = loss.sample((size, 2), torch.float32, seed=seed)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    values, _ = evaluate(loss, operands, keywords, "none")
    moved, _ = evaluate(loss, [x[order] for x in operands], keywords, "none")
    assert torch.equal(values[order], moved)
    total, gradients = evaluate(loss, operands, keywords, "sum")
    total_moved, gradients_moved = evaluate(loss, [x[order] for x in operands], keywords, "sum")
    assert_close(total, total_moved, values.abs().sum(), ulps=8)
    for k in range(len(loss.differentiable)):
        assert torch.equal(gradients[k][order], gradients_moved[k])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@EACH_LOSS
def test_half_types_are_rounded_once(loss: Loss, dtype: torch.dtype) -> None:
    """The same bits as computing on a float32 copy and rounding its result."""
    operands, keywords = loss.sample((75, 299), dtype, seed=37)
    wide = [x.float() for x in operands], {k: x.float() for k, x in keywords.items()}
    count = len(loss.differentiable)
    for reduction in loss.reductions:
        half, full = evaluate(loss, operands, keywords, reduction), evaluate(loss, *wide, reduction)
        if not (reduction == "none" and loss.name == "gaussian_kl"):  # there torch sums the rounded elements
            assert torch.equal(half[0], full[0].to(dtype))
        if reduction != "none":
            for a, b in zip(half[1][:count], full[1][:count], strict=True):
                assert torch.equal(a, b.to(dtype))


@EACH_LOSS
def test_the_gradient_of_every_scale_of_the_loss(loss: Loss) -> None:
    """A factor on the loss is a factor on its gradients, exactly for a power of 2."""
    operands, keywords = loss.sample((40, 30), torch.float32, seed=41)
    leaves = [x.requires_grad_(name in loss.differentiable) for name, x in zip(loss.samplers, operands, strict=True)]
    free = [x for x in leaves if x.requires_grad]
    for reduction in loss.reductions:
        result = loss(*leaves, **keywords, reduction=reduction).sum()
        ones = torch.autograd.grad(result, free, retain_graph=True)
        quarters = torch.autograd.grad(result, free, torch.tensor(-0.25))
        for one, quarter in zip(ones, quarters, strict=True):
            assert torch.equal(one * -0.25, quarter)
