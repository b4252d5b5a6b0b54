// huber_loss: squared near zero, linear beyond delta, with r = input - target
//   f = r^2 / 2                          if |r| <= delta
//       delta |r| - delta^2 / 2          otherwise
//   df/dinput = r held within [-delta, delta] = -df/dtarget
// Source: Huber 1964; torch.nn.functional.huber_loss.
#pragma once
#include "core/dual.h"
#include "core/loss.h"

namespace fusedloss::inline FUSEDLOSS_SET {

struct HuberLoss {
  static constexpr Description about{.name = "huber_loss",
                                     .operands = {"input", "target"},
                                     .parameters = {{"delta", Domain::positive}},
                                     .shapes = Shapes::broadcast_and_warn};
  Constant delta;
  explicit HuberLoss(const double* parameters) : delta(parameters[0]) {}

  template <class V>
  FUSEDLOSS_INLINE Partials<V, 2> operator()(V input, V target) const {
    const V r = input - target;
    const V magnitude = abs(r);
    const V inside = min(magnitude, delta);
    const V slope = max(min(r, delta), -delta);
    return {inside * (magnitude - 0.5 * inside), {slope, -slope}};
  }
};

}  // namespace fusedloss::inline FUSEDLOSS_SET
