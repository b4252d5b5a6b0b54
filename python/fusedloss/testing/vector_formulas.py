"""The losses of two or three vectors as a user of torch would write them: torch's own, or in torch's ops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

NONE = 0  # torch's number of that reduction

Formula = Callable[..., Tensor]


def of_rows(values: Formula, count: int) -> Formula:
    """The loss of a formula for rows of so many vectors: these are broadcast and normalized, rows weighted, reduced."""

    def loss(
        *operands: Tensor,
        weight: Tensor | None = None,
        normalize: bool = False,
        reduction: str = "mean",
        **parameters: Any,
    ) -> Tensor:
        shape = torch.broadcast_shapes(*(x.shape for x in operands[:count]))  # type: ignore[no-untyped-call]
        vectors = [x.broadcast_to(shape) for x in operands[:count]]
        if normalize:
            vectors = [F.normalize(x, dim=-1) for x in vectors]
        found = values(*vectors, *(x.broadcast_to(shape[:-1]) for x in operands[count:]), **parameters)
        if weight is not None:
            found = torch.where(weight == 0, 0, found * weight)
        return found if reduction == "none" else found.sum() if reduction == "sum" else found.mean()

    return loss


def _contrastive(input1: Tensor, input2: Tensor, target: Tensor, margin: float = 1.0, p: float = 2.0) -> Tensor:
    d: Tensor = torch.linalg.vector_norm(input1 - input2, p, dim=-1)
    return target * d**2 + (1 - target) * (margin - d).clamp(min=0) ** 2


def _cosine_embedding(input1: Tensor, input2: Tensor, target: Tensor, margin: float = 0.0) -> Tensor:
    """torch's own takes a matrix."""
    rows = target.numel(), input1.shape[-1]
    one, other = input1.reshape(rows), input2.reshape(rows)
    return F.cosine_embedding_loss(one, other, target.reshape(-1), margin, reduction="none").view(target.shape)


def _triplet_margin(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    margin: float = 1.0,
    p: float = 2.0,
    eps: float = 1e-6,
    swap: bool = False,
) -> Tensor:
    """What torch.nn.functional's calls, which takes a margin of 0 too."""
    return torch.triplet_margin_loss(anchor, positive, negative, margin, p, eps, swap, NONE)


def squared_euclidean(a: Tensor, b: Tensor) -> Tensor:
    return ((a - b) ** 2).sum(-1)


def cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    return 1 - F.cosine_similarity(a, b, dim=-1)


DISTANCES: dict[Any, Formula] = {
    None: F.pairwise_distance,
    "euclidean": F.pairwise_distance,
    "squared_euclidean": squared_euclidean,
    "cosine": cosine_distance,
}


def _triplet_margin_with_distance(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    distance_function: Any = None,
    margin: float = 1.0,
    swap: bool = False,
) -> Tensor:
    """torch's own, with the distances that have a name here."""
    function = DISTANCES.get(distance_function, distance_function)
    return F.triplet_margin_with_distance_loss(
        anchor, positive, negative, distance_function=function, margin=margin, swap=swap, reduction="none"
    )


contrastive_loss = of_rows(_contrastive, 2)
cosine_embedding_loss = of_rows(_cosine_embedding, 2)
triplet_margin_loss = of_rows(_triplet_margin, 3)
triplet_margin_with_distance_loss = of_rows(_triplet_margin_with_distance, 3)
