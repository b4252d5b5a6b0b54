// mse_loss: squared error, with r = input - target
//   f = r^2,   df/dinput = 2 r = -df/dtarget
// Source: torch.nn.functional.mse_loss.
#pragma once
#include "core/dual.h"
#include "core/loss.h"

namespace fusedloss::inline FUSEDLOSS_SET {

struct MseLoss {
  static constexpr Description about{
      .name = "mse_loss", .operands = {"input", "target"}, .shapes = Shapes::broadcast_and_warn, .weighted_mean = true};
  explicit MseLoss(const double*) {}

  template <class V>
  FUSEDLOSS_INLINE Partials<V, 2> operator()(V input, V target) const {
    const V r = input - target;
    const V slope = r + r;
    return {r * r, {slope, -slope}};
  }
};

}  // namespace fusedloss::inline FUSEDLOSS_SET
