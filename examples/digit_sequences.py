"""Rows of handwritten digits to be read: scikit-learn's side by side, each stretched by chance, with gaps between."""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as TF
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from digit_images import CLASSES, split_images
from tabular_tasks import Task

BLANK = 0  # digit k has label k + 1
LABELS = CLASSES + 1
LENGTHS, WIDTHS, GAPS = (3, 8), (6, 16), (0, 5)  # digits in a row, columns of a digit, empty columns after it: from, to
FRAME = 2  # columns of an image that make one frame of what the network says


@dataclass(frozen=True)
class Truth:
    """What ctc_loss has to be told of N images."""

    labels: Tensor  # (N, S), filled up with blanks
    lengths: Tensor  # (N): labels in each
    frames: Tensor  # (N): frames in each


def unpack(target: Tensor) -> Truth:
    """Takes a task's target apart, (N, 1 + S): one tensor, as a training loop hands on, and each row frames, labels."""
    labels = target[:, 1:]
    return Truth(labels, (labels != BLANK).sum(1), target[:, 0])


def load_sequences(train: int = 4000, test: int = 500, seed: int = 0) -> Task:
    """Returns the task of reading; the held-out rows are made of digits that no row to learn from contains."""
    generator = torch.Generator().manual_seed(seed)
    known, unknown = split_images()
    parts = _compose(*known, train, generator), _compose(*unknown, test, generator)
    deviation, mean = torch.std_mean(parts[0][0])
    standardised = [((images - mean) / deviation, target) for images, target in parts]
    return Task("rows of digits", standardised[0], standardised[1], binary=False, learning_rate=0.1, judge=verdict)


def _compose(images: Tensor, digits: Tensor, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Returns n rows as images (n, 1, 8, columns), filled up with the empty background, and their targets."""

    def between(bounds: tuple[int, int], size: int) -> list[int]:
        return torch.randint(bounds[0], bounds[1] + 1, (size,), generator=generator).tolist()

    rows, targets = [], []
    for length in between(LENGTHS, n):
        chosen = torch.randint(len(digits), (length,), generator=generator)
        stretched = [
            TF.pad(TF.interpolate(images[i : i + 1], (8, width), mode="bilinear")[0, 0], (0, gap))
            for i, width, gap in zip(chosen.tolist(), between(WIDTHS, length), between(GAPS, length), strict=True)
        ]
        row = torch.cat(stretched, 1)
        rows.append(row.t())
        targets.append(torch.cat([torch.tensor([row.shape[1] // FRAME]), digits[chosen] + 1]))
    columns = pad_sequence(rows, batch_first=True).transpose(1, 2)
    odd = columns.shape[2] % FRAME
    return TF.pad(columns, (0, odd)).unsqueeze(1), pad_sequence(targets, batch_first=True, padding_value=BLANK)


def read(logits: Tensor, frames: int) -> list[int]:
    """Returns the digits of the most probable label in each frame: repetitions count once, then blanks go."""
    path = torch.unique_consecutive(logits[:frames].argmax(-1))
    return [label - 1 for label in path.tolist() if label != BLANK]


def digits_of(target: Tensor) -> list[list[int]]:
    truth = unpack(target)
    return [(row[:length] - 1).tolist() for row, length in zip(truth.labels, truth.lengths.tolist(), strict=True)]


def has_double(digits: list[int]) -> bool:
    """Whether a digit follows itself, which only a blank between the two can say."""
    return any(a == b for a, b in pairwise(digits))


def label_error_rate(logits: Tensor, target: Tensor) -> float:
    """Returns the digits to insert, delete or replace until all is read right, as a share of all digits."""
    frames, truth = unpack(target).frames.tolist(), digits_of(target)
    errors = sum(edit_distance(read(*one), right) for *one, right in zip(logits, frames, truth, strict=True))
    return errors / sum(map(len, truth))


def verdict(logits: Tensor, target: Tensor) -> str:
    return f"{label_error_rate(logits, target):.1%}"


def edit_distance(a: list[int], b: list[int]) -> int:
    """Returns the fewest insertions, deletions and replacements that make b of a (Levenshtein)."""
    row = list(range(len(b) + 1))  # distances of what has been seen of a to every beginning of b
    for i, x in enumerate(a, 1):
        above, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (x != y))
    return row[-1]
