"""What the library promises of its speed and memory; the tables mark every row that misses its promise."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    eager: float  # how many times faster than torch's eager functions, at least
    compiled: float  # and than torch.compile of them
    of_copy: float = 0.0  # share of a copy's bandwidth
    of_products: float = 0.0  # the time of the matrix products alone, as a share of its own
    workspace: bool = False  # may hold more than the gradients for a while, but less than torch does
    of_dense: float = 0.0  # share of the matrix of every two rows that it holds less than


# The first pattern that matches the whole key of a row, loss/case/size, holds.
_TARGETS = (
    (r"mse_loss/float32/16M", Target(4.0, 2.5, of_copy=0.8)),
    (r"l1_loss/float32/16M", Target(10.0, 2.5, of_copy=0.8)),
    (r"huber_loss/float32/16M", Target(6.0, 2.5, of_copy=0.8)),
    (r"(smooth_l1_loss|log_cosh_loss|quantile_loss)/float32/16M", Target(6.0, 2.5)),
    (r"binary_cross_entropy_with_logits(\+pos_weight)?/float32/16M", Target(4.0, 3.0)),
    (r"sigmoid_focal_loss/float32/16M", Target(25.0, 6.0)),
    (r".*/float32/(1k|100k|1M)", Target(1.5, 1.0)),
    (r".*/float32/32", Target(1.3, 1.0)),
    (r".*/(bfloat16|reduction-none|transposed-.*|one-thread)/16M", Target(1.5, 1.0)),
    (r"cross_entropy/rows/4096x32000", Target(6.0, 4.5)),
    (r"cross_entropy/rows/65536x1000", Target(4.0, 3.0)),
    (r"cross_entropy/rows/1048576x21", Target(2.5, 2.0)),
    (r"cross_entropy/rows/4x21x512x512", Target(3.0, 2.0)),
    (r"cross_entropy/rows/(1048576x2|64x10)", Target(1.5, 1.0)),
    (r"cross_entropy\+probabilities/rows/8192x1000", Target(4.0, 2.5)),
    (r"cross_entropy\+smoothing\+weight/rows/4096x32000", Target(4.0, 2.5)),
    (r"kl_divergence\+logits/rows/8192x8192", Target(6.0, 3.0)),
    (r"cross_entropy/rows-bfloat16/4096x32000", Target(4.0, 2.0)),
    (r"ctc_loss/lattice/150x16x80x30", Target(9.0, 1.0, workspace=True)),
    (r"ctc_loss/lattice/500x8x80x60", Target(10.0, 1.0, workspace=True)),
    (r"ctc_loss/lattice/500x32x64x100", Target(8.0, 1.0, workspace=True)),
    (r"ctc_loss/lattice/500x4x5000x60", Target(3.3, 1.0, workspace=True)),
    (r"ctc_loss/lattice/200x16x5000x40", Target(3.0, 1.0, workspace=True)),
    (r"ctc_loss/lattice/(\d+x1x|20x).*", Target(2.0, 1.0, workspace=True)),
    (r"ctc_loss/.*", Target(1.0, 1.0, workspace=True)),
    (r"(contrastive_loss|triplet_margin_loss)/vectors/1048576x128", Target(4.0, 1.0)),
    (r"info_nce_loss/pairs/4096x128", Target(2.0, 1.0, of_products=1 / 1.15, workspace=True)),
    (r"clip_loss(\+two_products)?/pairs/4096x512", Target(2.5, 1.0, workspace=True)),
    (r"siglip_loss/pairs/4096x(128|512)", Target(3.0, 1.0, workspace=True)),
    (r"triplet_mining_loss\+batch_hard(\+metric_learning)?/triplets/4096x128", Target(3.0, 1.0, workspace=True)),
    (r"triplet_mining_loss\+all/triplets/512x128", Target(100.0, 1.0, workspace=True)),
    (r".*/(pairs|triplets)-memory/.*", Target(1.0, 1.0, of_dense=0.1)),
    (r"info_nce_loss\+own_negatives/.*", Target(1.0, 1.0)),  # no two rows of the batch meet
    (r".*/(pairs|triplets).*", Target(1.0, 1.0, workspace=True)),
    (r".*", Target(1.0, 1.0)),
)

# Beyond the inputs, forward and backward hold the gradients, and the result of reduction 'none'; the scalars of other
# reductions and of the backward are within this share. Large gradients end at the end of a huge page.
MEMORY_SLACK, HUGE_PAGE = 0.01, 2 << 20


def target_of(key: str) -> Target:
    return next(target for pattern, target in _TARGETS if re.fullmatch(pattern, key))
