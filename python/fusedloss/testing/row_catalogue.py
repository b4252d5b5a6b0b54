"""The losses over rows of classes, as data: the list that their tests and `python -m fusedloss check` run over.

As in `catalogue`, a record says how to sample valid operands, which parameters to sweep, what torch (or the formula in
torch's ops) computes, and where the loss has corners. Samplers know the shape of the input and its class axis, for a
row has one label and a class one weight.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fusedloss.testing import row_formulas as formulas
from fusedloss.testing.catalogue import Loss, Sampler, bits, normal, positive, probability

Shape = tuple[int, ...]
Generator = torch.Generator

IGNORED = -100


def of_rows(shape: Shape, axis: int) -> Shape:
    return tuple(n for d, n in enumerate(shape) if d != axis)


# ---- samplers ------------------------------------------------------------------------------------------------------


def logits(shape: Shape, axis: int, generator: Generator, scale: float = 1.0) -> Tensor:
    return normal(shape, generator, scale)


def log_probabilities(shape: Shape, axis: int, generator: Generator, scale: float = 1.0) -> Tensor:
    return normal(shape, generator, scale).log_softmax(axis)


def distribution(shape: Shape, axis: int, generator: Generator, scale: float = 1.0) -> Tensor:
    return normal(shape, generator).softmax(axis)


def scores(shape: Shape, axis: int, generator: Generator, scale: float = 1.0) -> Tensor:
    """Probabilities before they are divided by their sum."""
    return positive(shape, generator, scale)


def labels(shape: Shape, axis: int, generator: Generator, scale: float = 1.0) -> Tensor:
    return torch.randint(0, shape[axis], of_rows(shape, axis), generator=generator)


def labels_or_none(shape: Shape, axis: int, generator: Generator, scale: float = 1.0) -> Tensor:
    """Every third row is ignored, but not the first."""
    found = labels(shape, axis, generator)
    found.view(-1)[1::3] = IGNORED
    return found


def one_hot(shape: Shape, axis: int, generator: Generator, scale: float = 1.0) -> Tensor:
    some = torch.zeros(shape, dtype=torch.float64)
    return some.scatter_(axis, labels(shape, axis, generator).unsqueeze(axis), 1.0)


def half_hot(shape: Shape, axis: int, generator: Generator, scale: float = 1.0) -> Tensor:
    return one_hot(shape, axis, generator) / 2


def lists(shape: Shape, axis: int, generator: Generator, scale: float = 1.0) -> Tensor:
    """None to four different labels, a -1, and then what no one reads."""
    classes = shape[axis]
    rows = of_rows(shape, axis)
    order = torch.rand((*rows, classes), generator=generator).argsort(-1)
    count = torch.randint(0, min(classes, 4) + 1, (*rows, 1), generator=generator)
    return order.masked_fill(torch.arange(classes) == count, -1)


def labels_on_or_off(shape: Shape, axis: int, generator: Generator, scale: float = 1.0) -> Tensor:
    return bits(shape, generator)


def soft_labels(shape: Shape, axis: int, generator: Generator, scale: float = 1.0) -> Tensor:
    return probability(shape, generator)


def of_classes(shape: Shape, axis: int, generator: Generator, scale: float = 1.0) -> Tensor:
    return positive((shape[axis],), generator)


def of_each_row(shape: Shape, axis: int, generator: Generator, scale: float = 1.0) -> Tensor:
    return positive(of_rows(shape, axis), generator)


def or_zero(shape: Shape, axis: int, generator: Generator, scale: float = 1.0) -> Tensor:
    """Every fourth row does not count, but not the first."""
    found = of_each_row(shape, axis, generator)
    found.view(-1)[2::4] = 0
    return found


def above_zero(shape: Shape, axis: int, generator: Generator, scale: float = 1.0) -> Tensor:
    return torch.rand((), generator=generator, dtype=torch.float64) + 1.5


def apart(target: Tensor, shape: Shape, axis: int, generator: Generator) -> Tensor:
    """Logits of which none is 0, no two are equal, and no true one leads a false one by 1 or 3/4 exactly.

    With up to 35 classes they are exact in every dtype.
    """
    order = torch.rand(shape, generator=generator).argsort(axis)
    if target.is_floating_point():
        true = target > 0
    elif target.dim() == len(shape):
        listed = (target >= 0).long().cumprod(axis)
        true = torch.zeros(shape, dtype=torch.long).scatter_reduce(axis, target.clamp(min=0), listed, "amax") > 0
    else:
        true = torch.zeros(shape, dtype=torch.bool).scatter_(axis, target.unsqueeze(axis), True)
    return (order.double() - (shape[axis] - 1) / 2) / 16 + 1 / 128 + true / 64


# How far a value may be moved along a direction, as a share of itself; others by 1.
RELATIVE = (scores, distribution, above_zero)


@dataclass(frozen=True)
class RowLoss(Loss):
    """One way to call one loss over rows; `keyword_operands` have derivatives too."""

    axis: int = 1  # of the classes; a single row has no other
    most_axes: int = 4
    cornered: bool = False  # derivatives jump: second ones are taken at logits that are `apart`
    fixed: tuple[str, ...] = field(default=())  # keyword operands by which no derivative is taken

    def class_axis(self, shape: Shape) -> int:
        return 0 if len(shape) == 1 else int(self.parameters.get("axis", self.axis)) % len(shape)

    @property
    def learned(self) -> tuple[str, ...]:
        return tuple(name for name in self.keyword_operands if name not in self.fixed)

    def sampler(self, name: str) -> Sampler:
        return (self.samplers | self.keyword_operands)[name]

    def given(
        self, shape: Shape, dtype: torch.dtype = torch.float64, seed: int = 0, scale: float = 1.0, away: bool = False
    ) -> dict[str, Tensor]:
        """All operands by name for an input of that shape; rounded to dtype, but for labels. Or away from corners."""
        generator = torch.Generator().manual_seed(seed)
        axis = self.class_axis(shape)
        samplers = self.samplers | self.keyword_operands
        found = {name: sampler(shape, axis, generator, scale) for name, sampler in samplers.items()}
        if away and self.cornered:
            found["input"] = apart(found["target"], shape, axis, generator)
        return {name: x.to(dtype) if x.is_floating_point() else x for name, x in found.items()}

    def sample(
        self, shape: Shape, dtype: torch.dtype = torch.float64, seed: int = 0, scale: float = 1.0
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        return self.split(self.given(shape, dtype, seed, scale))

    def split(self, given: dict[str, Tensor]) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Into positional operands and keyword operands."""
        return [given[k] for k in self.samplers], {k: x for k, x in given.items() if k not in self.samplers}

    def directions(self, given: dict[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        step = 0.125 if self.cornered else 1.0
        result = {}
        for name in (*self.differentiable, *(k for k in self.learned if k == "temperature")):
            x = given[name]
            room = x.double() if self.sampler(name) in RELATIVE else torch.ones_like(x, dtype=torch.float64)
            result[name] = (room * step * (2 * torch.rand(x.shape, generator=generator) - 1)).to(x.dtype)
        return result


# ---- the list ------------------------------------------------------------------------------------------------------

_LABELS: dict[str, Sampler] = {"input": logits, "target": labels}
_IGNORED: dict[str, Sampler] = {"input": logits, "target": labels_or_none}
_PROBABILITIES: dict[str, Sampler] = {"input": logits, "target": distribution}
_WEIGHT: dict[str, Sampler] = {"weight": of_classes}
_BOTH = ("input", "target")

_CE: dict[str, Any] = {"reference": formulas.cross_entropy, "in_torch": False, "module": "CrossEntropyLoss"}
_TORCH_CE: dict[str, Any] = {
    "reference": F.cross_entropy, "in_ops": formulas.cross_entropy, "module": "CrossEntropyLoss",
}  # fmt: skip
_KERAS: dict[str, Any] = {
    "reference": formulas.categorical_cross_entropy, "in_torch": False, "differentiable": _BOTH, "axis": -1,
    "module": "CategoricalCrossEntropyLoss",
}  # fmt: skip
_SPARSE: dict[str, Any] = {
    "reference": formulas.sparse_categorical_cross_entropy, "in_torch": False, "differentiable": ("input",),
    "axis": -1, "module": "SparseCategoricalCrossEntropyLoss",
}  # fmt: skip
_FOCAL: dict[str, Any] = {
    "reference": formulas.softmax_focal_loss, "in_torch": False, "differentiable": ("input",),
    "module": "SoftmaxFocalLoss",
}  # fmt: skip
_HINGE: dict[str, Any] = {
    "reference": formulas.categorical_hinge_loss, "in_torch": False, "cornered": True,
    "module": "CategoricalHingeLoss",
}  # fmt: skip
_MARGIN: dict[str, Any] = {
    "in_ops": formulas.multi_margin_loss, "differentiable": ("input",), "module": "MultiMarginLoss", "most_axes": 2,
    "cornered": True,
}  # fmt: skip
_SOFT_MARGIN: dict[str, Any] = {"reference": F.multilabel_soft_margin_loss, "axis": -1}
_DIVERGENCE: dict[str, Any] = {
    "in_torch": False, "differentiable": ("p", "q"), "reductions": ("none", "mean", "sum", "batchmean"),
}  # fmt: skip
_KL: dict[str, Any] = _DIVERGENCE | {"reference": formulas.kl_divergence, "module": "KLDivergenceLoss"}
_JS: dict[str, Any] = _DIVERGENCE | {"reference": formulas.js_divergence, "module": "JSDivergenceLoss"}
_TWO: dict[str, Sampler] = {"p": distribution, "q": distribution}
_TWO_LOGITS: dict[str, Sampler] = {"p": logits, "q": logits}
_ROW_WEIGHT: dict[str, Sampler] = {"weight": of_each_row}

ROW_LOSSES = [
    RowLoss("cross_entropy", _LABELS, **_TORCH_CE, differentiable=("input",)),
    RowLoss("cross_entropy", _IGNORED, parameters={"label_smoothing": 0.2}, variant="ignored, weight, smoothing",
            keyword_operands=_WEIGHT, **_TORCH_CE, differentiable=("input",)),
    RowLoss("cross_entropy", _IGNORED, variant="sample_weight, weight", differentiable=("input",), **_CE,
            keyword_operands={"sample_weight": of_each_row, "weight": of_classes}),
    RowLoss("cross_entropy", _LABELS, variant="masked", differentiable=("input",), **_CE,
            keyword_operands={"sample_weight": or_zero}, fixed=("sample_weight",)),
    RowLoss("cross_entropy", _LABELS, parameters={"z_loss": 0.03, "softcap": 3.0}, variant="z_loss, softcap", **_CE,
            differentiable=("input",)),
    RowLoss("cross_entropy", _PROBABILITIES, variant="probabilities", **_TORCH_CE, differentiable=_BOTH),
    RowLoss("cross_entropy", _PROBABILITIES, parameters={"label_smoothing": 0.3}, keyword_operands=_WEIGHT,
            variant="probabilities, weight, smoothing", **_TORCH_CE, differentiable=_BOTH),
    RowLoss("cross_entropy", _PROBABILITIES, parameters={"ignore_index": 0, "z_loss": 0.1}, **_CE,
            variant="probabilities, ignored, sample_weight, z_loss", keyword_operands={"sample_weight": of_each_row},
            differentiable=_BOTH),
    RowLoss("nll_loss", {"input": log_probabilities, "target": labels}, F.nll_loss, in_ops=formulas.nll_loss,
            module="NLLLoss", differentiable=("input",)),
    RowLoss("nll_loss", {"input": log_probabilities, "target": labels_or_none}, F.nll_loss, variant="ignored, weight",
            in_ops=formulas.nll_loss, keyword_operands=_WEIGHT, differentiable=("input",)),
    RowLoss("categorical_cross_entropy", {"input": scores, "target": distribution}, **_KERAS),
    RowLoss("categorical_cross_entropy", {"input": scores, "target": one_hot},
            parameters={"label_smoothing": 0.1, "axis": 1}, variant="smoothing, axis, weight", **_KERAS,
            keyword_operands=_WEIGHT),
    RowLoss("categorical_cross_entropy", _PROBABILITIES, parameters={"from_logits": True, "label_smoothing": 0.1},
            variant="logits", **_KERAS),
    RowLoss("sparse_categorical_cross_entropy", {"input": scores, "target": labels}, **_SPARSE),
    RowLoss("sparse_categorical_cross_entropy", {"input": scores, "target": labels_or_none},
            parameters={"ignore_class": IGNORED}, variant="ignored, weight", keyword_operands=_WEIGHT, **_SPARSE),
    RowLoss("sparse_categorical_cross_entropy", _LABELS, parameters={"from_logits": True}, variant="logits", **_SPARSE),
    RowLoss("softmax_focal_loss", _LABELS, **_FOCAL),
    RowLoss("softmax_focal_loss", _IGNORED, parameters={"gamma": 0.5}, variant="ignored, alpha, gamma=0.5",
            keyword_operands={"alpha": of_classes}, **_FOCAL),
    RowLoss("softmax_focal_loss", _LABELS, parameters={"gamma": 0.0}, variant="gamma=0", **_FOCAL),
    RowLoss("categorical_hinge_loss", _LABELS, keyword_operands=_WEIGHT, differentiable=("input",), **_HINGE),
    RowLoss("categorical_hinge_loss", {"input": logits, "target": one_hot}, variant="one-hot",
            differentiable=("input",), **_HINGE),
    RowLoss("categorical_hinge_loss", {"input": logits, "target": half_hot}, variant="soft", differentiable=_BOTH,
            **_HINGE),
    RowLoss("multi_margin_loss", _LABELS, F.multi_margin_loss, **_MARGIN),
    RowLoss("multi_margin_loss", _LABELS, F.multi_margin_loss, {"p": 2, "margin": 0.75}, variant="squares, weight",
            keyword_operands=_WEIGHT, **_MARGIN),
    RowLoss("multilabel_margin_loss", {"input": logits, "target": lists}, F.multilabel_margin_loss,
            in_ops=formulas.multilabel_margin_loss, module="MultiLabelMarginLoss", differentiable=("input",),
            most_axes=2, cornered=True),
    RowLoss("multilabel_soft_margin_loss", {"input": logits, "target": labels_on_or_off}, differentiable=("input",),
            module="MultiLabelSoftMarginLoss", **_SOFT_MARGIN),
    RowLoss("multilabel_soft_margin_loss", {"input": logits, "target": soft_labels}, differentiable=_BOTH,
            variant="soft, weight", keyword_operands=_WEIGHT, **_SOFT_MARGIN),
    RowLoss("kl_divergence", _TWO, **_KL),
    RowLoss("kl_divergence", _TWO, variant="weight", keyword_operands=_ROW_WEIGHT, **_KL),
    RowLoss("kl_divergence", _TWO_LOGITS, parameters={"from_logits": True}, variant="logits", **_KL),
    RowLoss("kl_divergence", _TWO_LOGITS, parameters={"from_logits": True, "temperature": 2.5}, **_KL,
            variant="logits, temperature, weight", keyword_operands=_ROW_WEIGHT),
    RowLoss("kl_divergence", _TWO_LOGITS, parameters={"from_logits": True}, variant="logits, tensor temperature",
            keyword_operands={"temperature": above_zero}, **_KL),
    RowLoss("js_divergence", _TWO, **_JS),
    RowLoss("js_divergence", _TWO, parameters={"beta": 0.3}, variant="beta, weight", keyword_operands=_ROW_WEIGHT,
            **_JS),
    RowLoss("js_divergence", _TWO_LOGITS, parameters={"from_logits": True}, variant="logits", **_JS),
    RowLoss("js_divergence", _TWO_LOGITS, parameters={"from_logits": True, "beta": 0.7}, **_JS,
            variant="logits, beta"),
]  # fmt: skip
