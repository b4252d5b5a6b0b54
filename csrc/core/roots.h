// Square roots and powers of dual numbers. At 0 their derivative is taken as 0.
#pragma once
#include "core/dual.h"

namespace fusedloss::inline FUSEDLOSS_SET {

template <class V>
FUSEDLOSS_INLINE Dual<V> sqrt(Dual<V> x) {
  const V root = sqrt(x.value);
  return {root, select(root == V(0), V(0), V(0.5) * x.dot / root)};
}
template <class V>
FUSEDLOSS_INLINE Dual<V> power(Dual<V> x, Constant exponent) {
  const V result = power(x.value, exponent);
  return {result, select(x.value == V(0), V(0), V(exponent) * result / x.value * x.dot)};
}

}  // namespace fusedloss::inline FUSEDLOSS_SET
