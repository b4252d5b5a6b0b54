// squared_hinge_loss: with y = target in {-1, 1} (2 target - 1 if target_01) and m = 1 - y input
//   f = max(m, 0)^2
//   df/dinput = -2 y max(m, 0)
// Source: keras.losses.squared_hinge.
#pragma once
#include "core/dual.h"
#include "core/loss.h"

namespace fusedloss::inline FUSEDLOSS_SET {

struct SquaredHingeLoss {
  static constexpr Description about{
      .name = "squared_hinge_loss",
      .operands = {"input", "target"},
      .parameters = {{"target_01", Domain::flag}},
      .shapes = Shapes::broadcast_and_warn,
      .restriction = {1, [](const double* parameters) { return parameters[0] != 0 ? Domain::flag : Domain::signs; }}};
  Constant scale, shift;  // y = scale target + shift
  explicit SquaredHingeLoss(const double* parameters)
      : scale(parameters[0] != 0 ? 2 : 1), shift(parameters[0] != 0 ? -1 : 0) {}

  template <class V>
  FUSEDLOSS_INLINE Partials<V, 2> operator()(V input, V target) const {
    const V y = scale * target + shift;
    const V margin = 1.0 - y * input;
    const V active = max(margin, 0);
    return {active * active, {-2.0 * y * active, -2.0 * (scale * input) * active}};
  }
};

}  // namespace fusedloss::inline FUSEDLOSS_SET
