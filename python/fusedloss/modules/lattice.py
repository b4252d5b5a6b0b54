"""The losses over a lattice as modules."""

from collections.abc import Sequence

from torch import Tensor

from fusedloss import functional as F
from fusedloss.modules._base import Loss

__all__ = ["CTCLoss"]


class CTCLoss(Loss):
    """Connectionist temporal classification, `functional.ctc_loss`.

    Args:
        blank: the class that is no label.
        reduction: 'none', 'mean' or 'sum'.
        zero_infinity: whether samples without a possible alignment count as 0 instead of infinity.
        from_logits: whether the input holds logits, whose log-softmax is taken in the same pass.

    Example:
        >>> import torch, fusedloss
        >>> loss = fusedloss.CTCLoss(from_logits=True)
        >>> loss(torch.zeros(3, 1, 2), torch.tensor([[1, 1]]), (3,), (2,))
        tensor(1.0397)
    """

    _settings = ("blank", "reduction", "zero_infinity", "from_logits")

    def __init__(
        self, blank: int = 0, reduction: str = "mean", zero_infinity: bool = False, from_logits: bool = False
    ) -> None:
        super().__init__(reduction)
        self.blank = blank
        self.zero_infinity = zero_infinity
        self.from_logits = from_logits

    def forward(
        self,
        log_probs: Tensor,
        targets: Tensor,
        input_lengths: Tensor | Sequence[int] | int,
        target_lengths: Tensor | Sequence[int] | int,
    ) -> Tensor:
        return F.ctc_loss(
            log_probs,
            targets,
            input_lengths,
            target_lengths,
            self.blank,
            self.reduction,
            self.zero_infinity,
            self.from_logits,
        )
