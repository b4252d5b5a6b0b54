// l1_loss: absolute error, with r = input - target
//   f = |r|,   df/dinput = sign(r) = -df/dtarget, 0 at r = 0
// Source: torch.nn.functional.l1_loss.
#pragma once
#include "core/dual.h"
#include "core/loss.h"

namespace fusedloss::inline FUSEDLOSS_SET {

struct L1Loss {
  static constexpr Description about{
      .name = "l1_loss", .operands = {"input", "target"}, .shapes = Shapes::broadcast_and_warn, .weighted_mean = true};
  explicit L1Loss(const double*) {}

  template <class V>
  FUSEDLOSS_INLINE Partials<V, 2> operator()(V input, V target) const {
    const V r = input - target;
    const V slope = sign(r);
    return {abs(r), {slope, -slope}};
  }
};

}  // namespace fusedloss::inline FUSEDLOSS_SET
