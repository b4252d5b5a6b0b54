"""The modules: their functions' values, torch.nn's constructors, and what a module must survive."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fusedloss
import fusedloss.functional as L
from fusedloss.testing.catalogue import LOSSES, Loss
from fusedloss.testing.lattice_catalogue import LATTICE_LOSSES
from fusedloss.testing.pair_catalogue import PAIR_LOSSES
from fusedloss.testing.row_catalogue import ROW_LOSSES
from fusedloss.testing.triplet_catalogue import TRIPLET_LOSSES
from fusedloss.testing.vector_catalogue import VECTOR_LOSSES

pytestmark = [pytest.mark.core, pytest.mark.filterwarnings("ignore:kl_div with reduction='mean'")]

ALL = [*LOSSES, *ROW_LOSSES, *LATTICE_LOSSES, *VECTOR_LOSSES, *PAIR_LOSSES, *TRIPLET_LOSSES]
MODULE_OF = {loss.name: loss.module for loss in ALL if loss.module}
CLASSES = [name for name in fusedloss.__all__ if name.endswith("Loss")]
IN_TORCH = [name for name in CLASSES if hasattr(nn, name)]
WEIGHTED = [name for name in CLASSES if "weight" in inspect.signature(getattr(fusedloss, name)).parameters]
SETTINGS: dict[str, dict[str, Any]] = {
    "MSELoss": {},
    "L1Loss": {},
    "HuberLoss": {"delta": 1.5},
    "SmoothL1Loss": {"beta": 0.25},
    "LogCoshLoss": {},
    "QuantileLoss": {"q": 0.9},
    "MeanSquaredLogErrorLoss": {},
    "MeanAbsolutePercentageErrorLoss": {},
    "PoissonNLLLoss": {"log_input": False, "full": True, "eps": 1e-6},
    "GaussianNLLLoss": {"full": True, "eps": 1e-4},
    "BCELoss": {},
    "BCEWithLogitsLoss": {"label_smoothing": 0.1},
    "SigmoidFocalLoss": {"alpha": 0.5, "gamma": 1.5},
    "HingeLoss": {"target_01": True},
    "SquaredHingeLoss": {"target_01": True},
    "SoftMarginLoss": {},
    "HingeEmbeddingLoss": {"margin": 0.5},
    "MarginRankingLoss": {"margin": 0.5},
    "KLDivLoss": {"log_target": True},
    "GaussianKLLoss": {},
    "CrossEntropyLoss": {
        "ignore_index": 1,
        "label_smoothing": 0.1,
        "z_loss": 0.01,
        "softcap": 5.0,
        "inplace_backward": True,
        "all_ignored": "zero",
    },
    "NLLLoss": {"ignore_index": 1},
    "CategoricalCrossEntropyLoss": {"from_logits": True, "label_smoothing": 0.1, "axis": 1},
    "SparseCategoricalCrossEntropyLoss": {"from_logits": True, "ignore_class": 1, "axis": 1},
    "SoftmaxFocalLoss": {"alpha": 0.5, "gamma": 1.5, "ignore_index": 1},
    "CategoricalHingeLoss": {},
    "MultiMarginLoss": {"p": 2, "margin": 0.5},
    "MultiLabelMarginLoss": {},
    "MultiLabelSoftMarginLoss": {},
    "KLDivergenceLoss": {"from_logits": True, "temperature": 2.0},
    "JSDivergenceLoss": {"beta": 0.3, "from_logits": True},
    "CTCLoss": {"blank": 1, "zero_infinity": True, "from_logits": True},
    "ContrastiveLoss": {"margin": 0.5, "p": 3.0, "normalize": True},
    "CosineEmbeddingLoss": {"margin": 0.5, "normalize": True},
    "TripletMarginLoss": {"margin": 0.5, "p": 3.0, "eps": 0.25, "swap": True, "normalize": True},
    "TripletMarginWithDistanceLoss": {
        "distance_function": "squared_euclidean",
        "margin": 0.5,
        "swap": True,
        "normalize": True,
    },
    "InfoNCELoss": {"temperature": 0.5, "symmetric": True, "normalize": True},
    "SupervisedContrastiveLoss": {"temperature": 0.5, "normalize": True},
    "CLIPLoss": {"normalize": True},
    "SigLIPLoss": {"normalize": True},
    "TripletMiningLoss": {"margin": 0.5, "mining": "semi_hard", "squared": True, "normalize": True},
}


def make(loss: Loss, reduction: str, keywords: dict[str, Tensor]) -> nn.Module:
    module = getattr(fusedloss, MODULE_OF[loss.name])(**loss.parameters, **keywords, reduction=reduction)
    assert isinstance(module, nn.Module)
    return module


def takes_all(loss: Loss) -> bool:
    """Whether the module takes what the loss is given by keyword; what changes from batch to batch it does not."""
    return set(loss.keyword_operands) <= set(inspect.signature(getattr(fusedloss, MODULE_OF[loss.name])).parameters)


def arguments(function: Callable[..., Any]) -> list[tuple[str, Any]]:
    """Names and defaults, in order, without self."""
    return [(p.name, p.default) for p in inspect.signature(function).parameters.values() if p.name != "self"]


@pytest.mark.parametrize("loss", [pytest.param(loss, id=loss.id) for loss in ALL if takes_all(loss)])
def test_a_module_gives_what_its_function_gives(loss: Loss) -> None:
    operands, keywords = loss.sample((5, 4), torch.float32)
    for reduction in loss.reductions:
        leaves, others = ([x.clone().requires_grad_(x.is_floating_point()) for x in operands] for _ in range(2))
        module, function = make(loss, reduction, keywords)(*leaves), loss(*others, **keywords, reduction=reduction)
        assert torch.equal(module, function)
        module.sum().backward()
        function.sum().backward()
        for leaf, other in zip(leaves, others, strict=True):
            assert not leaf.requires_grad or torch.equal(leaf.grad, other.grad)  # type: ignore[arg-type]


# Every rank has a part of the classes: it is called where the model is, and not kept as one of its parts.
WITHOUT_MODULE = {"vocab_parallel_cross_entropy"}


def test_every_function_has_a_module() -> None:
    assert set(MODULE_OF) | WITHOUT_MODULE == set(L.__all__)
    assert sorted(MODULE_OF.values()) == sorted(CLASSES)
    assert sorted(SETTINGS) == sorted(CLASSES)


@pytest.mark.parametrize("name", CLASSES)
def test_the_default_reduction(name: str) -> None:
    default = inspect.signature(getattr(fusedloss, name)).parameters["reduction"].default
    assert default == ("batchmean" if name in ("GaussianKLLoss", "KLDivergenceLoss", "JSDivergenceLoss") else "mean")


@pytest.mark.parametrize("name", ["BCELoss", "BCEWithLogitsLoss"])
def test_a_weight_is_kept_as_a_buffer(name: str) -> None:
    weight = torch.tensor([1.0, 2.0, 3.0])
    module = getattr(fusedloss, name)(weight=weight)
    theirs = getattr(nn, name)(weight=weight)
    x, y = torch.full((2, 3), 0.3), torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    torch.testing.assert_close(module(x, y), theirs(x, y))
    assert module.double().weight.dtype == torch.float64


@pytest.mark.parametrize("name", [name for name in WEIGHTED if not name.startswith("BCE")])
def test_a_weight_for_each_class_is_kept_as_a_buffer(name: str) -> None:
    weight = torch.tensor([1.0, 2.0, 3.0, 0.5])
    module = getattr(fusedloss, name)(weight=weight)
    assert list(module.state_dict()) == ["weight"]
    assert module.to("meta").weight.device.type == "meta"
    loss = next(loss for loss in ROW_LOSSES if loss.module == name)
    operands, _ = loss.sample((3, 4), torch.float32)
    weighted = getattr(fusedloss, name)(weight=weight)(*operands)
    assert torch.equal(weighted, loss.function(*operands, weight=weight))
    assert not torch.equal(weighted, loss.function(*operands))
    if name in IN_TORCH:
        torch.testing.assert_close(weighted, getattr(nn, name)(weight=weight)(*operands))


def test_tensors_among_the_settings_move_with_their_module() -> None:
    for name, setting in (("SoftmaxFocalLoss", "alpha"), ("KLDivergenceLoss", "temperature")):
        module = getattr(fusedloss, name)(**{setting: torch.ones(3)})
        assert list(module.state_dict()) == [setting]
        assert getattr(module.to("meta"), setting).device.type == "meta"
        assert list(getattr(fusedloss, name)(**{setting: 1.0}).state_dict()) == []


def test_pos_weight_is_kept_as_a_buffer() -> None:
    pos_weight = torch.tensor([1.0, 2.0, 3.0])
    x, y = torch.randn(2, 3), torch.ones(2, 3)
    ours, theirs = (c(pos_weight=pos_weight)(x, y) for c in (fusedloss.BCEWithLogitsLoss, nn.BCEWithLogitsLoss))
    torch.testing.assert_close(ours, theirs)


def test_a_tensor_of_quantiles_moves_with_its_module() -> None:
    module = fusedloss.QuantileLoss(torch.tensor([0.1, 0.9]))
    assert list(module.state_dict()) == ["q"]
    assert module.to("meta").q.device.type == "meta"
    assert list(fusedloss.QuantileLoss(0.5).state_dict()) == []


# ---- torch.nn's interface -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", IN_TORCH)
def test_a_constructor_begins_like_that_of_torch(name: str) -> None:
    ours, theirs = (arguments(getattr(where, name).__init__) for where in (fusedloss, nn))
    assert ours[: len(theirs)] == theirs


@pytest.mark.parametrize("name", IN_TORCH)
def test_forward_takes_the_arguments_that_torch_takes(name: str) -> None:
    ours, theirs = (arguments(getattr(where, name).forward) for where in (fusedloss, nn))
    assert ours == theirs


@pytest.mark.parametrize("name", [name for name in L.__all__ if hasattr(F, name)])
def test_a_function_begins_like_that_of_torch(name: str) -> None:
    ours, theirs = (arguments(getattr(where, name)) for where in (L, F))
    assert ours[: len(theirs)] == theirs
    more = {"weight", "label_smoothing", "normalize"}
    if name == "cross_entropy":
        more |= {"sample_weight", "z_loss", "softcap", "inplace_backward", "all_ignored"}
    if name == "ctc_loss":
        more = {"from_logits"}
    assert {argument for argument, _ in ours[len(theirs) :]} <= more


@pytest.mark.parametrize("name", IN_TORCH)
def test_a_state_dict_of_torch_loads(name: str) -> None:
    settings: dict[str, Any] = {}
    if name in WEIGHTED:
        settings["weight"] = torch.tensor([1.0, 2.0])
    if name == "BCEWithLogitsLoss":
        settings["pos_weight"] = torch.tensor([3.0, 4.0])
    theirs = getattr(nn, name)(**settings)
    ours = getattr(fusedloss, name)(**{key: torch.zeros(2) for key in settings})
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert list(ours.state_dict()) == list(theirs.state_dict()) == list(settings)
    for key, value in settings.items():
        assert torch.equal(ours.state_dict()[key], value)


@pytest.mark.parametrize("name", [n for n in IN_TORCH if "reduce" in inspect.signature(getattr(nn, n)).parameters])
def test_the_deprecated_flags_are_taken(name: str) -> None:
    with pytest.warns(UserWarning, match="deprecated") as record:
        module = getattr(fusedloss, name)(reduce=False)
    assert module.reduction == "none"
    assert record[0].filename == __file__
    with pytest.warns(UserWarning, match="deprecated"):
        assert getattr(fusedloss, name)(size_average=False).reduction == "sum"


# ---- what a module must survive -----------------------------------------------------------------------------------


def call(module: nn.Module, name: str) -> Tensor:
    # Labels must not be the blank.
    blank = SETTINGS[name].get("blank")
    loss = next(loss for loss in ALL if loss.module == name and loss.parameters.get("blank") == blank)
    operands, _ = loss.sample((3, 4), torch.float32)
    if SETTINGS[name].get("target_01"):
        operands[1] = (operands[1] + 1) / 2
    if SETTINGS[name].get("log_input") is False:
        operands[0] = operands[0].abs()
    result = module(*operands)
    assert isinstance(result, Tensor)
    return result


def through_file(module: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "copied",
    [lambda m: pickle.loads(pickle.dumps(m)), copy.deepcopy, copy.copy, through_file],
    ids=["pickle", "deepcopy", "copy", "torch.save"],
)
@pytest.mark.parametrize("name", CLASSES)
def test_a_copy_is_the_same_loss(name: str, copied: Callable[[nn.Module], nn.Module]) -> None:
    module = getattr(fusedloss, name)(**SETTINGS[name])
    twin = copied(module)
    assert type(twin) is type(module)
    assert repr(twin) == repr(module)
    assert torch.equal(call(twin, name), call(module, name))


@pytest.mark.parametrize("name", CLASSES)
def test_the_repr_shows_the_settings(name: str) -> None:
    module = getattr(fusedloss, name)(**SETTINGS[name], reduction="sum")
    text = repr(module)
    assert text.startswith(f"{name}(") and text.endswith(")") and "\n" not in text
    for key, value in (SETTINGS[name] | {"reduction": "sum"}).items():
        assert f"{key}={value!r}" in text
    again = eval(text, vars(fusedloss))
    assert repr(again) == text


@pytest.mark.parametrize("name", CLASSES)
def test_a_module_fits_into_a_model(name: str) -> None:
    """It has no parameters, does not care for the mode, and stands in a Module's repr and state."""
    module = getattr(fusedloss, name)(**SETTINGS[name])
    assert list(module.parameters()) == []
    model = nn.ModuleDict({"criterion": module})
    assert name in repr(model)
    expected = call(module, name)
    assert torch.equal(call(model.eval()["criterion"], name), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.half().float()


def test_settings_may_be_changed_later() -> None:
    module = fusedloss.HuberLoss(delta=1.0)
    x, y = torch.tensor([3.0]), torch.tensor([0.0])
    module.delta, module.reduction = 0.5, "none"
    assert torch.equal(module(x, y), L.huber_loss(x, y, "none", 0.5))


def test_a_module_is_documented() -> None:
    for name in CLASSES:
        text = inspect.getdoc(getattr(fusedloss, name))
        assert text and "Args:" in text and ">>>" in text, name
        for argument, _ in arguments(getattr(fusedloss, name).__init__):
            assert argument in text, f"{name}: {argument} is not documented"
