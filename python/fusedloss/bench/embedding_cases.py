"""What is measured of the losses over embeddings: vectors two or three at a time, and every two rows of a batch."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as torch_functional

from fusedloss import functional as fused_functional
from fusedloss._devices import Device
from fusedloss.bench import torch_formulas
from fusedloss.bench.cases import Loss, Operands, Row, Shape

# The operands.


def _two_vectors(shape: Shape) -> Operands:
    return [torch.randn(shape), torch.randn(shape)]


def _alike_or_not(shape: Shape) -> Operands:
    return [*_two_vectors(shape), torch.randint(2, shape[:1])]


def _signs(shape: Shape) -> Operands:
    return [*_two_vectors(shape), 2 * torch.randint(2, shape[:1]) - 1]


def _three_vectors(shape: Shape) -> Operands:
    return [torch.randn(shape) for _ in range(3)]


def _unit_vectors(shape: Shape) -> Tensor:
    return torch_functional.normalize(torch.randn(shape), dim=-1)


def _partners(shape: Shape) -> Operands:
    """Two unit vectors a row that are alike, but not so much that softmax is sure of it and gradients cancel."""
    first = _unit_vectors(shape)
    return [first, torch_functional.normalize(first + 2.0 * _unit_vectors(shape), dim=-1)]


def _with_negatives(shape: Shape) -> Operands:
    """As many negatives as rows, shared by all of them."""
    return [*_partners(shape), _unit_vectors(shape)]


def _with_own_negatives(shape: Shape) -> Operands:
    rows, _, dimensions = shape
    return [*_partners((rows, dimensions)), _unit_vectors(shape)]


def _scaled_partners(shape: Shape) -> Operands:
    return [*_partners(shape), torch.tensor(20.0)]


def _scaled_and_shifted_partners(shape: Shape) -> Operands:
    return [*_partners(shape), torch.tensor(10.0), torch.tensor(-10.0)]


CLASS_SIZE = 32  # rows of a class, about


def _labels(shape: Shape) -> Tensor:
    return torch.randint(max(2, shape[0] // CLASS_SIZE), shape[:1])


def _labelled_unit_vectors(shape: Shape) -> Operands:
    return [_unit_vectors(shape), _labels(shape)]


def _labelled_eighths(shape: Shape) -> Operands:
    """Eighths, whose squared distances are exact in float32: which triplets are mined does not hang on rounding."""
    return [torch.randint(-8, 9, shape) / 8.0, _labels(shape)]


def _three_products(operands: Operands) -> Callable[[], object]:
    """The matrix products without which there are no similarities and no gradients of them."""
    query, key = (operand.detach() for operand in operands[:2])
    slopes = torch.randn(len(query), len(key), dtype=query.dtype, device=query.device)
    return lambda: (query @ key.t(), slopes @ key, slopes.t() @ query)


# The losses.


def _loss(
    name: str,
    operands: Callable[[Shape], Operands],
    gradients: int,
    variant: str = "",
    eager: Callable[..., Tensor] | None = None,
    **how: Any,
) -> Loss:
    eager = eager or getattr(torch_formulas, name, None) or getattr(torch_functional, name)
    return Loss(name + variant, getattr(fused_functional, name), eager, operands, gradients, **how)


def _with(loss: Loss, variant: str, **arguments: object) -> Loss:
    """The same loss with arguments that both sides take."""
    fused, eager = (partial(function, **arguments) for function in (loss.fused, loss.eager))
    return replace(loss, name=loss.name + variant, fused=fused, eager=eager)


CONTRASTIVE = _with(_loss("contrastive_loss", _alike_or_not, 2), "", margin=16.0)  # the distance that is usual here
COSINE = _loss("cosine_embedding_loss", _signs, 2)
TRIPLET = _loss("triplet_margin_loss", _three_vectors, 3)
TRIPLET_BY_COSINE = Loss(
    "triplet_margin_with_distance_loss+cosine",
    partial(fused_functional.triplet_margin_with_distance_loss, distance_function="cosine"),
    partial(torch_functional.triplet_margin_with_distance_loss, distance_function=torch_formulas.cosine_distance),
    _three_vectors,
    gradients=3,
)
VECTORS = (CONTRASTIVE, COSINE, TRIPLET, TRIPLET_BY_COSINE)

INFO_NCE = _loss("info_nce_loss", _partners, 2, dense=True, products=_three_products)
SYMMETRIC = _with(INFO_NCE, "+symmetric", symmetric=True)
SHARED_NEGATIVES = _loss("info_nce_loss", _with_negatives, 3, "+negatives", dense=True)
OWN_NEGATIVES = _loss("info_nce_loss", _with_own_negatives, 3, "+own_negatives")
SUPERVISED = _loss("supervised_contrastive_loss", _labelled_unit_vectors, 1, dense=True)
CLIP = _loss("clip_loss", _scaled_partners, 3, dense=True, products=_three_products)
CLIP_OF_TWO_PRODUCTS = replace(CLIP, name="clip_loss+two_products", eager=torch_formulas.clip_loss_of_two_products)
SIGLIP = _loss("siglip_loss", _scaled_and_shifted_partners, 4, dense=True, products=_three_products)
PAIRS = (INFO_NCE, SUPERVISED, CLIP, SIGLIP)

_MINING = _loss("triplet_mining_loss", _labelled_eighths, 1, dense=True)
BATCH_HARD, SEMI_HARD, ALL = (
    _with(_MINING, f"+{mining}", mining=mining) for mining in ("batch_hard", "semi_hard", "all")
)
# Two more ways to the same: without the gradient of all distances, and a library's.
MINED_FIRST = replace(BATCH_HARD, name=f"{BATCH_HARD.name}+mined_first", eager=torch_formulas.batch_hard_mined_first)


def _metric_learning() -> Loss:
    from pytorch_metric_learning import distances, losses, miners, reducers  # type: ignore[import-untyped]

    distance = distances.LpDistance(normalize_embeddings=False)
    miner = miners.BatchHardMiner(distance=distance)
    loss = losses.TripletMarginLoss(margin=1.0, distance=distance, reducer=reducers.MeanReducer())

    def eager(embeddings: Tensor, labels: Tensor, reduction: str) -> Tensor:
        del reduction  # the reducer's: the mean
        value: Tensor = loss(embeddings, labels, miner(embeddings, labels))
        return value

    return replace(BATCH_HARD, name=f"{BATCH_HARD.name}+metric_learning", eager=eager)


# The circumstances.

MILLION = 1 << 20
# Rows that the float64 reference is compared over where it has no room for all. (Also: a hinge closes within rounding
# of its corner in one dtype and not in another, once in some hundred thousand rows.)
CHECKED_ROWS = 4096


def rows(threads: int, device: Device) -> Iterator[Row]:
    """Every line of the tables, family by family."""
    settings: dict[str, Any] = {"threads": threads, "device": device}

    def row(case: str, loss: Loss, *shape: int, **how: Any) -> Row:
        return Row(loss, case, "x".join(map(str, shape)), shape, **settings | how)

    def variants(case: str, losses: dict[Loss, Shape], **how: Any) -> Iterator[Row]:
        differences: dict[str, dict[str, Any]] = {
            "bfloat16": {"dtype": torch.bfloat16},
            "reduction-none": {"reduction": "none"},
        }
        if device is Device.CPU:
            differences["one-thread"] = {"threads": 1}
        for variant, difference in differences.items():
            for loss, shape in losses.items():
                yield row(f"{case}-{variant}", loss, *shape, **how | difference)

    for loss in VECTORS:
        yield row("vectors", loss, MILLION, 128, checked_rows=CHECKED_ROWS)
    for loss in VECTORS:
        yield row("vectors", loss, 32, 64)
    yield from variants("vectors", dict.fromkeys(VECTORS, (1 << 17, 128)), checked_rows=CHECKED_ROWS)

    yield row("pairs", INFO_NCE, 4096, 128)
    yield row("pairs", SYMMETRIC, 4096, 128)
    yield row("pairs", SHARED_NEGATIVES, 4096, 128)
    yield row("pairs", OWN_NEGATIVES, 1024, 64, 128)
    yield row("pairs", SUPERVISED, 4096, 128)
    yield row("pairs", CLIP, 4096, 512)
    yield row("pairs", CLIP_OF_TWO_PRODUCTS, 4096, 512)
    yield row("pairs", SIGLIP, 4096, 512)
    yield row("pairs", SIGLIP, 4096, 128)
    for loss in PAIRS:
        yield row("pairs", loss, 64, 128)
    yield from variants("pairs", dict.fromkeys(PAIRS, (2048, 128)))
    for loss in PAIRS:
        yield row("pairs-memory", loss, 16384, 128, alone=True, checked_rows=CHECKED_ROWS)

    yield row("triplets", BATCH_HARD, 4096, 128)
    yield row("triplets", MINED_FIRST, 4096, 128)
    if find_spec("pytorch_metric_learning"):
        yield row("triplets", _metric_learning(), 4096, 128)
    yield row("triplets", SEMI_HARD, 1024, 128)
    yield row("triplets", ALL, 512, 128)
    for loss in (BATCH_HARD, SEMI_HARD, ALL):
        yield row("triplets", loss, 64, 128)
    yield from variants("triplets", {BATCH_HARD: (2048, 128), SEMI_HARD: (256, 128), ALL: (256, 128)})
    for loss, few in ((BATCH_HARD, CHECKED_ROWS), (SEMI_HARD, 1024), (ALL, 256)):
        yield row("triplets-memory", loss, 16384, 128, alone=True, checked_rows=few)
