// poisson_nll_loss: counts `target` under a Poisson rate
//   log_input:  f = exp(input) - target input,              df/dinput = exp(input) - target
//   otherwise:  f = input - target log(input + eps),        df/dinput = 1 - target / (input + eps)
//   full adds Stirling's t log t - t + log(2 pi t) / 2 where t = target > 1
// Source: torch.nn.functional.poisson_nll_loss.
#pragma once
#include "core/dual.h"
#include "core/loss.h"

namespace fusedloss::inline FUSEDLOSS_SET {

struct PoissonNllLoss {
  static constexpr Description about{
      .name = "poisson_nll_loss",
      .operands = {"input", "target"},
      .parameters = {{"log_input", Domain::flag}, {"full", Domain::flag}, {"eps", Domain::nonnegative}}};
  bool log_input, full;
  Constant eps;
  explicit PoissonNllLoss(const double* parameters)
      : log_input(parameters[0] != 0), full(parameters[1] != 0), eps(parameters[2]) {}

  template <class V>
  FUSEDLOSS_INLINE Partials<V, 2> operator()(V input, V target) const {
    Partials<V, 2> f = log_input ? of_log_rate(input, target) : of_rate(input, target);
    if (full) {
      constexpr double kHalfLog2Pi = 0.91893853320467274178;
      const auto counts = target > V(1);
      const V log_target = log(target);
      f.value = f.value + select(counts, (target * log_target - target) + (0.5 * log_target + kHalfLog2Pi), V(0));
      f.slope[1] = f.slope[1] + select(counts, log_target + 0.5 / target, V(0));
    }
    return f;
  }

 private:
  template <class V>
  FUSEDLOSS_INLINE static Partials<V, 2> of_log_rate(V input, V target) {
    const V rate = exp(input);
    return {rate - target * input, {rate - target, linear_slope(target, -input)}};
  }
  template <class V>
  FUSEDLOSS_INLINE Partials<V, 2> of_rate(V input, V target) const {
    const V rate = input + eps;
    const V log_rate = log(rate);
    return {input - target * log_rate, {1.0 - target / rate, linear_slope(target, -log_rate)}};
  }
};

}  // namespace fusedloss::inline FUSEDLOSS_SET
