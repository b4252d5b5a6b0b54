"""The losses over rows of classes: one distribution, or one set of scores, a row.

What holds for every function here, so that its docstring need not repeat it:

- Rows: the C numbers along the class axis of `input` are one row. The class axis is the second of (N, C) and of
  (N, C, d1, ..., dk), and the only one of (C). "The rows' shape" is input's without it: (N), (N, d1, ..., dk) or ().
- `target`: class indices (int8 to int64 or uint8) of the rows' shape, or a distribution over the classes for every row,
  of input's shape. Which of the two it is, its shape says.
- `ignore_index`: rows of this target do not count. Their gradient is exactly 0, whatever their input holds, and 'mean'
  leaves them out of its denominator.
- `reduction`: 'none' gives one value a row, 'sum' their sum, 'mean' their sum divided by the number of rows that count,
  except where a docstring says otherwise.
- `weight`: a factor for every class, of shape (C).
- dtypes: float64, float32, bfloat16, float16. Half types are read as they are and computed in float32; the result has
  input's dtype, under autocast float32.
- `size_average` and `reduce`: torch's deprecated spelling of `reduction`, accepted with a UserWarning.
- Gradients: of first and second order, for every floating argument that requires one.
- Errors, beside those listed: TypeError for an argument that is no tensor or has the wrong dtype; ValueError for an
  unknown `reduction`, for shapes that do not fit, and for a parameter outside its range or NaN; IndexError for a class
  index outside of 0 to C - 1, with its position and value.
"""

import math

import torch
from torch import Tensor

from fusedloss import _routing as _ops
from fusedloss._reduction import legacy_reduction
from fusedloss.functional.pointwise import binary_cross_entropy_with_logits

__all__ = [
    "categorical_cross_entropy",
    "categorical_hinge_loss",
    "cross_entropy",
    "js_divergence",
    "kl_divergence",
    "multi_margin_loss",
    "multilabel_margin_loss",
    "multilabel_soft_margin_loss",
    "nll_loss",
    "softmax_focal_loss",
    "sparse_categorical_cross_entropy",
]

# The ignore_index of losses that ignore nothing: an index that no target holds.
_NOTHING = -(1 << 63)

