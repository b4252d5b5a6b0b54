"""scikit-learn's handwritten digits as images, with so few of some digits to learn from that a network misses them."""

from dataclasses import dataclass

import torch
from sklearn import datasets
from torch import Tensor

from tabular_tasks import Task

CLASSES = 10
RARE, KEPT = (1, 8, 9), 6  # digits that look alike, and how many labelled images of each there are


@dataclass(frozen=True)
class Digits:
    labelled: tuple[Tensor, Tensor]  # images (N, 1, 8, 8) and digits (N), few of which are rare ones
    unlabelled: Tensor  # those images, and those of rare digits whose labels were thrown away
    test: tuple[Tensor, Tensor]  # about as many of every digit

    @property
    def counts(self) -> Tensor:
        return torch.bincount(self.labelled[1], minlength=CLASSES)

    @property
    def task(self) -> Task:
        """Learning the labels."""
        return self._task("digits", self.labelled)

    def imitation(self, teacher_logits: Tensor) -> Task:
        """Learning a teacher's logits for all images."""
        return self._task("digits, distilled", (self.unlabelled, teacher_logits))

    def _task(self, name: str, train: tuple[Tensor, Tensor]) -> Task:
        return Task(name, train, self.test, binary=False, learning_rate=0.02, judge=verdict)


def split_images() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Returns images (N, 1, 8, 8) and digits (N), three quarters to learn from and one held out."""
    data = datasets.load_digits()
    images, digits = torch.from_numpy(data.images).float().unsqueeze(1), torch.from_numpy(data.target)
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(0))
    train, test = order.split([len(order) * 3 // 4, len(order) - len(order) * 3 // 4])
    return (images[train], digits[train]), (images[test], digits[test])


def load_digits() -> Digits:
    (train, digits), (test, truth) = split_images()
    deviation, mean = torch.std_mean(train)
    train, test = (train - mean) / deviation, (test - mean) / deviation
    kept = torch.cat([torch.nonzero(digits == k)[: KEPT if k in RARE else None, 0] for k in range(CLASSES)])
    return Digits((train[kept], digits[kept]), train, (test, truth))


def recalls(logits: Tensor, digits: Tensor) -> Tensor:
    """Returns for every digit how many of its images were recognised."""
    right = (logits.argmax(1) == digits).double()
    return torch.stack([right[digits == digit].mean() for digit in range(CLASSES)])


def verdict(logits: Tensor, digits: Tensor) -> str:
    return f"mean recall {recalls(logits, digits).mean():.1%}"
