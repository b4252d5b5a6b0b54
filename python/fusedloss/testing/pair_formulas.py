"""The losses over pairs of a batch in torch's ops, as a user would write them: with the dense matrix of logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def used(x: Tensor, normalize: bool) -> Tensor:
    return F.normalize(x, dim=-1) if normalize else x


def of_own_column(logits: Tensor) -> Tensor:
    return F.cross_entropy(logits, torch.arange(len(logits)), reduction="none")


def of_both_directions(logits: Tensor) -> Tensor:
    return (of_own_column(logits) + of_own_column(logits.t())) / 2


def reduced(rows: Tensor, reduction: str, count: Tensor | int | None = None) -> Tensor:
    if reduction in ("none", "sum"):
        return rows if reduction == "none" else rows.sum()
    return rows.sum() / (len(rows) if count is None else count)


def info_nce_loss(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None = None,
    temperature: float = 0.1,
    symmetric: bool = False,
    reduction: str = "mean",
    normalize: bool = False,
) -> Tensor:
    q, k = used(query, normalize), used(key, normalize)
    if negatives is None:
        logits = q @ k.t() / temperature
        return reduced(of_both_directions(logits) if symmetric else of_own_column(logits), reduction)
    others = used(negatives, normalize)
    wrong = q @ others.t() if others.dim() == 2 else (others @ q.unsqueeze(2)).squeeze(2)
    logits = torch.cat([(q * k).sum(1, keepdim=True), wrong], 1) / temperature
    return reduced(-logits.log_softmax(1)[:, 0], reduction)


def supervised_contrastive_loss(
    embeddings: Tensor, labels: Tensor, temperature: float = 0.1, reduction: str = "mean", normalize: bool = False
) -> Tensor:
    x = used(embeddings, normalize)
    itself = torch.eye(len(x), dtype=torch.bool)
    positive = (labels.unsqueeze(1) == labels) & ~itself
    log_p = (x @ x.t() / temperature).masked_fill(itself, -torch.inf).log_softmax(1)
    partners = positive.sum(1)
    rows = -log_p.masked_fill(~positive, 0.0).sum(1) / partners.clamp(min=1)
    return reduced(rows, reduction, (partners > 0).sum().clamp(min=1))


def clip_loss(
    image: Tensor, text: Tensor, logit_scale: Tensor, reduction: str = "mean", normalize: bool = False
) -> Tensor:
    logits = logit_scale * (used(image, normalize) @ used(text, normalize).t())
    return reduced(of_both_directions(logits), reduction)


def siglip_loss(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    reduction: str = "mean",
    normalize: bool = False,
) -> Tensor:
    logits = logit_scale * (used(image, normalize) @ used(text, normalize).t()) + logit_bias
    signs = 2 * torch.eye(len(logits), dtype=logits.dtype) - 1
    return reduced(-F.logsigmoid(signs * logits).sum(1), reduction)
