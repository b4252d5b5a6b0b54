"""scikit-learn's handwritten digits, turned, stretched and moved: pixel by pixel, like is not near like."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as TF
from torch import Tensor

from digit_images import split_images
from tabular_tasks import Task

NEVER_SEEN = (4, 6)  # digits of which no image is learnt from
SIZE = 12  # pixels of a side
COPIES = 4  # of every image to learn from, each askew in its own way
TURN, STRETCH, MOVE = math.radians(30), 0.2, 0.2  # at most; a move as a share of half the image


@dataclass(frozen=True)
class Recall:
    """How often the nearest of all other held-out images shows the same digit (recall@1)."""

    seen: float  # of digits that were learnt from
    unseen: float  # of digits that were not


def load_askew() -> Task:
    """Returns the task of embedding; targets are digits, and no held-out image is a copy of one to learn from."""
    generator = torch.Generator().manual_seed(0)
    (images, digits), held_out = split_images()
    learnt = ~never_seen(digits)
    train = _askew(images[learnt].repeat(COPIES, 1, 1, 1), generator), digits[learnt].repeat(COPIES)
    test = _askew(held_out[0], generator), held_out[1]
    deviation, mean = torch.std_mean(train[0])
    standardised = [((part - mean) / deviation, truth) for part, truth in (train, test)]
    return Task("askew digits", standardised[0], standardised[1], binary=False, learning_rate=0.1, judge=verdict)


def never_seen(digits: Tensor) -> Tensor:
    return torch.isin(digits, torch.tensor(NEVER_SEEN))


def _askew(images: Tensor, generator: torch.Generator) -> Tensor:
    """Returns the images, (N, 1, SIZE, SIZE), each seen through an affine map of its own."""

    def between(size: float) -> Tensor:
        return size * (2 * torch.rand(len(images), generator=generator) - 1)

    angle, wide, high = between(TURN), 1 + between(STRETCH), 1 + between(STRETCH)
    maps = torch.stack(
        [
            torch.stack([angle.cos() * wide, -angle.sin() * high, between(MOVE)], 1),
            torch.stack([angle.sin() * wide, angle.cos() * high, between(MOVE)], 1),
        ],
        1,
    )
    grid = TF.affine_grid(maps, [len(images), 1, SIZE, SIZE], align_corners=False)
    return TF.grid_sample(images, grid, align_corners=False)


def recall(embeddings: Tensor, digits: Tensor) -> Recall:
    """Judges by cosine similarity, as the losses with `normalize=True` do."""
    directions = TF.normalize(embeddings.flatten(1))
    similarities = (directions @ directions.t()).fill_diagonal_(-math.inf)
    right = (digits[similarities.argmax(1)] == digits).double()
    unseen = never_seen(digits)
    return Recall(right[~unseen].mean().item(), right[unseen].mean().item())


def verdict(embeddings: Tensor, digits: Tensor) -> str:
    found = recall(embeddings, digits)
    return f"recall@1 {found.seen:.1%}, of digits never seen {found.unseen:.1%}"
