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

// What multiplies the value and the gradients of a place.
template <class V>
struct Factors {
  V weight = 1, gradient;  // the first is 1 without a weight, and then not used

  template <class Access>
  FUSEDLOSS_INLINE explicit Factors(const Access& at) : gradient(at.scale()) {
    if (at.has_weight()) {
      weight = at.weight();
      gradient = weight * gradient;
    }
    if (at.has_grad_output()) gradient = gradient * at.grad_output();
  }
};

// Computes and writes; returns the weighted value, unscaled (in the modes that have one).
template <int N, Mode mode, class Formula, class Access>
FUSEDLOSS_INLINE auto compute(const Formula& formula, Access& at) {
  using V = typename Access::V;
  V x[N];
  for (int k = 0; k < N; ++k) x[k] = at.operand(k);

  if constexpr (mode == Mode::hvp) {
    Dual<V> moving[N];
    for (int k = 0; k < N; ++k) moving[k] = {x[k], at.has_tangent(k) ? at.tangent(k) : V(0)};
    const auto f = evaluate(formula, moving);
    const Factors<V> factors(at);
    for (int k = 0; k < N; ++k)
      if (at.wants_gradient(k)) at.gradient(k, factors.gradient * f.slope[k].dot);
    return V(0);
  } else {
    const auto f = evaluate(formula, x);
    const Factors<V> factors(at);
    if constexpr (kMakesGradients<mode>) {
      for (int k = 0; k < N; ++k)
        if (at.wants_gradient(k)) at.gradient(k, factors.gradient * f.slope[k]);
    }
    if constexpr (mode == Mode::gradient) return V(0);
    V change = f.value;
    if constexpr (mode == Mode::jvp) {
      change = 0;
      for (int k = 0; k < N; ++k)
        if (at.has_tangent(k)) change = change + f.slope[k] * at.tangent(k);
    }
    const V value = at.has_weight() ? factors.weight * change : change;
    at.value(value * at.scale());
    return value;
  }
}

}  // namespace fusedloss::pointwise::inline FUSEDLOSS_SET
