"""The oracle of the losses over pairs against pytorch-metric-learning. Nothing here calls the library.

That one's losses take labels, or the indices of the pairs themselves, which say what our arguments mean. It divides
vectors by their norm unless its distance is told not to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fusedloss.testing import pair_oracle
from fusedloss.testing.judge import numbers
from fusedloss.testing.pair_cases import integers
from fusedloss.testing.pair_catalogue import PAIR_LOSSES, PairLoss

metric = pytest.importorskip(
    "pytorch_metric_learning", reason="pytorch-metric-learning is not installed (extra 'test')"
)

SHAPE = (14, 5)
SOFTMAX = [loss for loss in PAIR_LOSSES if loss.name in ("info_nce_loss", "clip_loss")]
BY_REDUCTION = pytest.mark.parametrize("reduction", ["none", "mean", "sum"])


def similarity(loss: PairLoss) -> Any:
    from pytorch_metric_learning import distances

    if loss.normalize:
        return distances.CosineSimilarity()
    return distances.DotProductSimilarity(normalize_embeddings=False)


def reduced(rows: Tensor, reduction: str, count: int) -> Tensor:
    return rows if reduction == "none" else rows.sum() / (count if reduction == "mean" else 1)


def nt_xent(loss: PairLoss, temperature: float, rows: Tensor, columns: Tensor, wrong: list[tuple[int, int]]) -> Tensor:
    """Row i belongs to column i; the other pairs are those of `wrong`."""
    from pytorch_metric_learning import losses, reducers

    own = torch.arange(len(rows))
    anchors, negatives = (torch.tensor(x) for x in zip(*wrong, strict=True))
    criterion = losses.NTXentLoss(temperature, distance=similarity(loss), reducer=reducers.DoNothingReducer())
    # It asks for labels of the second table, and does not look at them.
    labels = torch.arange(len(columns))
    found = criterion(rows, indices_tuple=(own, own, anchors, negatives), ref_emb=columns, ref_labels=labels)
    result: Tensor = found["loss"]["losses"]
    return result


def by_metric_learning(loss: PairLoss, given: dict[str, Tensor]) -> Tensor:
    """The value of every row."""
    one, other = (given[name] for name in loss.tables[:2])
    n = len(one)
    temperature = 1 / given["logit_scale"].item() if "logit_scale" in given else loss.parameters.get("temperature", 0.1)
    if "negatives" in given:
        negatives = given["negatives"]
        count = negatives.shape[-2]
        start = [n if negatives.dim() == 2 else n + i * count for i in range(n)]
        wrong = [(i, start[i] + m) for i in range(n) for m in range(count)]
        return nt_xent(loss, temperature, one, torch.cat([other, negatives.flatten(0, -2)]), wrong)
    wrong = [(i, j) for i in range(n) for j in range(n) if i != j]
    forth = nt_xent(loss, temperature, one, other, wrong)
    if loss.name == "clip_loss" or loss.parameters.get("symmetric"):
        return (forth + nt_xent(loss, temperature, other, one, wrong)) / 2
    return forth


def assert_the_oracle_gives(
    loss: PairLoss, given: dict[str, Tensor], reduction: str, theirs: Callable[[dict[str, Tensor]], Tensor]
) -> None:
    """The same values and the same gradients by the vectors."""
    leaves = {k: x.clone().requires_grad_(k in loss.tables) for k, x in given.items()}
    result = theirs(leaves)
    incoming = torch.linspace(0.5, 1.5, result.numel(), dtype=torch.float64).view(result.shape)
    gradients = torch.autograd.grad(result, [leaves[k] for k in loss.tables], incoming)
    arrays = {k: numbers(x, np.longdouble) if x.is_floating_point() else integers(x) for k, x in given.items()}
    value, slopes = pair_oracle.results(loss.name, arrays, loss.parameters, reduction, numbers(incoming, np.longdouble))
    np.testing.assert_allclose(numbers(result, np.longdouble), value.value, rtol=0, atol=1e-14 * value.size.max())
    for name, gradient in zip(loss.tables, gradients, strict=True):
        bound = 1e-14 * slopes[name].size.max()
        np.testing.assert_allclose(numbers(gradient, np.longdouble), slopes[name].value, rtol=0, atol=bound)


@BY_REDUCTION
@pytest.mark.parametrize("loss", [pytest.param(loss, id=loss.id) for loss in SOFTMAX])
def test_nt_xent(loss: PairLoss, reduction: str) -> None:
    def theirs(given: dict[str, Tensor]) -> Tensor:
        return reduced(by_metric_learning(loss, given), reduction, SHAPE[0])

    assert_the_oracle_gives(loss, loss.given(SHAPE, seed=1), reduction, theirs)


@BY_REDUCTION
@pytest.mark.parametrize(
    "loss", [pytest.param(loss, id=loss.id) for loss in PAIR_LOSSES if loss.name == "supervised_contrastive_loss"]
)
def test_supervised_contrastive(loss: PairLoss, reduction: str) -> None:
    """Its own mean is over the losses above 0, which are those of anchors with a positive."""
    from pytorch_metric_learning import losses, reducers

    temperature = loss.parameters.get("temperature", 0.1)

    def theirs(given: dict[str, Tensor]) -> Tensor:
        if reduction == "mean":
            criterion = losses.SupConLoss(temperature, distance=similarity(loss))
            result: Tensor = criterion(given["embeddings"], given["labels"])
            return result
        criterion = losses.SupConLoss(temperature, distance=similarity(loss), reducer=reducers.DoNothingReducer())
        rows: Tensor = criterion(given["embeddings"], given["labels"])["loss"]["losses"]
        return reduced(rows, reduction, 0)

    for seed in range(3):
        given = loss.given(SHAPE, seed=seed)
        counts = given["labels"].unique(return_counts=True)[1]
        assert (counts == 1).any() and (counts > 1).any()
        assert_the_oracle_gives(loss, given, reduction, theirs)


@pytest.mark.parametrize("loss", [pytest.param(loss, id=loss.id) for loss in PAIR_LOSSES if loss.name == "siglip_loss"])
def test_siglip_is_a_binary_cross_entropy_of_all_pairs(loss: PairLoss) -> None:
    """torch's, of every logit with whether its pair belongs together; divided by the pairs that do."""

    def theirs(given: dict[str, Tensor]) -> Tensor:
        one, other = given["image"], given["text"]
        if loss.normalize:
            one, other = (x / torch.linalg.vector_norm(x, dim=1, keepdim=True) for x in (one, other))
        logits = given["logit_scale"] * torch.einsum("id,jd->ij", one, other) + given["logit_bias"]
        total = torch.nn.functional.binary_cross_entropy_with_logits(
            logits, torch.eye(len(one)).double(), reduction="sum"
        )
        return total / len(one)

    assert_the_oracle_gives(loss, loss.given(SHAPE, seed=1), "mean", theirs)
