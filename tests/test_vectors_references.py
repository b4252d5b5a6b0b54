"""The losses of vectors against other libraries: torch's three functions and modules, and pytorch-metric-learning."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import ContrastiveLoss
from torch import Tensor, nn

import fusedloss
import fusedloss.functional as L
from fusedloss.testing.vector_catalogue import VECTOR_LOSSES, VectorLoss

pytestmark = pytest.mark.core

FIRST_BY_NAME = {loss.name: loss for loss in reversed(VECTOR_LOSSES)}
IN_TORCH = [loss for loss in FIRST_BY_NAME.values() if loss.in_torch]
EACH_OF_TORCHS = pytest.mark.parametrize("loss", [pytest.param(loss, id=loss.name) for loss in IN_TORCH])
REDUCED = pytest.mark.parametrize("reduction", ["none", "mean", "sum"])


def step(call: Callable[..., Tensor], operands: list[Tensor], **keywords: Any) -> list[Tensor]:
    """The value and the gradients of its sum."""
    leaves = [x.clone().requires_grad_(x.is_floating_point()) for x in operands]
    value = call(*leaves, **keywords)
    return [value.detach(), *torch.autograd.grad(value.sum(), [x for x in leaves if x.requires_grad])]


def assert_same(one: list[Tensor], other: list[Tensor]) -> None:
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b)


# ---- torch's own -----------------------------------------------------------------------------------------------------

SETTINGS: dict[str, list[dict[str, Any]]] = {
    "cosine_embedding_loss": [{}, {"margin": 0.3}, {"margin": -0.5}],
    "triplet_margin_loss": [
        {"p": p, "swap": swap, "margin": margin, "eps": eps}
        for p, swap, margin, eps in product([0.5, 1.0, 1.5, 2.0, 3.0, math.inf], [False, True], [0.2, 1.0], [1e-6])
    ]
    + [{"eps": 0.1}, {"eps": 0.0, "p": 3}],
    "triplet_margin_with_distance_loss": [
        {"distance_function": f, "swap": s, "margin": m}
        for f, s, m in product(
            [None, F.pairwise_distance, nn.PairwiseDistance(1.0), nn.PairwiseDistance(eps=0.1)], [False, True], [0.2, 1]
        )
    ],
}


@EACH_OF_TORCHS
def test_functions_and_modules_are_torchs(loss: VectorLoss) -> None:
    """Values and gradients, of many rows and of one. (In float32 torch's own are further off.)"""
    for shape in [(37, 21), (5,)]:
        operands, _ = loss.sample(shape, seed=1)
        for settings, reduction in product(SETTINGS[loss.name], loss.reductions):
            keywords = settings | {"reduction": reduction}
            functions = getattr(L, loss.name), getattr(F, loss.name)
            assert_same(*(step(function, operands, **keywords) for function in functions))
            modules = getattr(fusedloss, loss.module), getattr(nn, loss.module)
            assert_same(*(step(module(**keywords), operands) for module in modules))


@EACH_OF_TORCHS
def test_errors_are_where_torch_has_them(loss: VectorLoss) -> None:
    """Of vectors that do not fit: torch's are of RuntimeError and ValueError."""
    operands, _ = loss.sample((4, 3), torch.float32)
    for function in (getattr(F, loss.name), getattr(L, loss.name)):
        with pytest.raises((RuntimeError, ValueError)):
            function(operands[0], torch.ones(4, 7), *operands[2:])


@pytest.mark.parametrize("p", [0.5, 1.0, 1.5, 2.0, 3.0, math.inf])
@REDUCED
def test_contrastive_loss_is_its_formula_in_torch(p: float, reduction: str) -> None:
    loss = FIRST_BY_NAME["contrastive_loss"]
    operands, _ = loss.sample((37, 21), seed=2)
    for margin, normalize in product([0.0, 0.7, 5.0], [False, True]):
        keywords = {"p": p, "margin": margin, "normalize": normalize, "reduction": reduction}
        assert_same(*(step(function, operands, **keywords) for function in (L.contrastive_loss, loss.reference)))


# ---- pytorch-metric-learning -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("p", [1, 2, 3])
def test_contrastive_loss_of_all_pairs(p: int, normalize: bool) -> None:
    """Theirs takes powers of distances: those of pairs that are alike, and of what pairs that are not lack to a margin.

    They are averages over those pairs of a kind that have a loss: 'sum' over their numbers.
    """
    torch.manual_seed(0)
    x, labels = torch.randn(12, 5, dtype=torch.float64), torch.randint(0, 3, (12,))
    margin = 1.2 if normalize else {1: 6.0, 2: 3.0, 3: 2.5}[p]
    distance = LpDistance(normalize_embeddings=normalize, p=p)
    theirs = ContrastiveLoss(pos_margin=0.0, neg_margin=margin, distance=distance)
    first, second = torch.triu_indices(12, 12, 1)
    alike = labels[first] == labels[second]
    pairs = first[alike], second[alike], first[~alike], second[~alike]

    def ours(x: Tensor) -> Tensor:
        if normalize and p != 2:  # theirs divides by the norm that it measures by
            x = F.normalize(x, p=p, dim=-1)
        d = L.contrastive_loss(
            x[first], x[second], alike, margin, float(p), "none", normalize=normalize and p == 2
        ).sqrt()
        return torch.stack([values[values > 0].mean() for values in (d[alike], d[~alike])]).sum()

    assert_same(step(ours, [x]), step(lambda x: theirs(x, indices_tuple=pairs), [x]))
