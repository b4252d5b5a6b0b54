"""The losses over rows under torch.func: derivatives are those of the formula in torch's ops, and vmap is a loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import fusedloss.functional as L
from fusedloss.testing.row_catalogue import ROW_LOSSES, RowLoss

pytestmark = [
    # torch's own forward mode.
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning"),
    pytest.mark.filterwarnings(
        "ignore:There is a performance drop because we have not yet implemented the batching rule"
    ),
]

EACH_LOSS = pytest.mark.parametrize("loss", [pytest.param(loss, id=loss.id) for loss in ROW_LOSSES])
BY_REDUCTION = pytest.mark.parametrize(
    ("loss", "reduction"), [pytest.param(x, r, id=f"{x.id}-{r}") for x in ROW_LOSSES for r in x.reductions]
)


def as_function(loss: RowLoss, given: dict[str, Tensor], free: tuple[str, ...], reduction: str, ours: bool) -> Any:
    """Of the tensors of these names: the loss, or the formula in torch's ops."""
    formula: Callable[..., Tensor] = loss.in_ops or loss.reference
    torchs = "mean" if reduction == "batchmean" else reduction

    def call(*tensors: Tensor) -> Tensor:
        operands, keywords = loss.split(given | dict(zip(free, tensors, strict=True)))
        if ours:
            return loss(*operands, **keywords, reduction=reduction)
        return formula(*operands, **keywords, **loss.parameters, reduction=torchs)

    return call


@EACH_LOSS
def test_grad_jvp_and_vjp_are_those_of_the_formula(loss: RowLoss) -> None:
    for shape in [(5, 4), *([] if "axis" in loss.parameters else [(4,)])]:
        given = loss.given(shape, away=True)
        x = given[next(iter(given))]
        for reduction in loss.reductions:
            first = loss.differentiable[:1]
            ours, theirs = (as_function(loss, given, first, reduction, of_us) for of_us in (True, False))
            if reduction != "none":
                torch.testing.assert_close(grad(ours)(x), grad(theirs)(x))
            direction = loss.directions(given)[first[0]]
            value, slope = jvp(ours, (x,), (direction,))
            expected, expected_slope = jvp(theirs, (x,), (direction,))
            torch.testing.assert_close(value, expected)
            torch.testing.assert_close(slope, expected_slope)
            incoming = torch.full_like(value, 0.3)
            torch.testing.assert_close(vjp(ours, x)[1](incoming)[0], vjp(theirs, x)[1](incoming)[0])


@EACH_LOSS
def test_a_tangent_may_move_every_operand(loss: RowLoss) -> None:
    """Weights and temperatures included: along all at once the derivative is that of the formula."""
    free = (*loss.differentiable, *loss.learned)
    given = loss.given((5, 4), away=True)
    generator = torch.Generator().manual_seed(3)
    at = tuple(given[k] for k in free)
    tangents = tuple(x * torch.rand(x.shape, generator=generator, dtype=x.dtype) for x in at)
    for reduction in loss.reductions:
        ours, theirs = (as_function(loss, given, free, reduction, of_us) for of_us in (True, False))
        for one, other in zip(jvp(ours, at, tangents), jvp(theirs, at, tangents), strict=True):
            torch.testing.assert_close(one, other)


@EACH_LOSS
def test_jacobians_and_hessians_are_those_of_the_formula(loss: RowLoss) -> None:
    given = loss.given((2, 3), away=True)
    x = given[next(iter(given))]
    for reduction in loss.reductions:
        ours, theirs = (as_function(loss, given, loss.differentiable[:1], reduction, of_us) for of_us in (True, False))
        expected = jacrev(theirs)(x)
        torch.testing.assert_close(jacrev(ours)(x), expected)
        torch.testing.assert_close(jacfwd(ours)(x), expected)
        if reduction == "none":
            continue
        second = torch.autograd.functional.hessian(theirs, x)
        for transform in (hessian, lambda f: jacrev(jacrev(f)), lambda f: jacrev(jacfwd(f))):
            torch.testing.assert_close(transform(ours)(x), second)


