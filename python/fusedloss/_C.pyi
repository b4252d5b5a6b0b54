from typing import Protocol, TypedDict

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

class _LatticeLoss(TypedDict):
    name: str

class _VectorLoss(TypedDict):
    name: str
    vectors: int
    parameters: list[_Parameter]
    soft_target: bool

class _PairLoss(TypedDict):
    name: str
    by_label: bool

class _TripletLoss(TypedDict):
    name: str

class _BuildInfo(TypedDict):
    torch: str
    compiler: str
    instruction_sets: str
    instruction_set: str
    cuda_architectures: str

class _Pointwise(Protocol):
    def __call__(
        self,
        input: Tensor,
        target: Tensor,
        extra: Tensor | None,
        weight: Tensor | None,
        parameters: tuple[float, ...],
        reduction: str,
        /,
    ) -> Tensor: ...

class _Rows(Protocol):
    def __call__(
        self,
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

class _Lattice(Protocol):
    def __call__(
        self,
        log_probs: Tensor,
        targets: Tensor,
        input_lengths: Tensor,
        target_lengths: Tensor,
        blank: int,
        zero_infinity: bool,
        from_logits: bool,
        reduction: str,
        /,
    ) -> Tensor: ...

class _Vectors(Protocol):
    def __call__(
        self,
        first: Tensor,
        second: Tensor,
        third: Tensor,
        weight: Tensor | None,
        parameters: tuple[float, ...],
        normalize: bool,
        reduction: str,
        /,
    ) -> Tensor: ...

class _Pairs(Protocol):
    def __call__(
        self,
        first: Tensor,
        second: Tensor | None,
        positive: Tensor | None,
        scale: Tensor | float,
        bias: Tensor | float,
        labels: Tensor | None,
        symmetric: bool,
        normalize: bool,
        reduction: str,
        /,
    ) -> Tensor: ...

class _Triplets(Protocol):
    def __call__(
        self,
        embeddings: Tensor,
        labels: Tensor,
        margin: float,
        mining: str,
        squared: bool,
        normalize: bool,
        reduction: str,
        /,
    ) -> Tensor: ...

def losses() -> list[_Loss]: ...
def row_losses() -> list[_RowLoss]: ...
def lattice_losses() -> list[_LatticeLoss]: ...
def vector_losses() -> list[_VectorLoss]: ...
def pair_losses() -> list[_PairLoss]: ...
def triplet_losses() -> list[_TripletLoss]: ...
def build_info() -> _BuildInfo: ...
def check_targets() -> None: ...

mse_loss: _Pointwise
l1_loss: _Pointwise
huber_loss: _Pointwise
smooth_l1_loss: _Pointwise
log_cosh_loss: _Pointwise
quantile_loss: _Pointwise
mean_squared_log_error: _Pointwise
mean_absolute_percentage_error: _Pointwise
poisson_nll_loss: _Pointwise
gaussian_nll_loss: _Pointwise
binary_cross_entropy: _Pointwise
binary_cross_entropy_with_logits: _Pointwise
sigmoid_focal_loss: _Pointwise
hinge_loss: _Pointwise
squared_hinge_loss: _Pointwise
soft_margin_loss: _Pointwise
hinge_embedding_loss: _Pointwise
margin_ranking_loss: _Pointwise
kl_div: _Pointwise
gaussian_kl: _Pointwise

cross_entropy: _Rows
cross_entropy_inplace: _Rows
nll_loss: _Rows
categorical_cross_entropy: _Rows
softmax_focal_loss: _Rows
categorical_hinge_loss: _Rows
multi_margin_loss: _Rows
multilabel_margin_loss: _Rows
multilabel_soft_margin_loss: _Rows
kl_divergence: _Rows
kl_divergence_with_logits: _Rows
js_divergence: _Rows
js_divergence_with_logits: _Rows

ctc_loss: _Lattice

contrastive_loss: _Vectors
cosine_embedding_loss: _Vectors
triplet_margin_loss: _Vectors
triplet_margin_with_distance_loss: _Vectors

info_nce_loss: _Pairs
clip_loss: _Pairs
siglip_loss: _Pairs
supervised_contrastive_loss: _Pairs

triplet_mining_loss: _Triplets
