// gaussian_nll_loss: with r = input - target and v = max(var, eps)
//   f = (log v + r^2 / v) / 2, and log(2 pi) / 2 more if full
//   df/dinput = r / v = -df/dtarget;   df/dvar = (1 - r^2 / v) / (2 v), below eps too, as torch has it
// Source: Nix & Weigend 1994; torch.nn.functional.gaussian_nll_loss.
#pragma once
#include "core/dual.h"
#include "core/loss.h"

namespace fusedloss::inline FUSEDLOSS_SET {

struct GaussianNllLoss {
  static constexpr Description about{.name = "gaussian_nll_loss",
                                     .operands = {"input", "target", "var"},
                                     .required_operands = 3,
                                     .parameters = {{"full", Domain::flag}, {"eps", Domain::nonnegative}},
                                     .restriction = {2, [](const double*) { return Domain::nonnegative; }}};
  Constant constant, eps;
  explicit GaussianNllLoss(const double* parameters)
      : constant(parameters[0] != 0 ? 0.91893853320467274178 : 0), eps(parameters[1]) {}

  template <class V>
  FUSEDLOSS_INLINE Partials<V, 3> operator()(V input, V target, V var) const {
    const V r = input - target;
    const V v = max_straight_through(var, eps);
    const V slope = r / v;
    const V square = r * slope;
    return {0.5 * (log(v) + square) + constant, {slope, -slope, 0.5 * (1.0 - square) / v}};
  }
};

}  // namespace fusedloss::inline FUSEDLOSS_SET
