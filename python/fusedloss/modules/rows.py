"""The losses over rows of classes as modules."""

from torch import Tensor

from fusedloss import functional as F
from fusedloss.modules._base import Loss, TorchLoss

__all__ = [
    "CategoricalCrossEntropyLoss",
    "CategoricalHingeLoss",
    "CrossEntropyLoss",
    "JSDivergenceLoss",
    "KLDivergenceLoss",
    "MultiLabelMarginLoss",
    "MultiLabelSoftMarginLoss",
    "MultiMarginLoss",
    "NLLLoss",
    "SoftmaxFocalLoss",
    "SparseCategoricalCrossEntropyLoss",
]


class CrossEntropyLoss(TorchLoss):
    """Cross-entropy of the targets against the softmax of logits, `functional.cross_entropy`.

    Args:
        weight: factor for every class, (C), kept as a buffer.
        size_average, reduce: deprecated.
        ignore_index: rows of this target do not count.
        reduction: 'none', 'mean' or 'sum'.
        label_smoothing: share of the target that is spread evenly over all classes, in [0, 1].
        z_loss: how strongly logsumexp is drawn to 0; at least 0.
        softcap: bound that logits approach but do not exceed; above 0, None for no bound.
        inplace_backward: whether the gradient may overwrite the logits.
        all_ignored: 'mean' when no row counts: 'nan' or 'zero'.

    Example:
        >>> import torch, fusedloss
        >>> loss = fusedloss.CrossEntropyLoss(label_smoothing=0.1)
        >>> loss(torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 3.0]]), torch.tensor([0, 1]))
        tensor(1.2547)
    """

    _settings = (
        "ignore_index",
        "label_smoothing",
        "z_loss",
        "softcap",
        "inplace_backward",
        "all_ignored",
        "reduction",
    )
    weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | str | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        *,
        z_loss: float = 0.0,
        softcap: float | None = None,
        inplace_backward: bool = False,
        all_ignored: str = "nan",
    ) -> None:
        super().__init__(size_average, reduce, reduction)
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.z_loss = z_loss
        self.softcap = softcap
        self.inplace_backward = inplace_backward
        self.all_ignored = all_ignored

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
            softcap=self.softcap,
            inplace_backward=self.inplace_backward,
            all_ignored=self.all_ignored,
        )


class NLLLoss(TorchLoss):
    """Negative log-likelihood of the targets, from log-probabilities, `functional.nll_loss`.

    Args:
        weight: factor for every class, (C), kept as a buffer.
        size_average, reduce: deprecated.
        ignore_index: rows of this target do not count.
        reduction: 'none', 'mean' or 'sum'.

    Example:
        >>> import torch, fusedloss
        >>> loss = fusedloss.NLLLoss()
        >>> loss(torch.tensor([[0.5, 0.25, 0.25], [0.125, 0.125, 0.75]]).log(), torch.tensor([0, 2]))
        tensor(0.4904)
    """

    _settings = ("ignore_index", "reduction")
    weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | str | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__(size_average, reduce, reduction)
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.nll_loss(input, target, self.weight, ignore_index=self.ignore_index, reduction=self.reduction)


