// kl_div: input is log q; p is target, or exp(target) if log_target
//   f = p (log p - input), 0 where p = 0
//   df/dinput = -p;   df/dtarget = log p + 1 - input, times p if log_target; 0 where p = 0
// Source: Kullback & Leibler 1951; torch.nn.functional.kl_div.
#pragma once
#include "core/dual.h"
#include "core/loss.h"

namespace fusedloss::inline FUSEDLOSS_SET {

struct KlDiv {
  static constexpr Description about{.name = "kl_div",
                                     .operands = {"input", "target"},
                                     .parameters = {{"log_target", Domain::flag}},
                                     .grouped = Reduction::batchmean};
  bool log_target;
  explicit KlDiv(const double* parameters) : log_target(parameters[0] != 0) {}

  template <class V>
  FUSEDLOSS_INLINE Partials<V, 2> operator()(V input, V target) const {
    const V p = log_target ? exp(target) : target;
    const V log_p = log_target ? target : log(target);
    const V excess = log_p - input;
    // p = 0 makes the term 0 whatever the logarithms are, but a NaN in either argument is kept.
    const auto absent = (p == V(0)) & (input == input);
    const V by_target = log_target ? p * (excess + 1.0) : (log_p + 1.0) - input;
    return {select(absent, V(0), p * excess), {linear_slope(input, -p), select(absent, V(0), by_target)}};
  }
};

}  // namespace fusedloss::inline FUSEDLOSS_SET
