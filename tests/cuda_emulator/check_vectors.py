"""Holds the emulated CUDA kernels of losses of vectors against torch's float64 formulas, as check_rows.py does losses
over rows; `mutants.py` runs all. What other orders of threads give must be the same to the bit.

    python tests/cuda_emulator/check_vectors.py PATH_TO_EMU
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import torch
from check_kernels import ORDERS, TOLERANCE, load

Tensor = torch.Tensor
NONE, MEAN, SUM = 0, 1, 2
P_NORM, SQUARED, COSINE = range(3)
# Around the packs of 2, 4 and 8 components, those of a warp, and where a row becomes a block's.
LENGTHS = (1, 3, 8, 31, 32, 33, 64, 200, 256, 257)
LONG = (4104, 4111)
MASK = [True, True, True, True]


@dataclass
class Case:
    name: str
    operands: list[Tensor]
    parameters: tuple[float, ...]
    weight: Tensor | None = None
    normalize: bool = False
    reduction: int = NONE
    tangents: list[Tensor | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.tangents:
            given = [*self.operands, self.weight]
            self.tangents = [
                None if x is None or not x.is_floating_point() else numbers(x.shape, x.dtype) for x in given
            ]

    def __str__(self) -> str:
        given = [f"{x.dtype} {tuple(x.shape)} by {x.stride()}" for x in [*self.operands, self.weight] if x is not None]
        settings = f"{self.parameters}, normalize {self.normalize}, reduction {self.reduction}"
        return f"{self.name}, {settings}: {', '.join(given)}"

    @property
    def is_triplet(self) -> bool:
        return self.name.startswith("triplet")

    @property
    def free(self) -> list[int]:
        """The operands with a gradient."""
        soft = self.name == "contrastive_loss" and self.operands[2].is_floating_point()
        return [0, 1, *([2] if self.is_triplet or soft else []), *([3] if self.weight is not None else [])]

    @property
    def mask(self) -> list[bool]:
        return [k in self.free for k in range(4)]

    @property
    def arguments(self) -> tuple[object, ...]:
        return (*self.operands, self.weight, self.parameters, self.normalize, self.reduction)


def numbers(shape: Sequence[int], dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(tuple(shape), dtype=torch.float64).to(dtype)


# ---- the oracle ---------------------------------------------------------------------------------------------------


def distance(case: Case, a: Tensor, b: Tensor) -> Tensor:
    if case.name == "cosine_embedding_loss":
        return (a * b).sum(-1) / (((a * a).sum(-1) + 1e-12) * ((b * b).sum(-1) + 1e-12)).sqrt()
    kind, p, eps = P_NORM, 2.0, 0.0
    if case.name == "contrastive_loss":
        p = case.parameters[1]
    elif case.name == "triplet_margin_loss":
        p, eps = case.parameters[1:3]
    else:
        kind, p, eps = case.parameters[1:4]
    if kind == COSINE:
        return 1 - torch.cosine_similarity(a, b, -1)
    if kind == SQUARED:
        return ((a - b + eps) ** 2).sum(-1)
    return torch.linalg.vector_norm(a - b + eps, p, -1)


def formula(case: Case, operands: Sequence[Tensor | None]) -> Tensor:
    """Of every row."""
    first, second, third, weight = operands
    vectors = [first, second, *([third] if case.is_triplet else [])]
    if weight is not None:  # what a row holds that does not count is not seen
        absent = (weight == 0)[..., None]
        vectors = [torch.where(absent, k + 1 + torch.arange(x.shape[-1]) ** k, x) for k, x in enumerate(vectors)]
    if case.normalize:
        vectors = [torch.nn.functional.normalize(x, dim=-1) for x in vectors]
    margin = case.parameters[0]
    d = distance(case, vectors[0], vectors[1])
    if case.name == "contrastive_loss":
        loss = third * d**2 + (1 - third) * (margin - d).clamp(min=0) ** 2
    elif case.name == "cosine_embedding_loss":
        loss = torch.where(third == 1, 1 - d, torch.where(third == -1, (d - margin).clamp(min=0), 0))
    else:
        far = distance(case, vectors[0], vectors[2])
        if case.parameters[-1]:
            far = torch.minimum(far, distance(case, vectors[1], vectors[2]))
        loss = (margin + d - far).clamp(min=0)
    return loss if weight is None else torch.where(weight == 0, 0, loss * weight)


def reduced(case: Case, rows: Tensor) -> Tensor:
    return rows if case.reduction == NONE else rows.mean() if case.reduction == MEAN else rows.sum()


def expected(case: Case, grad: Tensor) -> dict[str, list[Tensor]]:
    """By the suffix of the op."""
    given = [*case.operands, case.weight]
    wide = [None if x is None else x.double() for x in given]
    for k in case.free:
        wide[k] = wide[k].requires_grad_()
    leaves = [wide[k] for k in case.free]
    along = [case.tangents[k].double() for k in case.free]
    value = reduced(case, formula(case, wide))
    seed = torch.ones_like(value, requires_grad=True)
    first = torch.autograd.grad(value, leaves, seed, create_graph=True)
    change = sum((g * v).sum() for g, v in zip(first, along, strict=True))
    (moved,) = torch.autograd.grad(change, seed, create_graph=True)
    gradient = torch.autograd.grad(value, leaves, grad.double(), create_graph=True)
    second = torch.autograd.grad(sum((g * v).sum() for g, v in zip(gradient, along, strict=True)), leaves)
    return {"": [value], "_jvp": [moved], "_backward": list(gradient), "_hvp": list(second)}


def computed(case: Case, grad: Tensor) -> dict[str, list[Tensor]]:
    def op(suffix: str) -> Callable[..., object]:
        return getattr(torch.ops.fusedloss, case.name + suffix)

    def asked(results: Sequence[Tensor]) -> list[Tensor]:
        return [results[k] for k in case.free]

    along = [t if k in case.free else None for k, t in enumerate(case.tangents)]
    value, made = op("_value_and_gradient")(case.mask, *case.arguments)
    alone = op("")(*case.arguments)
    assert torch.equal(value.nan_to_num(7), alone.nan_to_num(7)), f"with gradients the value is {value} in {case}"
    return {
        "": [value],
        "_jvp": [op("_jvp")(*along, *case.arguments)],
        "_backward": asked(op("_backward")(grad, case.mask, *case.arguments)),
        "_hvp": asked(op("_hvp")(grad, *along, case.mask, *case.arguments)),
        "_value_and_gradient": list(made),
    }


def check(case: Case, got: dict[str, list[Tensor]], grad: Tensor) -> None:
    want = expected(case, grad)
    want["_value_and_gradient"] = expected(case, torch.ones_like(grad))["_backward"]
    for suffix, results in got.items():
        for k, (x, y) in enumerate(zip(results, want[suffix], strict=True)):
            size = y.detach().abs().nan_to_num(0).max().item() if y.numel() else 0.0
            # What cancels in a second derivative is as large as the first ones, which are near 1.
            off = (x.double() - y.detach()).abs().nan_to_num(0) - 40 * TOLERANCE[x.dtype] * (1 + size)
            assert torch.equal(x.isnan(), y.isnan()), f"{suffix} {k} is {x}, not {y}, in {case}"
            assert not (off > 0).any(), f"{suffix} {k} is {x}, not {y}, in {case}"


# ---- cases ----------------------------------------------------------------------------------------------------------

PARAMETERS: tuple[tuple[str, tuple[float, ...]], ...] = (
    ("contrastive_loss", (6.0, 2.0)),
    ("contrastive_loss", (9.0, 1.0)),
    ("contrastive_loss", (3.0, 3.0)),
    ("contrastive_loss", (3.0, math.inf)),
    ("cosine_embedding_loss", (0.05,)),
    ("triplet_margin_loss", (1.0, 2.0, 1e-6, 0.0)),
    ("triplet_margin_loss", (1.0, 2.0, 1e-6, 1.0)),
    ("triplet_margin_loss", (1.0, 1.0, 1e-2, 1.0)),
    ("triplet_margin_loss", (1.0, 2.5, 1e-2, 1.0)),
    ("triplet_margin_loss", (1.0, math.inf, 1e-2, 1.0)),
    ("triplet_margin_with_distance_loss", (2.0, SQUARED, 2.0, 0.0, 0.0)),
    ("triplet_margin_with_distance_loss", (0.5, COSINE, 2.0, 0.0, 1.0)),
    ("triplet_margin_with_distance_loss", (0.5, COSINE, 2.0, 0.0, 0.0)),
)


def case_of(
    name: str,
    parameters: tuple[float, ...],
    shape: tuple[int, ...],
    dtype: torch.dtype,
    weighted: bool = False,
    **rest: object,
) -> Case:
    rows = shape[:-1]
    operands = [numbers(shape, dtype), numbers(shape, dtype)]
    if name == "contrastive_loss":
        operands.append(torch.rand(rows, dtype=torch.float64).to(dtype) if weighted else torch.randint(0, 2, rows))
    elif name == "cosine_embedding_loss":
        operands.append(torch.randint(0, 2, rows) * 2 - 1)
    else:
        operands.append(numbers(shape, dtype))
    weight = None
    if weighted:
        weight = torch.rand(rows, dtype=torch.float64).to(dtype) + 0.5
        weight.view(-1)[1::3] = 0
        for x in operands:
            if x.shape == shape:
                x.view(-1, shape[-1])[1::3] = math.nan  # nobody shall see it
    return Case(name, operands, parameters, weight, **rest)


def lengths() -> Iterator[Case]:
    for (name, parameters), length in itertools.product(PARAMETERS, LENGTHS):
        if length == 1 and (name.startswith("cosine") or ("distance" in name and parameters[1] == COSINE)):
            continue  # cosines of 1 and -1, all of them corners
        dtype = (torch.float64, torch.float32)[length % 2]
        yield case_of(name, parameters, (3, length), dtype, reduction=length % 3)
    for (name, parameters), length in itertools.product(PARAMETERS[::3], LONG):
        yield case_of(name, parameters, (3, length), torch.float32, reduction=SUM)


def packs() -> Iterator[Case]:
    for (name, parameters), dtype in itertools.product(PARAMETERS, TOLERANCE):
        yield case_of(name, parameters, (11, 72), dtype, weighted=True, reduction=MEAN)


def normalized() -> Iterator[Case]:
    for name, parameters in PARAMETERS:
        close = (min(parameters[0], 0.7), *parameters[1:])
        yield case_of(name, close, (5, 40), torch.float64, normalize=True)
        yield case_of(name, close, (5, 40), torch.float32, normalize=True, reduction=MEAN)


def layouts() -> Iterator[Case]:
    for name, parameters in PARAMETERS[::4]:
        case = case_of(name, parameters, (4, 3, 20), torch.float64, weighted=True)
        case.operands[0] = case.operands[0].movedim(-1, 0).contiguous().movedim(0, -1)
        case.operands[1] = torch.stack([case.operands[1], numbers((4, 3, 20))], -1)[..., 0]
        yield case
        for shift, pitch in ((2, 72), (0, 74)):  # neither lies as packs do
            case = case_of(name, parameters, (5, 72), torch.float32)
            case.operands[0] = numbers((shift + 5 * pitch,), torch.float32)[shift:].view(5, pitch)[:, :72]
            yield case
        case = case_of(name, parameters, (4, 3, 20), torch.float32)
        case.operands[0] = case.operands[0][:1]
        case.operands[1] = case.operands[1][:, :1]
        case.tangents[0], case.tangents[1] = case.tangents[0][:1], case.tangents[1][:, :1]
        yield case


def many_rows() -> Iterator[Case]:
    for name, parameters in PARAMETERS[::5]:
        yield case_of(name, parameters, (300, 5), torch.float32, reduction=SUM)


CASES: tuple[Callable[[], Iterator[Case]], ...] = (lengths, packs, normalized, layouts, many_rows)


def main(path: str) -> None:
    emulator: ModuleType = load(path)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    cases = [case for family in CASES for case in family()]
    grads = [numbers(() if case.reduction else formula_shape(case), case.operands[0].dtype) for case in cases]
    first: list[dict[str, list[Tensor]]] = []
    for order in ORDERS:
        emulator.set_order(order)
        for k, (case, grad) in enumerate(zip(cases, grads, strict=True)):
            got = computed(case, grad)
            if order == ORDERS[0]:
                first.append(got)
                check(case, got, grad)
            for suffix, results in got.items():
                for x, y in zip(results, first[k][suffix], strict=True):
                    same = torch.equal(x.nan_to_num(7), y.nan_to_num(7))
                    assert same, f"{case.name}{suffix} depends on the order of threads, in {case}"
    print(f"{Path(path).name}: losses of vectors as expected; {emulator.statistics()}")


def formula_shape(case: Case) -> torch.Size:
    vectors = case.operands[: 3 if case.is_triplet else 2]
    return torch.broadcast_shapes(*(x.shape for x in vectors))[:-1]


if __name__ == "__main__":
    main(sys.argv[1])
