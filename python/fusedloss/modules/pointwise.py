"""The pointwise losses as modules."""

from torch import Tensor

from fusedloss import functional as F
from fusedloss.modules._base import Loss, TorchLoss

__all__ = [
    "BCELoss",
    "BCEWithLogitsLoss",
    "GaussianKLLoss",
    "GaussianNLLLoss",
    "HingeEmbeddingLoss",
    "HingeLoss",
    "HuberLoss",
    "KLDivLoss",
    "L1Loss",
    "LogCoshLoss",
    "MSELoss",
    "MarginRankingLoss",
    "MeanAbsolutePercentageErrorLoss",
    "MeanSquaredLogErrorLoss",
    "PoissonNLLLoss",
    "QuantileLoss",
    "SigmoidFocalLoss",
    "SmoothL1Loss",
    "SoftMarginLoss",
    "SquaredHingeLoss",
]


class MSELoss(TorchLoss):
    """Squared error, `functional.mse_loss`.

    Args:
        size_average, reduce: deprecated.
        reduction: 'none', 'mean' or 'sum'.

    Example:
        >>> import torch, fusedloss
        >>> loss = fusedloss.MSELoss()
        >>> loss(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 0.0]))
        tensor(2.5000)
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(input, target, reduction=self.reduction)


class L1Loss(TorchLoss):
    """Absolute error, `functional.l1_loss`.

    Args:
        size_average, reduce: deprecated.
        reduction: 'none', 'mean' or 'sum'.

    Example:
        >>> import torch, fusedloss
        >>> loss = fusedloss.L1Loss(reduction="sum")
        >>> loss(torch.tensor([1.0, -2.0]), torch.tensor([0.0, 0.0]))
        tensor(3.)
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.l1_loss(input, target, reduction=self.reduction)


class HuberLoss(Loss):
    """Squared error near zero, absolute error beyond `delta`, `functional.huber_loss`.

    Args:
        reduction: 'none', 'mean' or 'sum'.
        delta: where the straight part begins, above 0.

    Example:
        >>> import torch, fusedloss
        >>> loss = fusedloss.HuberLoss(delta=1.5)
        >>> loss
        HuberLoss(delta=1.5, reduction='mean')
        >>> loss(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 0.0]))
        tensor(1.9375)
    """

    _settings = ("delta", "reduction")

    def __init__(self, reduction: str = "mean", delta: float = 1.0) -> None:
        super().__init__(reduction)
        self.delta = delta

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.huber_loss(input, target, self.reduction, self.delta)


class SmoothL1Loss(TorchLoss):
    """Absolute error with its corner rounded off, `functional.smooth_l1_loss`.

    Args:
        size_average, reduce: deprecated.
        reduction: 'none', 'mean' or 'sum'.
        beta: width of the rounded part; 0 gives the absolute error.

    Example:
        >>> import torch, fusedloss
        >>> loss = fusedloss.SmoothL1Loss(beta=2.0)
        >>> loss(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 0.0]))
        tensor(1.1250)
    """

    _settings = ("beta", "reduction")

    def __init__(
        self,
        size_average: bool | str | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
        beta: float = 1.0,
    ) -> None:
        super().__init__(size_average, reduce, reduction)
        self.beta = beta

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.smooth_l1_loss(input, target, reduction=self.reduction, beta=self.beta)


