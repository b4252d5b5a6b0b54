// mean_squared_log_error: with x = max(input, eps), y = max(target, eps), eps = 1e-7
//   f = d^2, d = log(1 + x) - log(1 + y) = +-log(1 + (larger - smaller) / (1 + smaller)), without the cancellation
//   df/dinput = 2 d / (1 + x) where input >= eps, else 0;   df/dtarget likewise with the other sign
// Source: keras.losses.mean_squared_logarithmic_error.
#pragma once
#include "core/dual.h"
#include "core/loss.h"

namespace fusedloss::inline FUSEDLOSS_SET {

struct MeanSquaredLogError {
  static constexpr Description about{
      .name = "mean_squared_log_error", .operands = {"input", "target"}, .shapes = Shapes::broadcast_and_warn};
  explicit MeanSquaredLogError(const double*) {}

  template <class V>
  FUSEDLOSS_INLINE Partials<V, 2> operator()(V input, V target) const {
    constexpr double kEpsilon = 1e-7;
    const V x = max(input, kEpsilon);
    const V y = max(target, kEpsilon);
    const auto below = x < y;
    const V distance = log1p(select(below, y - x, x - y) / (1.0 + select(below, x, y)));
    const V d = select(below, -distance, distance);
    const V by_input = select(input < V(kEpsilon), V(0), 2.0 * d / (1.0 + x));
    const V by_target = select(target < V(kEpsilon), V(0), -2.0 * d / (1.0 + y));
    return {d * d, {by_input, by_target}};
  }
};

}  // namespace fusedloss::inline FUSEDLOSS_SET
