"""The losses over pairs in a batch: every vector meets every other, in memory that grows with their number only.

What holds for every function here, so that its docstring need not repeat it:

- Vectors: the rows of matrices (N, D) of float64, float32, bfloat16 or float16, of any strides. Half types are computed
  in float32; but where a processor multiplies bfloat16 numbers much faster, the gradient of the logits is rounded to
  that type, as torch's is, before it is multiplied by the vectors. The N x N matrix of their inner products is made
  some rows at a time and never stored as a whole.
- `normalize`: whether every vector is divided by its L2 norm (by 1e-12, if that is larger) in the same pass. Without it
  vectors are used as they are given.
- `reduction`: 'mean', over the rows that count; 'sum'; or 'none', one value a row. Nothing that counts gives 0.
- `group`: a torch.distributed process group, each rank of which holds some of the rows, as many as it likes. Every rank
  gets the value that one process would get that holds them all (for 'none', that of its own rows), the gradient of its
  rows is their slice of that process's gradient, and a tensor that all ranks have, like `logit_scale`, gets all of its
  gradient on every rank. DistributedDataParallel averages gradients over the N ranks: to train as one process would,
  multiply the loss by N, and pass logit_scale / N + logit_scale.detach() * (1 - 1 / N), the same of logit_bias.
- The result has the dtype of the first argument, under autocast float32. It has the same bits on every run and for
  every number of threads.
- Gradients: of first and second order, for every floating tensor that requires one.
- Errors, beside those listed: TypeError for an argument that is no tensor or has the wrong dtype; ValueError for an
  unknown `reduction` and for shapes that do not fit.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fusedloss import _routing as _ops
from fusedloss._distributed import FLOATS, in_batch_loss, member_of, result_type
from fusedloss.functional.rows import cross_entropy

__all__ = ["clip_loss", "info_nce_loss", "siglip_loss", "supervised_contrastive_loss"]


def info_nce_loss(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None = None,
    temperature: float = 0.1,
    symmetric: bool = False,
    reduction: str = "mean",
    *,
    normalize: bool = False,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """InfoNCE: the cross-entropy of finding, for every query, its key among all keys.

    f = -log(exp(q_i . k_i / temperature) / sum_j exp(q_i . k_j / temperature))

    Args:
        query: (N, D).
        key: (N, D); row i belongs to query i, the others are its negatives.
        negatives: what a query's key is to be found among in the place of the other keys: (M, D), for all queries, or
            (N, M, D), of every query its own (of half types these are copied to float32).
        temperature: what inner products are divided by, above 0.
        symmetric: whether keys look for their queries too: the mean of both directions. Not with `negatives`.
        reduction: 'none', 'mean' or 'sum'.
        normalize: whether vectors are divided by their norms.
        group: the ranks that the rows are spread over. Not with `negatives`.

    Returns:
        One value, or one a query, (N), for 'none'.

    Raises:
        ValueError: if temperature is not above 0; for `negatives` together with `symmetric` or `group`.

    Example:
        >>> import torch, fusedloss.functional as F
        >>> query = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
        >>> key = torch.tensor([[0.8, 0.6], [0.0, 1.0], [0.6, 0.8]])
        >>> F.info_nce_loss(query, key, temperature=0.5)
        tensor(0.7771)
        >>> F.info_nce_loss(query, key, temperature=0.5, symmetric=True, reduction="none")
        tensor([0.8707, 0.6711, 0.8521])
        >>> F.info_nce_loss(query, key, negatives=-key, temperature=0.5)
        tensor(0.1371)

    References:
        van den Oord, Li, Vinyals, "Representation Learning with Contrastive Predictive Coding", 2018, arXiv:1807.03748.
    """
    scale = 1 / _positive("info_nce_loss", "temperature", temperature)
    if negatives is not None:
        if symmetric or group is not None:
            other = "symmetric" if symmetric else "group"
            raise ValueError(f"info_nce_loss: {other} is not possible with negatives")
        if not isinstance(key, Tensor):
            raise TypeError(f"info_nce_loss: key must be a torch.Tensor, got {type(key).__name__}")
        if isinstance(negatives, Tensor) and negatives.dim() == 3:
            return _among_own(query, key, negatives, scale, reduction, normalize)
        return _ops.info_nce_loss(query, negatives, key, scale, 0.0, None, False, normalize, reduction)
    if group is not None:
        return _in_group("info_nce_loss", query, key, scale, 0.0, symmetric, normalize, reduction, group)
    return _ops.info_nce_loss(query, key, None, scale, 0.0, None, symmetric, normalize, reduction)


def clip_loss(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor | float,
    reduction: str = "mean",
    *,
    normalize: bool = False,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """CLIP's loss: which text belongs to an image, and which image to a text.

    z = logit_scale image @ text.T,   f = (cross-entropy of row i + cross-entropy of column i) / 2, both with class i

    Args:
        image: (N, D).
        text: (N, D); row i belongs to image i.
        logit_scale: what multiplies inner products, a number or a tensor of one, which gets a gradient. It is the scale
            itself: exp of the parameter, for models that learn its logarithm.
        reduction: 'none', 'mean' or 'sum'.
        normalize: whether vectors are divided by their norms.
        group: the ranks that the pairs are spread over.

    Returns:
        One value, or one a pair, (N), for 'none'.

    Raises:
        ValueError: if image and text are not of one shape, or logit_scale is more than one number.

    Example:
        >>> import torch, fusedloss.functional as F
        >>> image = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
        >>> text = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]])
        >>> F.clip_loss(image, text, 10.0, normalize=True)
        tensor(0.0863)

    References:
        Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021, arXiv:2103.00020.
    """
    if group is not None:
        return _in_group("clip_loss", image, text, logit_scale, 0.0, True, normalize, reduction, group)
    return _ops.clip_loss(image, text, None, logit_scale, 0.0, None, True, normalize, reduction)


def siglip_loss(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float = 0.0,
    reduction: str = "mean",
    *,
    normalize: bool = False,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """SigLIP's loss: for every image and every text, do they belong together?

    z = logit_scale image @ text.T + logit_bias,   f = -sum_j log sigmoid(z_ij if i = j else -z_ij)

    Args:
        image: (N, D).
        text: (N, D); row i belongs to image i.
        logit_scale: what multiplies inner products, a number or a tensor of one, which gets a gradient.
        logit_bias: what is added, likewise.
        reduction: 'none', 'mean', the sum divided by N, as in the paper, or 'sum'.
        normalize: whether vectors are divided by their norms.
        group: the ranks that the pairs are spread over.

    Returns:
        One value, or one an image, (N), for 'none'.

    Raises:
        ValueError: if image and text are not of one shape, or logit_scale is more than one number.

    Example:
        >>> import torch, fusedloss.functional as F
        >>> image = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
        >>> text = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]])
        >>> F.siglip_loss(image, text, 10.0, -10.0, normalize=True)
        tensor(0.7934)

    References:
        Zhai, Mustafa, Kolesnikov, Beyer, "Sigmoid Loss for Language Image Pre-Training", 2023, arXiv:2303.15343.
    """
    if group is not None:
        return _in_group("siglip_loss", image, text, logit_scale, logit_bias, False, normalize, reduction, group)
    return _ops.siglip_loss(image, text, None, logit_scale, logit_bias, None, False, normalize, reduction)


def supervised_contrastive_loss(
    embeddings: Tensor, labels: Tensor, temperature: float = 0.1, reduction: str = "mean", *, normalize: bool = False
) -> Tensor:
    """The supervised contrastive loss: vectors of one label are to be near each other, among all others of the batch.

    f = -1/|P(i)| sum_{p in P(i)} log(exp(x_i . x_p / temperature) / sum_{j != i} exp(x_i . x_j / temperature)),
    where P(i) are the others with the label of i

    Args:
        embeddings: (N, D): those of several views of an image one after another, with its label for each.
        labels: integers of any type and value, (N).
        temperature: what inner products are divided by, above 0.
        reduction: 'none', 'mean', over the vectors with which others share the label, or 'sum'. Vectors that are alone
            with their label count as others' negatives only; their own value is 0.
        normalize: whether vectors are divided by their norms.

    Returns:
        One value, or one a vector, (N), for 'none'.

    Raises:
        ValueError: if temperature is not above 0.

    Example:
        >>> import torch, fusedloss.functional as F
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
        >>> F.supervised_contrastive_loss(embeddings, torch.tensor([3, 3, 5, 5]), temperature=0.5)
        tensor(0.4302)
        >>> F.supervised_contrastive_loss(embeddings, torch.tensor([3, 3, 5, 7]), temperature=0.5, reduction="none")
        tensor([0.2333, 0.6271, 0.0000, 0.0000])

    References:
        Khosla et al., "Supervised Contrastive Learning", 2020, arXiv:2004.11362, L_out.
    """
    scale = 1 / _positive("supervised_contrastive_loss", "temperature", temperature)
    return _ops.supervised_contrastive_loss(embeddings, None, None, scale, 0.0, labels, False, normalize, reduction)


def _positive(loss: str, name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{loss}: {name} must be a number, got {type(value).__name__}")
    if not value > 0:
        raise ValueError(f"{loss}: {name} must be a number above 0, got {value}")
    return float(value)


def _in_group(
    name: str,
    first: Tensor,
    second: Tensor,
    scale: Tensor | float,
    bias: Tensor | float,
    symmetric: bool,
    normalize: bool,
    reduction: str,
    group: dist.ProcessGroup,
) -> Tensor:
    """The loss of the ranks of a group together, from that of one direction and of each rank's rows."""

    def rows_loss(
        rows: Tensor, columns: Tensor, offset: int, reduction: str, scale: Tensor | float, bias: Tensor | float
    ) -> Tensor:
        return _ops.pairs_of_rows(name, rows, columns, scale, bias, offset, normalize, reduction)

    operands = ("query", "key") if name == "info_nce_loss" else ("image", "text")
    return in_batch_loss(
        name,
        rows_loss,
        first,
        second,
        member_of(name, group),
        reduction,
        operands=operands,
        symmetric=symmetric,
        parameters=(scale, bias),
    )


