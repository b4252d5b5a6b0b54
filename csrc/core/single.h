// Single<T>: a lane of one, the type on which the formulas run on CUDA. The interface is that of core/lanes.h and
// core/math.h; the functions are those of the platform.
#pragma once
#include <cmath>

#include "core/cuda.h"
#include "core/dual.h"

namespace fusedloss::inline FUSEDLOSS_SET {

template <class T>
struct Single {
  using Scalar = T;
  using Bits = typename BitsOf<T>::type;
  using C = MathConstants<T>;

  struct Mask {
    bool holds;
    FUSEDLOSS_INLINE friend Mask operator&(Mask a, Mask b) { return {a.holds && b.holds}; }
    FUSEDLOSS_INLINE friend Mask operator|(Mask a, Mask b) { return {a.holds || b.holds}; }
    FUSEDLOSS_INLINE friend Mask operator!(Mask a) { return {!a.holds}; }
    FUSEDLOSS_INLINE friend bool any(Mask a) { return a.holds; }
  };

  T raw;

  Single() = default;
  FUSEDLOSS_INLINE Single(double value) : raw(T(value)) {}
  FUSEDLOSS_INLINE Single(Constant value) : raw(value) {}
  FUSEDLOSS_INLINE static Single of(T value) {
    Single result;
    result.raw = value;
    return result;
  }

  FUSEDLOSS_INLINE friend Single operator+(Single a, Single b) { return of(a.raw + b.raw); }
  FUSEDLOSS_INLINE friend Single operator-(Single a, Single b) { return of(a.raw - b.raw); }
  FUSEDLOSS_INLINE friend Single operator*(Single a, Single b) { return of(a.raw * b.raw); }
  FUSEDLOSS_INLINE friend Single operator/(Single a, Single b) { return of(quotient(a.raw, b.raw)); }
  FUSEDLOSS_INLINE friend Single operator-(Single a) { return of(-a.raw); }
  FUSEDLOSS_INLINE friend Mask operator<(Single a, Single b) { return {a.raw < b.raw}; }
  FUSEDLOSS_INLINE friend Mask operator<=(Single a, Single b) { return {a.raw <= b.raw}; }
  FUSEDLOSS_INLINE friend Mask operator>(Single a, Single b) { return {a.raw > b.raw}; }
  FUSEDLOSS_INLINE friend Mask operator>=(Single a, Single b) { return {a.raw >= b.raw}; }
  FUSEDLOSS_INLINE friend Mask operator==(Single a, Single b) { return {a.raw == b.raw}; }
  FUSEDLOSS_INLINE friend Single select(Mask mask, Single a, Single b) { return mask.holds ? a : b; }

  FUSEDLOSS_INLINE friend Single max(Single a, T b) { return b > a.raw ? of(b) : a; }
  FUSEDLOSS_INLINE friend Single min(Single a, T b) { return b < a.raw ? of(b) : a; }
  FUSEDLOSS_INLINE friend Single max_straight_through(Single x, T bound) { return max(x, bound); }
  FUSEDLOSS_INLINE friend Single abs(Single x) { return of(std::fabs(x.raw)); }
  FUSEDLOSS_INLINE friend Single minus_abs(Single x) { return of(-std::fabs(x.raw)); }
  FUSEDLOSS_INLINE friend Single sign(Single x) { return x.raw > 0 ? of(1) : x.raw < 0 ? of(-1) : x; }
  FUSEDLOSS_INLINE friend Single exp(Single x) { return of(std::exp(x.raw)); }
  FUSEDLOSS_INLINE friend Single exp_nonpositive(Single x) { return exp(x); }
  FUSEDLOSS_INLINE friend Single expm1(Single x) { return of(std::expm1(x.raw)); }
  FUSEDLOSS_INLINE friend Single tanh(Single x) { return of(std::tanh(x.raw)); }
  FUSEDLOSS_INLINE friend Single log(Single x) { return of(std::log(x.raw)); }
  FUSEDLOSS_INLINE friend Single log1p(Single x) { return of(std::log1p(x.raw)); }
  FUSEDLOSS_INLINE friend Single log1p_unit(Single x) { return log1p_by_atanh(x, reciprocal_bounded(2.0 + x)); }
  FUSEDLOSS_INLINE friend Single log1p_unit(Single x, Single reciprocal) { return log1p_by_atanh(x, reciprocal); }
  // As in core/scaled.h, by the fields of the number.
  FUSEDLOSS_INLINE friend Single scaled_down(Single x, Single n) {
    const Bits biased = Bits(n.raw > -C::kExponentBias ? n.raw : T(-C::kExponentBias)) + C::kExponentBias;
    return of(x.raw * bit_copy<T>(biased << C::kMantissaBits));
  }
  FUSEDLOSS_INLINE friend Single exponent_of(Single x) {
    return of(T((bit_copy<Bits>(x.raw) >> C::kMantissaBits) - C::kExponentBias));
  }
  FUSEDLOSS_INLINE friend Single mantissa_of(Single x) {
    const Bits kept = bit_copy<Bits>(x.raw) & ((Bits(1) << C::kMantissaBits) - 1);
    return of(bit_copy<T>(kept | Bits(C::kExponentBias) << C::kMantissaBits));
  }
  // As in core/roots.h.
  FUSEDLOSS_INLINE friend Single sqrt(Single x) { return of(::sqrt(x.raw)); }
  // By way of doubles: the exponent must have more digits than the result, and so must the logarithm.
  FUSEDLOSS_INLINE friend Single power(Single x, Constant exponent) {
    return of(T(::pow(double(x.raw), double(exponent))));
  }
  FUSEDLOSS_INLINE friend Single reciprocal_bounded(Single x) { return of(reciprocal_bounded(x.raw)); }
};

}  // namespace fusedloss::inline FUSEDLOSS_SET
