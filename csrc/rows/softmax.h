// The softmax of a row in two stages: its largest logit, then the sum of exp(x - largest). Nothing overflows.
//   log softmax(x)_c = (x_c - top) - log sum
#pragma once
#include "rows/formula.h"

namespace fusedloss::rows::inline FUSEDLOSS_SET {

template <class V>
struct Softmax {
  V top, sum, log_sum, inverse;

  // e^(x - top), which is softmax(x) times the sum
  FUSEDLOSS_INLINE V share(V x) const { return exp_bounded(x - top); }
  FUSEDLOSS_INLINE void close(V total) {
    sum = total;
    inverse = 1.0 / total;
    log_sum = log(total);
  }
  FUSEDLOSS_INLINE V probability(V x) const {
    const V p = share(x) * inverse;
    // p' = p (x' - the mean of x'), as a difference of what is alike and not of what p has made small.
    if constexpr (is_dual<V>)
      return {p.value, p.value * (x.dot - log_sum.dot)};
    else
      return p;
  }
  FUSEDLOSS_INLINE V log_probability(V x) const { return (x - top) - log_sum; }
  // softmax(x) y, also where that is a number and softmax(x) has lost its last digits to underflow; 0 where it is 0.
  FUSEDLOSS_INLINE V times_probability(V x, V y) const {
    const V root = exp_bounded(0.5 * (x - top));
    return select(root == V(0), V(0), (root * (inverse * y)) * root);
  }
};

}  // namespace fusedloss::rows::inline FUSEDLOSS_SET
