"""Three data sets that scikit-learn carries with it, as tensors, each with its way of judging a prediction."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from sklearn import datasets, metrics
from torch import Tensor

QUANTILES = (0.1, 0.5, 0.9)


@dataclass(frozen=True)
class Task:
    name: str
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    binary: bool  # targets are 0 and 1
    learning_rate: float
    judge: Callable[[Tensor, Tensor], str]  # (prediction, target) of the held-out part


def diabetes() -> Task:
    """How far the disease progressed within a year, from ten measurements: regression."""
    data = datasets.load_diabetes()
    x, y = torch.from_numpy(data.data).float(), torch.from_numpy(data.target).float()
    train, test = _split(x, y)
    middle, scale = train[1].mean(), train[1].std()

    def judge(prediction: Tensor, target: Tensor) -> str:
        if prediction.dim() == 1:
            return f"RMSE {_rmse(prediction, target) * scale:.2f}"
        low, median, high = prediction.unbind(-1)
        inside = ((low <= target) & (target <= high)).float().mean()
        return f"RMSE {_rmse(median, target) * scale:.2f}, {inside:.0%} inside"

    # Targets of unit size suit one learning rate to every loss; RMSE is reported in the data's own unit.
    standardised = [(part_x, (part_y - middle) / scale) for part_x, part_y in (train, test)]
    return Task("diabetes", standardised[0], standardised[1], binary=False, learning_rate=0.02, judge=judge)


def breast_cancer() -> Task:
    """Whether a tumour is benign: binary classification."""
    data = datasets.load_breast_cancer()
    x, y = torch.from_numpy(data.data).float(), torch.from_numpy(data.target).float()

    def judge(logit: Tensor, target: Tensor) -> str:
        return f"accuracy {((logit > 0) == (target > 0.5)).float().mean():.1%}"

    train, test = _split(x, y)
    return Task("breast cancer", train, test, binary=True, learning_rate=0.02, judge=judge)


def digit_attributes() -> Task:
    """Which of four properties a handwritten digit has - even, prime, with a loop, five or more: multi-label."""
    data = datasets.load_digits()
    digit = data.target
    labels = np.stack([digit % 2 == 0, np.isin(digit, (2, 3, 5, 7)), np.isin(digit, (0, 6, 8, 9)), digit >= 5], axis=1)
    x, y = torch.from_numpy(data.data).float(), torch.from_numpy(labels).float()

    def judge(logits: Tensor, target: Tensor) -> str:
        return f"macro F1 {metrics.f1_score(target.numpy(), (logits > 0).numpy(), average='macro'):.3f}"

    train, test = _split(x, y)
    return Task("4 digit labels", train, test, binary=True, learning_rate=0.05, judge=judge)


def _split(x: Tensor, y: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Holds a quarter out, the same in every run, and standardises the features by the other three."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, test = order.split([len(x) * 3 // 4, len(x) - len(x) * 3 // 4])
    deviation, mean = torch.std_mean(x[train], dim=0)
    x = (x - mean) / deviation.clamp(min=1e-6)  # a corner pixel that is never inked does not vary
    return (x[train], y[train]), (x[test], y[test])


def _rmse(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction - target).square().mean().sqrt()
