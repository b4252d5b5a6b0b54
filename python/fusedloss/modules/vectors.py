"""The losses of two or three vectors as modules."""

from torch import Tensor

from fusedloss import functional as F
from fusedloss.functional.vectors import Distance
from fusedloss.modules._base import Loss, TorchLoss

__all__ = ["ContrastiveLoss", "CosineEmbeddingLoss", "TripletMarginLoss", "TripletMarginWithDistanceLoss"]


class ContrastiveLoss(Loss):
    """Draws vectors together or drives them apart, `functional.contrastive_loss`.

    Args:
        margin: the distance that is enough.
        p: which norm the distance is.
        reduction: 'none', 'mean' or 'sum'.
        normalize: whether vectors are divided by their lengths.

    Example:
        >>> import torch, fusedloss
        >>> loss = fusedloss.ContrastiveLoss(margin=2.0)
        >>> loss(torch.zeros(2, 2), torch.tensor([0.3, 0.4]), torch.tensor([1, 0]))
        tensor(1.2500)
    """

    _settings = ("margin", "p", "reduction", "normalize")

    def __init__(self, margin: float = 1.0, p: float = 2.0, reduction: str = "mean", normalize: bool = False) -> None:
        super().__init__(reduction)
        self.margin = margin
        self.p = p
        self.normalize = normalize

    def forward(self, input1: Tensor, input2: Tensor, target: Tensor) -> Tensor:
        return F.contrastive_loss(input1, input2, target, self.margin, self.p, self.reduction, normalize=self.normalize)


class CosineEmbeddingLoss(TorchLoss):
    """Turns vectors into one direction or away from each other, `functional.cosine_embedding_loss`.

    Args:
        margin: the cosine that is low enough.
        size_average, reduce: deprecated.
        reduction: 'none', 'mean' or 'sum'.
        normalize: whether vectors are divided by their lengths before.

    Example:
        >>> import torch, fusedloss
        >>> loss = fusedloss.CosineEmbeddingLoss(margin=0.5)
        >>> loss(torch.tensor([1.0, 0.0]), torch.tensor([3.0, 4.0]), torch.tensor(1))
        tensor(0.4000)
    """

    _settings = ("margin", "reduction", "normalize")

    def __init__(
        self,
        margin: float = 0.0,
        size_average: bool | str | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
        normalize: bool = False,
    ) -> None:
        super().__init__(size_average, reduce, reduction)
        self.margin = margin
        self.normalize = normalize

    def forward(self, input1: Tensor, input2: Tensor, target: Tensor) -> Tensor:
        return F.cosine_embedding_loss(
            input1, input2, target, self.margin, reduction=self.reduction, normalize=self.normalize
        )


class TripletMarginLoss(TorchLoss):
    """Brings an anchor nearer to its positive than to its negative, `functional.triplet_margin_loss`.

    Args:
        margin: by how much.
        p: which norm the distance is.
        eps: what is added to every difference.
        swap: whether the distance from positive to negative is taken instead where it is the smaller one.
        size_average, reduce: deprecated.
        reduction: 'none', 'mean' or 'sum'.
        normalize: whether vectors are divided by their lengths.

    Example:
        >>> import torch, fusedloss
        >>> anchor, positive, negative = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 2.0]])
        >>> fusedloss.TripletMarginLoss()(anchor, positive, negative)
        tensor(4.0000)
    """

    _settings = ("margin", "p", "eps", "swap", "reduction", "normalize")

    def __init__(
        self,
        margin: float = 1.0,
        p: float = 2.0,
        eps: float = 1e-6,
        swap: bool = False,
        size_average: bool | str | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
        normalize: bool = False,
    ) -> None:
        super().__init__(size_average, reduce, reduction)
        self.margin = margin
        self.p = p
        self.eps = eps
        self.swap = swap
        self.normalize = normalize

    def forward(self, anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        return F.triplet_margin_loss(
            anchor,
            positive,
            negative,
            self.margin,
            self.p,
            self.eps,
            self.swap,
            reduction=self.reduction,
            normalize=self.normalize,
        )


class TripletMarginWithDistanceLoss(Loss):
    """The same with a distance of choice, `functional.triplet_margin_with_distance_loss`.

    Args:
        distance_function: None or 'euclidean', 'squared_euclidean', 'cosine', a torch.nn.PairwiseDistance; or any other
            function of two tensors of vectors, which is called.
        margin: by how much.
        swap: whether the distance from positive to negative is taken instead where it is the smaller one.
        reduction: 'none', 'mean' or 'sum'.
        normalize: whether vectors are divided by their lengths.

    Example:
        >>> import torch, fusedloss
        >>> loss = fusedloss.TripletMarginWithDistanceLoss(distance_function="cosine")
        >>> loss(*torch.tensor([[1.0, 0.0], [3.0, 4.0], [0.0, 2.0]]))
        tensor(0.4000)
    """

    _settings = ("distance_function", "margin", "swap", "reduction", "normalize")

    def __init__(
        self,
        *,
        distance_function: Distance | str | None = None,
        margin: float = 1.0,
        swap: bool = False,
        reduction: str = "mean",
        normalize: bool = False,
    ) -> None:
        super().__init__(reduction)
        self.distance_function = distance_function
        self.margin = margin
        self.swap = swap
        self.normalize = normalize

    def forward(self, anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        return F.triplet_margin_with_distance_loss(
            anchor,
            positive,
            negative,
            distance_function=self.distance_function,
            margin=self.margin,
            swap=self.swap,
            reduction=self.reduction,
            normalize=self.normalize,
        )