_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | str | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    sample_weight: Tensor | None = None,
    z_loss: float = 0.0,
    softcap: float | None = None,
    inplace_backward: bool = False,
    all_ignored: str = "nan",
) -> Tensor:
    """Cross-entropy of the targets against the softmax of logits.

    f = -sum_c weight_c q_c log softmax(x)_c + z_loss logsumexp(x)^2,
    with q = (1 - label_smoothing) target + label_smoothing / C, where an index stands for its one-hot row,
    and x = input, or softcap tanh(input / softcap)

    Args:
        input: logits, (N, C), (C) or (N, C, d1, ..., dk). -inf is a class that cannot be.
        target: class indices of the rows' shape, or probabilities of input's shape.
        weight: factor for every class, (C).
        size_average, reduce: deprecated.
        ignore_index: rows of this target do not count; with probabilities, rows whose most probable class it is.
        reduction: 'none', 'mean' or 'sum'. 'mean' divides by the sum, over the rows that count, of sample_weight times
            the weight of the target's class; for probabilities, as in torch, of sample_weight alone.
        label_smoothing: share of the target that is spread evenly over all classes, in [0, 1].
        sample_weight: factor for every row, broadcast to the rows' shape. A row of factor 0 does not count: NaN and Inf
            in it go nowhere.
        z_loss: how strongly logsumexp is drawn to 0, which keeps logits from drifting; at least 0.
        softcap: bound that logits approach but do not exceed; above 0, None for no bound.
        inplace_backward: whether the backward pass overwrites `input` with its gradient, which saves the memory of one
            tensor of logits. Whatever needs `input` in a later backward pass is refused by torch, and so is a second
            derivative. `input` must fill its memory without gaps. Under torch.compile and torch.func it means nothing.
        all_ignored: 'mean' when no row counts: 'nan', as torch's, or 'zero'.

    Returns:
        One value, or one a row for 'none'.

    Raises:
        ValueError: if label_smoothing is outside [0, 1], z_loss < 0, softcap <= 0, a shape does not fit, `all_ignored`
            or `reduction` is unknown.
        IndexError: if a class index is outside of 0 to C - 1 and not ignore_index.

    Example:
        >>> import torch, fusedloss.functional as F
        >>> logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 3.0]])
        >>> F.cross_entropy(logits, torch.tensor([0, 1]))
        tensor(1.2047)
        >>> F.cross_entropy(logits, torch.tensor([0, 1]), reduction="none", label_smoothing=0.1)
        tensor([0.3729, 2.1365])
        >>> F.cross_entropy(logits, torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]), ignore_index=2)
        tensor(1.2395)
        >>> F.cross_entropy(logits, torch.tensor([0, -100]), sample_weight=torch.tensor([0.5, 1.0]), reduction="sum")
        tensor(0.1198)

    References:
        torch.nn.functional.cross_entropy. Label smoothing: Szegedy et al., 2016, arXiv:1512.00567. z_loss: Chowdhery et
        al., "PaLM", 2022, arXiv:2204.02311. softcap: Gemma Team, "Gemma 2", 2024, arXiv:2408.00118.
    """
    if size_average is not None or reduce is not None:
        reduction = legacy_reduction(size_average, reduce)
    if all_ignored != "nan":
        reduction = _reduction_of_nothing(all_ignored, reduction)
    if softcap is None:
        softcap = 0.0
    elif isinstance(softcap, (int, float)) and not softcap > 0:  # to the op, 0 is no bound
        raise ValueError(f"softcap must be above 0 or None, got {softcap}")
    axis = _class_axis(input)
    if isinstance(ignore_index, int) and ignore_index >= 0:
        sample_weight = _without_class(input, target, axis, ignore_index, sample_weight)
    op = _ops.cross_entropy_inplace if inplace_backward else _ops.cross_entropy
    parameters = (label_smoothing, z_loss, softcap)
    return op(input, target, weight, sample_weight, parameters, axis, ignore_index, reduction)


def _class_axis(input: Tensor) -> int:
    return 0 if isinstance(input, Tensor) and input.dim() == 1 else 1


def _reduction_of_nothing(all_ignored: str, reduction: str) -> str:
    if all_ignored != "zero":
        raise ValueError(f"all_ignored must be 'nan' or 'zero', got {all_ignored!r}")
    return "_mean_or_zero" if reduction == "mean" else reduction


def _without_class(
    input: Tensor, target: Tensor, axis: int, ignored: int, sample_weight: Tensor | None
) -> Tensor | None:
    """Returns factors of rows that are 0 where the target's most probable class is the ignored one.

    Indices are left to the op, and so are arguments that are wrong.
    """
    if not (isinstance(target, Tensor) and isinstance(input, Tensor) and target.shape == input.shape):
        return sample_weight
    if input.dim() == 0 or ignored >= target.shape[axis] or target.dtype not in _FLOATS:
        return sample_weight
    counts = target.argmax(axis) != ignored
    if sample_weight is None:
        return counts.to(input.dtype)
    if not isinstance(sample_weight, Tensor) or sample_weight.dim() > counts.dim():
        return sample_weight
    pairs = zip(reversed(sample_weight.shape), reversed(counts.shape), strict=False)
    if sample_weight.device != counts.device or any(own not in (1, wide) for own, wide in pairs):
        return sample_weight
    return torch.where(counts, sample_weight, sample_weight.new_zeros(()))  # of its type, which the op judges


