"""The losses over a lattice: a sequence of frames in, the alignments with a shorter sequence of labels summed over."""

from collections.abc import Sequence
from operator import index

import torch
from torch import Tensor

from fusedloss import _routing as _ops

__all__ = ["ctc_loss"]


def ctc_loss(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Tensor | Sequence[int] | int,
    target_lengths: Tensor | Sequence[int] | int,
    blank: int = 0,
    reduction: str = "mean",
    zero_infinity: bool = False,
    from_logits: bool = False,
) -> Tensor:
    """Connectionist temporal classification: how improbable it is that the frames spell the labels.

    f = -log sum over alignments of prod_t p_t(class of the alignment at frame t)

    An alignment gives every frame one label, in their order, or the blank; a label may last several frames, and between
    two labels that are the same there must be a blank. One is possible exactly if there are as many frames as labels
    and such pairs together, and no class that all need has probability 0.

    Args:
        log_probs: logarithms of the probabilities of the C classes, (T, N, C), or (T, C) for one sample; logits with
            `from_logits`. Of float64, float32, bfloat16 or float16, of any strides: (N, T, C) may be given as its
            transpose. -inf is a class that cannot be, and so is what is 1e28 below the best of the sample's classes.
        targets: labels, of any integer type: (N, S), of whose rows the first `target_lengths` count, or those of all
            samples one after another, (sum of target_lengths); (S) for one sample.
        input_lengths: how many frames of every sample count, at most T, (N): a tensor of any integer type, a tuple or
            list of integers; for one sample an integer too. The others' gradient is 0, whatever stands there.
        target_lengths: how many labels, likewise. They may be 0.
        blank: the class that is no label.
        reduction: 'none', one value a sample; 'sum'; or 'mean', where every sample's value is divided by its number of
            labels (by 1 if it has none) before the mean over the samples is taken.
        zero_infinity: whether samples without a possible alignment count as 0 instead of infinity. Their gradient is 0
            in both cases.
        from_logits: whether `log_probs` are logits, whose log-softmax is taken in the same pass.

    Returns:
        One value, or one a sample for 'none', of log_probs' dtype (float32 under autocast, without a copy).

    Raises:
        IndexError: if a label that counts is no class or is the blank, naming sample, position and value; if `blank` is
            no class or a length is not within its tensor.
        ValueError: for shapes that do not fit, an unknown `reduction`, or target_lengths that do not add up to the
            number of concatenated targets.
        TypeError: for arguments that are no tensors or of a wrong dtype.

    Gradients of first and second order exist for log_probs. With `from_logits` the gradient is softmax - posterior,
    exactly f's. Without, it is torch's: exp(log_probs) - posterior, in the place of -posterior. For what comes from a
    log-softmax the two are the same behind it, because there the sum of exp(log_probs) is constant; for other
    log_probs it is the gradient of f + the sum of exp(log_probs). All derivatives, forward ones too, are of that.

    Example:
        >>> import torch, fusedloss.functional as F
        >>> logits = torch.tensor([[0.0, 2.0, 0.0], [0.0, 2.0, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, 2.0]])
        >>> F.ctc_loss(logits, torch.tensor([1, 2]), 4, 2, reduction="sum", from_logits=True)
        tensor(0.4507)
        >>> F.ctc_loss(logits.log_softmax(-1), torch.tensor([1, 2]), 4, 2, reduction="sum")
        tensor(0.4507)
        >>> F.ctc_loss(logits, torch.tensor([1, 1, 1]), 4, 3, zero_infinity=True, from_logits=True)
        tensor(0.)

    References:
        Graves, Fernandez, Gomez, Schmidhuber, "Connectionist Temporal Classification", ICML 2006.
        torch.nn.functional.ctc_loss.
    """
    return _ops.ctc_loss(
        log_probs,
        targets,
        _lengths("input_lengths", input_lengths),
        _lengths("target_lengths", target_lengths),
        blank,
        zero_infinity,
        from_logits,
        reduction,
    )


def _lengths(name: str, given: Tensor | Sequence[int] | int) -> Tensor:
    if isinstance(given, Tensor):
        return given
    try:
        numbers = [index(n) for n in given] if isinstance(given, (tuple, list)) else index(given)  # type: ignore[arg-type]
    except TypeError:
        expected = "a tensor, a tuple or list of integers, or an integer"
        raise TypeError(f"ctc_loss: {name} must be {expected}, got {given!r}") from None
    return torch.tensor(numbers, dtype=torch.int64)
