"""Holds the emulated CUDA kernels of two losses against torch's float64 formulas: the tests that `mutants.py` runs.

    python tests/cuda_emulator/check_kernels.py PATH_TO_EMU

Talks to the ops of the extension `_emu` directly, without the Python package, so that it also serves builds of a few
losses only. All cases are run with the threads ascending, descending and shuffled. The first difference ends the run.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch

Tensor = torch.Tensor
NONE, MEAN, SUM = 0, 1, 2
# Of threads. (With sanitizers, which find a race in any of them, CI takes the first.)
ORDERS = (0, 1, 7)[: int(os.environ.get("EMULATOR_ORDERS", "3"))]
# Around the packs of 2, 4 and 8 elements, a block of 256 threads and the emulated grid of 1024 threads.
SIZES = (1, 2, 3, 4, 7, 8, 9, 255, 256, 257, 1023, 1024, 1025, 5003)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


@dataclass(frozen=True)
class Loss:
    name: str
    operands: int
    parameters: tuple[float, ...]
    formula: Callable[..., Tensor]
    weighted_mean: bool


LOSSES = (
    Loss("mse_loss", 2, (), lambda x, y: (x - y) ** 2, True),
    Loss("gaussian_nll_loss", 3, (0.0, 1e-6), lambda x, y, v: (v.log() + (x - y) ** 2 / v) / 2, False),
)


@dataclass
class Case:
    loss: Loss
    operands: list[Tensor]
    weight: Tensor | None = None
    reduction: int = MEAN

    @property
    def shape(self) -> torch.Size:
        return torch.broadcast_shapes(*(x.shape for x in self.operands))

    def __str__(self) -> str:
        given = [f"{x.dtype} {tuple(x.shape)} by {x.stride()}" for x in [*self.operands, self.weight] if x is not None]
        return f"{self.loss.name} reduction {self.reduction}: {', '.join(given)}"

    @property
    def arguments(self) -> tuple[object, ...]:
        """What all five ops end with."""
        padded = [*self.operands, *[None] * (3 - len(self.operands))]
        return (*padded, self.weight, list(self.loss.parameters), self.reduction)

    def op(self, suffix: str = "") -> Callable[..., object]:
        return getattr(torch.ops.fusedloss, self.loss.name + suffix)


# ---- the oracle ---------------------------------------------------------------------------------------------------


def reduced(case: Case, each: Tensor) -> Tensor:
    weight = None if case.weight is None else case.weight.double().expand(case.shape)
    each = each if weight is None else each * weight
    if case.reduction == NONE:
        return each
    mean = weight.sum() if weight is not None and case.loss.weighted_mean else each.numel()
    return each.sum() / (mean if case.reduction == MEAN else 1)


def expected(case: Case, grad_output: Tensor, tangents: list[Tensor]) -> tuple[dict[str, list[Tensor]], float]:
    """What the ops must give, by autograd on float64 copies; and how large sums would be if nothing cancelled."""
    leaves = [x.double().requires_grad_() for x in case.operands]
    wide = [x.expand(case.shape) for x in leaves]
    each = case.loss.formula(*wide)
    slopes = torch.autograd.grad(each.sum(), wide, create_graph=True)
    along = sum(slope * t.double().expand(case.shape) for slope, t in zip(slopes, tangents, strict=True))
    value, jvp, factor = reduced(case, each), reduced(case, along), grad_output.double()
    uncancelled = max(reduced(case, x.abs()).max().item() for x in (each, along))
    results = {
        "value": [value.detach()],
        "unit": list(torch.autograd.grad(value.sum(), leaves, retain_graph=True)),
        "backward": list(torch.autograd.grad((value * factor).sum(), leaves, retain_graph=True)),
        "jvp": [jvp.detach()],
        "hvp": list(torch.autograd.grad((jvp * factor).sum(), leaves)),
    }
    return results, uncancelled


def computed(case: Case, grad_output: Tensor, tangents: list[Tensor]) -> dict[str, list[Tensor]]:
    count, mask = case.loss.operands, [k < case.loss.operands for k in range(3)]
    padded = [*tangents, *[None] * (3 - count)]
    both = case.op("_value_and_gradient")(mask, *case.arguments)
    results = {
        "value": [case.op()(*case.arguments)],
        "backward": list(case.op("_backward")(grad_output, mask, *case.arguments))[:count],
        "jvp": [case.op("_jvp")(*padded, *case.arguments)],
        "hvp": list(case.op("_hvp")(grad_output, *padded, mask, *case.arguments))[:count],
    }
    value = results["value"][0]
    assert torch.equal(both[0], value), f"with gradients the value is {both[0]}, without {value}, in {case}"
    return {**results, "unit": both[1]}


def close(got: Tensor, want: Tensor, scale: float = 0.0) -> bool:
    """Up to rounding of the largest number, or of one of size `scale`."""
    tolerance = TOLERANCE[got.dtype]
    largest = max(want.abs().nan_to_num(0).max().item(), scale)
    return torch.allclose(got.double(), want, rtol=tolerance, atol=tolerance * largest, equal_nan=True)


def check(case: Case) -> None:
    like = {"dtype": case.operands[0].dtype}
    grad_output = torch.full((), -1.75, **like) if case.reduction else torch.rand(case.shape, **like) + 0.5
    tangents = [torch.rand_like(x) - 0.5 for x in case.operands]
    want, uncancelled = expected(case, grad_output, tangents)
    for name, all_of in computed(case, grad_output, tangents).items():
        scale = uncancelled if name in ("value", "jvp") else 0.0
        for k, (a, b) in enumerate(zip(all_of, want[name], strict=True)):
            first = f"{a.flatten()[:4].tolist()}, not {b.flatten()[:4].tolist()}"
            assert close(a, b, scale), f"{name}[{k}] is {first}, in {case}"


# ---- cases --------------------------------------------------------------------------------------------------------


def operands_of(loss: Loss, make: Callable[[], Tensor]) -> list[Tensor]:
    """Numbers from (0.25, 1.25): a variance must not be near 0."""
    return [make() for _ in range(loss.operands)]


def numbers(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.rand(shape) + 0.25).to(dtype)


def shifted(size: int, by: int, dtype: torch.dtype) -> Tensor:
    """Contiguous, but `by` elements after an aligned address."""
    return numbers(size + by, dtype=dtype)[by:]


def dense(loss: Loss) -> Iterator[Case]:
    for dtype in TOLERANCE:
        for size in SIZES:
            reduction = (SUM, MEAN, NONE)[size % 3]
            yield Case(loss, operands_of(loss, lambda d=dtype, n=size: numbers(n, dtype=d)), None, reduction)
    for reduction in (NONE, MEAN, SUM):
        yield Case(loss, operands_of(loss, lambda: numbers(6, 50)), numbers(6, 50), reduction)
        yield Case(loss, operands_of(loss, lambda: numbers(6, 50)), numbers(6, 1), reduction)
        yield Case(loss, operands_of(loss, lambda: numbers(6, 50)), numbers(1), reduction)
        yield Case(loss, operands_of(loss, lambda: numbers(6, 50)), numbers(6, 50, dtype=torch.float16), reduction)


def misaligned(loss: Loss) -> Iterator[Case]:
    for dtype in TOLERANCE:
        for which in range(loss.operands + 1):
            aligned = operands_of(loss, lambda d=dtype: numbers(300, dtype=d))
            weight = shifted(300, int(which == loss.operands), dtype)
            operands = [shifted(300, 1, dtype) if k == which else x for k, x in enumerate(aligned)]
            yield Case(loss, operands, weight, MEAN)


def strided(loss: Loss) -> Iterator[Case]:
    for dtype in TOLERANCE:
        operands = operands_of(loss, lambda d=dtype: numbers(7, 11, 5, dtype=d))
        operands[0] = numbers(7, 5, 11, dtype=dtype).transpose(1, 2)
        yield Case(loss, operands, numbers(11, 1), NONE)
        yield Case(loss, [x[::2, 1::3] for x in operands], None, SUM)
        operands[1] = numbers(1, 11, 1, dtype=dtype)
        yield Case(loss, operands, numbers(7, 1, 5), MEAN)
        many_axes = operands_of(loss, lambda d=dtype: numbers(*[2, 1, 3, 2] * 3, dtype=d))
        many_axes[0] = numbers(*[2, 3, 1, 2] * 3, dtype=dtype).permute(*range(11, -1, -1))
        yield Case(loss, many_axes, numbers(3, 2), SUM)
        mixed = operands_of(loss, lambda: numbers(40, 33))
        mixed[0] = mixed[0].to(dtype)
        yield Case(loss, mixed, None, SUM)


def cases() -> Iterator[Case]:
    for loss in LOSSES:
        for family in (dense, misaligned, strided):
            yield from family(loss)


# ---- what no formula says -----------------------------------------------------------------------------------------


def check_empty() -> None:
    for loss in LOSSES:
        empty = operands_of(loss, lambda: numbers(0, 3))
        assert Case(loss, empty, None, SUM).op()(*Case(loss, empty, None, SUM).arguments) == 0
        assert Case(loss, empty).op()(*Case(loss, empty).arguments).isnan()


def check_far_apart() -> None:
    """Offsets that 32 bits cannot hold, over a sparse file: of what lies between the elements there is no page."""
    far = 2**31 + 5
    with tempfile.TemporaryDirectory() as directory:
        memory = torch.from_file(f"{directory}/sparse", shared=True, size=2 * far + 1, dtype=torch.bfloat16)
        x = memory.as_strided((3,), (far,))
        x[0], x[1], x[2] = 3, 5, 7
        ones = torch.ones(3, dtype=torch.bfloat16)
        for reduction, expected_value in ((NONE, [4, 16, 36]), (SUM, 56)):
            value = torch.ops.fusedloss.mse_loss(x, ones, None, None, [], reduction)
            assert value.tolist() == expected_value, value


def check_long_sum() -> None:
    """What single additions lose in float32 is kept: adding 1 to 2^24 changes nothing."""
    x = torch.ones(65536)
    x[:4096] = 4096
    value = torch.ops.fusedloss.mse_loss(x, torch.zeros(65536), None, None, [], SUM)
    exact = x.double().square().sum().item()
    assert abs(value.item() / exact - 1) < 1e-7, (value.item(), exact)


def check_infinite() -> None:
    x = torch.ones(300)
    x[7] = math.inf
    value = torch.ops.fusedloss.mse_loss(x, torch.zeros(300), None, None, [], SUM)
    assert value == math.inf, value


def check_domain() -> None:
    """A negative variance spoils its own element and every sum; 0 is one that counts as eps."""
    for step in (1, 2):  # dense, strided
        x, y, v = (torch.ones(40)[::step] for _ in range(3))
        v[3], v[4] = -1, 0
        arguments = (x, y, v, None, [0.0, 1e-6])
        value = torch.ops.fusedloss.gaussian_nll_loss(*arguments, NONE)
        assert value.isnan().nonzero().flatten().tolist() == [3], value
        assert torch.ops.fusedloss.gaussian_nll_loss(*arguments, MEAN).isnan()
        _, (slope, *_) = torch.ops.fusedloss.gaussian_nll_loss_value_and_gradient([True] * 3, *arguments, SUM)
        assert slope.isnan().nonzero().flatten().tolist() == [3], slope


def check_some_gradients() -> None:
    """Only those that the mask asks for are written."""
    x, y, v = (numbers(300) for _ in range(3))
    for wanted in range(3):
        mask = [k == wanted for k in range(3)]
        made = torch.ops.fusedloss.gaussian_nll_loss_backward(torch.ones(()), mask, x, y, v, None, [0.0, 1e-6], SUM)
        want = expected(Case(LOSSES[1], [x, y, v], None, SUM), torch.ones(()), [x, y, v])[0]["unit"][wanted]
        assert [m.numel() > 0 for m in made] == mask
        assert close(made[wanted], want)


def check_division() -> None:
    """Within a unit of the last place over the whole range. The slope of this loss is (input - 0) / var."""
    ends = [0, 5e-324, 1e-323, 2.0**-1022, sys.float_info.max, math.inf, math.nan]
    of_all_sizes = (torch.rand(64, dtype=torch.float64) + 0.5) * 2.0 ** torch.linspace(-1060, 1023, 64).double()
    some = torch.cat([torch.tensor(ends, dtype=torch.float64), of_all_sizes])
    x, v = (each.flatten() for each in torch.meshgrid(torch.cat([some, -some]), some, indexing="ij"))
    arguments = (x, torch.zeros_like(x), v, None, [0.0, 0.0], SUM)
    _, (got, *_) = torch.ops.fusedloss.gaussian_nll_loss_value_and_gradient([True, False, False], *arguments)
    want = x / v
    near = [torch.nextafter(want, torch.full_like(want, end)) for end in (-math.inf, math.inf)]
    right = (near[0] <= got) & (got <= near[1]) | (got.isnan() & want.isnan())
    assert right.all(), (x[~right], v[~right], got[~right], want[~right])


def check_rescaled() -> None:
    """Autograd keeps the gradient of the forward pass and multiplies it by the incoming one."""
    for dtype in (torch.float32, torch.float64):
        x = numbers(3000, dtype=dtype).requires_grad_()
        y = numbers(3000, dtype=dtype)
        value = torch.ops.fusedloss.mse_loss(x, y, None, None, [], SUM)
        (got,) = torch.autograd.grad(value, x, torch.tensor(3.0, dtype=dtype))
        assert close(got, 6 * (x - y).detach().double())


OTHERS = (
    check_empty,
    check_far_apart,
    check_long_sum,
    check_infinite,
    check_domain,
    check_some_gradients,
    check_division,
    check_rescaled,
)


# ---- running ------------------------------------------------------------------------------------------------------


def load(path: str) -> ModuleType:
    loader = importlib.machinery.ExtensionFileLoader("_emu", path)
    spec = importlib.util.spec_from_loader("_emu", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def main(path: str) -> None:
    emulator = load(path)
    torch.set_num_threads(1)
    for order in ORDERS:
        torch.manual_seed(order)
        emulator.set_order(order)
        for case in cases():
            check(case)
        for check_other in OTHERS:
            check_other()
    print(f"{Path(path).name}: as expected; {emulator.statistics()}")


if __name__ == "__main__":
    main(sys.argv[1])