def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | str | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Negative log-likelihood of the targets, from log-probabilities; from logits `cross_entropy` is one pass.

    f = -weight_target input_target

    Args:
        input: log-probabilities, (N, C), (C) or (N, C, d1, ..., dk).
        target: class indices of the rows' shape.
        weight: factor for every class, (C).
        size_average, reduce: deprecated.
        ignore_index: rows of this target do not count.
        reduction: 'none', 'mean' or 'sum'. 'mean' divides by the sum of the weights of the targets that count.

    Returns:
        One value, or one a row for 'none'.

    Raises:
        ValueError: if a shape does not fit or `reduction` is unknown.
        IndexError: if a class index is outside of 0 to C - 1 and not ignore_index.

    Example:
        >>> import torch, fusedloss.functional as F
        >>> log_probabilities = torch.tensor([[0.5, 0.25, 0.25], [0.125, 0.125, 0.75]]).log()
        >>> F.nll_loss(log_probabilities, torch.tensor([0, 2]), reduction="none")
        tensor([0.6931, 0.2877])
        >>> F.nll_loss(log_probabilities, torch.tensor([0, 2]), weight=torch.tensor([3.0, 1.0, 1.0]))
        tensor(0.5918)

    References:
        torch.nn.functional.nll_loss.
    """
    if size_average is not None or reduce is not None:
        reduction = legacy_reduction(size_average, reduce)
    return _ops.nll_loss(input, target, weight, None, (), _class_axis(input), ignore_index, reduction)


def categorical_cross_entropy(
    input: Tensor,
    target: Tensor,
    from_logits: bool = False,
    label_smoothing: float = 0.0,
    axis: int = -1,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Cross-entropy of one-hot or soft targets against probabilities, as Keras defines it.

    f = -sum_c weight_c q_c log clip(p)_c, with p = input / sum_c input_c, clip to [1e-7, 1 - 1e-7] and
    q = (1 - label_smoothing) target + label_smoothing / C; from_logits it is `cross_entropy`

    Args:
        input: probabilities, of any shape (..., C); they are divided by their sum over the classes. Or logits.
        target: probabilities or one-hot rows, of input's shape.
        from_logits: whether `input` holds logits.
        label_smoothing: share of the target that is spread evenly over all classes, in [0, 1].
        axis: the class axis, by default the last.
        weight: factor for every class, (C).
        reduction: 'none', 'mean' or 'sum'. 'mean' divides by the number of rows, whatever the weights.

    Returns:
        One value, or one a row for 'none'.

    Raises:
        ValueError: if label_smoothing is outside [0, 1], a shape does not fit or `reduction` is unknown.

    Example:
        >>> import torch, fusedloss.functional as F
        >>> probabilities = torch.tensor([[0.5, 0.25, 0.25], [0.125, 0.125, 0.75]])
        >>> one_hot = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
        >>> F.categorical_cross_entropy(probabilities, one_hot, reduction="none")
        tensor([0.6931, 0.2877])

    References:
        keras.losses.categorical_crossentropy.
    """
    if from_logits:
        parameters = (label_smoothing, 0.0, 0.0)
        return _ops.cross_entropy(input, target, weight, None, parameters, axis, _NOTHING, reduction)
    return _ops.categorical_cross_entropy(input, target, weight, None, (label_smoothing,), axis, _NOTHING, reduction)