def _among_own(query: Tensor, key: Tensor, negatives: Tensor, scale: float, reduction: str, normalize: bool) -> Tensor:
    """With negatives of every query's own there is no matrix of all pairs, only rows of logits."""
    named = {"query": query, "key": key, "negatives": negatives}
    for name, tensor in named.items():
        _check_own(name, tensor, query, negatives)
    dtype = torch.float32
    for tensor in named.values():
        dtype = torch.promote_types(dtype, tensor.dtype)
    anchors, own, others = (_unit(t.to(dtype)) if normalize else t.to(dtype) for t in named.values())
    with torch.autocast(query.device.type, enabled=False):
        right = (anchors * own).sum(-1, keepdim=True)
        wrong = _products_in_rows(anchors, others)
        logits = torch.cat([right, wrong], 1) * scale
        first = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
        value = cross_entropy(logits, first, reduction=reduction, all_ignored="zero")
    return value.to(result_type(query))


def _products_in_rows(anchors: Tensor, others: Tensor) -> Tensor:
    """The products of one vector a row, (N, D), with some others of that row, (N, M, D)."""
    if torch.compiler.is_compiling():  # which makes one pass of it and its derivative
        return (anchors.unsqueeze(1) * others).sum(-1)
    products: Tensor = _ProductsInRows.apply(anchors, others)  # type: ignore[no-untyped-call]
    return products


