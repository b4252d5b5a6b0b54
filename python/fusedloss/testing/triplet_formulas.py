"""The mined triplet losses as a user of torch would write them: dense, from differences, with second derivatives."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# Of distances, positives and negatives (N, N): the loss before its hinge at a positive and a negative of each anchor,
# and where there is one, (N, ...).
Mined = tuple[Tensor, Tensor]


def triplet_mining_loss(
    embeddings: Tensor,
    labels: Tensor,
    margin: float = 1.0,
    mining: str = "batch_hard",
    squared: bool = False,
    reduction: str = "mean",
    normalize: bool = False,
) -> Tensor:
    d = distances(F.normalize(embeddings, dim=1) if normalize else embeddings, squared)
    alike = labels[:, None] == labels
    positive, negative = alike & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device), ~alike
    before, counted = RULES[mining](d, positive, negative)
    values = torch.where(counted, F.relu(before + margin), 0.0).flatten(1)
    if reduction == "none":
        return values.sum(1)
    count = {"mean": counted, "mean_nonzero": values.detach() > 0}.get(reduction)
    return values.sum() if count is None else values.sum() / count.sum().clamp(min=1)


def distances(x: Tensor, squared: bool) -> Tensor:
    """From differences, which keep the digits that the matrix product of vectors far from the origin loses."""
    square = (x[:, None] - x).square().sum(-1)
    if squared:
        return square
    apart = square > 0
    return torch.where(apart, torch.where(apart, square, 1.0).sqrt(), 0.0)


def first(wanted: Tensor, d: Tensor) -> Tensor:
    """The first along the last axis."""
    index = torch.where(wanted, torch.arange(d.shape[-1], device=d.device), d.shape[-1] - 1).amin(-1, keepdim=True)
    return d.gather(-1, index)


def farthest(d: Tensor, among: Tensor) -> Tensor:
    far = d.detach().masked_fill(~among, -math.inf)
    return first(far == far.amax(-1, keepdim=True), d)


def nearest(d: Tensor, among: Tensor) -> Tensor:
    near = d.detach().masked_fill(~among, math.inf)
    return first(near == near.amin(-1, keepdim=True), d)


def batch_hard(d: Tensor, positive: Tensor, negative: Tensor) -> Mined:
    if len(d) == 0:
        return d, positive
    counted = positive.any(1, keepdim=True) & negative.any(1, keepdim=True)
    return farthest(d, positive) - nearest(d, negative), counted


def semi_hard(d: Tensor, positive: Tensor, negative: Tensor) -> Mined:
    if len(d) == 0:
        return d, positive
    to_negative, candidates = d[:, None].expand(-1, len(d), -1), negative[:, None].expand(-1, len(d), -1)
    farther = candidates & (to_negative > d[:, :, None])
    chosen = torch.where(
        farther.any(-1, keepdim=True), nearest(to_negative, farther), farthest(to_negative, candidates)
    )
    return d - chosen.squeeze(-1), positive & negative.any(1, keepdim=True)


def all_of_them(d: Tensor, positive: Tensor, negative: Tensor) -> Mined:
    return d[:, :, None] - d[:, None], positive[:, :, None] & negative[:, None]


RULES: dict[str, Callable[[Tensor, Tensor, Tensor], Mined]] = {
    "batch_hard": batch_hard, "semi_hard": semi_hard, "all": all_of_them,
}  # fmt: skip
