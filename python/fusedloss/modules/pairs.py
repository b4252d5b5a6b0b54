"""The losses over pairs in a batch as modules."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor

from fusedloss import functional as F
from fusedloss.modules._base import Loss

__all__ = ["CLIPLoss", "InfoNCELoss", "SigLIPLoss", "SupervisedContrastiveLoss"]


class InfoNCELoss(Loss):
    """Finding a query's key among all keys, `functional.info_nce_loss`.

    Args:
        temperature: what inner products are divided by, above 0.
        symmetric: whether keys look for their queries too.
        reduction: 'none', 'mean' or 'sum'.
        normalize: whether vectors are divided by their norms.
        group: the ranks that the rows are spread over.

    Example:
        >>> import torch, fusedloss
        >>> loss = fusedloss.InfoNCELoss(temperature=0.5, normalize=True)
        >>> loss(torch.eye(2), torch.tensor([[1.0, 0.0], [3.0, 4.0]]))
        tensor(0.2775)
    """

    _settings = ("temperature", "symmetric", "reduction", "normalize")

    def __init__(
        self,
        temperature: float = 0.1,
        symmetric: bool = False,
        reduction: str = "mean",
        *,
        normalize: bool = False,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__(reduction)
        self.temperature = temperature
        self.symmetric = symmetric
        self.normalize = normalize
        self.group = group

    def forward(self, query: Tensor, key: Tensor, negatives: Tensor | None = None) -> Tensor:
        return F.info_nce_loss(
            query,
            key,
            negatives,
            self.temperature,
            self.symmetric,
            self.reduction,
            normalize=self.normalize,
            group=self.group,
        )


class CLIPLoss(Loss):
    """Which text belongs to an image, and which image to a text, `functional.clip_loss`.

    Args:
        reduction: 'none', 'mean' or 'sum'.
        normalize: whether vectors are divided by their norms.
        group: the ranks that the pairs are spread over.

    Example:
        >>> import torch, fusedloss
        >>> loss = fusedloss.CLIPLoss()
        >>> loss(torch.eye(2), torch.eye(2), 2.0)
        tensor(0.1269)
    """

    _settings = ("reduction", "normalize")

    def __init__(
        self, reduction: str = "mean", *, normalize: bool = False, group: dist.ProcessGroup | None = None
    ) -> None:
        super().__init__(reduction)
        self.normalize = normalize
        self.group = group

    def forward(self, image: Tensor, text: Tensor, logit_scale: Tensor | float) -> Tensor:
        return F.clip_loss(image, text, logit_scale, self.reduction, normalize=self.normalize, group=self.group)


class SigLIPLoss(Loss):
    """Whether an image and a text belong together, for all of them, `functional.siglip_loss`.

    Args:
        reduction: 'none', 'mean' or 'sum'.
        normalize: whether vectors are divided by their norms.
        group: the ranks that the pairs are spread over.

    Example:
        >>> import torch, fusedloss
        >>> loss = fusedloss.SigLIPLoss()
        >>> loss(torch.eye(2), torch.eye(2), 2.0, -1.0)
        tensor(0.6265)
    """

    _settings = ("reduction", "normalize")

    def __init__(
        self, reduction: str = "mean", *, normalize: bool = False, group: dist.ProcessGroup | None = None
    ) -> None:
        super().__init__(reduction)
        self.normalize = normalize
        self.group = group

    def forward(
        self, image: Tensor, text: Tensor, logit_scale: Tensor | float, logit_bias: Tensor | float = 0.0
    ) -> Tensor:
        return F.siglip_loss(
            image, text, logit_scale, logit_bias, self.reduction, normalize=self.normalize, group=self.group
        )


class SupervisedContrastiveLoss(Loss):
    """Vectors of one label near each other among all others, `functional.supervised_contrastive_loss`.

    Args:
        temperature: what inner products are divided by, above 0.
        reduction: 'none', 'mean' or 'sum'.
        normalize: whether vectors are divided by their norms.

    Example:
        >>> import torch, fusedloss
        >>> loss = fusedloss.SupervisedContrastiveLoss(temperature=0.5)
        >>> loss(torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]]), torch.tensor([1, 1, 2]))
        tensor(0.3485)
    """

    _settings = ("temperature", "reduction", "normalize")

    def __init__(self, temperature: float = 0.1, reduction: str = "mean", *, normalize: bool = False) -> None:
        super().__init__(reduction)
        self.temperature = temperature
        self.normalize = normalize

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        return F.supervised_contrastive_loss(
            embeddings, labels, self.temperature, self.reduction, normalize=self.normalize
        )
