from typing import TypedDict

from torch import Tensor

class _Parameter(TypedDict):
    name: str
    domain: str

class _Loss(TypedDict):
    name: str
    operands: list[str]
    optional_operands: list[str]
    parameters: list[_Parameter]
    shapes: str
    weighted_mean: bool

class _RowLoss(TypedDict):
    name: str
    labels: bool
    dense: bool
    parameters: list[_Parameter]
    weighted_mean: bool

class _BuildInfo(TypedDict):
    torch: str
    compiler: str
    instruction_sets: str
    instruction_set: str
    cuda_architectures: str

def losses() -> list[_Loss]: ...
def row_losses() -> list[_RowLoss]: ...
def build_info() -> _BuildInfo: ...
def check_targets() -> None: ...
def mse_loss(
    input: Tensor,
    target: Tensor,
    extra: Tensor | None,
    weight: Tensor | None,
    parameters: tuple[float, ...],
    reduction: str,
    /,
) -> Tensor: ...
def l1_loss(
    input: Tensor,
    target: Tensor,
    extra: Tensor | None,
    weight: Tensor | None,
    parameters: tuple[float, ...],
    reduction: str,
    /,
) -> Tensor: ...
def huber_loss(
    input: Tensor,
    target: Tensor,
    extra: Tensor | None,
    weight: Tensor | None,
    parameters: tuple[float, ...],
    reduction: str,
    /,
) -> Tensor: ...
def smooth_l1_loss(
    input: Tensor,
    target: Tensor,
    extra: Tensor | None,
    weight: Tensor | None,
    parameters: tuple[float, ...],
    reduction: str,
    /,
) -> Tensor: ...
def log_cosh_loss(
    input: Tensor,
    target: Tensor,
    extra: Tensor | None,
    weight: Tensor | None,
    parameters: tuple[float, ...],
    reduction: str,
    /,
) -> Tensor: ...
def quantile_loss(
    input: Tensor,
    target: Tensor,
    extra: Tensor | None,
    weight: Tensor | None,
    parameters: tuple[float, ...],
    reduction: str,
    /,
) -> Tensor: ...
def mean_squared_log_error(
    input: Tensor,
    target: Tensor,
    extra: Tensor | None,
    weight: Tensor | None,
    parameters: tuple[float, ...],
    reduction: str,
    /,
) -> Tensor: ...
def mean_absolute_percentage_error(
    input: Tensor,
    target: Tensor,
    extra: Tensor | None,
    weight: Tensor | None,
    parameters: tuple[float, ...],
    reduction: str,
    /,
) -> Tensor: ...
def poisson_nll_loss(
    input: Tensor,
    target: Tensor,
    extra: Tensor | None,
    weight: Tensor | None,
    parameters: tuple[float, ...],
    reduction: str,
    /,
) -> Tensor: ...
def gaussian_nll_loss(
    input: Tensor,
    target: Tensor,
    extra: Tensor | None,
    weight: Tensor | None,
    parameters: tuple[float, ...],
    reduction: str,
    /,
) -> Tensor: ...
def binary_cross_entropy(
    input: Tensor,
    target: Tensor,
    extra: Tensor | None,
    weight: Tensor | None,
    parameters: tuple[float, ...],
    reduction: str,
    /,
) -> Tensor: ...
def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    extra: Tensor | None,
    weight: Tensor | None,
    parameters: tuple[float, ...],
    reduction: str,
    /,
) -> Tensor: ...
def sigmoid_focal_loss(
    input: Tensor,
    target: Tensor,
    extra: Tensor | None,
    weight: Tensor | None,
    parameters: tuple[float, ...],
    reduction: str,
    /,
) -> Tensor: ...
def hinge_loss(
    input: Tensor,
    target: Tensor,
    extra: Tensor | None,
    weight: Tensor | None,
    parameters: tuple[float, ...],
    reduction: str,
    /,
) -> Tensor: ...
def squared_hinge_loss(
    input: Tensor,
    target: Tensor,
    extra: Tensor | None,
    weight: Tensor | None,
    parameters: tuple[float, ...],
    reduction: str,
    /,
) -> Tensor: ...
def soft_margin_loss(
    input: Tensor,
    target: Tensor,
    extra: Tensor | None,
    weight: Tensor | None,
    parameters: tuple[float, ...],
    reduction: str,
    /,
) -> Tensor: ...
def hinge_embedding_loss(
    input: Tensor,
    target: Tensor,
    extra: Tensor | None,
    weight: Tensor | None,
    parameters: tuple[float, ...],
    reduction: str,
    /,
) -> Tensor: ...
def margin_ranking_loss(
    input: Tensor,
    target: Tensor,
    extra: Tensor | None,
    weight: Tensor | None,
    parameters: tuple[float, ...],
    reduction: str,
    /,
) -> Tensor: ...
def kl_div(
    input: Tensor,
    target: Tensor,
    extra: Tensor | None,
    weight: Tensor | None,
    parameters: tuple[float, ...],
    reduction: str,
    /,
) -> Tensor: ...
def gaussian_kl(
    input: Tensor,
    target: Tensor,
    extra: Tensor | None,
    weight: Tensor | None,
    parameters: tuple[float, ...],
    reduction: str,
    /,
) -> Tensor: ...
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    parameters: tuple[float, ...],
    axis: int,
    ignore_index: int,
    reduction: str,
    /,
) -> Tensor: ...
def cross_entropy_inplace(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    parameters: tuple[float, ...],
    axis: int,
    ignore_index: int,
    reduction: str,
    /,
) -> Tensor: ...
def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    parameters: tuple[float, ...],
    axis: int,
    ignore_index: int,
    reduction: str,
    /,
) -> Tensor: ...
def categorical_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    parameters: tuple[float, ...],
    axis: int,
    ignore_index: int,
    reduction: str,
    /,
) -> Tensor: ...
def softmax_focal_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    parameters: tuple[float, ...],
    axis: int,
    ignore_index: int,
    reduction: str,
    /,
) -> Tensor: ...
def categorical_hinge_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    parameters: tuple[float, ...],
    axis: int,
    ignore_index: int,
    reduction: str,
    /,
) -> Tensor: ...
def multi_margin_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    parameters: tuple[float, ...],
    axis: int,
    ignore_index: int,
    reduction: str,
    /,
) -> Tensor: ...
def multilabel_margin_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    parameters: tuple[float, ...],
    axis: int,
    ignore_index: int,
    reduction: str,
    /,
) -> Tensor: ...
def multilabel_soft_margin_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    parameters: tuple[float, ...],
    axis: int,
    ignore_index: int,
    reduction: str,
    /,
) -> Tensor: ...
def kl_divergence(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    parameters: tuple[float, ...],
    axis: int,
    ignore_index: int,
    reduction: str,
    /,
) -> Tensor: ...
def kl_divergence_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    parameters: tuple[float, ...],
    axis: int,
    ignore_index: int,
    reduction: str,
    /,
) -> Tensor: ...
def js_divergence(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    parameters: tuple[float, ...],
    axis: int,
    ignore_index: int,
    reduction: str,
    /,
) -> Tensor: ...
def js_divergence_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    parameters: tuple[float, ...],
    axis: int,
    ignore_index: int,
    reduction: str,
    /,
) -> Tensor: ...
