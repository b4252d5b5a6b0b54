"""The pictures of the training examples: the losses, the training curves, and what the networks do."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from fusedloss import functional as F
from lockstep import Run

VALUE, SLOPE = "#1f5fa8", "#d9822b"

# Title, target, axis and loss of each panel.
SHAPES: list[tuple[str, float, str, Callable[..., Tensor]]] = [
    ("mse_loss", 0.0, "error", F.mse_loss),
    ("l1_loss", 0.0, "error", F.l1_loss),
    ("huber_loss, delta = 1", 0.0, "error", F.huber_loss),
    ("smooth_l1_loss, beta = 2", 0.0, "error", partial(F.smooth_l1_loss, beta=2.0)),
    ("log_cosh_loss", 0.0, "error", F.log_cosh_loss),
    ("quantile_loss, q = 0.9", 0.0, "error", partial(F.quantile_loss, q=0.9)),
    ("poisson_nll_loss, target 2", 2.0, "logarithm of the rate", F.poisson_nll_loss),
    ("binary_cross_entropy_with_logits", 1.0, "logit, target 1", F.binary_cross_entropy_with_logits),
    ("sigmoid_focal_loss, gamma = 2", 1.0, "logit, target 1", partial(F.sigmoid_focal_loss, alpha=-1.0)),
    ("soft_margin_loss", 1.0, "score, target 1", F.soft_margin_loss),
    ("hinge_loss", 1.0, "score, target 1", F.hinge_loss),
    ("squared_hinge_loss", 1.0, "score, target 1", F.squared_hinge_loss),
]


def draw_shapes(path: Path) -> None:
    """Draws every loss of SHAPES and its derivative, as fusedloss computes them."""
    figure = Figure(figsize=(14, 9), layout="constrained")
    axes = figure.subplots(3, 4)
    for panel, (title, truth, axis, loss) in zip(axes.flat, SHAPES, strict=True):
        x = torch.linspace(-3.0, 3.0, 601, requires_grad=True)
        values = loss(x, torch.full_like(x, truth), reduction="none")
        (slopes,) = torch.autograd.grad(values.sum(), x)
        panel.axhline(0.0, color="0.8", linewidth=0.8)
        panel.plot(x.detach(), values.detach(), color=VALUE, linewidth=2, label="loss")
        panel.plot(x.detach(), slopes, color=SLOPE, linewidth=1.5, linestyle="--", label="derivative")
        panel.set(title=title, xlabel=axis, ylim=(-3.2, 5.0))
    axes.flat[0].legend(frameon=False)
    figure.savefig(path, dpi=110)


def draw_curves(path: Path, runs: dict[str, tuple[Run, Run]]) -> None:
    """Draws, for every experiment, the loss of fusedloss as a band and that of torch as a line on top of it."""
    columns = 4
    rows = -(-len(runs) // columns)
    figure = Figure(figsize=(14, 3 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for panel, (title, (ours, theirs)) in zip(axes.flat, runs.items(), strict=False):
        epochs = range(1, len(ours.curve) + 1)
        panel.plot(epochs, ours.curve, color=VALUE, linewidth=5, alpha=0.35, label="fusedloss")
        panel.plot(epochs, theirs.curve, color="black", linewidth=1, label="torch")
        panel.set(title=title, xlabel="epoch", ylim=(0.0, None))
    for panel in axes.flat[len(runs) :]:
        panel.axis("off")
    axes.flat[0].legend(frameon=False)
    figure.savefig(path, dpi=110)


def draw_recalls(path: Path, counts: Tensor, recalls: dict[str, Tensor]) -> None:
    """Draws, for every class, what share of its images each model recognised, above how many it had to learn from."""
    figure = Figure(figsize=(14, 8), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    classes = torch.arange(len(counts))
    width = 0.8 / len(recalls)
    for k, (name, recall) in enumerate(recalls.items()):
        top.bar(classes - 0.4 + (k + 0.5) * width, recall, width, label=f"{name} (mean {recall.mean():.1%})")
    top.set(ylabel="recognised", ylim=(0.0, 1.0))
    top.legend(frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(0.0, 1.0))
    bottom.bar(classes, counts, 0.8, color="0.6")
    bottom.set(xlabel="digit", ylabel="images to learn from", xticks=classes)
    figure.savefig(path, dpi=110)


def draw_alignments(path: Path, image: Tensor, alignments: dict[str, Tensor], digits: list[int]) -> None:
    """Draws an image of digits in a row, and below it where each label is: curves (frames, labels), the blank first."""
    figure = Figure(figsize=(14, 2 + 2.5 * len(alignments)), layout="constrained")
    top, *panels = figure.subplots(1 + len(alignments), 1, sharex=True, height_ratios=(2, *[3] * len(alignments)))
    columns = image.shape[1]
    top.imshow(image, cmap="gray_r", aspect="auto", extent=(0, columns, 0, 1))
    top.set(title=" ".join(map(str, digits)), yticks=[])
    for panel, (title, alignment) in zip(panels, alignments.items(), strict=True):
        frames = len(alignment)
        middles = (torch.arange(frames) + 0.5) * columns / frames
        panel.fill_between(middles, alignment[:, 0], color="0.9", label="blank")
        for digit in sorted(set(digits)):
            panel.plot(middles, alignment[:, digit + 1], color=f"C{digit}", linewidth=2, label=str(digit))
        panel.set(title=title, ylim=(0.0, 1.05), ylabel="probability")
    panels[-1].set(xlabel="column of the image", xlim=(0, columns))
    figure.legend(*panels[-1].get_legend_handles_labels(), loc="outside right", frameon=False)
    figure.savefig(path, dpi=110)
