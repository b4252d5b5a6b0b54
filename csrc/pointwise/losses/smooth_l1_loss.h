// smooth_l1_loss: absolute error with a rounded corner of width beta, with r = input - target
//   f = r^2 / (2 beta)      if |r| < beta
//       |r| - beta / 2      otherwise; beta = 0 is the absolute error
//   df/dinput = r / beta or sign(r) = -df/dtarget
// Source: Girshick 2015 (Fast R-CNN); torch.nn.functional.smooth_l1_loss.
#pragma once
#include "core/dual.h"
#include "core/loss.h"

namespace fusedloss::inline FUSEDLOSS_SET {

struct SmoothL1Loss {
  static constexpr Description about{.name = "smooth_l1_loss",
                                     .operands = {"input", "target"},
                                     .parameters = {{"beta", Domain::nonnegative}},
                                     .shapes = Shapes::broadcast_and_warn};
  Constant beta;
  explicit SmoothL1Loss(const double* parameters) : beta(parameters[0]) {}

  template <class V>
  FUSEDLOSS_INLINE Partials<V, 2> operator()(V input, V target) const {
    const V r = input - target;
    const V magnitude = abs(r);
    const auto inside = magnitude < V(beta);
    const V ratio = r / V(beta);
    const V slope = select(inside, ratio, sign(r));
    return {select(inside, 0.5 * r * ratio, magnitude - 0.5 * V(beta)), {slope, -slope}};
  }
};

}  // namespace fusedloss::inline FUSEDLOSS_SET
