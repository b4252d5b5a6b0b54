"""Losses of two or three vectors a row: how far these are from each other, or in which directions they point.

What holds for all of them:

- Vectors lie along the last axis, (*, D). The axes before it, of which there may be none, are broadcast and are the
  rows: a loss has one value a row. A gradient of what is broadcast is the sum over the rows.
- They may be of float64, float32, bfloat16 or float16 and of any strides; halves are computed in float32. The result
  has their type, promoted (under autocast float32, without a copy).
- `weight` is a factor for every row, of the rows' shape or broadcast to it; it may need a gradient too. A row of weight
  0 does not count: its value and gradients are 0 whatever its vectors hold. A 'mean' divides by the number of all rows.
- With `normalize` every vector is divided by its length, or by 1e-12 if that is more, in the same pass. Gradients are
  those by the given vectors.
- Where a distance is 0 its derivative is taken as 0, and so is that of a hinge at its corner.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fusedloss import _routing as _ops
from fusedloss._reduction import legacy_reduction

__all__ = [
    "contrastive_loss",
    "cosine_embedding_loss",
    "triplet_margin_loss",
    "triplet_margin_with_distance_loss",
]


def contrastive_loss(
    input1: Tensor,
    input2: Tensor,
    target: Tensor,
    margin: float = 1.0,
    p: float = 2.0,
    reduction: str = "mean",
    *,
    weight: Tensor | None = None,
    normalize: bool = False,
) -> Tensor:
    """Draws vectors together that are alike, and drives others apart until their distance is `margin`.

    f = y d^2 + (1 - y) max(margin - d, 0)^2, with y = target and d = (sum_k |input1_k - input2_k|^p)^(1/p)

    Args:
        input1, input2: the vectors, (*, D), broadcast.
        target: 1 where both are alike, 0 where they are not, of the rows' shape or broadcast to it: integers, truth
            values, or how much they are alike, of a floating type, in which case it may need a gradient.
        margin: the distance that is enough, at least 0.
        p: which norm the distance is, above 0; inf for the largest difference.
        reduction: 'none', 'mean' or 'sum'.
        weight: factor for every row.
        normalize: whether vectors are divided by their lengths.

    Returns:
        One value, or one a row for 'none'.

    Raises:
        ValueError: if margin is negative, p is not above 0, shapes do not fit or `reduction` is unknown.
        TypeError: for arguments that are no tensors or of a wrong dtype.

    Gradients of first and second order exist for the vectors, a floating target and the weight.

    Example:
        >>> import torch, fusedloss.functional as F
        >>> first, second = torch.tensor([[0.0, 0.0], [0.0, 0.0]]), torch.tensor([[0.3, 0.4], [0.3, 0.4]])
        >>> F.contrastive_loss(first, second, torch.tensor([1, 0]), margin=2.0, reduction="none")
        tensor([0.2500, 2.2500])

    References:
        Hadsell, Chopra, LeCun, "Dimensionality Reduction by Learning an Invariant Mapping", CVPR 2006.
    """
    return _ops.contrastive_loss(input1, input2, target, weight, (margin, p), normalize, reduction)


def cosine_embedding_loss(
    input1: Tensor,
    input2: Tensor,
    target: Tensor,
    margin: float = 0.0,
    size_average: bool | str | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    *,
    weight: Tensor | None = None,
    normalize: bool = False,
) -> Tensor:
    """Turns vectors into one direction where they are alike, and away from each other where they are not.

    f = 1 - c where target = 1, and max(c - margin, 0) where target = -1, with c the cosine of the angle between both:
    c = input1.input2 / sqrt((|input1|^2 + 1e-12) (|input2|^2 + 1e-12))

    Args:
        input1, input2: the vectors, (*, D), broadcast.
        target: 1 or -1, of the rows' shape or broadcast to it, of any type. Rows with another target have the value 0,
            as torch's have.
        margin: the cosine that is low enough.
        size_average, reduce: deprecated.
        reduction: 'none', 'mean' or 'sum'.
        weight: factor for every row.
        normalize: whether vectors are divided by their lengths before: of use for lengths whose squares have no place
            beside 1e-12, or are infinite.

    Returns:
        One value, or one a row for 'none'.

    Raises:
        ValueError: if margin is NaN, shapes do not fit or `reduction` is unknown.
        TypeError: for arguments that are no tensors or of a wrong dtype.

    Gradients of first and second order exist for the vectors and the weight.

    Example:
        >>> import torch, fusedloss.functional as F
        >>> first, second = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[3.0, 4.0], [3.0, 4.0]])
        >>> F.cosine_embedding_loss(first, second, torch.tensor([1, -1]), margin=0.5, reduction="none")
        tensor([0.4000, 0.1000])

    References:
        torch.nn.functional.cosine_embedding_loss.
    """
    if size_average is not None or reduce is not None:
        reduction = legacy_reduction(size_average, reduce)
    if isinstance(target, Tensor) and target.requires_grad:  # it is a choice: torch takes it for a constant too
        target = target.detach()
    return _ops.cosine_embedding_loss(input1, input2, target, weight, (margin,), normalize, reduction)


def triplet_margin_loss(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    margin: float = 1.0,
    p: float = 2.0,
    eps: float = 1e-6,
    swap: bool = False,
    size_average: bool | str | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    *,
    weight: Tensor | None = None,
    normalize: bool = False,
) -> Tensor:
    """Brings an anchor nearer to its positive than to its negative, by `margin`.

    f = max(margin + d(anchor, positive) - d(anchor, negative), 0), with d(x, y) = (sum_k |x_k - y_k + eps|^p)^(1/p)

    Args:
        anchor, positive, negative: the vectors, (*, D), broadcast.
        margin: by how much, at least 0.
        p: which norm the distance is, above 0; inf for the largest difference.
        eps: what is added to every difference, so that hardly any distance is 0.
        swap: whether the distance from positive to negative is taken instead where it is the smaller one.
        size_average, reduce: deprecated.
        reduction: 'none', 'mean' or 'sum'.
        weight: factor for every row.
        normalize: whether vectors are divided by their lengths.

    Returns:
        One value, or one a row for 'none'.

    Raises:
        ValueError: if margin is negative, p is not above 0, eps is NaN, shapes do not fit or `reduction` is unknown.
        TypeError: for arguments that are no tensors or of a wrong dtype.

    Gradients of first and second order exist for the vectors and the weight.

    Example:
        >>> import torch, fusedloss.functional as F
        >>> anchor, positive, negative = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 2.0]])
        >>> F.triplet_margin_loss(anchor, positive, negative, margin=1.0)
        tensor(4.0000)

    References:
        Balntas, Riba, Ponsa, Mikolajczyk, "Learning local feature descriptors with triplets and shallow convolutional
        neural networks", BMVC 2016. torch.nn.functional.triplet_margin_loss.
    """
    if size_average is not None or reduce is not None:
        reduction = legacy_reduction(size_average, reduce)
    parameters = (margin, p, eps, swap)
    return _ops.triplet_margin_loss(anchor, positive, negative, weight, parameters, normalize, reduction)


Distance = Callable[[Tensor, Tensor], Tensor]


def triplet_margin_with_distance_loss(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    *,
    distance_function: Distance | str | None = None,
    margin: float = 1.0,
    swap: bool = False,
    reduction: str = "mean",
    weight: Tensor | None = None,
    normalize: bool = False,
) -> Tensor:
    """Brings an anchor nearer to its positive than to its negative, by `margin`, in a distance of choice.

    f = max(margin + d(anchor, positive) - d(anchor, negative), 0), with d = distance_function

    Args:
        anchor, positive, negative: the vectors, (*, D), broadcast.
        distance_function: one that is computed in the same pass: 'euclidean', which None and
            torch.nn.functional.pairwise_distance are too; a torch.nn.PairwiseDistance, with its p and eps;
            'squared_euclidean', sum_k (x_k - y_k)^2; or 'cosine', 1 - torch.nn.functional.cosine_similarity. Or any
            other function of two tensors of vectors, of which torch then makes loss and gradient step by step.
        margin: by how much, at least 0.
        swap: whether the distance from positive to negative is taken instead where it is the smaller one.
        reduction: 'none', 'mean' or 'sum'.
        weight: factor for every row.
        normalize: whether vectors are divided by their lengths.

    Returns:
        One value, or one a row for 'none'.

    Raises:
        ValueError: if margin is negative, a distance of that name is unknown, shapes do not fit or `reduction` is
            unknown.
        TypeError: for arguments that are no tensors or of a wrong dtype, and a distance that cannot be called.

    Gradients of first and second order exist for the vectors and the weight.

    Example:
        >>> import torch, fusedloss.functional as F
        >>> anchor, positive, negative = torch.tensor([[1.0, 0.0], [3.0, 4.0], [0.0, 2.0]])
        >>> F.triplet_margin_with_distance_loss(anchor, positive, negative, distance_function="cosine", margin=1.0)
        tensor(0.4000)

    References:
        torch.nn.functional.triplet_margin_with_distance_loss.
    """
    known = _known_distance(distance_function)
    if not isinstance(known, tuple):
        return _by_any_distance(known, (anchor, positive, negative), margin, swap, reduction, weight, normalize)
    parameters = (margin, *known, swap)
    return _ops.triplet_margin_with_distance_loss(anchor, positive, negative, weight, parameters, normalize, reduction)


# The op's number of a distance, p and eps.
_EUCLIDEAN = (0, 2.0, 1e-6)
_NAMED = {"euclidean": _EUCLIDEAN, "squared_euclidean": (1, 2.0, 0.0), "cosine": (2, 2.0, 0.0)}


def _known_distance(function: Distance | str | None) -> tuple[int, float, float] | Distance:
    """Or the function itself, if it has to be called."""
    if function is None or function is torch.nn.functional.pairwise_distance or function is torch.pairwise_distance:
        return _EUCLIDEAN
    if type(function) is torch.nn.PairwiseDistance and not function.keepdim:
        return 0, function.norm, function.eps
    if callable(function):
        return function
    name = "triplet_margin_with_distance_loss: distance_function"
    if not isinstance(function, str):
        raise TypeError(f"{name} must be a name, a function of two tensors or None, got {type(function).__name__}")
    if function not in _NAMED:
        raise ValueError(f"{name} must be {', '.join(map(repr, _NAMED))} or a function, got {function!r}")
    return _NAMED[function]


def _by_any_distance(
    distance: Distance,
    vectors: tuple[Tensor, ...],
    margin: float,
    swap: bool,
    reduction: str,
    weight: Tensor | None,
    normalize: bool,
) -> Tensor:
    name = "triplet_margin_with_distance_loss"
    if isinstance(margin, bool) or not isinstance(margin, (int, float)):
        raise TypeError(f"{name}: margin must be a number, got {type(margin).__name__}")
    if not margin >= 0:
        raise ValueError(f"{name}: margin must be a number of at least 0, got {margin}")
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"{name}: reduction must be 'none', 'mean' or 'sum', got {reduction!r}")
    if weight is not None:  # rows that do not count go nowhere, the distance included
        vectors = tuple(torch.where(weight.unsqueeze(-1) == 0, 0, x) for x in vectors)
    if normalize:
        vectors = tuple(torch.nn.functional.normalize(x, dim=-1) for x in vectors)
    anchor, positive, negative = vectors

    def checked(first: Tensor, second: Tensor) -> Tensor:
        found = distance(first, second)
        if not isinstance(found, Tensor):
            raise TypeError(f"{name}: distance_function must give a tensor, got {type(found).__name__}")
        return found

    far = checked(anchor, negative)
    if swap:
        far = torch.minimum(far, checked(positive, negative))
    loss = torch.relu(margin + checked(anchor, positive) - far)
    if weight is not None:
        loss = torch.where(weight == 0, 0, loss * weight)
    return loss if reduction == "none" else loss.sum() if reduction == "sum" else loss.mean()