class LogCoshLoss(Loss):
    """A Huber-like loss without a seam, `functional.log_cosh_loss`.

    Args:
        reduction: 'none', 'mean' or 'sum'.

    Example:
        >>> import torch, fusedloss
        >>> loss = fusedloss.LogCoshLoss()
        >>> loss(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 0.0]))
        tensor(1.3716)
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.log_cosh_loss(input, target, self.reduction)


class QuantileLoss(Loss):
    """Quantile (pinball) loss, `functional.quantile_loss`.

    Args:
        q: quantile level in (0, 1), or a 1-D tensor of Q of them, kept as a buffer; `input` then ends in an axis of
            size Q.
        reduction: 'none', 'mean' or 'sum'.

    Example:
        >>> import torch, fusedloss
        >>> loss = fusedloss.QuantileLoss(q=torch.tensor([0.1, 0.9]))
        >>> loss(torch.tensor([[1.0, 3.0], [0.0, 5.0]]), torch.tensor([2.0, 2.0]))
        tensor(0.1750)
    """

    _settings = ("q", "reduction")
    q: float | Tensor

    def __init__(self, q: float | Tensor = 0.5, reduction: str = "mean") -> None:
        super().__init__(reduction)
        if isinstance(q, Tensor):
            self.register_buffer("q", q)
        else:
            self.q = q

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.quantile_loss(input, target, self.q, self.reduction)


class MeanSquaredLogErrorLoss(Loss):
    """Squared error of logarithms, `functional.mean_squared_log_error`.

    Args:
        reduction: 'none', 'mean' or 'sum'.

    Example:
        >>> import torch, fusedloss
        >>> loss = fusedloss.MeanSquaredLogErrorLoss()
        >>> loss(torch.tensor([3.0, 0.0]), torch.tensor([7.0, 0.0]))
        tensor(0.2402)
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.mean_squared_log_error(input, target, self.reduction)


