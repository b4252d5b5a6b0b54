// Dual numbers: a value and its derivative along one direction. A formula that gives first derivatives, run on
// duals, gives the second ones; no loss writes them by hand, so they cannot disagree with the first.
#pragma once
#include "core/math.h"

namespace fusedloss::inline FUSEDLOSS_SET {

template <class V>
struct Dual {
  using Scalar = typename V::Scalar;
  V value, dot;

  Dual() = default;
  FUSEDLOSS_INLINE Dual(double constant) : value(constant), dot(0) {}
  FUSEDLOSS_INLINE Dual(Constant constant) : value(constant), dot(0) {}
  FUSEDLOSS_INLINE Dual(V value, V dot) : value(value), dot(dot) {}

  FUSEDLOSS_INLINE friend Dual operator+(Dual a, Dual b) { return {a.value + b.value, a.dot + b.dot}; }
  FUSEDLOSS_INLINE friend Dual operator-(Dual a, Dual b) { return {a.value - b.value, a.dot - b.dot}; }
  FUSEDLOSS_INLINE friend Dual operator-(Dual a) { return {-a.value, -a.dot}; }
  FUSEDLOSS_INLINE friend Dual operator*(Dual a, Dual b) {
    return {a.value * b.value, a.dot * b.value + a.value * b.dot};
  }
  FUSEDLOSS_INLINE friend Dual operator/(Dual a, Dual b) {
    const V quotient = a.value / b.value;
    return {quotient, (a.dot - quotient * b.dot) / b.value};
  }
  FUSEDLOSS_INLINE friend auto operator<(Dual a, Dual b) { return a.value < b.value; }
  FUSEDLOSS_INLINE friend auto operator<=(Dual a, Dual b) { return a.value <= b.value; }
  FUSEDLOSS_INLINE friend auto operator>(Dual a, Dual b) { return a.value > b.value; }
  FUSEDLOSS_INLINE friend auto operator>=(Dual a, Dual b) { return a.value >= b.value; }
  FUSEDLOSS_INLINE friend auto operator==(Dual a, Dual b) { return a.value == b.value; }
  template <class Mask>
  FUSEDLOSS_INLINE friend Dual select(Mask mask, Dual a, Dual b) {
    return {select(mask, a.value, b.value), select(mask, a.dot, b.dot)};
  }
};

// Divides by one number, normal and at most 100, as often as wanted for one division.
template <class V>
struct Divisor {
  V inverse;
  FUSEDLOSS_INLINE explicit Divisor(V x) : inverse(reciprocal_bounded(x)) {}
  FUSEDLOSS_INLINE V divide(V a) const { return a * inverse; }
};
template <class V>
struct Divisor<Dual<V>> {
  V inverse, dot;
  FUSEDLOSS_INLINE explicit Divisor(Dual<V> x) : inverse(reciprocal_bounded(x.value)), dot(x.dot) {}
  FUSEDLOSS_INLINE Dual<V> divide(Dual<V> a) const {
    const V quotient = a.value * inverse;
    return {quotient, (a.dot - quotient * dot) * inverse};
  }
};

template <class V>
inline constexpr bool is_dual = false;
template <class V>
inline constexpr bool is_dual<Dual<V>> = true;

// At a tie the constant does not win: the derivative is that of `a`, as torch's clamp has it.
template <class V>
FUSEDLOSS_INLINE Dual<V> max(Dual<V> a, typename V::Scalar b) {
  return {max(a.value, b), select(V(b) > a.value, V(0), a.dot)};
}
template <class V>
FUSEDLOSS_INLINE Dual<V> min(Dual<V> a, typename V::Scalar b) {
  return {min(a.value, b), select(V(b) < a.value, V(0), a.dot)};
}
template <class V>
FUSEDLOSS_INLINE Dual<V> max_straight_through(Dual<V> x, typename V::Scalar bound) {
  return {max(x.value, bound), x.dot};
}
template <class V>
FUSEDLOSS_INLINE Dual<V> abs(Dual<V> x) {
  return {abs(x.value), x.dot * sign(x.value)};
}
template <class V>
FUSEDLOSS_INLINE Dual<V> minus_abs(Dual<V> x) {
  return {minus_abs(x.value), select(x.value < V(0), x.dot, -x.dot)};
}
template <class V>
FUSEDLOSS_INLINE Dual<V> sign(Dual<V> x) {
  return {sign(x.value), V(0)};
}
template <class V>
FUSEDLOSS_INLINE Dual<V> reciprocal_bounded(Dual<V> x) {
  const V value = reciprocal_bounded(x.value);
  return {value, -value * value * x.dot};
}
template <class V>
FUSEDLOSS_INLINE Dual<V> exp(Dual<V> x) {
  const V value = exp(x.value);
  return {value, value * x.dot};
}
template <class V>
FUSEDLOSS_INLINE Dual<V> expm1(Dual<V> x) {
  return {expm1(x.value), exp(x.value) * x.dot};
}
template <class V>
FUSEDLOSS_INLINE Dual<V> exp_beyond_linear(Dual<V> x) {
  return {exp_beyond_linear(x.value), expm1(x.value) * x.dot};
}
template <class V>
FUSEDLOSS_INLINE Dual<V> tanh(Dual<V> x) {
  const V value = tanh(x.value);
  return {value, (V(1) - value * value) * x.dot};
}
template <class V>
FUSEDLOSS_INLINE Dual<V> log(Dual<V> x) {
  return {log(x.value), x.dot / x.value};
}
// log(x), where something else is divided by x too.
template <class V>
FUSEDLOSS_INLINE V log(V x, const Divisor<V>&) {
  return log(x);
}
template <class V>
FUSEDLOSS_INLINE Dual<V> log(Dual<V> x, const Divisor<Dual<V>>& by_x) {
  return {log(x.value), x.dot * by_x.inverse};
}
template <class V>
FUSEDLOSS_INLINE Dual<V> log1p(Dual<V> x) {
  return {log1p(x.value), x.dot / (V(1) + x.value)};
}
template <class V>
FUSEDLOSS_INLINE Dual<V> exp_nonpositive(Dual<V> x) {
  const V value = exp_nonpositive(x.value);
  return {value, value * x.dot};
}
template <class V>
FUSEDLOSS_INLINE Dual<V> log1p_unit(Dual<V> x) {
  return {log1p_unit(x.value), x.dot * reciprocal_bounded(V(1) + x.value)};
}
template <class V>
FUSEDLOSS_INLINE Dual<V> log1p_unit(Dual<V> x, Dual<V> reciprocal) {
  return {log1p_unit(x.value, reciprocal.value), x.dot * reciprocal_bounded(V(1) + x.value)};
}

}  // namespace fusedloss::inline FUSEDLOSS_SET