def sparse_categorical_cross_entropy(
    input: Tensor,
    target: Tensor,
    from_logits: bool = False,
    ignore_class: int | None = None,
    axis: int = -1,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Cross-entropy of class indices against probabilities, as Keras defines it.

    f = -weight_target log clip(p)_target, with p = input / sum_c input_c and clip to [1e-7, 1 - 1e-7];
    from_logits it is `cross_entropy`

    Args:
        input: probabilities, of any shape (..., C); they are divided by their sum over the classes. Or logits.
        target: class indices of the rows' shape.
        from_logits: whether `input` holds logits.
        ignore_class: rows of this target do not count.
        axis: the class axis, by default the last.
        weight: factor for every class, (C).
        reduction: 'none', 'mean' or 'sum'. 'mean' divides by the number of rows that count, whatever their weights; it
            is 0 if none counts.

    Returns:
        One value, or one a row for 'none'.

    Raises:
        ValueError: if a shape does not fit or `reduction` is unknown.
        IndexError: if a class index is outside of 0 to C - 1 and not ignore_class.

    Example:
        >>> import torch, fusedloss.functional as F
        >>> probabilities = torch.tensor([[0.5, 0.25, 0.25], [0.125, 0.125, 0.75]])
        >>> F.sparse_categorical_cross_entropy(probabilities, torch.tensor([0, 2]), reduction="none")
        tensor([0.6931, 0.2877])
        >>> F.sparse_categorical_cross_entropy(probabilities, torch.tensor([0, 255]), ignore_class=255)
        tensor(0.6931)

    References:
        keras.losses.sparse_categorical_crossentropy.
    """
    if ignore_class is not None and not isinstance(ignore_class, int):
        raise TypeError(f"ignore_class must be an integer or None, got {type(ignore_class).__name__}")
    ignored = _NOTHING if ignore_class is None else ignore_class
    if reduction == "mean":
        reduction = "_mean_or_zero"
    if not from_logits:
        return _ops.categorical_cross_entropy(input, target, weight, None, (0.0,), axis, ignored, reduction)
    if reduction == "_mean_or_zero" and isinstance(weight, Tensor) and isinstance(target, Tensor):
        # cross_entropy's own 'mean' would divide by the sum of the weights. They are divided here and not their sum,
        # which could be too large for float16.
        weight, reduction = _divided_by_rows(weight, target, ignored), "sum"
    return _ops.cross_entropy(input, target, weight, None, (0.0, 0.0, 0.0), axis, ignored, reduction)


def _divided_by_rows(weight: Tensor, target: Tensor, ignored: int) -> Tensor:
    """Returns class weights divided by the number of rows that count."""
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    if ignored == _NOTHING:
        return wide / max(target.numel(), 1)
    return wide / (target.long() != ignored).sum().clamp(min=1)


def softmax_focal_loss(
    input: Tensor,
    target: Tensor,
    alpha: float | Tensor | None = None,
    gamma: float = 2.0,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Cross-entropy that fades out for rows that are already classified well.

    f = -alpha_y (1 - p_y)^gamma log p_y, with p = softmax(input) and y = target

    Args:
        input: logits, (N, C), (C) or (N, C, d1, ..., dk).
        target: class indices of the rows' shape.
        alpha: factor for every class, (C), or one for all; None for 1.
        gamma: how fast easy rows fade, at least 0; 0 does not fade them.
        ignore_index: rows of this target do not count.
        reduction: 'none', 'mean' or 'sum'. 'mean' divides by the number of rows that count, whatever alpha.

    Returns:
        One value, or one a row for 'none'.

    Raises:
        ValueError: if gamma < 0, a number alpha < 0, a shape does not fit or `reduction` is unknown.
        IndexError: if a class index is outside of 0 to C - 1 and not ignore_index.

    Example:
        >>> import torch, fusedloss.functional as F
        >>> logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 3.0]])
        >>> F.softmax_focal_loss(logits, torch.tensor([0, 1]), reduction="none")
        tensor([0.0109, 1.7026])
        >>> F.softmax_focal_loss(logits, torch.tensor([0, 1]), alpha=torch.tensor([1.0, 3.0, 1.0]), gamma=0.0)
        tensor(3.3745)

    References:
        Lin et al., "Focal Loss for Dense Object Detection", 2017, arXiv:1708.02002.
        keras.losses.CategoricalFocalCrossentropy.
    """
    axis = _class_axis(input)
    if alpha is not None and not isinstance(alpha, Tensor) and isinstance(input, Tensor):
        alpha = _alpha_of_each(alpha, input, axis)
    return _ops.softmax_focal_loss(input, target, alpha, None, (gamma,), axis, ignore_index, reduction)


def _alpha_of_each(alpha: float, input: Tensor, axis: int) -> Tensor:
    """Returns the number as one for every class."""
    if not isinstance(alpha, (int, float)):
        raise TypeError(f"alpha must be a tensor, a number or None, got {type(alpha).__name__}")
    if not alpha >= 0:
        raise ValueError(f"alpha must be at least 0, got {alpha}")
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    return torch.full((input.shape[axis],), alpha, dtype=dtype, device=input.device)


def categorical_hinge_loss(
    input: Tensor, target: Tensor, weight: Tensor | None = None, reduction: str = "mean"
) -> Tensor:
    """The hinge loss of several classes: 0 once the true class leads every other by a margin of 1.

    f = weight_y max(0, 1 + max_{c != y} input_c - input_y) for a class index y = target,
    max(0, 1 + max_c (1 - target_c) input_c - sum_c target_c input_c) for one-hot rows

    Args:
        input: scores, (N, C), (C) or (N, C, d1, ..., dk).
        target: class indices of the rows' shape, or one-hot rows of input's shape. With those, as in Keras, the
            strongest of the other classes counts as at least 0.
        weight: factor for every class, (C); for class indices only.
        reduction: 'none', 'mean' or 'sum'.

    Returns:
        One value, or one a row for 'none'.

    Raises:
        ValueError: if a shape does not fit, weight is given with one-hot rows or `reduction` is unknown.
        IndexError: if a class index is outside of 0 to C - 1.

    Example:
        >>> import torch, fusedloss.functional as F
        >>> scores = torch.tensor([[3.0, 0.5, 1.0], [0.0, 1.0, 1.5]])
        >>> F.categorical_hinge_loss(scores, torch.tensor([0, 1]), reduction="none")
        tensor([0.0000, 1.5000])

    References:
        Crammer and Singer, "On the Algorithmic Implementation of Multiclass Kernel-based Vector Machines", 2001.
        keras.losses.categorical_hinge.
    """
    if weight is not None and isinstance(target, Tensor) and isinstance(input, Tensor) and target.dim() == input.dim():
        raise ValueError("weight is for targets of class indices, and target has one-hot rows")
    return _ops.categorical_hinge_loss(input, target, weight, None, (), _class_axis(input), _NOTHING, reduction)


def multi_margin_loss(
    input: Tensor,
    target: Tensor,
    p: int = 1,
    margin: float = 1.0,
    weight: Tensor | None = None,
    size_average: bool | str | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """The hinge loss of several classes, summed over every class that comes too close to the true one.

    f = weight_y sum_{c != y} max(0, margin - input_y + input_c)^p / C, with y = target

    Args:
        input: scores, (N, C) or (C).
        target: class indices of the rows' shape.
        p: 1, or 2 for squares.
        margin: the lead that is enough.
        weight: factor for every class, (C).
        size_average, reduce: deprecated.
        reduction: 'none', 'mean' or 'sum'.

    Returns:
        One value, or one a row for 'none'.

    Raises:
        ValueError: if p is neither 1 nor 2, a shape does not fit or `reduction` is unknown.
        IndexError: if a class index is outside of 0 to C - 1.

    Example:
        >>> import torch, fusedloss.functional as F
        >>> scores = torch.tensor([[3.0, 0.5, 2.5], [0.0, 1.0, 1.5]])
        >>> F.multi_margin_loss(scores, torch.tensor([0, 1]), reduction="none")
        tensor([0.1667, 0.5000])

    References:
        torch.nn.functional.multi_margin_loss.
    """
    if size_average is not None or reduce is not None:
        reduction = legacy_reduction(size_average, reduce)
    if isinstance(input, Tensor) and isinstance(target, Tensor) and input.dim() < 2:
        # As torch, of one row: a number is a row of one class, and the target may have an axis of its own.
        input, target = input.reshape(-1), target.squeeze()
    return _ops.multi_margin_loss(input, target, weight, None, (p, margin), _class_axis(input), _NOTHING, reduction)


def multilabel_margin_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | str | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """The hinge loss of several classes of which several are true: every true one should lead every other by 1.

    f = sum_{y true} sum_{c not true} max(0, 1 - input_y + input_c) / C

    Args:
        input: scores, (N, C) or (C).
        target: integers of input's shape: the true classes of a row, then -1; what follows the first -1 is not read.
        size_average, reduce: deprecated.
        reduction: 'none', 'mean' or 'sum'.

    Returns:
        One value, or one a row for 'none'.

    Raises:
        ValueError: if a shape does not fit or `reduction` is unknown.
        IndexError: if a class index before the first -1 is outside of 0 to C - 1.

    Example:
        >>> import torch, fusedloss.functional as F
        >>> F.multilabel_margin_loss(torch.tensor([[0.1, 0.2, 0.4, 0.8]]), torch.tensor([[3, 0, -1, 1]]))
        tensor(0.8500)

    References:
        torch.nn.functional.multilabel_margin_loss.
    """
    if size_average is not None or reduce is not None:
        reduction = legacy_reduction(size_average, reduce)
    if isinstance(input, Tensor) and isinstance(target, Tensor) and input.dim() == target.dim() == 0:
        input, target = input.unsqueeze(0), target.unsqueeze(0)
    return _ops.multilabel_margin_loss(input, target, None, None, (), _class_axis(input), _NOTHING, reduction)


def multilabel_soft_margin_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | str | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """The mean, over labels that may hold together, of `binary_cross_entropy_with_logits`.

    f = sum_c weight_c (target_c softplus(-input_c) + (1 - target_c) softplus(input_c)) / C

    Args:
        input: logits, (..., C); the labels are the last axis, as in torch.
        target: 0, 1 or a probability between, of input's shape.
        weight: factor for every label, (C).
        size_average, reduce: deprecated.
        reduction: 'none', 'mean' or 'sum'.

    Returns:
        One value, or one a row for 'none'.

    Raises:
        ValueError: if a shape does not fit or `reduction` is unknown.

    Example:
        >>> import torch, fusedloss.functional as F
        >>> logits, labels = torch.tensor([[2.0, -1.0]]), torch.tensor([[1.0, 1.0]])
        >>> F.multilabel_soft_margin_loss(logits, labels)
        tensor(0.7201)

    References:
        torch.nn.functional.multilabel_soft_margin_loss.
    """
    if size_average is not None or reduce is not None:
        reduction = legacy_reduction(size_average, reduce)
    if isinstance(weight, Tensor) and weight.dim() != 1:  # torch takes a factor for every element too
        rows = binary_cross_entropy_with_logits(input, target, weight=weight, reduction="none").mean(-1)
        return rows if reduction == "none" else rows.sum() if reduction == "sum" else rows.mean()
    return _ops.multilabel_soft_margin_loss(input, target, weight, None, (), -1, _NOTHING, reduction)


def kl_divergence(
    p: Tensor,
    q: Tensor,
    from_logits: bool = False,
    temperature: float | Tensor = 1.0,
    reduction: str = "batchmean",
    weight: Tensor | None = None,
) -> Tensor:
    """Kullback-Leibler divergence of q from p, row by row; from logits, the loss of distillation in one pass.

    f = sum_c p_c log(p_c / q_c), where 0 log 0 = 0;
    from_logits with softmax(p / temperature) and softmax(q / temperature) in the place of p and q

    Args:
        p: probabilities, (N, C), (C) or (N, C, d1, ..., dk), or logits: the truth, in distillation the teacher's.
        q: the same of the model, in distillation the student's.
        from_logits: whether `p` and `q` hold logits.
        temperature: what both logits are divided by, above 0; it flattens both distributions. Or a tensor that
            broadcasts to the logits; the division is then a pass of its own. Gradients shrink with its square: multiply
            the loss by temperature^2 where it is added to another one. Only from_logits.
        reduction: 'batchmean' or 'mean' (both: over the rows), 'sum', or 'none' for one value a row.
        weight: factor for every row, broadcast to the rows' shape.

    Returns:
        One value, or one a row for 'none'.

    Raises:
        ValueError: if temperature <= 0 or is given without from_logits, a shape does not fit or `reduction` is unknown.

    Example:
        >>> import torch, fusedloss.functional as F
        >>> F.kl_divergence(torch.tensor([[0.75, 0.25, 0.0]]), torch.tensor([[0.5, 0.25, 0.25]]))
        tensor(0.3041)
        >>> teacher, student = torch.tensor([[4.0, 0.0, 2.0]]), torch.tensor([[1.0, 0.0, 0.0]])
        >>> F.kl_divergence(teacher, student, from_logits=True, temperature=2.0)
        tensor(0.1294)

    References:
        Kullback and Leibler, "On Information and Sufficiency", 1951.
        Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531.
    """
    axis = _class_axis(p)
    if from_logits:
        if isinstance(temperature, Tensor):
            return kl_divergence(*_divided(p, q, temperature), True, 1.0, reduction, weight).to(_loss_type(p, q))
        return _ops.kl_divergence_with_logits(p, q, None, weight, (temperature,), axis, _NOTHING, reduction)
    if isinstance(temperature, Tensor) or temperature != 1.0:
        raise ValueError("temperature is for logits, and from_logits is False")
    return _ops.kl_divergence(p, q, None, weight, (), axis, _NOTHING, reduction)


def _divided(p: Tensor, q: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
    """Returns logits divided by a temperature that may have a gradient; half types are not rounded on the way."""
    wide = torch.promote_types(_common_type(p, q), torch.float32)
    temperature = _above_zero(temperature)
    return p.to(wide) / temperature, q.to(wide) / temperature


def _above_zero(temperature: Tensor) -> Tensor:
    """Returns it, with NaN for what is not above 0 where it cannot be read without waiting for a GPU, or at all."""
    valid = temperature > 0
    if temperature.device.type == "cpu" and not torch.compiler.is_compiling():
        try:
            if not valid.all():
                raise ValueError(f"temperature must be above 0, got {temperature[~valid][0].item()}")
            return temperature
        except RuntimeError:  # a tensor without values: of vmap, or fake
            pass
    return torch.where(valid, temperature, math.nan)


def _common_type(p: Tensor, q: Tensor) -> torch.dtype:
    for name, x in (("p", p), ("q", q)):
        if not isinstance(x, Tensor) or x.dtype not in _FLOATS:
            got = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"{name} must be a tensor of float64, float32, float16 or bfloat16, got {got}")
    return torch.promote_types(p.dtype, q.dtype)


def _loss_type(p: Tensor, q: Tensor) -> torch.dtype:
    common = _common_type(p, q)
    return torch.promote_types(common, torch.float32) if _in_autocast(p) else common


def _in_autocast(x: Tensor) -> bool:
    return x.device.type in ("cpu", "cuda") and torch.is_autocast_enabled(x.device.type)


def js_divergence(
    p: Tensor,
    q: Tensor,
    beta: float = 0.5,
    from_logits: bool = False,
    reduction: str = "batchmean",
    weight: Tensor | None = None,
) -> Tensor:
    """Jensen-Shannon divergence: how far two distributions are from their mixture; finite also where one is 0.

    f = beta KL(p, m) + (1 - beta) KL(q, m), with m = beta p + (1 - beta) q and KL(a, b) = sum_c a_c log(a_c / b_c);
    from_logits with softmax(p) and softmax(q) in the place of p and q

    Args:
        p: probabilities, (N, C), (C) or (N, C, d1, ..., dk), or logits.
        q: the same, of p's shape.
        beta: share of p in the mixture, between 0 and 1, both excluded; at 0.5 the divergence is symmetric and at most
            log 2.
        from_logits: whether `p` and `q` hold logits.
        reduction: 'batchmean' or 'mean' (both: over the rows), 'sum', or 'none' for one value a row.
        weight: factor for every row, broadcast to the rows' shape.

    Returns:
        One value, or one a row for 'none'.

    Raises:
        ValueError: if beta is outside (0, 1), a shape does not fit or `reduction` is unknown.

    Example:
        >>> import torch, fusedloss.functional as F
        >>> F.js_divergence(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
        tensor(0.6931)
        >>> F.js_divergence(torch.tensor([[4.0, 0.0, 2.0]]), torch.tensor([[1.0, 0.0, 0.0]]), from_logits=True)
        tensor(0.0718)

    References:
        Lin, "Divergence Measures Based on the Shannon Entropy", 1991.
    """
    op = _ops.js_divergence_with_logits if from_logits else _ops.js_divergence
    return op(p, q, None, weight, (beta,), _class_axis(p), _NOTHING, reduction)