class MeanAbsolutePercentageErrorLoss(Loss):
    """Absolute error in percent of the true value, `functional.mean_absolute_percentage_error`.

    Args:
        reduction: 'none', 'mean' or 'sum'.

    Example:
        >>> import torch, fusedloss
        >>> loss = fusedloss.MeanAbsolutePercentageErrorLoss()
        >>> loss(torch.tensor([90.0, 6.0]), torch.tensor([100.0, 4.0]))
        tensor(30.)
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.mean_absolute_percentage_error(input, target, self.reduction)


class PoissonNLLLoss(TorchLoss):
    """Negative log-likelihood of counts under a Poisson distribution, `functional.poisson_nll_loss`.

    Args:
        log_input: whether the predictions are logarithms of the rate.
        full: whether to add the approximation of log(target!).
        size_average, reduce: deprecated.
        eps: keeps the logarithm of a rate of 0 finite; at least 0.
        reduction: 'none', 'mean' or 'sum'.

    Example:
        >>> import torch, fusedloss
        >>> loss = fusedloss.PoissonNLLLoss()
        >>> loss(torch.tensor([0.0, 1.0]), torch.tensor([2.0, 3.0]))
        tensor(0.3591)
    """

    _settings = ("log_input", "full", "eps", "reduction")

    def __init__(
        self,
        log_input: bool = True,
        full: bool = False,
        size_average: bool | str | None = None,
        eps: float = 1e-8,
        reduce: bool | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__(size_average, reduce, reduction)
        self.log_input = log_input
        self.full = full
        self.eps = eps

    def forward(self, log_input: Tensor, target: Tensor) -> Tensor:
        return F.poisson_nll_loss(log_input, target, self.log_input, self.full, eps=self.eps, reduction=self.reduction)


class GaussianNLLLoss(Loss):
    """Negative log-likelihood under a normal distribution of predicted variance, `functional.gaussian_nll_loss`.

    Args:
        full: whether to add the constant log(2 pi) / 2.
        eps: smallest variance; at least 0.
        reduction: 'none', 'mean' or 'sum'.

    Example:
        >>> import torch, fusedloss
        >>> loss = fusedloss.GaussianNLLLoss()
        >>> loss(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1.0]), torch.tensor([1.0, 4.0]))
        tensor(0.5966)
    """

    _settings = ("full", "eps", "reduction")

    def __init__(self, *, full: bool = False, eps: float = 1e-6, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.full = full
        self.eps = eps

    def forward(self, input: Tensor, target: Tensor, var: Tensor | float) -> Tensor:
        return F.gaussian_nll_loss(input, target, var, self.full, self.eps, self.reduction)


class BCELoss(TorchLoss):
    """Cross-entropy of yes-or-no targets against probabilities, `functional.binary_cross_entropy`.

    Args:
        weight: factor for every element, kept as a buffer.
        size_average, reduce: deprecated.
        reduction: 'none', 'mean' or 'sum'.

    Example:
        >>> import torch, fusedloss
        >>> loss = fusedloss.BCELoss()
        >>> loss(torch.tensor([0.9, 0.2]), torch.tensor([1.0, 0.0]))
        tensor(0.1643)
    """

    weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | str | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__(size_average, reduce, reduction)
        self.register_buffer("weight", weight)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy(input, target, self.weight, reduction=self.reduction)


class BCEWithLogitsLoss(TorchLoss):
    """Cross-entropy of yes-or-no targets against logits, `functional.binary_cross_entropy_with_logits`.

    Args:
        weight: factor for every element, kept as a buffer.
        size_average, reduce: deprecated.
        reduction: 'none', 'mean' or 'sum'.
        pos_weight: factor for the positive targets, kept as a buffer; (C) for one a label.
        label_smoothing: how far the targets move towards 1/2, in [0, 1].

    Example:
        >>> import torch, fusedloss
        >>> loss = fusedloss.BCEWithLogitsLoss(pos_weight=torch.tensor([1.0, 3.0]))
        >>> loss(torch.tensor([[2.0, -1.0]]), torch.tensor([[1.0, 1.0]]))
        tensor(2.0334)
    """

    _settings = ("label_smoothing", "reduction")
    weight: Tensor | None
    pos_weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | str | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
        pos_weight: Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(size_average, reduce, reduction)
        self.register_buffer("weight", weight)
        self.register_buffer("pos_weight", pos_weight)
        self.label_smoothing = label_smoothing

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(
            input,
            target,
            self.weight,
            reduction=self.reduction,
            pos_weight=self.pos_weight,
            label_smoothing=self.label_smoothing,
        )


class SigmoidFocalLoss(Loss):
    """Binary cross-entropy from logits that fades out for easy elements, `functional.sigmoid_focal_loss`.

    Args:
        alpha: share of the positive targets, at most 1; negative for no balancing.
        gamma: how fast easy elements fade, at least 0.
        reduction: 'none', 'mean' or 'sum'; 'mean' here, where the function has torchvision's 'none'.

    Example:
        >>> import torch, fusedloss
        >>> loss = fusedloss.SigmoidFocalLoss(alpha=-1.0)
        >>> loss(torch.tensor([0.0, 3.0]), torch.tensor([1.0, 1.0]))
        tensor(0.0867)
    """

    _settings = ("alpha", "gamma", "reduction")

    def __init__(self, alpha: float = 0.25, gamma: float = 2.0, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.alpha = alpha
        self.gamma = gamma

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.sigmoid_focal_loss(input, target, self.alpha, self.gamma, self.reduction)


class HingeLoss(Loss):
    """The support vector machine's loss, `functional.hinge_loss`.

    Args:
        target_01: whether the targets are 0 and 1, not -1 and 1.
        reduction: 'none', 'mean' or 'sum'.

    Example:
        >>> import torch, fusedloss
        >>> loss = fusedloss.HingeLoss()
        >>> loss(torch.tensor([0.3, -2.0]), torch.tensor([1.0, -1.0]))
        tensor(0.3500)
    """

    _settings = ("target_01", "reduction")

    def __init__(self, target_01: bool = False, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.target_01 = target_01

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.hinge_loss(input, target, self.target_01, self.reduction)


class SquaredHingeLoss(HingeLoss):
    """The hinge loss squared, `functional.squared_hinge_loss`.

    Args:
        target_01: whether the targets are 0 and 1, not -1 and 1.
        reduction: 'none', 'mean' or 'sum'.

    Example:
        >>> import torch, fusedloss
        >>> loss = fusedloss.SquaredHingeLoss(target_01=True)
        >>> loss(torch.tensor([0.3, 2.0]), torch.tensor([1, 0]))
        tensor(4.7450)
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.squared_hinge_loss(input, target, self.target_01, self.reduction)


