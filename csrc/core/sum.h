// Sums that do not drift. Adding many like numbers rounds in the same direction every time; here the part that an
// addition loses is kept beside the sum (Knuth's two-sum; Neumaier 1974).
#pragma once
#include "core/instruction_set.h"

namespace fusedloss::inline FUSEDLOSS_SET {

template <class V>
struct Sum {
  V total = 0, lost = 0;

  FUSEDLOSS_INLINE void add(V x) {
    const V sum = total + x;
    const V of_x = sum - total;
    lost = lost + ((total - (sum - of_x)) + (x - of_x));
    total = sum;
  }
};

// Their sum as one number. An infinite total has lost nothing that is known: inf - inf.
FUSEDLOSS_INLINE double value_of(const Sum<double>& sum) {
  return __builtin_isfinite(sum.lost) ? sum.total + sum.lost : sum.total;
}

}  // namespace fusedloss::inline FUSEDLOSS_SET
