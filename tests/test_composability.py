"""The losses inside of everything else that torch offers: the compiler, function transforms, autocast, checkpoints,
hooks, threads and processes."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset

import fusedloss
import fusedloss.functional as L
from fusedloss.testing.catalogue import LOSSES, Loss, normal, positive

pytestmark = [
    pytest.mark.filterwarnings("ignore:kl_div with reduction='mean'"),
    pytest.mark.filterwarnings("ignore:Using a target size"),
    # torch's own compiler and forward mode.
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*:FutureWarning"),
    pytest.mark.filterwarnings(
        "ignore:There is a performance drop because we have not yet implemented the batching rule"
    ),
]

EACH = [pytest.param(loss, id=loss.id) for loss in LOSSES]
FIRST_BY_NAME = {loss.name: loss for loss in reversed(LOSSES)}
EACH_NAME = [pytest.param(loss, id=name) for name, loss in FIRST_BY_NAME.items()]
BY_REDUCTION = [pytest.param(loss, r, id=f"{loss.id}-{r}") for loss in LOSSES for r in loss.reductions]
SAME_SHAPE = {"binary_cross_entropy", "binary_cross_entropy_with_logits", "sigmoid_focal_loss"}
REDUCTIONS = {"none": 0, "mean": 1, "sum": 2, "batchmean": 3, "rowmean": 4}


def leaves_of(loss: Loss, operands: list[Tensor]) -> list[Tensor]:
    """The operands, of which the differentiable ones require their gradient now."""
    return [
        operand.detach().clone().requires_grad_(name in loss.differentiable)
        for name, operand in zip(loss.samplers, operands, strict=True)
    ]


def gradients_of(result: Tensor, operands: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(result.sum(), [operand for operand in operands if operand.requires_grad]))


# ---- the ops as torch.library sees them -----------------------------------------------------------------------------


def op_arguments(loss: Loss, reduction: str, weight: Tensor | None) -> tuple[list[Tensor | None], tuple[Any, ...]]:
    """What every op of a loss ends with: three operands, and (weight, parameters, reduction)."""
    operands, keywords = loss.sample((3, 4))
    three = [*operands, *keywords.values(), None][:3]
    about = next(about for about in fusedloss._C.losses() if about["name"] == loss.name)
    # A tensor may take the place of the parameter of its name; the op wants the number all the same.
    defaults = {name: p.default for name, p in inspect.signature(loss.function).parameters.items()}
    parameters = [float(loss.parameters.get(p["name"], defaults[p["name"]])) for p in about["parameters"]]
    return three, (weight, parameters, REDUCTIONS[reduction])


def check_op(loss: Loss, suffix: str, *arguments: Any) -> None:
    results = torch.library.opcheck(getattr(torch.ops.fusedloss, loss.name + suffix).default, arguments)
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("loss", EACH)
def test_opcheck(loss: Loss, reduction: str) -> None:
    weight = positive((3, 1), torch.Generator().manual_seed(1))
    if loss.name == "gaussian_kl" and reduction == "mean":
        reduction = "rowmean"
    operands, rest = op_arguments(loss, reduction, weight)
    mask = [name in loss.differentiable for name in loss.samplers] + [bool(loss.keyword_operands)]
    mask = [*mask, False][:3]
    tangents = [torch.ones_like(o) if m and o is not None else None for o, m in zip(operands, mask, strict=True)]
    incoming = torch.ones(3, 4).double() if reduction == "none" else torch.ones(()).double()
    leaves = [o.clone().requires_grad_(m) if o is not None else None for o, m in zip(operands, mask, strict=True)]
    check_op(loss, "", *leaves, *rest)
    check_op(loss, "_value_and_gradient", mask, *operands, *rest)
    check_op(loss, "_backward", incoming.requires_grad_(), mask, *leaves, *rest)
    check_op(loss, "_jvp", *tangents, *leaves, *rest)
    check_op(loss, "_hvp", incoming.detach(), *tangents, mask, *operands, *rest)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("loss", "reduction"), BY_REDUCTION)
def test_fake_and_meta_tensors_have_the_layout_of_real_ones(loss: Loss, reduction: str, dtype: torch.dtype) -> None:
    def layout(t: Tensor) -> tuple[Any, ...]:
        return t.shape, t.dtype, t.stride(), t.requires_grad

    def step(operands: list[Tensor], keywords: dict[str, Tensor]) -> list[tuple[Any, ...]]:
        inputs = leaves_of(loss, operands)
        result = loss(*inputs, **keywords, reduction=reduction)
        return [layout(result), *(layout(gradient) for gradient in gradients_of(result, inputs))]

    operands, keywords = loss.sample((2, 3, 4, 5), dtype)
    operands[0] = operands[0].contiguous(memory_format=torch.channels_last)
    real = step(operands, keywords)
    meta = step([o.to("meta") for o in operands], {k: v.to("meta") for k, v in keywords.items()})
    assert meta == real
    with FakeTensorMode() as mode:
        fake = step([mode.from_tensor(o) for o in operands], {k: mode.from_tensor(v) for k, v in keywords.items()})
    assert fake == real


class OnAnotherDevice(Tensor):
    """Says that it is on a device for which nothing was compiled; the op is asked as that device would."""

    @staticmethod
    def __new__(cls) -> OnAnotherDevice:
        made: OnAnotherDevice = Tensor._make_wrapper_subclass(cls, (3,), dtype=torch.float32, device="privateuseone")
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C._DisableTorchDispatch():
            return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("loss", [p for p in EACH_NAME if len(p.values[0].samplers) == 2])  # type: ignore[union-attr]
def test_a_device_without_kernels_is_refused_in_words(loss: Loss) -> None:
    with pytest.raises(NotImplementedError, match=f"{loss.name}.*privateuseone.*no kernels") as error:
        loss.function(OnAnotherDevice(), OnAnotherDevice())
    assert next(iter(loss.samplers)) in str(error.value)


# ---- torch.compile and torch.export ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("clean_dynamo")
@pytest.mark.parametrize("loss", EACH)
def test_compiles_as_one_graph(loss: Loss) -> None:
    def step(*operands: Tensor, **keywords: Tensor) -> Tensor:
        parts = [loss(*operands, **keywords, reduction=r).sum() for r in loss.reductions]
        return torch.stack(parts) @ torch.arange(1.0, len(parts) + 1)

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    operands, keywords = loss.sample((5, 4), torch.float32)
    one, other = leaves_of(loss, operands), leaves_of(loss, operands)
    result, expected = compiled(*one, **keywords), step(*other, **keywords)
    torch.testing.assert_close(result, expected)
    for a, b in zip(gradients_of(result, one), gradients_of(expected, other), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.usefixtures("clean_dynamo")
@pytest.mark.parametrize(
    "module",
    [fusedloss.HuberLoss(delta=0.5), fusedloss.BCEWithLogitsLoss(pos_weight=torch.tensor([1.0, 2.0, 3.0, 4.0]))],
    ids=lambda module: type(module).__name__,
)
def test_compiles_by_inductor_between_other_ops(module: nn.Module) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4))
    x, y = torch.randn(16, 3), torch.rand(16, 4)

    def step(x: Tensor, y: Tensor) -> Tensor:
        result: Tensor = module(model(x) * 2, y) + 1
        return result

    expected = step(x, y)
    slopes = torch.autograd.grad(expected, list(model.parameters()))
    result = torch.compile(step, fullgraph=True)(x, y)
    torch.testing.assert_close(result, expected)
    for a, b in zip(torch.autograd.grad(result, list(model.parameters())), slopes, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.usefixtures("clean_dynamo")
@pytest.mark.parametrize("loss", [L.mse_loss, L.kl_div, L.gaussian_kl], ids=lambda f: f.__name__)
def test_one_graph_serves_all_sizes(loss: Callable[..., Tensor]) -> None:
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(loss, backend=counter, fullgraph=True, dynamic=True)
    for rows, columns in ((5, 7), (3, 9), (11, 2), (64, 64)):
        x, y = torch.randn(rows, columns, requires_grad=True), torch.rand(rows, columns)
        result, expected = compiled(x, y), loss(x, y)
        torch.testing.assert_close(result, expected)
        torch.testing.assert_close(*(torch.autograd.grad(r, x)[0] for r in (result, expected)))
    assert counter.frame_count == 1


@pytest.mark.usefixtures("clean_dynamo")
def test_a_weight_that_is_learned_compiles() -> None:
    compiled = torch.compile(L.huber_loss, backend="aot_eager", fullgraph=True)
    x, y, w = torch.randn(5, 4, requires_grad=True), torch.randn(5, 4), torch.rand(5, 1, requires_grad=True)
    result, expected = compiled(x, y, weight=w), L.huber_loss(x, y, weight=w)
    torch.testing.assert_close(result, expected)
    for a, b in zip(torch.autograd.grad(result, (x, w)), torch.autograd.grad(expected, (x, w)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.usefixtures("clean_dynamo")
def test_compiles_under_autocast() -> None:
    def step(x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return L.mse_loss(x, y)

    x = torch.randn(5, 4, dtype=torch.bfloat16, requires_grad=True)
    y = torch.randn(5, 4, dtype=torch.bfloat16)
    result = torch.compile(step, backend="aot_eager", fullgraph=True)(x, y)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, step(x, y))
    (gradient,) = torch.autograd.grad(result, x)
    assert gradient.dtype == torch.bfloat16


@pytest.mark.usefixtures("clean_dynamo")
def test_an_unknown_reduction_is_an_error_in_a_graph_too() -> None:
    compiled = torch.compile(partial(L.mse_loss, reduction="avg"), backend="aot_eager", fullgraph=True)
    with pytest.raises(Exception, match="avg"):
        compiled(torch.zeros(3), torch.zeros(3))


@pytest.mark.usefixtures("clean_dynamo")
def test_an_exported_program_runs() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 4)
            self.criterion = fusedloss.SigmoidFocalLoss(gamma=1.5)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            result: Tensor = self.criterion(self.layer(x), y)
            return result

    model = Model()
    rows = torch.export.Dim("rows", min=2)
    program = torch.export.export(model, (torch.randn(5, 3), torch.rand(5, 4)), dynamic_shapes=({0: rows}, {0: rows}))
    assert any("fusedloss" in str(node.target) for node in program.graph.nodes)
    x, y = torch.randn(9, 3), torch.rand(9, 4)
    torch.testing.assert_close(program.module()(x, y), model(x, y))


# ---- function transforms --------------------------------------------------------------------------------------------


def first_of(loss: Loss, operands: list[Tensor], keywords: dict[str, Tensor], reduction: str, ours: bool = True) -> Any:
    """The loss as a function of its first operand."""
    call = loss if ours else loss.torch
    return lambda x: call(x, *operands[1:], **keywords, reduction=reduction)


@pytest.mark.parametrize("loss", EACH)
def test_grad_jvp_and_vjp_are_those_of_the_formula(loss: Loss) -> None:
    operands, keywords = loss.sample((3, 4))
    for reduction in loss.reductions:
        ours, theirs = (first_of(loss, operands, keywords, reduction, ours) for ours in (True, False))
        if reduction != "none":
            torch.testing.assert_close(grad(ours)(operands[0]), grad(theirs)(operands[0]))
        direction = normal((3, 4), torch.Generator().manual_seed(3))
        value, slope = jvp(ours, (operands[0],), (direction,))
        torch.testing.assert_close(value, theirs(operands[0]))
        torch.testing.assert_close(slope, (jacrev(theirs)(operands[0]) * direction).sum((-1, -2)))
        incoming = torch.full_like(value, 0.3)
        torch.testing.assert_close(vjp(ours, operands[0])[1](incoming)[0], vjp(theirs, operands[0])[1](incoming)[0])


@pytest.mark.parametrize("loss", EACH)
def test_a_tangent_may_move_every_operand(loss: Loss) -> None:
    """Along all differentiable operands at once the derivative is the sum of those along each."""
    operands, keywords = loss.sample((3, 4))
    names = list(loss.samplers)
    moving = [names.index(name) for name in loss.differentiable]
    generator = torch.Generator().manual_seed(3)
    tangents = [normal((3, 4), generator) for _ in moving]

    def call(*some: Tensor) -> Tensor:
        given = list(operands)
        for k, tensor in zip(moving, some, strict=True):
            given[k] = tensor
        return loss(*given, **keywords, reduction="sum")

    at = tuple(operands[k] for k in moving)
    _, slope = jvp(call, at, tuple(tangents))
    gradients = grad(call, argnums=tuple(range(len(moving))))(*at)
    torch.testing.assert_close(slope, sum((g * t).sum() for g, t in zip(gradients, tangents, strict=True)))


@pytest.mark.parametrize("loss", EACH)
def test_jacobians_and_hessians_are_those_of_the_formula(loss: Loss) -> None:
    operands, keywords = loss.sample((2, 3))
    x = operands[0]
    for reduction in loss.reductions:
        ours, theirs = (first_of(loss, operands, keywords, reduction, ours) for ours in (True, False))
        expected = jacrev(theirs)(x)
        torch.testing.assert_close(jacrev(ours)(x), expected)
        torch.testing.assert_close(jacfwd(ours)(x), expected)
        if reduction == "none":
            continue
        second = torch.autograd.functional.hessian(theirs, x)
        for transform in (
            hessian,
            lambda f: jacrev(jacrev(f)),
            lambda f: jacrev(jacfwd(f)),
            lambda f: jacfwd(jacfwd(f)),
        ):
            torch.testing.assert_close(transform(ours)(x), second)


@pytest.mark.parametrize(("loss", "reduction"), BY_REDUCTION)
def test_vmap_is_a_loop(loss: Loss, reduction: str) -> None:
    operands, keywords = loss.sample((6, 3, 4))

    def call(*sample: Tensor) -> Tensor:
        return loss(*sample, **keywords, reduction=reduction)

    expected = torch.stack([call(*(operand[n] for operand in operands)) for n in range(6)])
    torch.testing.assert_close(vmap(call)(*operands), expected)
    torch.testing.assert_close(vmap(call, chunk_size=4)(*operands), expected)
    elsewhere = [operand.movedim(0, d) for d, operand in zip((1, 2, -1), operands, strict=False)]
    torch.testing.assert_close(vmap(call, in_dims=(1, 2, -1)[: len(operands)])(*elsewhere), expected)
    if reduction == "none":
        torch.testing.assert_close(vmap(call, out_dims=1)(*operands), expected.movedim(0, 1))


@pytest.mark.parametrize(("loss", "reduction"), BY_REDUCTION)
def test_vmap_over_some_arguments_alone(loss: Loss, reduction: str) -> None:
    """The input has the batch and the rest does not, then the rest has it and the input does not."""
    operands, keywords = loss.sample((6, 3, 4))
    weights = positive((6, 3, 1), torch.Generator().manual_seed(1))
    fixed = [operand[0] for operand in operands]

    def call(weight: Tensor, *sample: Tensor) -> Tensor:
        return loss(*sample, **keywords, reduction=reduction, weight=weight)

    for batched in ((0,), tuple(range(1, len(operands)))):
        given = [operands[k] if k in batched else fixed[k] for k in range(len(operands))]
        in_dims = [0 if k in batched else None for k in range(len(operands))]
        samples = [[t[n] if d == 0 else t for t, d in zip(given, in_dims, strict=True)] for n in range(6)]
        torch.testing.assert_close(
            vmap(call, in_dims=(None, *in_dims))(weights[0], *given),
            torch.stack([call(weights[0], *sample) for sample in samples]),
        )
        torch.testing.assert_close(
            vmap(call, in_dims=(0, *in_dims))(weights, *given),
            torch.stack([call(w, *sample) for w, sample in zip(weights, samples, strict=True)]),
        )
    torch.testing.assert_close(
        vmap(call, in_dims=(0, *[None] * len(fixed)))(weights, *fixed), torch.stack([call(w, *fixed) for w in weights])
    )


@pytest.mark.parametrize(("loss", "reduction"), [p for p in BY_REDUCTION if p.values[1] != "none"])
def test_gradients_of_each_sample(loss: Loss, reduction: str) -> None:
    operands, keywords = loss.sample((6, 3, 4))
    weights = positive((6, 3, 1), torch.Generator().manual_seed(1))
    argnums = tuple(list(loss.samplers).index(name) for name in loss.differentiable)

    def call(*sample: Tensor) -> Tensor:
        return loss(*sample[:-1], **keywords, reduction=reduction, weight=sample[-1])

    slopes = grad(call, argnums=argnums)
    expected = [slopes(*(operand[n] for operand in operands), weights[n]) for n in range(6)]
    for k, gradient in enumerate(vmap(slopes)(*operands, weights)):
        torch.testing.assert_close(gradient, torch.stack([each[k] for each in expected]))
    shared = vmap(slopes, in_dims=(0, *[None] * len(operands)))(operands[0], *(o[0] for o in operands[1:]), weights[0])
    for k, gradient in enumerate(shared):
        alone = [slopes(x, *(o[0] for o in operands[1:]), weights[0])[k] for x in operands[0]]
        torch.testing.assert_close(gradient, torch.stack(alone))


@pytest.mark.parametrize("loss", [p for p in EACH if p.values[0].name not in SAME_SHAPE])  # type: ignore[union-attr]
def test_vmap_of_samples_that_broadcast(loss: Loss) -> None:
    operands, keywords = loss.sample((6, 3, 4))
    cut = (slice(None), slice(None), slice(1)) if loss.keyword_operands else (slice(None), slice(1))
    operands[1:] = [operand[cut] for operand in operands[1:]]
    for reduction in loss.reductions:

        def call(*sample: Tensor, r: str = reduction) -> Tensor:
            return loss(*sample, **keywords, reduction=r)

        samples = [[operand[n] for operand in operands] for n in range(6)]
        torch.testing.assert_close(vmap(call)(*operands), torch.stack([call(*sample) for sample in samples]))
        argnums = tuple(list(loss.samplers).index(name) for name in loss.differentiable)
        if reduction != "none":
            slopes = grad(call, argnums=argnums)
            expected = [slopes(*sample) for sample in samples]
            for k, gradient in enumerate(vmap(slopes)(*operands)):
                torch.testing.assert_close(gradient, torch.stack([each[k] for each in expected]))


@pytest.mark.parametrize("loss", [p for p in EACH_NAME if p.values[0].name != "gaussian_kl"])  # type: ignore[union-attr]
def test_vmap_of_single_numbers_and_in_vmap(loss: Loss) -> None:
    operands, _ = loss.sample((5, 6), torch.float32)
    values = loss(*operands, reduction="none")
    twice = vmap(vmap(partial(loss, reduction="mean")))(*operands)
    torch.testing.assert_close(twice, values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_vmap_keeps_the_dtype(dtype: torch.dtype) -> None:
    x, y = torch.randn(4, 100).to(dtype), torch.randn(4, 100).to(dtype)
    for reduction in ("none", "mean"):
        call = partial(L.huber_loss, reduction=reduction)
        expected = torch.stack([call(a, b) for a, b in zip(x, y, strict=True)])
        torch.testing.assert_close(vmap(call)(x, y), expected, rtol=torch.finfo(dtype).eps, atol=0)
        assert vmap(grad(L.huber_loss))(x, y).dtype == dtype


@pytest.mark.parametrize(("loss", "reduction"), BY_REDUCTION)
def test_a_gradient_has_a_derivative_by_the_weight(loss: Loss, reduction: str) -> None:
    """As learning to weight samples needs it: the weight is a constant of the inner transform, not of the outer."""
    operands, keywords = loss.sample((3, 4))
    weight = positive((3, 1), torch.Generator().manual_seed(1))

    def slope(weight: Tensor) -> Tensor:
        def total(x: Tensor) -> Tensor:
            return loss(x, *operands[1:], **keywords, reduction=reduction, weight=weight).sum()

        result: Tensor = grad(total)(operands[0])
        return result

    # By the ops of autograd the weight and the operand are variables of one graph.
    x = operands[0].clone().requires_grad_()
    free = weight.clone().requires_grad_()
    total = loss(x, *operands[1:], **keywords, reduction=reduction, weight=free).sum()
    (gradient,) = torch.autograd.grad(total, x, create_graph=True)
    expected = torch.stack([torch.autograd.grad(g, free, retain_graph=True)[0] for g in gradient.flatten()])
    for transform in (jacrev, jacfwd):
        torch.testing.assert_close(transform(slope)(weight).flatten(0, 1), expected)


def test_per_sample_gradients_of_a_model() -> None:
    model = nn.Linear(3, 2).double()
    parameters = dict(model.named_parameters())
    x, y = torch.randn(5, 3).double(), torch.randn(5, 2).double()

    def objective(parameters: dict[str, Tensor], x: Tensor, y: Tensor, criterion: Any) -> Tensor:
        result: Tensor = criterion(functional_call(model, parameters, (x,)), y)
        return result

    ours, theirs = (
        vmap(grad(partial(objective, criterion=f)), in_dims=(None, 0, 0))(parameters, x, y)
        for f in (L.smooth_l1_loss, F.smooth_l1_loss)
    )
    for name in parameters:
        torch.testing.assert_close(ours[name], theirs[name])


# ---- autocast -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("loss", EACH)
def test_autocast_widens_the_result_and_copies_nothing(loss: Loss, dtype: torch.dtype) -> None:
    operands, keywords = loss.sample((64, 32), dtype)
    wide, wide_keywords = [o.float() for o in operands], {k: v.float() for k, v in keywords.items()}
    for reduction in loss.reductions:
        inputs = leaves_of(loss, operands)
        with (
            torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile,
            torch.autocast("cpu", dtype),
        ):
            result = loss(*inputs, **keywords, reduction=reduction)
        assert result.dtype == torch.float32
        copies = [
            e.name
            for e in profile.events()
            if e.name in ("aten::_to_copy", "aten::copy_") and [64, 32] in e.input_shapes
        ]
        assert not copies
        others = leaves_of(loss, wide)
        expected = loss(*others, **wide_keywords, reduction=reduction)
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
        for gradient, of_wide in zip(gradients_of(result, inputs), gradients_of(expected, others), strict=True):
            assert gradient.dtype == dtype
            torch.testing.assert_close(gradient, of_wide.to(dtype), rtol=2e-2, atol=1e-6)


def test_autocast_leaves_wide_inputs_as_they_are() -> None:
    for dtype in (torch.float32, torch.float64):
        x, y = torch.randn(5, dtype=dtype), torch.randn(5, dtype=dtype)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(L.mse_loss(x, y), L.mse_loss(x, y))
            result = L.mse_loss(x, y)
        assert result.dtype == dtype
        assert torch.equal(result, L.mse_loss(x, y))


def test_autocast_takes_half_predictions_with_float_targets() -> None:
    x, y = torch.randn(64).bfloat16().requires_grad_(), torch.randn(64)
    with torch.autocast("cpu", torch.bfloat16):
        result = L.huber_loss(x, y)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, L.huber_loss(x.float(), y))
    assert torch.autograd.grad(result, x)[0].dtype == torch.bfloat16


@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
def test_a_scaled_loss_keeps_the_gradients_that_float16_would_lose(autocast: bool) -> None:
    """What gradient scaling is for: slopes of a mean of 1M elements are too small for float16, scaled they are not."""
    size = 1 << 20
    scale = 2.0**16 if autocast else 2.0**14  # the first is torch.amp.GradScaler's; it fits into no float16
    x = (torch.rand(size, generator=torch.Generator().manual_seed(0)) + 0.1).half().requires_grad_()
    y = torch.zeros(size).half()
    with torch.autocast("cpu", torch.float16, enabled=autocast):
        result = L.mse_loss(x, y)
    (gradient,) = torch.autograd.grad(result.float() * scale, x)
    exact = 2 * x.detach().double() / size * scale
    torch.testing.assert_close(gradient.double(), exact, rtol=2e-3, atol=0)


# ---- autograd's graph -----------------------------------------------------------------------------------------------


def sample_loss(reduction: str = "mean", incoming: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """A leaf, a loss of it, and its gradient by the formula."""
    x = torch.linspace(-2, 2, 9, dtype=torch.float64).requires_grad_()
    y = torch.linspace(1, 3, 9, dtype=torch.float64)
    result = L.mse_loss(x, y, reduction=reduction)
    return x, result, incoming * 2 * (x.detach() - y) / (9 if reduction == "mean" else 1)


REDUCED = pytest.mark.parametrize("reduction", ["none", "mean", "sum"])


@REDUCED
def test_a_graph_that_is_kept_gives_the_same_gradient_every_time(reduction: str) -> None:
    x, result, expected = sample_loss(reduction)
    for _ in range(3):
        (gradient,) = torch.autograd.grad(result.sum(), x, retain_graph=True)
        torch.testing.assert_close(gradient, expected)
        gradient.mul_(1000)  # it belongs to the caller
    result.sum().backward()
    torch.testing.assert_close(x.grad, expected)


@REDUCED
def test_gradients_accumulate(reduction: str) -> None:
    x, result, expected = sample_loss(reduction)
    for n in range(1, 4):
        result.sum().backward(retain_graph=True)
        torch.testing.assert_close(x.grad, n * expected)
    assert x.grad is not None
    x.grad.zero_()
    result.sum().backward()
    torch.testing.assert_close(x.grad, expected)
    L.mse_loss(x, torch.zeros_like(x), reduction="sum").backward()
    torch.testing.assert_close(x.grad, expected + 2 * x.detach())


@REDUCED
def test_a_second_backward_is_refused(reduction: str) -> None:
    x, result, _ = sample_loss(reduction)
    total = result.sum() if reduction == "none" else result
    total.backward()
    first = x.grad.clone()  # type: ignore[union-attr]
    with pytest.raises(RuntimeError, match="second time"):
        total.backward()
    assert torch.equal(x.grad, first)  # type: ignore[arg-type]


@REDUCED
@pytest.mark.parametrize("incoming", [0.0, -1.5, 3.0, float("inf")])
def test_the_incoming_gradient_is_a_factor(reduction: str, incoming: float) -> None:
    x, result, expected = sample_loss(reduction, incoming)
    (gradient,) = torch.autograd.grad(result, x, torch.full_like(result, incoming), retain_graph=True)
    torch.testing.assert_close(gradient, expected)
    (gradient,) = torch.autograd.grad(result, x, torch.full_like(result, incoming))
    torch.testing.assert_close(gradient, expected)


def test_both_operands_may_be_the_same_tensor() -> None:
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    L.kl_div(x, x, reduction="sum").backward()
    torch.testing.assert_close(x.grad, x.detach().log() + 1 - 2 * x.detach())


def test_one_loss_twice_in_a_graph() -> None:
    x, result, expected = sample_loss()
    (result * 2 + result**2).backward()
    torch.testing.assert_close(x.grad, expected * (2 + 2 * result.item()))


@REDUCED
@pytest.mark.parametrize("which", ["input", "target", "weight"])
def test_a_tensor_changed_before_backward_is_noticed(reduction: str, which: str) -> None:
    leaf = torch.rand(5, requires_grad=True)
    tensors = {"input": leaf * 1, "target": torch.rand(5), "weight": torch.rand(5)}
    result = L.log_cosh_loss(**tensors, reduction=reduction).sum()
    tensors[which].detach().add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.backward()


def test_a_result_may_be_changed_in_place() -> None:
    x, result, expected = sample_loss()
    result *= 3
    result.backward()
    torch.testing.assert_close(x.grad, 3 * expected)


def test_inference_mode_and_no_grad_record_nothing() -> None:
    x, y = torch.randn(5, requires_grad=True), torch.randn(5)
    expected = L.mse_loss(x, y)
    assert expected.requires_grad and expected.grad_fn is not None
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            result = L.mse_loss(x, y)
        assert not result.requires_grad and result.grad_fn is None
        assert torch.equal(result, expected)
    assert result.is_inference()
    assert not L.mse_loss(x.detach(), y).requires_grad


def test_hooks_see_the_gradients() -> None:
    x, result, expected = sample_loss()
    seen: list[str] = []
    x.register_hook(lambda g: seen.append("leaf") or g * 2)
    x.register_post_accumulate_grad_hook(lambda leaf: seen.append("accumulated"))
    result.register_hook(lambda g: seen.append("result") or g * 5)
    result.grad_fn.register_prehook(lambda gs: seen.append("before the node"))  # type: ignore[union-attr]
    result.backward()
    torch.testing.assert_close(x.grad, 10 * expected)
    assert sorted(seen) == ["accumulated", "before the node", "leaf", "result"]


def test_the_node_says_whose_it_is() -> None:
    x, result, _ = sample_loss()
    assert result.grad_fn.name() == "mse_loss_backward"  # type: ignore[union-attr]
    (gradient,) = torch.autograd.grad(result, x, create_graph=True)
    assert "mse_loss_double_backward" in str(gradient.grad_fn.name())  # type: ignore[union-attr]


@REDUCED
def test_saved_tensors_may_be_kept_elsewhere(reduction: str) -> None:
    with torch.autograd.graph.save_on_cpu():
        x, result, expected = sample_loss(reduction)
    result.sum().backward()
    torch.testing.assert_close(x.grad, expected)
    packed: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or len(packed) - 1, lambda k: packed[k]):
        x, result, expected = sample_loss(reduction)
        (first,) = torch.autograd.grad(result.sum(), x, create_graph=True)
    assert packed
    torch.testing.assert_close(first.detach(), expected)
    torch.testing.assert_close(
        torch.autograd.grad(first.sum(), x)[0].sum(), (expected / (x - torch.linspace(1, 3, 9))).sum().detach()
    )


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("loss", EACH_NAME)
def test_checkpoints(loss: Loss, use_reentrant: bool) -> None:
    operands, keywords = loss.sample((5, 4))
    one, other = leaves_of(loss, operands), leaves_of(loss, operands)
    call = partial(loss, **keywords, reduction="sum")
    checkpoint(call, *one, use_reentrant=use_reentrant).backward()
    call(*other).backward()
    for a, b in zip(one, other, strict=True):
        assert (a.grad is None and b.grad is None) or torch.equal(a.grad, b.grad)  # type: ignore[arg-type]


def test_double_backward_through_a_kept_graph() -> None:
    """A penalty on the gradient, as GANs have it: first and second derivatives in one backward."""
    x, y = torch.randn(6, dtype=torch.float64, requires_grad=True), torch.randn(6, dtype=torch.float64)
    totals = []
    for f in (L.binary_cross_entropy_with_logits, F.binary_cross_entropy_with_logits):
        result = f(x, y.sigmoid())
        (slope,) = torch.autograd.grad(result, x, create_graph=True)
        (result + slope.pow(2).sum()).backward(retain_graph=True)
        (result + slope.pow(2).sum()).backward()
        totals.append(x.grad)
        x.grad = None
    torch.testing.assert_close(*totals)


def test_a_gradient_of_a_learned_scale() -> None:
    """The incoming gradient itself requires one."""
    x, scale = torch.randn(5, dtype=torch.float64, requires_grad=True), torch.tensor(2.0).double().requires_grad_()
    (slope,) = torch.autograd.grad(L.mse_loss(x, torch.zeros(5).double()) * scale, x, create_graph=True)
    (by_scale,) = torch.autograd.grad(slope.sum(), scale)
    torch.testing.assert_close(by_scale, (2 * x.detach() / 5).sum())


def test_dual_numbers_by_hand() -> None:
    import torch.autograd.forward_ad as forward

    x, y = torch.randn(5).double(), torch.randn(5).double()
    with forward.dual_level():
        dual = forward.make_dual(x, torch.ones(5).double())
        value, slope = forward.unpack_dual(L.mse_loss(dual, y))
    torch.testing.assert_close(slope, (2 * (x - y)).mean())
    torch.testing.assert_close(value, F.mse_loss(x, y))


def test_a_subclass_of_tensor_and_a_parameter_are_taken() -> None:
    class Marked(Tensor):
        pass

    x, y = torch.randn(4), torch.randn(4)
    expected = L.mse_loss(x, y)
    assert torch.equal(L.mse_loss(nn.Parameter(x), y).detach(), expected)
    assert torch.equal(L.mse_loss(x.as_subclass(Marked), y).as_subclass(Tensor), expected)


# ---- threads and processes ------------------------------------------------------------------------------------------


def test_threads_give_the_same_bits() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(100_000, generator=generator), torch.randn(100_000, generator=generator)

    def step() -> tuple[Tensor, Tensor]:
        leaf = x.clone().requires_grad_()
        result = L.log_cosh_loss(leaf, y)
        result.backward()
        return result.detach(), leaf.grad  # type: ignore[return-value]

    expected = step()
    found: list[tuple[Tensor, Tensor]] = []
    threads = [threading.Thread(target=lambda: found.extend(step() for _ in range(10))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 80
    assert all(torch.equal(a, b) for pair in found for a, b in zip(pair, expected, strict=True))


def test_threads_may_share_a_graph() -> None:
    x, result, expected = sample_loss()
    found: list[Tensor] = []
    threads = [
        threading.Thread(target=lambda: found.extend(torch.autograd.grad(result, x, retain_graph=True)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    for gradient in found:
        torch.testing.assert_close(gradient, expected)


class Losses(Dataset[Tensor]):
    """A data set that computes a loss and a gradient, as one of hard examples would."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        x = torch.full((2000, 50), float(index), requires_grad=True)
        result = L.huber_loss(x, torch.zeros(2000, 50), delta=2.0)
        result.backward()
        assert x.grad is not None
        return torch.stack([result.detach(), x.grad.sum()])


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.host)])
def test_workers_of_a_data_loader(context: str) -> None:
    """Forked after this process has used its own threads; a lock or a pool that did not survive would hang."""
    here = torch.stack([Losses()[n] for n in range(4)])
    loader = DataLoader(Losses(), batch_size=2, num_workers=2, multiprocessing_context=context, timeout=60)
    torch.testing.assert_close(torch.cat(list(loader)), here)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_bits_do_not_depend_on_the_number_of_threads(threads: int) -> None:
    x, y = torch.randn(300_001), torch.randn(300_001)
    expected = L.soft_margin_loss(x, y)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert torch.equal(L.soft_margin_loss(x, y), expected)
    finally:
        torch.set_num_threads(before)
