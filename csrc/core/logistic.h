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
    small = exp(select(negative, x, -x));
    log1p_small = log1p_unit(small);
    softplus = select(negative, V(0), x) + log1p_small;
    softplus_negative = select(negative, -x, V(0)) + log1p_small;
    const V larger = V(1) / (V(1) + small);
    const V smaller = small * larger;
    sigmoid = select(negative, smaller, larger);
    sigmoid_negative = select(negative, larger, smaller);
  }
};

}  // namespace fusedloss::inline FUSEDLOSS_SET