@BY_REDUCTION
def test_vmap_is_a_loop(loss: RowLoss, reduction: str) -> None:
    samples = [loss.given((3, 4), seed=n) for n in range(5)]
    keys = list(samples[0])
    batch = [torch.stack([sample[k] for sample in samples]) for k in keys]
    call = as_function(loss, samples[0], tuple(keys), reduction, True)

    expected = torch.stack([call(*sample.values()) for sample in samples])
    torch.testing.assert_close(vmap(call)(*batch), expected)
    torch.testing.assert_close(vmap(call, chunk_size=3)(*batch), expected)
    last = [x.movedim(0, -1) for x in batch]
    torch.testing.assert_close(vmap(call, in_dims=-1)(*last), expected)
    if reduction == "none":
        torch.testing.assert_close(vmap(call, out_dims=1)(*batch), expected.movedim(0, 1))
    for k in range(len(keys)):  # one operand alone has the batch, and all but that one
        for alone in (True, False):
            in_dims = tuple(0 if (i == k) == alone else None for i in range(len(keys)))
            if set(in_dims) == {None}:
                continue
            given = [x if d == 0 else x[0] for x, d in zip(batch, in_dims, strict=True)]
            loop = [call(*(x[n] if d == 0 else x for x, d in zip(given, in_dims, strict=True))) for n in range(5)]
            torch.testing.assert_close(vmap(call, in_dims=in_dims)(*given), torch.stack(loop))


@pytest.mark.parametrize(
    ("loss", "reduction"),
    [pytest.param(x, r, id=f"{x.id}-{r}") for x in ROW_LOSSES for r in x.reductions if r != "none"],
)
def test_gradients_of_each_sample(loss: RowLoss, reduction: str) -> None:
    samples = [loss.given((3, 4), seed=n) for n in range(4)]
    keys = list(samples[0])
    batch = [torch.stack([sample[k] for sample in samples]) for k in keys]
    argnums = tuple(keys.index(k) for k in (*loss.differentiable, *loss.learned))
    slopes = grad(as_function(loss, samples[0], tuple(keys), reduction, True), argnums=argnums)
    expected = [slopes(*sample.values()) for sample in samples]
    for k, gradient in enumerate(vmap(slopes)(*batch)):
        torch.testing.assert_close(gradient, torch.stack([each[k] for each in expected]))


@BY_REDUCTION
def test_a_gradient_has_a_derivative_by_the_weight(loss: RowLoss, reduction: str) -> None:
    """As learning to weight samples needs it: the weight is a constant of the inner transform, not of the outer."""
    if not loss.learned:
        pytest.skip("has no weight")
    given = loss.given((3, 4), away=True)
    names = loss.differentiable[:1], loss.learned

    def slope(*weights: Tensor, ours: bool = True) -> Tensor:
        inner = as_function(loss, given | dict(zip(names[1], weights, strict=True)), names[0], reduction, ours)
        result: Tensor = grad(lambda x: inner(x).sum())(given[names[0][0]])
        return result

    at = tuple(given[k] for k in names[1])
    argnums = tuple(range(len(at)))
    expected = jacrev(lambda *w: slope(*w, ours=False), argnums)(*at)
    for transform in (jacrev, jacfwd):
        for one, other in zip(transform(slope, argnums)(*at), expected, strict=True):
            torch.testing.assert_close(one, other)


def test_vmap_of_single_rows_and_in_vmap() -> None:
    x, y = torch.randn(5, 6, 7), torch.randint(0, 7, (5, 6))
    values = L.cross_entropy(x.movedim(-1, 1), y, reduction="none")
    torch.testing.assert_close(vmap(vmap(L.cross_entropy))(x, y), values)


@pytest.mark.host  # on CUDA the row is NaN, and named later
def test_an_index_out_of_range_is_an_error_under_vmap_too() -> None:
    y = torch.randint(0, 3, (5, 6))
    y[3, 2] = 7
    with pytest.raises(IndexError, match="7"):
        vmap(L.cross_entropy)(torch.randn(5, 6, 3), y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_vmap_keeps_the_dtype(dtype: torch.dtype) -> None:
    x, y = torch.randn(4, 30, 10).to(dtype), torch.randint(0, 10, (4, 30))
    expected = torch.stack([L.cross_entropy(a, b) for a, b in zip(x, y, strict=True)])
    torch.testing.assert_close(vmap(L.cross_entropy)(x, y), expected, rtol=torch.finfo(dtype).eps, atol=0)
    assert vmap(grad(L.cross_entropy))(x, y).dtype == dtype


def test_per_sample_gradients_of_a_model() -> None:
    model = nn.Linear(3, 4).double()
    parameters = dict(model.named_parameters())
    x, y = torch.randn(5, 3).double(), torch.randint(0, 4, (5,))

    def objective(parameters: dict[str, Tensor], x: Tensor, y: Tensor, criterion: Any) -> Tensor:
        result: Tensor = criterion(functional_call(model, parameters, (x,)), y)
        return result

    ours, theirs = (
        vmap(grad(lambda p, a, b, f=f: objective(p, a, b, f)), in_dims=(None, 0, 0))(parameters, x, y)
        for f in (L.cross_entropy, nn.functional.cross_entropy)
    )
    for name in parameters:
        torch.testing.assert_close(ours[name], theirs[name])
