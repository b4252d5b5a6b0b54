// mean_absolute_percentage_error: with s = max(|target|, eps), eps = 1e-7
//   f = 100 |input - target| / s
//   df/dinput = 100 sign(input - target) / s
//   df/dtarget = -df/dinput input / target where |target| >= eps, else -df/dinput
// Source: keras.losses.mean_absolute_percentage_error.
#pragma once
#include "core/dual.h"
#include "core/loss.h"

namespace fusedloss::inline FUSEDLOSS_SET {

struct MeanAbsolutePercentageError {
  static constexpr Description about{
      .name = "mean_absolute_percentage_error", .operands = {"input", "target"}, .shapes = Shapes::broadcast_and_warn};
  explicit MeanAbsolutePercentageError(const double*) {}

  template <class V>
  FUSEDLOSS_INLINE Partials<V, 2> operator()(V input, V target) const {
    constexpr double kEpsilon = 1e-7;
    const V r = input - target;
    const V magnitude = abs(target);
    const V scale = max(magnitude, kEpsilon);
    const V value = 100.0 * abs(r) / scale;
    const V by_input = 100.0 * sign(r) / scale;
    const V by_target = by_input * select(magnitude < V(kEpsilon), V(1), input / target);
    // An infinite target has no value, and then no derivative either.
    return {value, {by_input, select(value == value, -by_target, value)}};
  }
};

}  // namespace fusedloss::inline FUSEDLOSS_SET
