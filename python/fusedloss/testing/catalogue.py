"""The losses under test, as data: every property test and `python -m fusedloss check` run over this list.

A record says how to sample valid operands, which parameters to sweep, what torch (or the formula in torch's ops)
computes, and where the loss has corners. A loss is tested the moment it is listed; ``test_package.py`` checks that
none is missing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import fusedloss.functional as L

Sampler = Callable[..., Tensor]


def normal(shape: tuple[int, ...], generator: torch.Generator, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64) * scale


def positive(shape: tuple[int, ...], generator: torch.Generator, scale: float = 1.0) -> Tensor:
    return (torch.rand(shape, generator=generator, dtype=torch.float64) + 0.05) * scale


def counts(shape: tuple[int, ...], generator: torch.Generator, scale: float = 1.0) -> Tensor:
    return torch.randint(0, 8, shape, generator=generator).double() * max(scale, 1.0)


def probability(shape: tuple[int, ...], generator: torch.Generator, scale: float = 1.0) -> Tensor:
    return torch.rand(shape, generator=generator, dtype=torch.float64) * 0.96 + 0.02


def bits(shape: tuple[int, ...], generator: torch.Generator, scale: float = 1.0) -> Tensor:
    return torch.randint(0, 2, shape, generator=generator).double()


def signs(shape: tuple[int, ...], generator: torch.Generator, scale: float = 1.0) -> Tensor:
    return bits(shape, generator) * 2 - 1


def log_probability(shape: tuple[int, ...], generator: torch.Generator, scale: float = 1.0) -> Tensor:
    return probability(shape, generator).log()


# About how far a value may move before its loss is undefined, where that is less than 1.
ROOM: dict[Sampler, Callable[[Tensor], Tensor]] = {positive: lambda x: x, probability: lambda x: x * (1 - x)}


@dataclass(frozen=True)
class Loss:
    """One way to call one loss."""

    name: str
    samplers: dict[str, Sampler]  # positional operands by name, in order
    reference: Callable[..., Tensor]  # (*operands, **parameters, reduction=...): torch's own, or its ops
    parameters: dict[str, Any] = field(default_factory=dict)
    variant: str = ""
    # The same in torch's ops, where torch's own has no derivative by one operand, or a second one that is 1e-11 off.
    in_ops: Callable[..., Tensor] | None = None
    in_torch: bool = True  # torch.nn.functional has a function of this name with the same meaning
    module: str = ""
    differentiable: tuple[str, ...] = ("input", "target")
    keyword_operands: dict[str, Sampler] = field(default_factory=dict)  # pos_weight and the like, of the last axis
    reductions: tuple[str, ...] = ("none", "mean", "sum")
    # Distance of the arguments from where the second derivative jumps; gradcheck samples keep away from 0.
    corners: Callable[..., Tensor] | None = None

    @property
    def id(self) -> str:
        return f"{self.name}[{self.variant}]" if self.variant else self.name

    @property
    def function(self) -> Callable[..., Tensor]:
        function: Callable[..., Tensor] = getattr(L, self.name)
        return function

    def sample(
        self, shape: tuple[int, ...], dtype: torch.dtype = torch.float64, seed: int = 0, scale: float = 1.0
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Positional operands and keyword operands of the given shape, rounded to dtype."""
        generator = torch.Generator().manual_seed(seed)
        operands = [sampler(shape, generator, scale).to(dtype) for sampler in self.samplers.values()]
        last = shape[-1:]
        return operands, {name: s(last, generator, 1.0).to(dtype) for name, s in self.keyword_operands.items()}

    def sample_away_from_corners(
        self, shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0, distance: float = 0.01
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The same, of elements at which second derivatives exist and no jump is within that distance."""
        operands, keywords = self.sample(shape, dtype, seed)
        if self.corners is None:
            return operands, keywords
        size = math.prod(shape)
        many, _ = self.sample((2 * size + 1000,), dtype, seed)
        away = self.corners(*(x.double() for x in many)).abs() > distance
        return [x[away][:size].view(shape) for x in many], keywords

    def directions(self, given: dict[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
        """In which to move the operands that have a derivative: within their domain, and smaller than 1."""
        generator = torch.Generator().manual_seed(seed)
        samplers = self.samplers | self.keyword_operands
        result = {}
        for name in (*self.differentiable, *self.keyword_operands):
            x = given[name]
            room = ROOM.get(samplers[name], torch.ones_like)(x.double())
            result[name] = (room * (2 * torch.rand(x.shape, generator=generator) - 1)).to(x.dtype)
        return result

    def __call__(self, *operands: Tensor, **keywords: Any) -> Tensor:
        return self.function(*operands, **self.parameters, **keywords)

    def torch(self, *operands: Tensor, **keywords: Any) -> Tensor:
        return self.reference(*operands, **self.parameters, **keywords)


def reduced(formula: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The elementwise formula in torch's ops, as a user would write it, with a reduction."""

    def loss(*operands: Tensor, reduction: str = "mean", **parameters: Any) -> Tensor:
        values = formula(*operands, **parameters)
        return values if reduction == "none" else values.sum() if reduction == "sum" else values.mean()

    return loss


def _log_cosh(input: Tensor, target: Tensor) -> Tensor:
    r = input - target
    return r + F.softplus(-2.0 * r) - 0.69314718055994530942


def _quantile(input: Tensor, target: Tensor, q: float | Tensor = 0.5) -> Tensor:
    d = target - input
    return torch.where(d >= 0, q * d, (q - 1) * d)


def _msle(input: Tensor, target: Tensor) -> Tensor:
    return (torch.log1p(input.clamp(min=1e-7)) - torch.log1p(target.clamp(min=1e-7))) ** 2


def _mape(input: Tensor, target: Tensor) -> Tensor:
    return 100 * ((target - input) / target.abs().clamp(min=1e-7)).abs()


def _focal(input: Tensor, target: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    p = torch.sigmoid(input)
    bce = F.binary_cross_entropy_with_logits(input, target, reduction="none")
    p_t = p * target + (1 - p) * (1 - target)
    loss = bce * (1 - p_t) ** gamma
    return loss if alpha < 0 else (alpha * target + (1 - alpha) * (1 - target)) * loss


def _hinge(input: Tensor, target: Tensor, target_01: bool = False) -> Tensor:
    y = 2 * target - 1 if target_01 else target
    return F.relu(1 - y * input)


def _squared_hinge(input: Tensor, target: Tensor, target_01: bool = False) -> Tensor:
    return _hinge(input, target, target_01) ** 2


def _bce_smoothed(
    input: Tensor, target: Tensor, label_smoothing: float = 0.0, reduction: str = "mean", **keywords: Any
) -> Tensor:
    smooth = target * (1 - label_smoothing) + label_smoothing / 2
    return F.binary_cross_entropy_with_logits(input, smooth, reduction=reduction, **keywords)


def _bce(input: Tensor, target: Tensor) -> Tensor:
    return -(target * input.log() + (1 - target) * torch.log1p(-input))


def _bce_with_pos_weight(input: Tensor, target: Tensor, pos_weight: Tensor) -> Tensor:
    return -(pos_weight * target * F.logsigmoid(input) + (1 - target) * F.logsigmoid(-input))


def _kl_div(input: Tensor, target: Tensor, log_target: bool = False, reduction: str = "mean") -> Tensor:
    # torch warns of its own 'mean'; its value is sum / numel.
    if reduction == "mean":
        return F.kl_div(input, target, reduction="none", log_target=log_target).mean()
    return F.kl_div(input, target, reduction=reduction, log_target=log_target)


def _gaussian_kl(mean: Tensor, log_var: Tensor, reduction: str = "batchmean") -> Tensor:
    rows = -0.5 * (1 + log_var - mean**2 - log_var.exp()).sum(-1)
    return rows if reduction == "none" else rows.sum() if reduction == "sum" else rows.mean()


_REGRESSION = {"input": normal, "target": normal}
_LOGITS = {"input": normal, "target": bits}
_SOFT = {"input": normal, "target": probability}
_POSITIVE = {"input": positive, "target": positive}


def _residual(input: Tensor, target: Tensor) -> Tensor:
    return input - target


LOSSES = [
    Loss("mse_loss", _REGRESSION, F.mse_loss, module="MSELoss"),
    Loss("l1_loss", _REGRESSION, F.l1_loss, module="L1Loss", corners=_residual),
    Loss("huber_loss", _REGRESSION, F.huber_loss, {"delta": 0.7}, module="HuberLoss",
         corners=lambda x, y: (x - y).abs() - 0.7),
    Loss("smooth_l1_loss", _REGRESSION, F.smooth_l1_loss, {"beta": 0.6}, module="SmoothL1Loss",
         corners=lambda x, y: (x - y).abs() - 0.6),
    Loss("smooth_l1_loss", _REGRESSION, F.smooth_l1_loss, {"beta": 0.0}, variant="beta=0", corners=_residual),
    Loss("log_cosh_loss", _REGRESSION, reduced(_log_cosh), in_torch=False, module="LogCoshLoss"),
    Loss("quantile_loss", _REGRESSION, reduced(_quantile), {"q": 0.3}, in_torch=False, module="QuantileLoss",
         corners=_residual),
    Loss("quantile_loss", _REGRESSION, reduced(_quantile), variant="tensor q", in_torch=False, corners=_residual,
         keyword_operands={"q": probability}),
    Loss("mean_squared_log_error", _POSITIVE, reduced(_msle), in_torch=False, module="MeanSquaredLogErrorLoss"),
    Loss("mean_absolute_percentage_error", {"input": normal, "target": positive}, reduced(_mape), in_torch=False,
         module="MeanAbsolutePercentageErrorLoss", corners=_residual),
    Loss("poisson_nll_loss", {"input": normal, "target": counts}, F.poisson_nll_loss, module="PoissonNLLLoss"),
    Loss("poisson_nll_loss", {"input": positive, "target": positive}, F.poisson_nll_loss,
         {"log_input": False, "full": True}, variant="rate, full", corners=lambda x, y: y - 1),
    Loss("gaussian_nll_loss", {"input": normal, "target": normal, "var": positive}, F.gaussian_nll_loss,
         {"full": True}, module="GaussianNLLLoss", differentiable=("input", "target", "var")),
    Loss("binary_cross_entropy", {"input": probability, "target": probability}, F.binary_cross_entropy,
         module="BCELoss", in_ops=reduced(_bce)),
    Loss("binary_cross_entropy_with_logits", _SOFT, F.binary_cross_entropy_with_logits, module="BCEWithLogitsLoss"),
    Loss("binary_cross_entropy_with_logits", _LOGITS, F.binary_cross_entropy_with_logits, variant="pos_weight",
         keyword_operands={"pos_weight": positive}, in_ops=reduced(_bce_with_pos_weight)),
    Loss("binary_cross_entropy_with_logits", _SOFT, _bce_smoothed, {"label_smoothing": 0.2}, in_torch=False,
         variant="label_smoothing"),
    Loss("sigmoid_focal_loss", _LOGITS, reduced(_focal), {"alpha": 0.25, "gamma": 2.0}, in_torch=False,
         module="SigmoidFocalLoss"),
    Loss("sigmoid_focal_loss", _SOFT, reduced(_focal), {"alpha": -1.0, "gamma": 1.5}, in_torch=False,
         variant="soft, no alpha"),
    Loss("sigmoid_focal_loss", _LOGITS, reduced(_focal), {"alpha": 0.6, "gamma": 0.0}, in_torch=False,
         variant="gamma=0"),
    Loss("hinge_loss", {"input": normal, "target": signs}, reduced(_hinge), in_torch=False, module="HingeLoss",
         differentiable=("input",), corners=lambda x, y: 1 - x * y),
    Loss("hinge_loss", _LOGITS, reduced(_hinge), {"target_01": True}, in_torch=False, variant="0/1",
         differentiable=("input",), corners=lambda x, y: 1 - x * (2 * y - 1)),
    Loss("squared_hinge_loss", {"input": normal, "target": signs}, reduced(_squared_hinge), in_torch=False,
         module="SquaredHingeLoss", differentiable=("input",), corners=lambda x, y: 1 - x * y),
    Loss("soft_margin_loss", {"input": normal, "target": signs}, F.soft_margin_loss, module="SoftMarginLoss",
         differentiable=("input",)),  # torch's target takes no gradient
    Loss("soft_margin_loss", _REGRESSION, reduced(lambda x, y: F.softplus(-x * y)), variant="target", in_torch=False),
    Loss("hinge_embedding_loss", {"input": positive, "target": signs}, F.hinge_embedding_loss, {"margin": 0.6},
         module="HingeEmbeddingLoss", differentiable=("input",), corners=lambda x, y: x - 0.6),
    Loss("margin_ranking_loss", {"input1": normal, "input2": normal, "target": signs}, F.margin_ranking_loss,
         {"margin": 0.3}, module="MarginRankingLoss", differentiable=("input1", "input2"),
         corners=lambda a, b, y: 0.3 - y * (a - b)),
    Loss("kl_div", {"input": log_probability, "target": probability}, _kl_div, module="KLDivLoss",
         reductions=("none", "mean", "sum", "batchmean")),
    Loss("kl_div", {"input": log_probability, "target": log_probability}, _kl_div, {"log_target": True},
         variant="log_target", reductions=("none", "mean", "sum", "batchmean")),
    Loss("gaussian_kl", {"mean": normal, "log_var": normal}, _gaussian_kl, in_torch=False, module="GaussianKLLoss",
         differentiable=("mean", "log_var"), reductions=("none", "mean", "sum", "batchmean")),
]  # fmt: skip
