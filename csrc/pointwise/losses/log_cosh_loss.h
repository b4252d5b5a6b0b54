// log_cosh_loss: log cosh r, with r = input - target, a = |r| and e = exp(-a)
//   f = log1p((1 - e)^2 / (2 e))          for a < 1, where the form below would cancel
//       a - log 2 + log1p(e^2)            otherwise: nothing overflows
//   df/dinput = tanh r = -df/dtarget, where tanh a = (1 - e)(1 + e) / (1 + e^2) or, far out, 1 - 2 e^2 / (1 + e^2),
//   whose own derivative does not cancel there
// Source: keras.losses.log_cosh.
#pragma once
#include "core/dual.h"
#include "core/loss.h"

namespace fusedloss::inline FUSEDLOSS_SET {

struct LogCoshLoss {
  static constexpr Description about{
      .name = "log_cosh_loss", .operands = {"input", "target"}, .shapes = Shapes::broadcast_and_warn};
  explicit LogCoshLoss(const double*) {}

  template <class V>
  FUSEDLOSS_INLINE Partials<V, 2> operator()(V input, V target) const {
    constexpr double kLog2 = 0.69314718055994530942;
    const V r = input - target;
    const auto negative = r < V(0);
    const V magnitude = select(negative, -r, r);
    const V fall = -expm1(-magnitude);  // 1 - e
    V e = 1.0 - fall;
    // Far out the second derivative, 4 e^2, is all there is: e must not be what is left of 1.
    if constexpr (is_dual<V>) e = exp(-magnitude);
    const auto near = magnitude < V(1);
    const V square = e * e;
    const V value = log1p_unit(select(near, fall * fall / (e + e), square)) + select(near, V(0), magnitude - kLog2);
    const V tanh = select(near, fall * (1.0 + e) / (1.0 + square), 1.0 - 2.0 * square / (1.0 + square));
    const V slope = select(negative, -tanh, tanh);
    return {value, {slope, -slope}};
  }
};

}  // namespace fusedloss::inline FUSEDLOSS_SET
