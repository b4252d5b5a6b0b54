"""What is measured: the losses with their operands, and the sizes, dtypes, layouts and thread counts."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as torch_functional

from fusedloss import functional as fused_functional
from fusedloss._devices import Device
from fusedloss.bench import torch_formulas

Shape = tuple[int, ...]
Operands = list[Tensor]


@dataclass(frozen=True)
class Loss:
    name: str
    fused: Callable[..., Tensor]
    eager: Callable[..., Tensor]
    operands: Callable[[Shape], Operands]
    gradients: int = 1  # how many operands, from the first on, require one
    reduction: str = "mean"
    dense: bool = False  # torch makes a matrix of every two rows
    # Makes of the operands a computation that the loss cannot do without: its time is the limit.
    products: Callable[[Operands], Callable[[], object]] | None = None


# The cases that compare sizes within one table.
SIZES_DIFFER = (
    *("rows", "rows-bfloat16", "rows-reduction-none", "rows-by-classes"),
    *("lattice", "lattice-bfloat16", "lattice-reduction-none", "lattice-batch-first", "lattice-one-thread"),
    *("vectors", "vectors-bfloat16", "vectors-reduction-none", "vectors-one-thread"),
    *("pairs", "pairs-bfloat16", "pairs-reduction-none", "pairs-one-thread", "pairs-memory"),
    *("triplets", "triplets-bfloat16", "triplets-reduction-none", "triplets-one-thread", "triplets-memory"),
)


@dataclass(frozen=True)
class Row:
    """One line of the table: a loss under stated circumstances."""

    loss: Loss
    case: str
    size: str
    shape: Shape
    threads: int
    device: Device
    dtype: torch.dtype = torch.float32
    reduction: str | None = None  # None is the loss's own
    layout: Callable[[Operands], Operands] = list
    alone: bool = False  # torch has no room for it
    checked_rows: int | None = None  # how many the float64 reference has room for; None: all

    @property
    def key(self) -> str:
        return f"{self.loss.name}/{self.case}/{self.size}"

    @property
    def label(self) -> str:
        """Its name within its group."""
        return f"{self.loss.name}, {self.size}" if self.case in SIZES_DIFFER else self.loss.name

    @property
    def group(self) -> str:
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        size = "" if self.case in SIZES_DIFFER else f"{self.size} elements, "
        return f"{self.case}, {size}{threads if self.device is Device.CPU else self.device}"

    def fused(self) -> Callable[..., Tensor]:
        return partial(self.loss.fused, reduction=self.reduction or self.loss.reduction)

    def eager(self) -> Callable[..., Tensor]:
        return partial(self.loss.eager, reduction=self.reduction or self.loss.reduction)

    def operands(self, rows: int | None = None) -> Operands:
        """Returns them with so many rows, or with all."""
        torch.manual_seed(0)
        operands = [
            operand.to(self.device, self.dtype if operand.is_floating_point() else operand.dtype)
            for operand in self.loss.operands((rows or self.shape[0], *self.shape[1:]))
        ]
        operands = self.layout(operands)
        for operand in operands[: self.loss.gradients]:
            operand.requires_grad_()
        return operands


# The operands. Values are such that no loss cancels to nearly nothing, where a relative error would mean nothing.


def _real(shape: Shape) -> Operands:
    return [torch.randn(shape), torch.randn(shape)]


def _unequal(shape: Shape) -> Operands:
    # At equality torch.maximum halves the gradient between its arguments; quantile_loss defines it as 0.
    input, target = _real(shape)
    return [input, torch.where(input.bfloat16() == target.bfloat16(), target + 1.0, target)]


def _positive(shape: Shape) -> Operands:
    return [4.0 * torch.rand(shape) + 0.1, 4.0 * torch.rand(shape) + 0.5]


def _counts(shape: Shape) -> Operands:
    return [torch.randn(shape), torch.poisson(3.0 * torch.rand(shape))]


def _variances(shape: Shape) -> Operands:
    input, target = _real(shape)
    return [input, torch.rand(shape) + 0.1, target]


def _bits(shape: Shape) -> Tensor:
    return (torch.rand(shape) < 0.3).float()


def _probabilities(shape: Shape) -> Operands:
    return [0.98 * torch.rand(shape) + 0.01, _bits(shape)]


def _logits(shape: Shape) -> Operands:
    return [2.0 * torch.randn(shape), _bits(shape)]


def _weighted_logits(shape: Shape) -> Operands:
    return [*_logits(shape), torch.rand(shape[-1]) + 0.5]


def _signs(shape: Shape) -> Operands:
    return [torch.randn(shape), 2.0 * _bits(shape) - 1.0]


def _distances(shape: Shape) -> Operands:
    return [torch.randn(shape).abs(), 2.0 * _bits(shape) - 1.0]


def _scores(shape: Shape) -> Operands:
    return [torch.randn(shape), *_signs(shape)]


def _distributions(shape: Shape) -> Operands:
    return [torch.randn(shape).log_softmax(-1), torch.randn(shape).softmax(-1)]


# The losses.


def _loss(
    name: str, operands: Callable[[Shape], Operands], gradients: int = 1, reduction: str = "mean", **arguments: object
) -> Loss:
    eager = getattr(torch_formulas, name, None) or getattr(torch_functional, name)
    fused = getattr(fused_functional, name)
    return Loss(name, partial(fused, **arguments), partial(eager, **arguments), operands, gradients, reduction)


def _with_pos_weight(functions: ModuleType) -> Callable[..., Tensor]:
    function: Callable[..., Tensor] = functions.binary_cross_entropy_with_logits

    def loss(input: Tensor, target: Tensor, pos_weight: Tensor, reduction: str) -> Tensor:
        return function(input, target, pos_weight=pos_weight, reduction=reduction)

    return loss


def _with_variance(functions: ModuleType) -> Callable[..., Tensor]:
    function: Callable[..., Tensor] = functions.gaussian_nll_loss

    # The variance comes second here: like the mean, a network predicts it, and both need a gradient.
    def loss(input: Tensor, var: Tensor, target: Tensor, reduction: str) -> Tensor:
        return function(input, target, var, reduction=reduction)

    return loss


LOSSES = (
    _loss("mse_loss", _real),
    _loss("l1_loss", _real),
    _loss("huber_loss", _real),
    _loss("smooth_l1_loss", _real),
    _loss("log_cosh_loss", _real),
    _loss("quantile_loss", _unequal, q=0.9),
    _loss("mean_squared_log_error", _positive),
    _loss("mean_absolute_percentage_error", _positive),
    _loss("poisson_nll_loss", _counts),
    Loss(
        "gaussian_nll_loss", _with_variance(fused_functional), _with_variance(torch_functional), _variances, gradients=2
    ),
    _loss("binary_cross_entropy", _probabilities),
    _loss("binary_cross_entropy_with_logits", _logits),
    Loss(
        "binary_cross_entropy_with_logits+pos_weight",
        _with_pos_weight(fused_functional),
        _with_pos_weight(torch_functional),
        _weighted_logits,
    ),
    _loss("sigmoid_focal_loss", _logits),
    _loss("hinge_loss", _signs),
    _loss("squared_hinge_loss", _signs),
    _loss("soft_margin_loss", _signs),
    _loss("hinge_embedding_loss", _distances),
    _loss("margin_ranking_loss", _scores, gradients=2),
    _loss("kl_div", _distributions, reduction="batchmean"),
    _loss("gaussian_kl", _real, gradients=2, reduction="batchmean"),
)


# The circumstances.

SIZES: dict[str, Shape] = {
    "32": (4, 8),
    "1k": (10, 100),
    "100k": (1_000, 100),
    "1M": (10_000, 100),
    "16M": (1 << 18, 64),
}
QUICK_SIZES = ("32", "100k", "16M")
SQUARE: Shape = (4096, 4096)  # 16M as well


def _transpose(operand: Tensor) -> Tensor:
    """The same values, laid out column by column."""
    return operand.t().contiguous().t()


def _transpose_input(operands: Operands) -> Operands:
    return [_transpose(operands[0]), *operands[1:]]


def _transpose_all(operands: Operands) -> Operands:
    return [_transpose(operand) for operand in operands]


def _target_is_column(operands: Operands) -> Operands:
    return [operands[0], operands[1][:, :1].contiguous()]


def _target_is_row(operands: Operands) -> Operands:
    return [operands[0], operands[1][:1].contiguous()]


def rows(threads: int, quick: bool, device: Device) -> Iterator[Row]:
    """Every line of the table for the pointwise losses, case by case."""
    settings: dict[str, Any] = {"threads": threads, "device": device}

    def each(
        case: str, size: str = "16M", shape: Shape = SIZES["16M"], losses: tuple[Loss, ...] = LOSSES, **how: Any
    ) -> Iterator[Row]:
        for loss in losses:
            yield Row(loss, case, size, shape, **settings | how)

    for size in QUICK_SIZES if quick else SIZES:
        yield from each("float32", size, SIZES[size])
    yield from each("bfloat16", dtype=torch.bfloat16)
    yield from each("reduction-none", reduction="none")
    if device is Device.CPU:
        yield from each("one-thread", threads=1)
    yield from each("transposed-input", shape=SQUARE, layout=_transpose_input)
    yield from each("transposed-all", shape=SQUARE, layout=_transpose_all)
    yield from each("broadcast-column", shape=SQUARE, losses=LOSSES[:1], layout=_target_is_column)
    yield from each("broadcast-row", shape=SQUARE, losses=LOSSES[:1], layout=_target_is_row)
