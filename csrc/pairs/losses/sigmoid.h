// A yes or no for every pair: with u = -z for the pair that belongs together and u = z for all others,
//
//   f = sum_j log(1 + exp(u_j)),   df/du_j = sigmoid(u_j),   d2f/du_j^2 = sigmoid(u_j) sigmoid(-u_j)
//
// SigLIP: Zhai et al. 2023, arXiv:2303.15343.
#pragma once
#include "core/logistic.h"

namespace fusedloss::pairs::inline FUSEDLOSS_SET {

template <class V>
struct SigmoidPair {
  V value, slope, curvature;  // by the logit

  template <class Mask>
  FUSEDLOSS_INLINE SigmoidPair(V logit, Mask belongs) {
    const Logistic<V> logistic(select(belongs, -logit, logit));
    value = logistic.softplus();
    slope = select(belongs, -logistic.sigmoid(), logistic.sigmoid());
    curvature = logistic.larger * logistic.smaller;
  }
};

}  // namespace fusedloss::pairs::inline FUSEDLOSS_SET
