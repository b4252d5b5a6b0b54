// What the formulas of losses of vectors have in common.
#pragma once
#include "core/dual.h"
#include "vectors/kernel.h"

namespace fusedloss::vectors::inline FUSEDLOSS_SET {

// The loss of a row, and its derivatives by the distances and by the target.
template <class V>
struct Slopes {
  V value;
  V by_distance[kMaxPairs];
  V by_target;
};

// max(x, 0), whose derivative at the corner is 0; NaN stays NaN.
template <class V>
FUSEDLOSS_INLINE V positive_part(V x) {
  return select(x <= V(0), V(0), x);
}
// Its derivative.
template <class V>
FUSEDLOSS_INLINE V is_positive(V x) {
  return select(x <= V(0), V(0), select(x > V(0), V(1), x));
}

}  // namespace fusedloss::vectors::inline FUSEDLOSS_SET
