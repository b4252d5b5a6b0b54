"""What pytorch-metric-learning says of the same batches, to this library and to its judge alike.

Its miners and ours mean the same but for this: its semi-hard one takes one positive of every anchor, and leaves anchors
out that have no negative that is farther, where ours takes the farthest.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fusedloss.functional as L
from fusedloss.testing.triplet_oracle import Given, results

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of what it imports
    from pytorch_metric_learning import distances, losses, miners, reducers

Answer = tuple[Tensor, Tensor]  # a value, and its gradient


def of_library(x: Tensor, labels: Tensor, reduction: str, **parameters: Any) -> Answer:
    leaf = x.clone().requires_grad_()
    value = L.triplet_mining_loss(leaf, labels, reduction=reduction, **parameters)
    return value.detach(), torch.autograd.grad(value, leaf)[0]


def of_oracle(x: Tensor, labels: Tensor, reduction: str, **parameters: Any) -> Answer:
    value, gradients = results(x.numpy().astype(np.longdouble), Given(labels.numpy(), **parameters), reduction)
    found = value.value, gradients["embeddings"].value
    value_of, gradient = (torch.from_numpy(np.asarray(x, dtype=np.float64)) for x in found)
    return value_of, gradient


WHO = pytest.mark.parametrize("ours", [of_library, of_oracle])
KINDS = pytest.mark.parametrize(("squared", "normalize"), list(product([False, True], repeat=2)))
REDUCERS = {"sum": reducers.SumReducer, "mean": reducers.MeanReducer, "mean_nonzero": reducers.AvgNonZeroReducer}


def theirs(
    x: Tensor, labels: Tensor, reduction: str, miner: Callable[..., Any] | None, squared: bool, normalize: bool,
    margin: float,
) -> Answer:  # fmt: skip
    leaf = x.clone().requires_grad_()
    distance = distances.LpDistance(p=2, power=2 if squared else 1, normalize_embeddings=normalize)
    loss = losses.TripletMarginLoss(margin=margin, distance=distance, reducer=REDUCERS[reduction]())
    value = loss(leaf, labels, None if miner is None else miner(distance=distance)(leaf, labels))
    return value.detach(), torch.autograd.grad(value, leaf)[0]


def batch(seed: int, count: int = 21) -> tuple[Tensor, Tensor]:
    """With labels that one vector has, and others that many have. (Their distances are exact for so few.)"""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 6, generator=generator).double(), torch.randint(0, 6, (count,), generator=generator)


def assert_same(one: Answer, other: Answer) -> None:
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("reduction", list(REDUCERS))
@KINDS
@WHO
def test_batch_hard(ours: Callable[..., Answer], squared: bool, normalize: bool, reduction: str) -> None:
    for seed, margin in ((0, 0.1), (1, 1.5), (2, 0.0)):
        x, labels = batch(seed)
        known = theirs(x, labels, reduction, miners.BatchHardMiner, squared, normalize, margin)
        assert_same(ours(x, labels, reduction, margin=margin, squared=squared, normalize=normalize), known)


@pytest.mark.parametrize("reduction", list(REDUCERS))
@KINDS
@WHO
def test_all(ours: Callable[..., Answer], squared: bool, normalize: bool, reduction: str) -> None:
    """Without a miner all triplets count."""
    for seed, margin in ((0, 0.1), (1, 1.5)):
        x, labels = batch(seed)
        known = theirs(x, labels, reduction, None, squared, normalize, margin)
        assert_same(
            ours(x, labels, reduction, margin=margin, mining="all", squared=squared, normalize=normalize), known
        )


@WHO
def test_all_that_violate_the_margin(ours: Callable[..., Answer]) -> None:
    """Their miner of these gives the mean over the positive ones, if none is at the corner."""
    x, labels = batch(3)

    def miner(distance: Any) -> Any:
        return miners.TripletMarginMiner(margin=0.4, type_of_triplets="all", distance=distance)

    known = theirs(x, labels, "mean", miner, False, False, 0.4)
    assert_same(ours(x, labels, "mean_nonzero", margin=0.4, mining="all"), known)


def semi_hard(distance: Any) -> Any:
    easy_hard = miners.BatchEasyHardMiner(pos_strategy="hard", neg_strategy="semihard", distance=distance)

    def mine(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        anchor, positive, _, negative = easy_hard(x, labels)
        return anchor, positive, negative

    return mine


@pytest.mark.parametrize("reduction", list(REDUCERS))
@KINDS
@WHO
def test_semi_hard(ours: Callable[..., Answer], squared: bool, normalize: bool, reduction: str) -> None:
    """Of labels that two vectors each have, near one another, so that each anchor has a negative that is farther."""
    generator = torch.Generator().manual_seed(5)
    centres, labels = torch.randn(9, 6, generator=generator).double(), torch.arange(9).repeat(2)
    x = centres[labels] + 0.3 * torch.randn(18, 6, generator=generator).double()
    for margin in (0.3, 1.5):
        known = theirs(x, labels, reduction, semi_hard, squared, normalize, margin)
        found = ours(x, labels, reduction, margin=margin, mining="semi_hard", squared=squared, normalize=normalize)
        assert_same(found, known)


@WHO
def test_semi_hard_where_no_negative_is_farther(ours: Callable[..., Answer]) -> None:
    """Theirs leaves these anchors out; ours counts them, with the farthest negative."""
    x = torch.tensor([[0.0], [9.0], [1.0], [3.0]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 1, 1])
    anchor, *_ = semi_hard(distances.LpDistance(normalize_embeddings=False))(x, labels)
    assert anchor.tolist() == [2, 3]
    value, _ = ours(x, labels, "sum", margin=0.5, mining="semi_hard")
    farther, _ = theirs(x, labels, "sum", semi_hard, False, False, 0.5)
    # From 0 to 9 and to 3; from 9 to 0 and to 1.
    torch.testing.assert_close(value, farther + (9 - 3 + 0.5) + (9 - 8 + 0.5))
