// What processors have an instruction for and the vector extension of the compilers cannot say, or GCC does not see.
// These overloads are better matches than the general functions of core/math.h; the results of max and min are the
// same.
#pragma once
#include "core/lanes.h"

#ifdef __AVX512F__
namespace fusedloss::inline FUSEDLOSS_SET {

inline constexpr short kAllLanes = -1;
inline constexpr int kRoundAsSet = 4;

FUSEDLOSS_INLINE Lanes<float, 64> max(Lanes<float, 64> a, float b) {
  const Lanes<float, 64> bound = b;
  return {__builtin_ia32_maxps512_mask(bound.raw, a.raw, a.raw, kAllLanes, kRoundAsSet)};
}
FUSEDLOSS_INLINE Lanes<float, 64> min(Lanes<float, 64> a, float b) {
  const Lanes<float, 64> bound = b;
  return {__builtin_ia32_minps512_mask(bound.raw, a.raw, a.raw, kAllLanes, kRoundAsSet)};
}

// x 2^n for whole n, rounded once.
FUSEDLOSS_INLINE Lanes<float, 64> scale_by_power_of_two(Lanes<float, 64> x, Lanes<float, 64> n) {
  return {__builtin_ia32_scalefps512_mask(x.raw, n.raw, x.raw, kAllLanes, kRoundAsSet)};
}

// 1 / x for normal x up to 100: an approximation to 14 bits and one step of Newton's method, at most 0.53 units in the
// last place off. A division takes as long as ten products.
FUSEDLOSS_INLINE Lanes<float, 64> reciprocal_bounded(Lanes<float, 64> x) {
  const Lanes<float, 64> guess(__builtin_ia32_rcp14ps512_mask(x.raw, x.raw, kAllLanes));
  return guess + guess * (Lanes<float, 64>(1) - x * guess);
}

}  // namespace fusedloss::inline FUSEDLOSS_SET

#elif defined(__AVX__)
namespace fusedloss::inline FUSEDLOSS_SET {

FUSEDLOSS_INLINE Lanes<float, 32> max(Lanes<float, 32> a, float b) {
  const Lanes<float, 32> bound = b;
  return {__builtin_ia32_maxps256(bound.raw, a.raw)};
}
FUSEDLOSS_INLINE Lanes<float, 32> min(Lanes<float, 32> a, float b) {
  const Lanes<float, 32> bound = b;
  return {__builtin_ia32_minps256(bound.raw, a.raw)};
}

}  // namespace fusedloss::inline FUSEDLOSS_SET
#endif
