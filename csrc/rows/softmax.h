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
  FUSEDLOSS_INLINE V probability(V x) const { return share(x) * inverse; }
  FUSEDLOSS_INLINE V log_probability(V x) const { return (x - top) - log_sum; }
};

}  // namespace fusedloss::rows::inline FUSEDLOSS_SET
