"""The pointwise losses: one element of `input` and of `target` in, one value out.

What holds for every function here, so that its docstring need not repeat it:

- Values: `input` comes first, `target` second. Both are tensors; their dtypes promote as in torch, and the result has
  the promoted dtype. bfloat16 and float16 are computed in float32; under autocast a half input gives a float32 result.
- `reduction`: 'none' gives one value an element, 'sum' their sum, 'mean' their sum divided by their number.
- `weight`: a factor for every element, of any shape that broadcasts to the elements. A weighted 'mean' still divides by
  the number of elements; only `mse_loss` and `l1_loss` divide by the sum of the weights. torch does the same.
- `size_average` and `reduce`: torch's deprecated spelling of `reduction`, accepted with a UserWarning.
- Shapes: "or broadcast to it" means silently; "or broadcast to it, with a warning" is torch's UserWarning, because
  there a different shape is most often a mistake, such as (N, 1) against (N).
- Gradients: of first and second order, for every floating argument that requires one.
- Errors, beside those listed: TypeError for an argument that is no tensor, or for a complex or all-integer input;
  ValueError for an unknown `reduction`, shapes or a `weight` that do not broadcast, and a parameter outside its range
  or NaN.
"""

import torch
from torch import Tensor

from fusedloss import _routing as _ops
from fusedloss._reduction import legacy_reduction, warn_caller

__all__ = [
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "gaussian_kl",
    "gaussian_nll_loss",
    "hinge_embedding_loss",
    "hinge_loss",
    "huber_loss",
    "kl_div",
    "l1_loss",
    "log_cosh_loss",
    "margin_ranking_loss",
    "mean_absolute_percentage_error",
    "mean_squared_log_error",
    "mse_loss",
    "poisson_nll_loss",
    "quantile_loss",
    "sigmoid_focal_loss",
    "smooth_l1_loss",
    "soft_margin_loss",
    "squared_hinge_loss",
]


def mse_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | str | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    """Squared error.

    f = (input - target)^2

    Args:
        input: predictions, of any shape.
        target: true values, of input's shape or broadcast to it, with a warning.
        size_average, reduce: deprecated.
        reduction: 'none', 'mean' or 'sum'.
        weight: factor for every element; 'mean' divides by the sum of the factors.

    Returns:
        One value, or one an element for 'none'.

    Raises:
        ValueError: if a shape does not broadcast or `reduction` is unknown.

    Example:
        >>> import torch, fusedloss.functional as F
        >>> F.mse_loss(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 0.0]))
        tensor(2.5000)
        >>> F.mse_loss(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 0.0]), weight=torch.tensor([3.0, 1.0]))
        tensor(1.7500)

    References:
        torch.nn.functional.mse_loss.
    """
    if size_average is not None or reduce is not None:
        reduction = legacy_reduction(size_average, reduce)
    return _ops.mse_loss(input, target, None, weight, (), reduction)


def l1_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | str | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    """Absolute error.

    f = |input - target|, whose derivative at input = target is taken as 0

    Args:
        input: predictions, of any shape.
        target: true values, of input's shape or broadcast to it, with a warning.
        size_average, reduce: deprecated.
        reduction: 'none', 'mean' or 'sum'.
        weight: factor for every element; 'mean' divides by the sum of the factors.

    Returns:
        One value, or one an element for 'none'.

    Raises:
        ValueError: if a shape does not broadcast or `reduction` is unknown.

    Example:
        >>> import torch, fusedloss.functional as F
        >>> F.l1_loss(torch.tensor([1.0, -2.0]), torch.tensor([0.0, 0.0]))
        tensor(1.5000)

    References:
        torch.nn.functional.l1_loss.
    """
    if size_average is not None or reduce is not None:
        reduction = legacy_reduction(size_average, reduce)
    return _ops.l1_loss(input, target, None, weight, (), reduction)


