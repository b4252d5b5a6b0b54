// What a pass computes at one place, for all machines: `Access` reads and writes one lane, or a register of lanes.
//
//   V                            the type of a lane or register
//   operand(k), tangent(k), weight(), grad_output(), scale()       read
//   has_tangent(k), has_weight(), has_grad_output()                whether those are given
//   value(V), gradient(k, V)                                       write, if they are wanted
//   wants_gradient(k)
#pragma once
#include "core/dual.h"
#include "pointwise/kernel.h"

namespace fusedloss::pointwise::inline FUSEDLOSS_SET {

// Calls use(formula) with the formula of a loss for these parameters. A loss that has several says so with a
// with_formula of its own: a branch inside of the loop over elements would keep both in registers.
template <class Loss, class Use>
auto with_formula(const double* parameters, Use use) {
  if constexpr (requires { Loss::with_formula(parameters, use); })
    return Loss::with_formula(parameters, use);
  else
    return use(Loss(parameters));
}

template <class Formula, class V, int N>
FUSEDLOSS_INLINE Partials<V, N> evaluate(const Formula& formula, const V (&x)[N]) {
  if constexpr (N == 2)
    return formula(x[0], x[1]);
  else
    return formula(x[0], x[1], x[2]);
}

template <class V, class Access>
FUSEDLOSS_INLINE V weighted(const Access& at, V x) {
  return at.has_weight() ? at.weight() * x : x;
}

// By what a gradient is multiplied.
template <class V, class Access>
FUSEDLOSS_INLINE V factor_of_gradient(const Access& at) {
  const V factor = weighted<V>(at, at.scale());
  return at.has_grad_output() ? factor * at.grad_output() : factor;
}

// Computes and writes; returns the weighted value, unscaled (in the modes that have one).
template <int N, Mode mode, class Formula, class Access>
FUSEDLOSS_INLINE auto compute(const Formula& formula, Access& at) {
  using V = typename Access::V;
  V x[N];
  for (int k = 0; k < N; ++k) x[k] = at.operand(k);

  if constexpr (mode == Mode::value || mode == Mode::value_and_gradient) {
    const auto f = evaluate(formula, x);
    const V value = weighted<V>(at, f.value);
    at.value(value * at.scale());
    if constexpr (mode == Mode::value_and_gradient) {
      const V factor = factor_of_gradient<V>(at);
      for (int k = 0; k < N; ++k)
        if (at.wants_gradient(k)) at.gradient(k, factor * f.slope[k]);
    }
    return value;
  } else if constexpr (mode == Mode::gradient) {
    const auto f = evaluate(formula, x);
    const V factor = factor_of_gradient<V>(at);
    for (int k = 0; k < N; ++k)
      if (at.wants_gradient(k)) at.gradient(k, factor * f.slope[k]);
    return V(0);
  } else if constexpr (mode == Mode::jvp) {
    const auto f = evaluate(formula, x);
    V change = 0;
    for (int k = 0; k < N; ++k)
      if (at.has_tangent(k)) change = change + f.slope[k] * at.tangent(k);
    const V value = weighted<V>(at, change);
    at.value(value * at.scale());
    return value;
  } else {
    Dual<V> moving[N];
    for (int k = 0; k < N; ++k) moving[k] = {x[k], at.has_tangent(k) ? at.tangent(k) : V(0)};
    const auto f = evaluate(formula, moving);
    const V factor = factor_of_gradient<V>(at);
    for (int k = 0; k < N; ++k)
      if (at.wants_gradient(k)) at.gradient(k, factor * f.slope[k].dot);
    return V(0);
  }
}

}  // namespace fusedloss::pointwise::inline FUSEDLOSS_SET
