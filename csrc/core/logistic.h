// The logistic function and its integral, from one exponential: everything that losses on logits are made of.
//   softplus(x) = log(1 + exp(x)),   sigmoid(x) = softplus'(x) = 1 / (1 + exp(-x))
#pragma once
#include "core/dual.h"

namespace fusedloss::inline FUSEDLOSS_SET {

template <class V>
struct Logistic {
  V small;              // exp(-|x|), never above 1: nothing overflows
  V log1p_small;        // log(1 + exp(-|x|))
  V softplus;           // softplus(x)
  V softplus_negative;  // softplus(-x)
  V sigmoid;            // sigmoid(x)
  V sigmoid_negative;   // sigmoid(-x) = 1 - sigmoid(x), without the cancellation

  FUSEDLOSS_INLINE explicit Logistic(V x) {
    const auto negative = x < V(0);
    small = exp_bounded(select(negative, x, -x));
    // One division for 1 / (1 + small) and 1 / (2 + small).
    const V one = 1.0 + small, two = 2.0 + small;
    const V both = 1.0 / (one * two);
    log1p_small = log1p_unit(small, both * one);
    softplus = select(negative, V(0), x) + log1p_small;
    softplus_negative = select(negative, -x, V(0)) + log1p_small;
    const V larger = both * two;
    const V smaller = small * larger;
    sigmoid = select(negative, smaller, larger);
    sigmoid_negative = select(negative, larger, smaller);
  }

  // sigmoid(x) - target: of the two ways to write it the one in which 1 - target is exact.
  FUSEDLOSS_INLINE V excess_over(V target) const {
    return select(target < V(0.5), sigmoid - target, (1.0 - target) - sigmoid_negative);
  }
};

}  // namespace fusedloss::inline FUSEDLOSS_SET