class _ProductsInRows(torch.autograd.Function):
    """torch's own derivative by the others is a product of matrices of one column, half as fast as what it comes to."""

    generate_vmap_rule = True

    @staticmethod
    def forward(anchors: Tensor, others: Tensor) -> Tensor:
        return (anchors.unsqueeze(1) @ others.mT).squeeze(1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor | None, Tensor | None]:
        anchors, others = ctx.saved_tensors
        of_anchors, of_others = ctx.needs_input_grad
        by_anchors = (slopes.unsqueeze(1) @ others).squeeze(1) if of_anchors else None
        return by_anchors, slopes.unsqueeze(2) * anchors.unsqueeze(1) if of_others else None

    @staticmethod
    def jvp(ctx: Any, anchors_dot: Tensor, others_dot: Tensor) -> Tensor:
        anchors, others = ctx.saved_tensors
        return _ProductsInRows.forward(anchors_dot, others) + _ProductsInRows.forward(anchors, others_dot)


def _check_own(name: str, tensor: Tensor, query: Tensor, negatives: Tensor) -> None:
    if not isinstance(tensor, Tensor) or tensor.dtype not in FLOATS:
        got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise TypeError(f"info_nce_loss: {name} must be a tensor of a floating type, got {got}")
    if tensor.device != query.device:
        raise ValueError(f"info_nce_loss: {name} is on {tensor.device}, but query is on {query.device}")
    count, _, length = negatives.shape
    if tensor is not negatives and tensor.shape != (count, length):
        raise ValueError(
            f"info_nce_loss: {name} must be of shape ({count}, {length}) for negatives of shape "
            f"{tuple(negatives.shape)}, got {tuple(tensor.shape)}"
        )


def _unit(vectors: Tensor) -> Tensor:
    """torch.nn.functional.normalize, whose second derivative at a vector of zeros would be NaN."""
    squared = (vectors * vectors).sum(-1, keepdim=True)
    counts = squared >= 1e-24
    return vectors * torch.where(counts, torch.where(counts, squared, 1.0).rsqrt(), 1e12)
