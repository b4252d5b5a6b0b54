// quantile_loss (pinball): with d = target - input
//   f = q d            if d > 0: the prediction is too low
//       (q - 1) d      otherwise
//   df/dinput = -q, 1 - q, and 0 at d = 0;   df/dtarget = -df/dinput;   df/dq = d
// q is a number or an operand of its own, one quantile a column.
// Source: Koenker & Bassett 1978, Regression Quantiles.
#pragma once
#include "core/dual.h"
#include "core/loss.h"

namespace fusedloss::inline FUSEDLOSS_SET {

struct QuantileLoss {
  static constexpr Description about{.name = "quantile_loss",
                                     .operands = {"input", "target", "q"},
                                     .parameters = {{"q", Domain::open_unit}},
                                     .shapes = Shapes::broadcast_and_warn,
                                     .restriction = {2, [](const double*) { return Domain::open_unit; }}};
  Constant q;
  explicit QuantileLoss(const double* parameters) : q(parameters[0]) {}

  template <class V>
  FUSEDLOSS_INLINE Partials<V, 3> operator()(V input, V target, V quantile) const {
    const V d = target - input;
    const V side = select(d < V(0), quantile - 1.0, quantile);
    const V slope = abs(sign(d)) * side;
    return {d * side, {-slope, slope, d}};
  }
  template <class V>
  FUSEDLOSS_INLINE Partials<V, 2> operator()(V input, V target) const {
    const auto f = (*this)(input, target, V(q));
    return {f.value, {f.slope[0], f.slope[1]}};
  }
};

}  // namespace fusedloss::inline FUSEDLOSS_SET
