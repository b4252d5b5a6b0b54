"""The losses of triplets that are mined within a batch as modules."""

from torch import Tensor

from fusedloss import functional as F
from fusedloss.modules._base import Loss

__all__ = ["TripletMiningLoss"]


class TripletMiningLoss(Loss):
    """Triplets that are found within a batch by their labels, `functional.triplet_mining_loss`.

    Args:
        margin: by how much a negative must be farther than a positive.
        mining: 'batch_hard', 'semi_hard' or 'all'.
        squared: whether distances are squared.
        reduction: 'none', 'mean', 'mean_nonzero' or 'sum'.
        normalize: whether every embedding is divided by its norm.

    Example:
        >>> import torch, fusedloss
        >>> loss = fusedloss.TripletMiningLoss(margin=0.5)
        >>> loss(torch.tensor([[0.0], [2.0], [1.0], [4.0]]), torch.tensor([0, 0, 1, 1]))
        tensor(1.7500)
    """

    _settings = ("margin", "mining", "squared", "reduction", "normalize")

    def __init__(
        self,
        margin: float = 1.0,
        mining: str = "batch_hard",
        squared: bool = False,
        reduction: str = "mean",
        *,
        normalize: bool = False,
    ) -> None:
        super().__init__(reduction)
        self.margin = margin
        self.mining = mining
        self.squared = squared
        self.normalize = normalize

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        return F.triplet_mining_loss(
            embeddings, labels, self.margin, self.mining, self.squared, self.reduction, normalize=self.normalize
        )
