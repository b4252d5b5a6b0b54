// A distribution over the vectors that a row meets. With the logits z of a row i, P the columns that belong to it,
//
//   f = log sum_j exp(z_j) - mean of z_j over P
//   df/dz_j = p_j - [j in P] / |P|,   p_j = exp(z_j) / sum_k exp(z_k)
//
// Along a tangent z' it changes by the mean of z' weighted by p, less that over P, and p_j by p_j (z'_j - that mean).
// InfoNCE: van den Oord et al. 2018. CLIP: Radford et al. 2021. Supervised contrastive: Khosla et al. 2020, L_out.
#pragma once
#include "core/dual.h"

namespace fusedloss::pairs::inline FUSEDLOSS_SET {

// What a logit's part in a softmax is made of: of a row, or of a column.
template <class V>
struct SoftmaxOver {
  V top, inverse;  // the largest logit, and 1 / the sum of what `exponential` gives
  V mean;          // of the logits' tangents

  FUSEDLOSS_INLINE static V exponential(V logit, V top) { return exp_nonpositive(logit - top); }
  FUSEDLOSS_INLINE V share(V logit) const { return exponential(logit, top) * inverse; }
  FUSEDLOSS_INLINE V share_dot(V share, V logit_dot) const { return share * (logit_dot - mean); }
};

}  // namespace fusedloss::pairs::inline FUSEDLOSS_SET