def huber_loss(
    input: Tensor,
    target: Tensor,
    reduction: str = "mean",
    delta: float = 1.0,
    weight: Tensor | None = None,
) -> Tensor:
    """Squared error near zero, absolute error beyond `delta`: outliers pull with a bounded force.

    f = r^2 / 2 if |r| <= delta, else delta |r| - delta^2 / 2, with r = input - target

    Args:
        input: predictions, of any shape.
        target: true values, of input's shape or broadcast to it, with a warning.
        reduction: 'none', 'mean' or 'sum'.
        delta: where the straight part begins, in the unit of `target`; above 0.
        weight: factor for every element.

    Returns:
        One value, or one an element for 'none'.

    Raises:
        ValueError: if delta <= 0, a shape does not broadcast or `reduction` is unknown.

    Example:
        >>> import torch, fusedloss.functional as F
        >>> F.huber_loss(torch.tensor([0.5, 3.0]), torch.tensor([0.0, 0.0]), reduction="none")
        tensor([0.1250, 2.5000])

    References:
        Huber, "Robust Estimation of a Location Parameter", 1964. torch.nn.functional.huber_loss.
    """
    return _ops.huber_loss(input, target, None, weight, (delta,), reduction)


def smooth_l1_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | str | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    beta: float = 1.0,
    weight: Tensor | None = None,
) -> Tensor:
    """Absolute error with its corner rounded off: the Huber loss of delta = beta, divided by beta.

    f = r^2 / (2 beta) if |r| < beta, else |r| - beta / 2, with r = input - target

    Args:
        input: predictions, of any shape.
        target: true values, of input's shape or broadcast to it, with a warning.
        size_average, reduce: deprecated.
        reduction: 'none', 'mean' or 'sum'.
        beta: width of the rounded part, in the unit of `target`; 0 gives `l1_loss`.
        weight: factor for every element.

    Returns:
        One value, or one an element for 'none'.

    Raises:
        ValueError: if beta < 0, a shape does not broadcast or `reduction` is unknown.

    Example:
        >>> import torch, fusedloss.functional as F
        >>> F.smooth_l1_loss(torch.tensor([0.5, 3.0]), torch.tensor([0.0, 0.0]), reduction="none", beta=2.0)
        tensor([0.0625, 2.0000])

    References:
        Girshick, "Fast R-CNN", 2015, arXiv:1504.08083. torch.nn.functional.smooth_l1_loss.
    """
    if size_average is not None or reduce is not None:
        reduction = legacy_reduction(size_average, reduce)
    return _ops.smooth_l1_loss(input, target, None, weight, (beta,), reduction)


def log_cosh_loss(input: Tensor, target: Tensor, reduction: str = "mean", weight: Tensor | None = None) -> Tensor:
    """A Huber-like loss without a seam: about r^2 / 2 for small errors, |r| - log 2 for large ones.

    f = log cosh r = |r| + log1p(exp(-2 |r|)) - log 2, with r = input - target; it never overflows

    Args:
        input: predictions, of any shape.
        target: true values, of input's shape or broadcast to it, with a warning.
        reduction: 'none', 'mean' or 'sum'.
        weight: factor for every element.

    Returns:
        One value, or one an element for 'none'.

    Raises:
        ValueError: if a shape does not broadcast or `reduction` is unknown.

    Example:
        >>> import torch, fusedloss.functional as F
        >>> F.log_cosh_loss(torch.tensor([1.0, 100.0]), torch.tensor([0.0, 0.0]), reduction="none")
        tensor([ 0.4338, 99.3069])

    References:
        Chen et al., "Log Hyperbolic Cosine Loss Improves Variational Auto-Encoder", 2019. keras.losses.log_cosh.
    """
    return _ops.log_cosh_loss(input, target, None, weight, (), reduction)


