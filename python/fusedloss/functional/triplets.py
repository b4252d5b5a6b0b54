"""The losses of triplets that are mined within a batch: who is compared with whom is found by labels and distances."""

from torch import Tensor

from fusedloss import _routing as _ops

__all__ = ["triplet_mining_loss"]


def triplet_mining_loss(
    embeddings: Tensor,
    labels: Tensor,
    margin: float = 1.0,
    mining: str = "batch_hard",
    squared: bool = False,
    reduction: str = "mean",
    *,
    normalize: bool = False,
) -> Tensor:
    """Triplet loss over a batch: of an anchor a, a positive p of its label and a negative n of another one.

    f = max(0, d(a, p) - d(a, n) + margin),  d(i, j) = ||x_i - x_j||_2

    The matrix of all distances is never stored: the memory is that of some copies of the embeddings, the time that of
    computing the distances. Distances come from differences, so that equal vectors are exactly at distance 0.

    Args:
        embeddings: one vector a row, (N, D), of float64, float32, bfloat16 or float16, of any strides.
        labels: (N), of any integer type and any values.
        margin: by how much a negative must be farther than a positive, a finite number of at least 0.
        mining: which triplets count. 'batch_hard': of every anchor that has a positive and a negative, the farthest
            positive and the nearest negative. 'semi_hard': of every such anchor all positives, each with the nearest
            negative that is farther away, or, if none is, with the farthest negative. 'all': all triplets. Among equal
            distances the one with the lowest index is taken.
        squared: whether d is the square of the distance.
        reduction: 'mean', over the triplets that count; 'mean_nonzero', over those with a loss above 0; 'sum'; or
            'none', for every vector the sum over the triplets whose anchor it is, (N). Where nothing counts, all are 0.
        normalize: whether every vector is divided by max(its norm, 1e-12) first.

    Returns:
        One value, or one an embedding for 'none', of embeddings' dtype (float32 under autocast, without a copy).

    Raises:
        ValueError: for shapes that do not fit, a negative or infinite `margin`, an unknown `mining` or `reduction`.
        TypeError: for arguments that are no tensors or of a wrong dtype.

    Gradients of first and second order exist for embeddings. Which triplets count has no derivative; a distance of 0
    has the derivative 0, and so has f where it becomes 0. A NaN is the farthest and the nearest: it reaches every
    anchor that has triplets.

    Example:
        >>> import torch, fusedloss.functional as F
        >>> embeddings = torch.tensor([[0.0], [2.0], [1.0], [4.0]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> F.triplet_mining_loss(embeddings, labels, margin=0.5)
        tensor(1.7500)
        >>> F.triplet_mining_loss(embeddings, labels, margin=0.5, reduction="none")
        tensor([1.5000, 1.5000, 2.5000, 1.5000])
        >>> F.triplet_mining_loss(embeddings, labels, margin=0.5, mining="all", reduction="mean_nonzero")
        tensor(1.6667)

    References:
        Hermans, Beyer, Leibe, "In Defense of the Triplet Loss for Person Re-Identification", 2017 (batch_hard, all).
        Schroff, Kalenichenko, Philbin, "FaceNet", CVPR 2015 (semi_hard).
    """
    return _ops.triplet_mining_loss(embeddings, labels, margin, mining, squared, normalize, reduction)
