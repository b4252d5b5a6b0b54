// Elementary functions on Lanes, branch-free and inlined into the formulas that use them: a call into a vector maths
// library costs more than most losses, and the compiler could not drop it where only the derivative is wanted.
//
// Accuracy: about one unit in the last place (tests/test_values.py holds every loss against a float64 oracle).
// The polynomials are close to the functions named beside them: the float ones minimise the largest relative error of
// exp and log1p (0.06 and 0.09 units of 2^-24), the double ones are Chebyshev interpolations.
#pragma once
#include "core/instructions.h"

namespace fusedloss::inline FUSEDLOSS_SET {

template <class T>
struct MathConstants;

template <>
struct MathConstants<float> {
  static constexpr float kInfinity = __builtin_inff(), kLowest = -0x1.fffffep127f;
  // x + kRound - kRound rounds x to an integer, which then stands in the low bits of x + kRound.
  static constexpr float kRound = 0x1.8p23f;
  static constexpr int kMantissaBits = 23;
  static constexpr int kExponentBias = 127;
  // log 2 in two parts: a multiple of the first by an exponent is exact.
  static constexpr float kLog2High = 0.693145751953125f, kLog2Low = 1.42860682030941723e-6f;
  // exp(x) is 0 below the first and infinite above the second.
  static constexpr float kExpLowest = -104.5f, kExpHighest = 89.0f;
  static constexpr float kSmallestNormal = 0x1p-126f;
  // (exp(r) - 1 - r) / r^2 for |r| <= log(2) / 2
  static constexpr float kExp[] = {0.4999999403953552f, 0.1666652113199234f, 0.041668377816677094f,
                                   0.008368715643882751f, 0.0013815012061968446f};
  // 2 (atanh(s) / s - 1) / s^2 as a polynomial in s^2, for |s| <= 1/3
  static constexpr float kAtanh[] = {0.666664183139801f, 0.4002152681350708f, 0.28001800179481506f,
                                     0.28012025356292725f};
};

template <>
struct MathConstants<double> {
  static constexpr double kInfinity = __builtin_inf(), kLowest = -0x1.fffffffffffffp1023;
  static constexpr double kRound = 0x1.8p52;
  static constexpr int kMantissaBits = 52;
  static constexpr int kExponentBias = 1023;
  static constexpr double kLog2High = 0.6931471803691238164901733, kLog2Low = 1.9082149292705878161e-10;
  static constexpr double kExpLowest = -746.5, kExpHighest = 710.0;
  static constexpr double kSmallestNormal = 0x1p-1022;
  static constexpr double kExp[] = {0.500000000000000103,     0.166666666666666675,   0.0416666666666238205,
                                    0.0083333333333300382,    0.00138888889173670806, 0.00019841269863171556,
                                    0.0000248015210578682052, 2.75572682769056962e-6, 2.76202015910315488e-7,
                                    2.5100472505694996e-8};
  static constexpr double kAtanh[] = {
      0.666666666666666586, 0.400000000000145826, 0.285714285671087572, 0.22222222717427863,   0.181817894361328582,
      0.153855700649586231, 0.133141442096549362, 0.120010728095907125, 0.0880073848614467388, 0.161640456119435322};
};

// The coefficients are a template argument because device code cannot read an array of the host.
template <const auto& coefficients, int k = 0, class V>
FUSEDLOSS_INLINE V polynomial(V x) {
  constexpr auto coefficient = coefficients[k];
  if constexpr (k + 1 < int(sizeof(coefficients) / sizeof(coefficient)))
    return polynomial<coefficients, k + 1>(x) * x + V(coefficient);
  else
    return coefficient;
}

// The larger and the smaller of a and b; a NaN in `a` stays.
template <class T, int B>
FUSEDLOSS_INLINE Lanes<T, B> max(Lanes<T, B> a, typename Lanes<T, B>::Scalar b) {
  return select(Lanes<T, B>(b) > a, Lanes<T, B>(b), a);
}
template <class T, int B>
FUSEDLOSS_INLINE Lanes<T, B> min(Lanes<T, B> a, typename Lanes<T, B>::Scalar b) {
  return select(Lanes<T, B>(b) < a, Lanes<T, B>(b), a);
}

// max(x, bound) whose derivative is that of x on both sides, as torch has it where it clamps without recording.
template <class T, int B>
FUSEDLOSS_INLINE Lanes<T, B> max_straight_through(Lanes<T, B> x, typename Lanes<T, B>::Scalar bound) {
  return max(x, bound);
}

template <class T, int B>
FUSEDLOSS_INLINE Lanes<T, B> abs(Lanes<T, B> x) {
  using V = Lanes<T, B>;
  return V::from_bits(x.bits() & ~V(-0.0).bits());
}

// -|x|; its derivative at 0 is taken as -1.
template <class T, int B>
FUSEDLOSS_INLINE Lanes<T, B> minus_abs(Lanes<T, B> x) {
  using V = Lanes<T, B>;
  return V::from_bits(x.bits() | V(-0.0).bits());
}

// -1, 0 or 1; NaN stays NaN.
template <class T, int B>
FUSEDLOSS_INLINE Lanes<T, B> sign(Lanes<T, B> x) {
  using V = Lanes<T, B>;
  return select(x > V(0), V(1), select(x < V(0), V(-1), x));
}

// 1 where x > 0, else 0; NaN stays NaN.
template <class V>
FUSEDLOSS_INLINE V step(V x) {
  return select(x > V(0), V(1), select(x <= V(0), V(0), x));
}

// The slope with respect to x of what is linear in x: it does not see x, but a NaN in x must reach it.
template <class V>
FUSEDLOSS_INLINE V linear_slope(V x, V slope) {
  return select(x == x, slope, x);
}

// 1 / x for normal x up to 100.
template <class T, int B>
FUSEDLOSS_INLINE Lanes<T, B> reciprocal_bounded(Lanes<T, B> x) {
  return Lanes<T, B>(1) / x;
}

// x = n log 2 + r with integer n and |r| <= log(2) / 2; n is returned as x + kRound holds it.
template <class V>
struct ExponentSplit {
  V rounded, n, remainder;
  FUSEDLOSS_INLINE explicit ExponentSplit(V x) {
    using C = MathConstants<typename V::Scalar>;
    rounded = x * V(1.44269504088896340736) + V(C::kRound);
    n = rounded - V(C::kRound);
    remainder = (x - n * V(C::kLog2High)) - n * V(C::kLog2Low);
  }
};

// x 2^n, where x is near 1, and n above -2 kExponentBias and as the exponent split holds it. Two factors, so that
// results below the smallest normal number are reached gradually. If n is not positive, one of them can be a constant.
template <bool nonpositive, class V>
FUSEDLOSS_INLINE V scaled(V x, const ExponentSplit<V>& split) {
  using C = MathConstants<typename V::Scalar>;
  const auto n = split.rounded.bits() - V(C::kRound).bits();
  if constexpr (requires { scale_by_power_of_two(x, split.n); }) {
    return scale_by_power_of_two(x, split.n);
  } else if constexpr (nonpositive) {
    return x * V::from_bits((n + (C::kExponentBias + 64)) << C::kMantissaBits) * V(0x1p-64);
  } else {
    const auto biased = n + 2 * C::kExponentBias, half = biased >> 1;
    return x * V::from_bits(half << C::kMantissaBits) * V::from_bits((biased - half) << C::kMantissaBits);
  }
}

// exp(x) for x that is not above kExpHighest, where it would not overflow, or not positive.
template <bool nonpositive, class V>
FUSEDLOSS_INLINE V exp_bounded(V x) {
  using C = MathConstants<typename V::Scalar>;
  const ExponentSplit<V> split(max(x, C::kExpLowest));
  const V r = split.remainder;
  return scaled<nonpositive>(V(1) + r * (V(1) + r * polynomial<C::kExp>(r)), split);
}
template <class T, int B>
FUSEDLOSS_INLINE Lanes<T, B> exp_nonpositive(Lanes<T, B> x) {
  return exp_bounded<true>(x);
}

template <class T, int B>
FUSEDLOSS_INLINE Lanes<T, B> exp(Lanes<T, B> x) {
  using V = Lanes<T, B>;
  using C = MathConstants<T>;
  // Infinity is named, because the last product may be fused with what the caller adds, and then nothing overflows.
  return select(x > V(C::kExpHighest), V(C::kInfinity), exp_bounded<false>(min(x, C::kExpHighest)));
}

// exp(x) - 1, accurate near 0.
template <class T, int B>
FUSEDLOSS_INLINE Lanes<T, B> expm1(Lanes<T, B> x) {
  using V = Lanes<T, B>;
  using C = MathConstants<T>;
  // Below -(mantissa bits + 2) log 2 the result rounds to -1.
  const ExponentSplit<V> split(min(max(x, T(-0.7) * (C::kMantissaBits + 2)), C::kExpHighest));
  const V r = split.remainder;
  // Half of 2^n, because 2^n itself may be out of range where the result is not.
  const auto biased = split.rounded.bits() - V(C::kRound).bits() + (C::kExponentBias - 1);
  const V half = V::from_bits(biased << C::kMantissaBits);
  const V result = V(2) * (half * (r + r * r * polynomial<C::kExp>(r)) + (half - V(0.5)));
  return select(x > V(C::kExpHighest), V(C::kInfinity), result);
}

// exp(x) - 1 - x for |x| <= 0.34
template <class V>
FUSEDLOSS_INLINE V exp_beyond_linear(V x) {
  return x * x * polynomial<MathConstants<typename V::Scalar>::kExp>(x);
}

// log(1 + x) for 0 <= x <= 1, given 1 / (2 + x). With s = x / (2 + x) it is 2 atanh(s) = x - s (x - 2 s^2 P(s^2)).
template <class V>
FUSEDLOSS_INLINE V log1p_by_atanh(V x, V reciprocal) {
  const V s = x * reciprocal;
  const V z = s * s;
  return x - s * (x - z * polynomial<MathConstants<typename V::Scalar>::kAtanh>(z));
}
template <class T, int B>
FUSEDLOSS_INLINE Lanes<T, B> log1p_unit(Lanes<T, B> x, Lanes<T, B> reciprocal) {
  return log1p_by_atanh(x, reciprocal);
}
template <class T, int B>
FUSEDLOSS_INLINE Lanes<T, B> log1p_unit(Lanes<T, B> x) {
  return log1p_by_atanh(x, reciprocal_bounded(Lanes<T, B>(2) + x));
}

// log(x) + added, where `added` is small beside the logarithm or x is near 1.
template <class T, int B>
FUSEDLOSS_INLINE Lanes<T, B> log_plus(Lanes<T, B> x, Lanes<T, B> added) {
  using V = Lanes<T, B>;
  using C = MathConstants<T>;
  const auto tiny = x < V(C::kSmallestNormal);
  const T scale = T(int64_t(1) << C::kMantissaBits);
  const V normal = select(tiny, x * V(scale), x);
  // x = 2^k (1 + f) with sqrt(1/2) <= 1 + f < sqrt(2).
  const auto offset = normal.bits() - V(0.70710678118654752440).bits();
  const auto k = offset >> C::kMantissaBits;
  const V f = V::from_bits(normal.bits() - (k << C::kMantissaBits)) - V(1);
  const V exponent = V(__builtin_convertvector(k, typename V::Raw)) - select(tiny, V(C::kMantissaBits), V(0));
  const V s = f / (V(2) + f);
  const V z = s * s;
  const V correction = s * (f - z * polynomial<C::kAtanh>(z)) - (exponent * V(C::kLog2Low) + added);
  const V finite = exponent * V(C::kLog2High) + (f - correction);
  // What remains: log 0 = -inf, log inf = inf, and NaN for NaN and for negative x.
  return select((x > V(0)) & (x < V(C::kInfinity)), finite,
                select(x == V(0), V(-C::kInfinity), select(x > V(0), x, V(__builtin_nan("")))));
}

template <class T, int B>
FUSEDLOSS_INLINE Lanes<T, B> log(Lanes<T, B> x) {
  return log_plus(x, Lanes<T, B>(0));
}

// log(1 + x): the rounding of 1 + x is put right to first order.
template <class T, int B>
FUSEDLOSS_INLINE Lanes<T, B> log1p(Lanes<T, B> x) {
  using V = Lanes<T, B>;
  const V sum = V(1) + x;
  return log_plus(sum, (x - (sum - V(1))) / sum);
}

// With t = exp(-2|x|) - 1 it is -t / (2 + t), which does not cancel near 0, with the sign of x.
template <class T, int B>
FUSEDLOSS_INLINE Lanes<T, B> tanh(Lanes<T, B> x) {
  using V = Lanes<T, B>;
  const V t = expm1(V(-2) * abs(x));
  const V magnitude = -t / (V(2) + t);
  return select(x < V(0), -magnitude, magnitude);
}

}  // namespace fusedloss::inline FUSEDLOSS_SET
