"""What is measured of the losses over rows of classes."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as torch_functional

from fusedloss import functional as fused_functional
from fusedloss._devices import Device
from fusedloss.bench import torch_formulas
from fusedloss.bench.cases import Loss, Operands, Row, Shape

# The operands. The first is the one that needs a gradient.


def _labels(shape: Shape) -> Operands:
    return [torch.randn(shape), torch.randint(shape[1], (shape[0], *shape[2:]))]


def _log_probabilities(shape: Shape) -> Operands:
    return [torch.randn(shape).log_softmax(1), torch.randint(shape[1], (shape[0], *shape[2:]))]


def _distributions(shape: Shape) -> Operands:
    return [torch.randn(shape), torch.randn(shape).softmax(1)]


def _two_distributions(shape: Shape) -> Operands:
    return [torch.randn(shape).softmax(1), torch.randn(shape).softmax(1)]


def _two_logits(shape: Shape) -> Operands:
    return [torch.randn(shape), torch.randn(shape)]


def _lists(shape: Shape) -> Operands:
    target = torch.full(shape, -1)
    target[:, :4] = torch.randint(shape[1], (shape[0], 4))
    return [torch.randn(shape), target]


def _bits(shape: Shape) -> Operands:
    return [torch.randn(shape), torch.randint(2, shape).float()]


def _weighted(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def loss(input: Tensor, target: Tensor, weight: Tensor, reduction: str) -> Tensor:
        return function(input, target, weight, label_smoothing=0.1, reduction=reduction)

    return loss


def _labels_and_weight(shape: Shape) -> Operands:
    return [*_labels(shape), torch.rand(shape[1]) + 0.5]


def _student_second(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    # In distillation the second distribution is the one that learns.
    def loss(student: Tensor, teacher: Tensor, reduction: str) -> Tensor:
        return function(teacher, student, from_logits=True, temperature=2.0, reduction=reduction)

    return loss


# The losses.


def _loss(
    name: str, operands: Callable[[Shape], Operands], reduction: str = "mean", variant: str = "", **arguments: object
) -> Loss:
    eager = getattr(torch_formulas, name, None) or getattr(torch_functional, name)
    fused = getattr(fused_functional, name)
    return Loss(name + variant, partial(fused, **arguments), partial(eager, **arguments), operands, reduction=reduction)


CROSS_ENTROPY = _loss("cross_entropy", _labels)
WITH_PROBABILITIES = _loss("cross_entropy", _distributions, variant="+probabilities")
WITH_SMOOTHING_AND_WEIGHT = Loss(
    "cross_entropy+smoothing+weight",
    _weighted(fused_functional.cross_entropy),
    _weighted(torch_functional.cross_entropy),
    _labels_and_weight,
)
DISTILLATION = Loss(
    "kl_divergence+logits",
    _student_second(fused_functional.kl_divergence),
    _student_second(torch_formulas.kl_divergence),
    _two_logits,
    reduction="batchmean",
)
NLL = _loss("nll_loss", _log_probabilities)
OTHERS = (
    NLL,
    _loss("categorical_cross_entropy", _two_distributions),
    _loss("softmax_focal_loss", _labels),
    _loss("categorical_hinge_loss", _labels),
    _loss("multi_margin_loss", _labels),
    _loss("multilabel_margin_loss", _lists),
    _loss("multilabel_soft_margin_loss", _bits),
    _loss("kl_divergence", _two_distributions, reduction="batchmean"),
    _loss("js_divergence", _two_distributions, reduction="batchmean"),
    _loss("js_divergence", _two_logits, reduction="batchmean", variant="+logits", from_logits=True),
)

MILLION = 1 << 20


def rows(threads: int, quick: bool, device: Device) -> Iterator[Row]:
    """Every line of the tables, case by case."""

    def row(loss: Loss, *shape: int, case: str = "rows", dtype: torch.dtype = torch.float32, **how: Any) -> Row:
        return Row(loss, case, "x".join(map(str, shape)), shape, threads, device, dtype, **how)

    yield row(CROSS_ENTROPY, 4096, 32000)
    yield row(CROSS_ENTROPY, 65536, 1000)
    yield row(CROSS_ENTROPY, 65536, 100)
    yield row(CROSS_ENTROPY, MILLION, 21)
    yield row(CROSS_ENTROPY, 4, 21, 512, 512)
    yield row(CROSS_ENTROPY, MILLION, 2)
    yield row(CROSS_ENTROPY, 64, 10)
    yield row(WITH_PROBABILITIES, 8192, 1000)
    yield row(WITH_SMOOTHING_AND_WEIGHT, 4096, 32000)
    yield row(DISTILLATION, 8192, 8192)
    for loss in OTHERS:
        for shape in ((64, 10), (65536, 100), (4096, 1000)):
            yield row(loss, *shape)
    yield row(CROSS_ENTROPY, 4096, 32000, case="rows-bfloat16", dtype=torch.bfloat16)
    for loss in (CROSS_ENTROPY, NLL):
        for unreduced in ((65536, 1000), (65536, 100), (2, 8, 200, 200), (100_000, 2), (64, 10)):
            yield row(loss, *unreduced, case="rows-reduction-none", reduction="none")
    for power in (1, 5, 9, 13, 17) if quick else range(1, 18):
        yield row(CROSS_ENTROPY, 8 * MILLION >> power, 1 << power, case="rows-by-classes")
