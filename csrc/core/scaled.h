// Numbers above 0 as a mantissa and a power of two, 2^exponent, whose exponent is a whole number in a floating
// register: what float and double cannot hold, because it is too small or too large, these can. Below 2^-1e27 is as
// good as 0.
//
// Moving ones know the slope of their logarithm along a direction too. It is what remains of a derivative where numbers
// are summed and multiplied: slopes of factors add, those of terms are averaged by the size of the terms.
#pragma once
#include <type_traits>

#include "core/math.h"

namespace fusedloss::inline FUSEDLOSS_SET {

// ---- parts of a register ------------------------------------------------------------------------------------------

// x 2^n for whole n that is not positive; 0 where that is smaller than a normal number.
template <class T, int B>
FUSEDLOSS_INLINE Lanes<T, B> scaled_down(Lanes<T, B> x, Lanes<T, B> n) {
  using V = Lanes<T, B>;
  using C = MathConstants<T>;
  const V biased = max(n, T(-C::kExponentBias)) + V(C::kRound + C::kExponentBias);
  return x * V::from_bits(biased.bits() << C::kMantissaBits);
}

// The same, but the smallest numbers are reached gradually.
template <class V>
FUSEDLOSS_INLINE V scaled_down_gradually(V x, V n) {
  const V most = max(n, typename V::Scalar(-64));
  return scaled_down(scaled_down(x, most), n - most);
}

// The parts of a normal x > 0, which is mantissa_of(x) 2^exponent_of(x) with 1 <= mantissa_of(x) < 2.
template <class T, int B>
FUSEDLOSS_INLINE Lanes<T, B> exponent_of(Lanes<T, B> x) {
  using V = Lanes<T, B>;
  using C = MathConstants<T>;
  constexpr T kUnit = T(int64_t(1) << C::kMantissaBits);  // whole numbers below it stand in its last bits
  return V::from_bits((x.bits() >> C::kMantissaBits) + V(kUnit).bits()) - V(kUnit + C::kExponentBias);
}
template <class T, int B>
FUSEDLOSS_INLINE Lanes<T, B> mantissa_of(Lanes<T, B> x) {
  using V = Lanes<T, B>;
  constexpr auto kMantissa = (typename BitsOf<T>::type(1) << MathConstants<T>::kMantissaBits) - 1;
  return V::from_bits((x.bits() & kMantissa) | V(1).bits());
}

template <class V>
FUSEDLOSS_INLINE V larger_of(V a, V b) {
  return select(a > b, a, b);
}

// ---- the numbers --------------------------------------------------------------------------------------------------

// The exponent of what is 0. It may be added to itself a million times.
inline constexpr double kNothing = -1e30;
// Logarithms below are those of 0, and so are exponents of numbers that have such a factor.
inline constexpr double kLowestLog = -1e28, kLowestExponent = -1e27;

struct NoSlope {};

template <class V, bool moving>
struct Scaled {
  V mantissa, exponent;
  [[no_unique_address]] std::conditional_t<moving, V, NoSlope> slope;

  FUSEDLOSS_INLINE static Scaled of(V mantissa, V exponent) {
    Scaled result;
    result.mantissa = mantissa;
    result.exponent = exponent;
    if constexpr (moving) result.slope = V(0);
    return result;
  }
};

// e^x; NaN stays.
template <bool moving, class V>
FUSEDLOSS_INLINE Scaled<V, moving> scaled_exp(V x) {
  using C = MathConstants<typename V::Scalar>;
  const ExponentSplit<V> split(max(x, typename V::Scalar(kLowestLog)));
  // Of very large numbers the remainder is what their last digit leaves open.
  const V r = min(max(split.remainder, typename V::Scalar(-0.35)), typename V::Scalar(0.35));
  return Scaled<V, moving>::of(V(1) + r * (V(1) + r * polynomial<C::kExp>(r)), split.n);
}

template <class V, bool moving, class... More>
FUSEDLOSS_INLINE Scaled<V, moving> sum(const Scaled<V, moving>& first, const More&... more) {
  V top = first.exponent;
  ((top = larger_of(top, more.exponent)), ...);
  const auto share = [&](const Scaled<V, moving>& term) { return scaled_down(term.mantissa, term.exponent - top); };
  Scaled<V, moving> result = Scaled<V, moving>::of(share(first), top);
  if constexpr (moving) result.slope = result.mantissa * first.slope;
  const auto add = [&](const Scaled<V, moving>& term) {
    const V weight = share(term);
    result.mantissa = result.mantissa + weight;
    if constexpr (moving) result.slope = result.slope + weight * term.slope;
  };
  (add(more), ...);
  if constexpr (moving) result.slope = result.slope / result.mantissa;
  return result;
}

template <class V, bool moving>
FUSEDLOSS_INLINE Scaled<V, moving> operator*(const Scaled<V, moving>& a, const Scaled<V, moving>& b) {
  Scaled<V, moving> result = Scaled<V, moving>::of(a.mantissa * b.mantissa, a.exponent + b.exponent);
  if constexpr (moving) result.slope = a.slope + b.slope;
  return result;
}

// The same number with a mantissa from 1 to 2.
template <class V, bool moving>
FUSEDLOSS_INLINE Scaled<V, moving> normalised(Scaled<V, moving> x) {
  x.exponent = x.exponent + exponent_of(x.mantissa);
  x.mantissa = mantissa_of(x.mantissa);
  return x;
}

}  // namespace fusedloss::inline FUSEDLOSS_SET