class SoftMarginLoss(TorchLoss):
    """The logistic loss for targets -1 and 1, `functional.soft_margin_loss`.

    Args:
        size_average, reduce: deprecated.
        reduction: 'none', 'mean' or 'sum'.

    Example:
        >>> import torch, fusedloss
        >>> loss = fusedloss.SoftMarginLoss()
        >>> loss(torch.tensor([0.0, 2.0]), torch.tensor([1.0, -1.0]))
        tensor(1.4100)
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.soft_margin_loss(input, target, reduction=self.reduction)


class HingeEmbeddingLoss(TorchLoss):
    """Draws alike pairs together and drives different ones apart, `functional.hinge_embedding_loss`.

    Args:
        margin: distance from which different pairs no longer count.
        size_average, reduce: deprecated.
        reduction: 'none', 'mean' or 'sum'.

    Example:
        >>> import torch, fusedloss
        >>> loss = fusedloss.HingeEmbeddingLoss()
        >>> loss(torch.tensor([0.4, 0.4]), torch.tensor([1, -1]))
        tensor(0.5000)
    """

    _settings = ("margin", "reduction")

    def __init__(
        self,
        margin: float = 1.0,
        size_average: bool | str | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__(size_average, reduce, reduction)
        self.margin = margin

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.hinge_embedding_loss(input, target, self.margin, reduction=self.reduction)


class MarginRankingLoss(TorchLoss):
    """Orders pairs of scores, `functional.margin_ranking_loss`.

    Args:
        margin: the lead that is enough.
        size_average, reduce: deprecated.
        reduction: 'none', 'mean' or 'sum'.

    Example:
        >>> import torch, fusedloss
        >>> loss = fusedloss.MarginRankingLoss(margin=0.5)
        >>> loss(torch.tensor([2.0, 2.0]), torch.tensor([1.0, 1.0]), torch.tensor([1, -1]))
        tensor(0.7500)
    """

    _settings = ("margin", "reduction")

    def __init__(
        self,
        margin: float = 0.0,
        size_average: bool | str | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__(size_average, reduce, reduction)
        self.margin = margin

    def forward(self, input1: Tensor, input2: Tensor, target: Tensor) -> Tensor:
        return F.margin_ranking_loss(input1, input2, target, self.margin, reduction=self.reduction)


class KLDivLoss(TorchLoss):
    """Kullback-Leibler divergence, `functional.kl_div`.

    Args:
        size_average, reduce: deprecated.
        reduction: 'none', 'sum', 'batchmean' (the divergence proper) or 'mean', torch's default, which warns.
        log_target: whether the targets are logarithms.

    Example:
        >>> import torch, fusedloss
        >>> loss = fusedloss.KLDivLoss(reduction="batchmean")
        >>> loss(torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([[0.75, 0.25, 0.0]]))
        tensor(0.3041)
    """

    _settings = ("log_target", "reduction")

    def __init__(
        self,
        size_average: bool | str | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
        log_target: bool = False,
    ) -> None:
        super().__init__(size_average, reduce, reduction)
        self.log_target = log_target

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.kl_div(input, target, reduction=self.reduction, log_target=self.log_target)


class GaussianKLLoss(Loss):
    """Divergence of a diagonal normal distribution from the standard one, `functional.gaussian_kl`.

    Args:
        reduction: 'batchmean' or 'mean' (both: over the rows), 'sum', or 'none' for one value a row.

    Example:
        >>> import torch, fusedloss
        >>> loss = fusedloss.GaussianKLLoss()
        >>> loss(torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.zeros(2, 2))
        tensor(1.2500)
    """

    def __init__(self, reduction: str = "batchmean") -> None:
        super().__init__(reduction)

    def forward(self, mean: Tensor, log_var: Tensor) -> Tensor:
        return F.gaussian_kl(mean, log_var, self.reduction)
