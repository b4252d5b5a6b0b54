"""The losses over alignments as a user of torch would write them: torch's own, and in ops with second derivatives."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# In place of -inf, whose differences are NaN. No sum of log-probabilities comes near.
NOWHERE = -1e30


def ctc_loss(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Tensor,
    target_lengths: Tensor,
    blank: int = 0,
    reduction: str = "mean",
    zero_infinity: bool = False,
    from_logits: bool = False,
) -> Tensor:
    """torch's own, with the log-softmax before it."""
    if from_logits:
        log_probs = log_probs.log_softmax(-1)
    return F.ctc_loss(log_probs, targets, input_lengths, target_lengths, blank, reduction, zero_infinity)


def ctc_loss_in_ops(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Tensor,
    target_lengths: Tensor,
    blank: int = 0,
    reduction: str = "mean",
    zero_infinity: bool = False,
    from_logits: bool = False,
) -> Tensor:
    """The recursion by logsumexp. Its derivative by log-probabilities is made to be torch's, exp(log p) - posterior."""
    x = log_probs.unsqueeze(1) if log_probs.dim() == 2 else log_probs
    frames = len(x)
    input_lengths, target_lengths = input_lengths.reshape(-1), target_lengths.reshape(-1)
    counted = torch.arange(frames)[:, None, None] < input_lengths[:, None]
    x = torch.where(counted, x, 0.0)
    log_p = x.log_softmax(-1) if from_logits else x
    values = -_log_total(log_p, _padded(targets, target_lengths, blank), input_lengths, target_lengths, blank)
    possible = values.detach() < -NOWHERE / 2
    if not from_logits:
        total = torch.where(counted, log_p.exp(), 0.0).sum((0, 2))
        values = values + (total - total.detach())
    values = torch.where(possible, values, 0.0 if zero_infinity else torch.inf)
    if log_probs.dim() == 2:
        values = values[0]
    if reduction == "none":
        return values
    return values.sum() if reduction == "sum" else (values / target_lengths.clamp(min=1)).mean()


def _padded(targets: Tensor, target_lengths: Tensor, blank: int) -> Tensor:
    """(N, S) with blanks behind the labels."""
    lengths = target_lengths.tolist()
    if targets.dim() == 1:
        rows = list(torch.split(targets, lengths))
    else:
        rows = [row[:length] for row, length in zip(targets, lengths, strict=True)]
    return torch.nn.utils.rnn.pad_sequence([row.long() for row in rows], batch_first=True, padding_value=blank)


def _log_total(log_p: Tensor, labels: Tensor, input_lengths: Tensor, target_lengths: Tensor, blank: int) -> Tensor:
    frames, batch, _ = log_p.shape
    states = 2 * labels.shape[1] + 1
    classes = torch.full((batch, states), blank)
    classes[:, 1::2] = labels
    over = torch.zeros(batch, states, dtype=torch.bool)
    over[:, 2:] = (classes[:, 2:] != blank) & (classes[:, 2:] != classes[:, :-2])
    nowhere = log_p.new_full((), NOWHERE)
    emissions = log_p.gather(2, classes.expand(frames, batch, states)).clamp(min=NOWHERE)
    log = torch.where(torch.arange(states) < 2, log_p.new_zeros(batch, states), nowhere)
    # Of no frames: all is said if nothing was to be.
    after = [torch.where(torch.arange(states) == 0, log, nowhere)]
    for frame in range(frames):
        if frame:
            one, two = (F.pad(log[:, : states - k], (min(k, states), 0), value=NOWHERE) for k in (1, 2))
            log = torch.stack([log, one, torch.where(over, two, nowhere)]).logsumexp(0)
        log = log + emissions[frame]
        after.append(log)
    last = torch.stack(after)[input_lengths, torch.arange(batch)]
    ends = torch.stack([2 * target_lengths, (2 * target_lengths - 1).clamp(min=0)], 1)
    found = last.gather(1, ends)
    alone = torch.stack([found[:, 0], torch.where(target_lengths > 0, found[:, 1], nowhere)])
    return alone.logsumexp(0)