def quantile_loss(
    input: Tensor,
    target: Tensor,
    q: float | Tensor = 0.5,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    """Quantile (pinball) loss: its minimum is the q-quantile of the targets, for q = 0.5 the median.

    f = max(q d, (q - 1) d), with d = target - input; the derivative at d = 0 is taken as 0

    Args:
        input: predictions, of any shape; for a tensor `q` of Q quantiles (..., Q), one prediction a quantile.
        target: true values, of input's shape or broadcast to it, with a warning; for a tensor `q` also (...) or
            (..., 1), one value that all Q predictions share.
        q: quantile level between 0 and 1, both excluded, or a 1-D floating tensor of Q of them.
        reduction: 'none', 'mean' or 'sum'.
        weight: factor for every element; with a tensor `q`, a factor for every sample has shape (..., 1).

    Returns:
        One value, or one an element for 'none'.

    Raises:
        ValueError: if q is outside (0, 1), a tensor `q` is not 1-D or differs in length from input's last axis, a shape
            does not broadcast or `reduction` is unknown.

    Example:
        >>> import torch, fusedloss.functional as F
        >>> F.quantile_loss(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 2.0]), q=0.9, reduction="none")
        tensor([0.9000, 0.1000])
        >>> prediction = torch.tensor([[1.0, 2.0, 4.0], [0.0, 1.0, 2.0]])
        >>> F.quantile_loss(prediction, torch.tensor([3.0, 1.0]), q=torch.tensor([0.1, 0.5, 0.9]), reduction="none")
        tensor([[0.2000, 0.5000, 0.1000],
                [0.1000, 0.0000, 0.1000]])

    References:
        Koenker and Bassett, "Regression Quantiles", 1978.
    """
    if not isinstance(q, Tensor):
        return _ops.quantile_loss(input, target, None, weight, (q,), reduction)
    if isinstance(input, Tensor) and isinstance(target, Tensor):
        target = _target_of_quantiles(input, target, q)
    return _ops.quantile_loss(input, target, q, weight, (0.5,), reduction)


def _target_of_quantiles(input: Tensor, target: Tensor, q: Tensor) -> Tensor:
    """Returns target with the axis along which input has one prediction for each of q."""
    if q.dim() != 1 or input.dim() == 0 or q.shape[0] != input.shape[-1]:
        raise ValueError(
            "a tensor q must be 1-D with one quantile for each position on input's last axis, "
            f"got q of shape {tuple(q.shape)} for input of shape {tuple(input.shape)}"
        )
    return target.unsqueeze(-1) if target.shape == input.shape[:-1] else target


def mean_squared_log_error(
    input: Tensor, target: Tensor, reduction: str = "mean", weight: Tensor | None = None
) -> Tensor:
    """Squared error of logarithms: errors count by ratio, and too low costs more than too high.

    f = (log(1 + max(input, 1e-7)) - log(1 + max(target, 1e-7)))^2

    Args:
        input: predictions, not negative, of any shape; below 1e-7 they have no gradient.
        target: true values, not negative, of input's shape or broadcast to it, with a warning.
        reduction: 'none', 'mean' or 'sum'.
        weight: factor for every element.

    Returns:
        One value, or one an element for 'none'.

    Raises:
        ValueError: if a shape does not broadcast or `reduction` is unknown.

    Example:
        >>> import torch, fusedloss.functional as F
        >>> F.mean_squared_log_error(torch.tensor([3.0, 0.0]), torch.tensor([7.0, 0.0]), reduction="none")
        tensor([0.4805, 0.0000])

    References:
        keras.losses.mean_squared_logarithmic_error.
    """
    return _ops.mean_squared_log_error(input, target, None, weight, (), reduction)


def mean_absolute_percentage_error(
    input: Tensor, target: Tensor, reduction: str = "mean", weight: Tensor | None = None
) -> Tensor:
    """Absolute error in percent of the true value.

    f = 100 |input - target| / max(|target|, 1e-7)

    Args:
        input: predictions, of any shape.
        target: true values, of input's shape or broadcast to it, with a warning. A target near 0 makes the loss huge.
        reduction: 'none', 'mean' or 'sum'.
        weight: factor for every element.

    Returns:
        One value in percent, or one an element for 'none'.

    Raises:
        ValueError: if a shape does not broadcast or `reduction` is unknown.

    Example:
        >>> import torch, fusedloss.functional as F
        >>> F.mean_absolute_percentage_error(torch.tensor([90.0, 6.0]), torch.tensor([100.0, 4.0]))
        tensor(30.)

    References:
        keras.losses.mean_absolute_percentage_error.
    """
    return _ops.mean_absolute_percentage_error(input, target, None, weight, (), reduction)


def poisson_nll_loss(
    input: Tensor,
    target: Tensor,
    log_input: bool = True,
    full: bool = False,
    size_average: bool | str | None = None,
    eps: float = 1e-8,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    """Negative log-likelihood of counts under a Poisson distribution.

    f = exp(input) - target input           if log_input
        input - target log(input + eps)     otherwise
    and, if full, Stirling's target log target - target + log(2 pi target) / 2 where target > 1

    Args:
        input: predicted rates or their logarithms, of any shape.
        target: counts, of input's shape or broadcast to it.
        log_input: whether `input` is the logarithm of the rate.
        full: whether to add the approximation of log(target!), which does not depend on `input`.
        size_average, reduce: deprecated.
        eps: keeps the logarithm of a rate of 0 finite; at least 0.
        reduction: 'none', 'mean' or 'sum'.
        weight: factor for every element.

    Returns:
        One value, or one an element for 'none'.

    Raises:
        ValueError: if eps < 0, a shape does not broadcast or `reduction` is unknown.

    Example:
        >>> import torch, fusedloss.functional as F
        >>> F.poisson_nll_loss(torch.tensor([0.0, 1.0]), torch.tensor([2.0, 3.0]), reduction="none")
        tensor([ 1.0000, -0.2817])

    References:
        torch.nn.functional.poisson_nll_loss.
    """
    if size_average is not None or reduce is not None:
        reduction = legacy_reduction(size_average, reduce)
    return _ops.poisson_nll_loss(input, target, None, weight, (float(log_input), float(full), eps), reduction)


def gaussian_nll_loss(
    input: Tensor,
    target: Tensor,
    var: Tensor | float,
    full: bool = False,
    eps: float = 1e-6,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    """Negative log-likelihood under a normal distribution whose variance is predicted too.

    f = (log v + (input - target)^2 / v) / 2, and log(2 pi) / 2 more if full, with v = max(var, eps)

    Args:
        input: predicted means, of any shape (..., D).
        target: true values, of input's shape or broadcast to it.
        var: predicted variances, not negative: of input's shape, of (...) or of input's shape with a 1 for one of the
            sizes; or a number. Where eps takes over, the gradient still reaches `var`, as if it were eps.
        full: whether to add the constant.
        eps: smallest variance; at least 0.
        reduction: 'none', 'mean' or 'sum'.
        weight: factor for every element.

    Returns:
        One value, or one an element for 'none'.

    Raises:
        ValueError: if var is negative or of another shape, eps < 0, another shape does not broadcast or `reduction` is
            unknown.

    Example:
        >>> import torch, fusedloss.functional as F
        >>> mean, target = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1.0])
        >>> F.gaussian_nll_loss(mean, target, var=torch.tensor([1.0, 4.0]), reduction="none")
        tensor([0.5000, 0.6931])
        >>> F.gaussian_nll_loss(mean, target, var=2.0)
        tensor(0.4716)

    References:
        Nix and Weigend, "Estimating the Mean and Variance of the Target Probability Distribution", 1994.
        torch.nn.functional.gaussian_nll_loss.
    """
    if isinstance(input, Tensor):
        var = _variance(input, var)
    return _ops.gaussian_nll_loss(input, target, var, weight, (float(full), eps), reduction)


def _variance(input: Tensor, var: Tensor | float) -> Tensor:
    """Returns var as a tensor that broadcasts to input, by torch's rules for its shape."""
    if isinstance(var, (int, float)):
        # Not in an integer input's dtype: that would cut a variance of 0.5 to 0.
        dtype = input.dtype if input.is_floating_point() else torch.get_default_dtype()
        return torch.full((), var, dtype=dtype, device=input.device)
    if not isinstance(var, Tensor):
        raise TypeError(f"var must be a tensor or a number, got {type(var).__name__}")
    if var.shape == input.shape:
        return var
    if var.shape == input.shape[:-1]:
        return var.unsqueeze(-1)
    if var.dim() == input.dim() and [v for v, i in zip(var.shape, input.shape, strict=True) if v != i] == [1]:
        return var
    raise ValueError(
        "var must have input's shape, that shape without its last axis, or that shape with a 1 for one of the sizes, "
        f"got var of shape {tuple(var.shape)} for input of shape {tuple(input.shape)}"
    )


def binary_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | str | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Cross-entropy of yes-or-no targets against probabilities; from logits use `binary_cross_entropy_with_logits`.

    f = -(target max(log input, -100) + (1 - target) max(log(1 - input), -100))

    Args:
        input: probabilities in [0, 1], of any shape. A NaN is no error: it gives NaN.
        target: 0, 1 or a probability between, of input's shape.
        weight: factor for every element.
        size_average, reduce: deprecated.
        reduction: 'none', 'mean' or 'sum'.

    Returns:
        One value, or one an element for 'none'.

    Raises:
        ValueError: if an element of input is outside [0, 1], the shapes differ, weight does not broadcast or
            `reduction` is unknown.

    Example:
        >>> import torch, fusedloss.functional as F
        >>> F.binary_cross_entropy(torch.tensor([0.9, 0.2]), torch.tensor([1.0, 0.0]), reduction="none")
        tensor([0.1054, 0.2231])

    References:
        torch.nn.functional.binary_cross_entropy, whose bound at -100 this is.
    """
    if size_average is not None or reduce is not None:
        reduction = legacy_reduction(size_average, reduce)
    return _ops.binary_cross_entropy(input, target, None, weight, (), reduction)


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | str | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy of yes-or-no targets against logits, exact for logits of any size; also the multi-label loss.

    f = (1 - y) softplus(input) + pos_weight y softplus(-input),
    with y = target (1 - label_smoothing) + label_smoothing / 2

    Args:
        input: logits, of any shape; (N, C) for C labels that may hold together.
        target: 0, 1 or a probability between, of input's shape.
        weight: factor for every element.
        size_average, reduce: deprecated.
        reduction: 'none', 'mean' or 'sum'.
        pos_weight: factor for the positive targets, broadcast to input's shape; (C) for one a label.
        label_smoothing: how far the targets move towards 1/2, in [0, 1].

    Returns:
        One value, or one an element for 'none'.

    Raises:
        ValueError: if input and target differ in shape, weight or pos_weight does not broadcast, label_smoothing is
            outside [0, 1] or `reduction` is unknown.

    Example:
        >>> import torch, fusedloss.functional as F
        >>> logits, labels = torch.tensor([[2.0, -1.0]]), torch.tensor([[1.0, 1.0]])
        >>> F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        tensor([[0.1269, 1.3133]])
        >>> F.binary_cross_entropy_with_logits(logits, labels, reduction="none", pos_weight=torch.tensor([1.0, 3.0]))
        tensor([[0.1269, 3.9398]])

    References:
        torch.nn.functional.binary_cross_entropy_with_logits.
        Label smoothing: Szegedy et al., "Rethinking the Inception Architecture", 2016, arXiv:1512.00567.
    """
    if size_average is not None or reduce is not None:
        reduction = legacy_reduction(size_average, reduce)
    return _ops.binary_cross_entropy_with_logits(input, target, pos_weight, weight, (label_smoothing,), reduction)


def sigmoid_focal_loss(
    input: Tensor,
    target: Tensor,
    alpha: float = 0.25,
    gamma: float = 2.0,
    reduction: str = "none",
    weight: Tensor | None = None,
) -> Tensor:
    """Binary cross-entropy from logits that fades out for what is already classified well.

    f = a (1 - p_t)^gamma bce, with p = sigmoid(input), p_t = p target + (1 - p)(1 - target),
    a = alpha target + (1 - alpha)(1 - target) and bce as in `binary_cross_entropy_with_logits`

    Args:
        input: logits, of any shape.
        target: 0, 1 or a probability between, of input's shape.
        alpha: share of the positive targets, at most 1; a negative alpha makes a = 1.
        gamma: how fast easy elements fade, at least 0; 0 does not fade them.
        reduction: 'none', 'mean' or 'sum'; torchvision's default is 'none'.
        weight: factor for every element.

    Returns:
        One value, or one an element for 'none'.

    Raises:
        ValueError: if alpha > 1, gamma < 0, input and target differ in shape, weight does not broadcast or `reduction`
            is unknown.

    Example:
        >>> import torch, fusedloss.functional as F
        >>> F.sigmoid_focal_loss(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0]))
        tensor([0.0057, 0.0433])

    References:
        Lin et al., "Focal Loss for Dense Object Detection", 2017, arXiv:1708.02002. torchvision.ops.sigmoid_focal_loss.
    """
    return _ops.sigmoid_focal_loss(input, target, None, weight, (alpha, gamma), reduction)


def hinge_loss(
    input: Tensor,
    target: Tensor,
    target_01: bool = False,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    """The support vector machine's loss: 0 once a score is on its side by a margin of 1.

    f = max(0, 1 - y input), with y = target, or 2 target - 1 if target_01; the derivative at the corner is taken as 0

    Args:
        input: scores, of any shape.
        target: -1 or 1, or 0 or 1 if target_01; of input's shape or broadcast to it, with a warning.
        target_01: whether the targets are 0 and 1.
        reduction: 'none', 'mean' or 'sum'.
        weight: factor for every element.

    Returns:
        One value, or one an element for 'none'.

    Raises:
        ValueError: if a target is another value, a shape does not broadcast or `reduction` is unknown.

    Example:
        >>> import torch, fusedloss.functional as F
        >>> F.hinge_loss(torch.tensor([0.3, -2.0]), torch.tensor([1.0, -1.0]), reduction="none")
        tensor([0.7000, 0.0000])

    References:
        Cortes and Vapnik, "Support-Vector Networks", 1995. keras.losses.hinge.
    """
    return _ops.hinge_loss(input, target, None, weight, (float(target_01),), reduction)


def squared_hinge_loss(
    input: Tensor,
    target: Tensor,
    target_01: bool = False,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    """The hinge loss squared: a smooth corner, and a stronger pull on what is far on the wrong side.

    f = max(0, 1 - y input)^2, with y = target, or 2 target - 1 if target_01

    Args:
        input: scores, of any shape.
        target: -1 or 1, or 0 or 1 if target_01; of input's shape or broadcast to it, with a warning.
        target_01: whether the targets are 0 and 1.
        reduction: 'none', 'mean' or 'sum'.
        weight: factor for every element.

    Returns:
        One value, or one an element for 'none'.

    Raises:
        ValueError: if a target is another value, a shape does not broadcast or `reduction` is unknown.

    Example:
        >>> import torch, fusedloss.functional as F
        >>> F.squared_hinge_loss(torch.tensor([0.3, 2.0]), torch.tensor([1, 0]), target_01=True, reduction="none")
        tensor([0.4900, 9.0000])

    References:
        keras.losses.squared_hinge.
    """
    return _ops.squared_hinge_loss(input, target, None, weight, (float(target_01),), reduction)


def soft_margin_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | str | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    """The logistic loss for targets -1 and 1.

    f = log(1 + exp(-target input)), which never overflows

    Args:
        input: scores, of any shape.
        target: -1 or 1, of input's shape or broadcast to it.
        size_average, reduce: deprecated.
        reduction: 'none', 'mean' or 'sum'.
        weight: factor for every element.

    Returns:
        One value, or one an element for 'none'.

    Raises:
        ValueError: if a shape does not broadcast or `reduction` is unknown.

    Example:
        >>> import torch, fusedloss.functional as F
        >>> F.soft_margin_loss(torch.tensor([0.0, 1000.0]), torch.tensor([1.0, -1.0]), reduction="none")
        tensor([6.9315e-01, 1.0000e+03])

    References:
        torch.nn.functional.soft_margin_loss.
    """
    if size_average is not None or reduce is not None:
        reduction = legacy_reduction(size_average, reduce)
    return _ops.soft_margin_loss(input, target, None, weight, (), reduction)


def hinge_embedding_loss(
    input: Tensor,
    target: Tensor,
    margin: float = 1.0,
    size_average: bool | str | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    """Draws alike pairs together and drives different ones apart until `margin`, given their distances.

    f = input if target is 1, max(0, margin - input) if target is -1

    Args:
        input: distances of pairs, of any shape.
        target: 1 for alike, -1 for different, of input's shape or broadcast to it; a label, it gets no gradient.
        margin: distance from which different pairs no longer count.
        size_average, reduce: deprecated.
        reduction: 'none', 'mean' or 'sum'.
        weight: factor for every element.

    Returns:
        One value, or one an element for 'none'.

    Raises:
        ValueError: if margin is NaN, a shape does not broadcast or `reduction` is unknown.

    Example:
        >>> import torch, fusedloss.functional as F
        >>> F.hinge_embedding_loss(torch.tensor([0.4, 0.4]), torch.tensor([1, -1]), reduction="none")
        tensor([0.4000, 0.6000])

    References:
        torch.nn.functional.hinge_embedding_loss.
    """
    if size_average is not None or reduce is not None:
        reduction = legacy_reduction(size_average, reduce)
    return _ops.hinge_embedding_loss(input, target, None, weight, (margin,), reduction)


def margin_ranking_loss(
    input1: Tensor,
    input2: Tensor,
    target: Tensor,
    margin: float = 0.0,
    size_average: bool | str | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    """Orders pairs of scores: 0 once the one that should be higher leads by `margin`.

    f = max(0, margin - target (input1 - input2))

    Args:
        input1, input2: the scores, of any shape; all three tensors have the same number of axes and broadcast.
        target: 1 where input1 should be higher, -1 where input2 should.
        margin: the lead that is enough.
        size_average, reduce: deprecated.
        reduction: 'none', 'mean' or 'sum'.
        weight: factor for every element.

    Returns:
        One value, or one an element for 'none'.

    Raises:
        ValueError: if margin is NaN, the numbers of axes differ, a shape does not broadcast or `reduction` is unknown.

    Example:
        >>> import torch, fusedloss.functional as F
        >>> first, second = torch.tensor([2.0, 2.0]), torch.tensor([1.0, 1.0])
        >>> F.margin_ranking_loss(first, second, torch.tensor([1, -1]), margin=0.5, reduction="none")
        tensor([0.0000, 1.5000])

    References:
        torch.nn.functional.margin_ranking_loss.
    """
    if size_average is not None or reduce is not None:
        reduction = legacy_reduction(size_average, reduce)
    return _ops.margin_ranking_loss(input1, input2, target, weight, (margin,), reduction)


def kl_div(
    input: Tensor,
    target: Tensor,
    size_average: bool | str | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    log_target: bool = False,
    weight: Tensor | None = None,
) -> Tensor:
    """Kullback-Leibler divergence of the predicted distribution from the true one, element by element.

    f = p (log p - input), and 0 where p = 0, with p = target, or exp(target) if log_target

    Args:
        input: logarithms of the predicted probabilities, of any shape (N, ...).
        target: true probabilities or their logarithms, of input's shape or broadcast to it.
        size_average, reduce: deprecated.
        reduction: 'none', 'sum', 'batchmean' (the sum divided by N: the divergence proper) or 'mean', which divides by
            the number of elements and says so with a UserWarning.
        log_target: whether `target` holds logarithms.
        weight: factor for every element.

    Returns:
        One value, or one an element for 'none'.

    Raises:
        ValueError: if a shape does not broadcast or `reduction` is unknown.

    Example:
        >>> import torch, fusedloss.functional as F
        >>> predicted = torch.tensor([[0.5, 0.25, 0.25]]).log()
        >>> F.kl_div(predicted, torch.tensor([[0.75, 0.25, 0.0]]), reduction="batchmean")
        tensor(0.3041)

    References:
        Kullback and Leibler, "On Information and Sufficiency", 1951. torch.nn.functional.kl_div.
    """
    if size_average is not None or reduce is not None:
        reduction = legacy_reduction(size_average, reduce)
    elif reduction == "mean":
        warn_caller(
            "kl_div with reduction='mean' averages over all elements, classes included, which is not the divergence "
            "of the distributions; 'batchmean' divides by the batch alone"
        )
    return _ops.kl_div(input, target, None, weight, (float(log_target),), reduction)


_GAUSSIAN_KL_REDUCTIONS = {"batchmean": "rowmean", "mean": "rowmean", "sum": "sum", "none": "none"}


def gaussian_kl(mean: Tensor, log_var: Tensor, reduction: str = "batchmean", weight: Tensor | None = None) -> Tensor:
    """Divergence of a diagonal normal distribution from the standard one: the variational autoencoder's prior term.

    f = sum over the last axis of (mean^2 + exp(log_var) - 1 - log_var) / 2

    Args:
        mean: means, of shape (..., D): one distribution of D dimensions a row.
        log_var: logarithms of the variances, of mean's shape or broadcast to it.
        reduction: 'batchmean' or 'mean' (both: over the rows), 'sum', or 'none' for one value a row.
        weight: factor for every dimension of every row; a factor for every row has shape (..., 1).

    Returns:
        One value, or one a row for 'none'.

    Raises:
        ValueError: if mean has no axis, a shape does not broadcast or `reduction` is unknown.

    Example:
        >>> import torch, fusedloss.functional as F
        >>> mean, log_var = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.zeros(2, 2)
        >>> F.gaussian_kl(mean, log_var)
        tensor(1.2500)
        >>> F.gaussian_kl(mean, log_var, reduction="none")
        tensor([2.5000, 0.0000])

    References:
        Kingma and Welling, "Auto-Encoding Variational Bayes", 2014, arXiv:1312.6114, appendix B.
    """
    if reduction not in _GAUSSIAN_KL_REDUCTIONS:
        raise ValueError(f"reduction must be 'batchmean', 'mean', 'sum' or 'none', got {reduction!r}")
    if isinstance(mean, Tensor) and mean.dim() == 0:
        raise ValueError("mean must have at least one axis, the last of which is summed; got a 0-d tensor")
    loss = _ops.gaussian_kl(mean, log_var, None, weight, (), _GAUSSIAN_KL_REDUCTIONS[reduction])
    return loss.sum(-1) if reduction == "none" else loss