class CategoricalCrossEntropyLoss(Loss):
    """Keras's cross-entropy of one-hot or soft targets, `functional.categorical_cross_entropy`.

    Args:
        from_logits: whether the predictions are logits, not probabilities.
        label_smoothing: share of the target that is spread evenly over all classes, in [0, 1].
        axis: the class axis.
        weight: factor for every class, (C), kept as a buffer.
        reduction: 'none', 'mean' or 'sum'.

    Example:
        >>> import torch, fusedloss
        >>> loss = fusedloss.CategoricalCrossEntropyLoss()
        >>> probabilities = torch.tensor([[0.5, 0.25, 0.25], [0.125, 0.125, 0.75]])
        >>> loss(probabilities, torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]))
        tensor(0.4904)
    """

    _settings = ("from_logits", "label_smoothing", "axis", "reduction")
    weight: Tensor | None

    def __init__(
        self,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        axis: int = -1,
        weight: Tensor | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__(reduction)
        self.from_logits = from_logits
        self.label_smoothing = label_smoothing
        self.axis = axis
        self.register_buffer("weight", weight)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.categorical_cross_entropy(
            input, target, self.from_logits, self.label_smoothing, self.axis, self.weight, self.reduction
        )


class SparseCategoricalCrossEntropyLoss(Loss):
    """Keras's cross-entropy of class indices, `functional.sparse_categorical_cross_entropy`.

    Args:
        from_logits: whether the predictions are logits, not probabilities.
        ignore_class: rows of this target do not count.
        axis: the class axis.
        weight: factor for every class, (C), kept as a buffer.
        reduction: 'none', 'mean' or 'sum'.

    Example:
        >>> import torch, fusedloss
        >>> loss = fusedloss.SparseCategoricalCrossEntropyLoss(ignore_class=255)
        >>> loss(torch.tensor([[0.5, 0.25, 0.25], [0.125, 0.125, 0.75]]), torch.tensor([0, 255]))
        tensor(0.6931)
    """

    _settings = ("from_logits", "ignore_class", "axis", "reduction")
    weight: Tensor | None

    def __init__(
        self,
        from_logits: bool = False,
        ignore_class: int | None = None,
        axis: int = -1,
        weight: Tensor | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__(reduction)
        self.from_logits = from_logits
        self.ignore_class = ignore_class
        self.axis = axis
        self.register_buffer("weight", weight)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.sparse_categorical_cross_entropy(
            input, target, self.from_logits, self.ignore_class, self.axis, self.weight, self.reduction
        )


class SoftmaxFocalLoss(Loss):
    """Cross-entropy that fades out for rows that are classified well, `functional.softmax_focal_loss`.

    Args:
        alpha: factor for every class, (C), kept as a buffer, or one for all; None for 1.
        gamma: how fast easy rows fade, at least 0.
        ignore_index: rows of this target do not count.
        reduction: 'none', 'mean' or 'sum'.

    Example:
        >>> import torch, fusedloss
        >>> loss = fusedloss.SoftmaxFocalLoss(gamma=1.0)
        >>> loss(torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 3.0]]), torch.tensor([0, 1]))
        tensor(0.9865)
    """

    _settings = ("alpha", "gamma", "ignore_index", "reduction")
    alpha: float | Tensor | None

    def __init__(
        self,
        alpha: float | Tensor | None = None,
        gamma: float = 2.0,
        ignore_index: int = -100,
        reduction: str = "mean",
    ) -> None:
        super().__init__(reduction)
        if isinstance(alpha, Tensor):
            self.register_buffer("alpha", alpha)
        else:
            self.alpha = alpha
        self.gamma = gamma
        self.ignore_index = ignore_index

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.softmax_focal_loss(input, target, self.alpha, self.gamma, self.ignore_index, self.reduction)


class CategoricalHingeLoss(Loss):
    """The hinge loss of several classes, by the strongest wrong one, `functional.categorical_hinge_loss`.

    Args:
        weight: factor for every class, (C), kept as a buffer.
        reduction: 'none', 'mean' or 'sum'.

    Example:
        >>> import torch, fusedloss
        >>> loss = fusedloss.CategoricalHingeLoss()
        >>> loss(torch.tensor([[3.0, 0.5, 1.0], [0.0, 1.0, 1.5]]), torch.tensor([0, 1]))
        tensor(0.7500)
    """

    weight: Tensor | None

    def __init__(self, weight: Tensor | None = None, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.register_buffer("weight", weight)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.categorical_hinge_loss(input, target, self.weight, self.reduction)


class MultiMarginLoss(TorchLoss):
    """The hinge loss of several classes, summed over the wrong ones, `functional.multi_margin_loss`.

    Args:
        p: 1, or 2 for squares.
        margin: the lead that is enough.
        weight: factor for every class, (C), kept as a buffer.
        size_average, reduce: deprecated.
        reduction: 'none', 'mean' or 'sum'.

    Example:
        >>> import torch, fusedloss
        >>> loss = fusedloss.MultiMarginLoss()
        >>> loss(torch.tensor([[3.0, 0.5, 2.5], [0.0, 1.0, 1.5]]), torch.tensor([0, 1]))
        tensor(0.3333)
    """

    _settings = ("p", "margin", "reduction")
    weight: Tensor | None

    def __init__(
        self,
        p: int = 1,
        margin: float = 1.0,
        weight: Tensor | None = None,
        size_average: bool | str | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__(size_average, reduce, reduction)
        self.p = p
        self.margin = margin
        self.register_buffer("weight", weight)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.multi_margin_loss(input, target, self.p, self.margin, self.weight, reduction=self.reduction)


class MultiLabelMarginLoss(TorchLoss):
    """The hinge loss of several classes of which several are true, `functional.multilabel_margin_loss`.

    Args:
        size_average, reduce: deprecated.
        reduction: 'none', 'mean' or 'sum'.

    Example:
        >>> import torch, fusedloss
        >>> loss = fusedloss.MultiLabelMarginLoss()
        >>> loss(torch.tensor([[0.1, 0.2, 0.4, 0.8]]), torch.tensor([[3, 0, -1, 1]]))
        tensor(0.8500)
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.multilabel_margin_loss(input, target, reduction=self.reduction)


class MultiLabelSoftMarginLoss(TorchLoss):
    """The mean of binary cross-entropies over labels that may hold together, `functional.multilabel_soft_margin_loss`.

    Args:
        weight: factor for every label, (C), kept as a buffer.
        size_average, reduce: deprecated.
        reduction: 'none', 'mean' or 'sum'.

    Example:
        >>> import torch, fusedloss
        >>> loss = fusedloss.MultiLabelSoftMarginLoss()
        >>> loss(torch.tensor([[2.0, -1.0]]), torch.tensor([[1.0, 1.0]]))
        tensor(0.7201)
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
        return F.multilabel_soft_margin_loss(input, target, self.weight, reduction=self.reduction)


class KLDivergenceLoss(Loss):
    """Kullback-Leibler divergence of two distributions a row, or of their logits, `functional.kl_divergence`.

    Args:
        from_logits: whether both arguments are logits, not probabilities.
        temperature: what both logits are divided by, above 0; a tensor is kept as a buffer.
        reduction: 'batchmean' or 'mean' (both: over the rows), 'sum', or 'none' for one value a row.

    Example:
        >>> import torch, fusedloss
        >>> loss = fusedloss.KLDivergenceLoss(from_logits=True, temperature=2.0)
        >>> loss(torch.tensor([[4.0, 0.0, 2.0]]), torch.tensor([[1.0, 0.0, 0.0]]))
        tensor(0.1294)
    """

    _settings = ("from_logits", "temperature", "reduction")
    temperature: float | Tensor

    def __init__(
        self, from_logits: bool = False, temperature: float | Tensor = 1.0, reduction: str = "batchmean"
    ) -> None:
        super().__init__(reduction)
        self.from_logits = from_logits
        if isinstance(temperature, Tensor):
            self.register_buffer("temperature", temperature)
        else:
            self.temperature = temperature

    def forward(self, p: Tensor, q: Tensor) -> Tensor:
        return F.kl_divergence(p, q, self.from_logits, self.temperature, self.reduction)


class JSDivergenceLoss(Loss):
    """Jensen-Shannon divergence of two distributions a row, or of their logits, `functional.js_divergence`.

    Args:
        beta: share of the first distribution in the mixture, between 0 and 1.
        from_logits: whether both arguments are logits, not probabilities.
        reduction: 'batchmean' or 'mean' (both: over the rows), 'sum', or 'none' for one value a row.

    Example:
        >>> import torch, fusedloss
        >>> loss = fusedloss.JSDivergenceLoss()
        >>> loss(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
        tensor(0.6931)
    """

    _settings = ("beta", "from_logits", "reduction")

    def __init__(self, beta: float = 0.5, from_logits: bool = False, reduction: str = "batchmean") -> None:
        super().__init__(reduction)
        self.beta = beta
        self.from_logits = from_logits

    def forward(self, p: Tensor, q: Tensor) -> Tensor:
        return F.js_divergence(p, q, self.beta, self.from_logits, self.reduction)
