// binary_cross_entropy: with p = input a probability and y = target
//   f = -[y max(log p, -100) + (1 - y) max(log(1 - p), -100)]
//   df/dp = (p - y) / max(p (1 - p), 1e-12);   df/dy = max(log(1 - p), -100) - max(log p, -100)
// Source: torch.nn.functional.binary_cross_entropy, whose two bounds these are.
#pragma once
#include "core/dual.h"
#include "core/loss.h"

namespace fusedloss::inline FUSEDLOSS_SET {

struct BinaryCrossEntropy {
  static constexpr Description about{.name = "binary_cross_entropy",
                                     .operands = {"input", "target"},
                                     .shapes = Shapes::same,
                                     .restriction = {0, [](const double*) { return Domain::unit; }}};
  explicit BinaryCrossEntropy(const double*) {}

  template <class V>
  FUSEDLOSS_INLINE Partials<V, 2> operator()(V p, V target) const {
    const V log_p = max(log(p), -100);
    const V log_q = max(log1p(-p), -100);
    const V slope = (p - target) / max(p * (1.0 - p), 1e-12);
    return {-(target * log_p + (1.0 - target) * log_q), {slope, linear_slope(target, log_q - log_p)}};
  }
};

}  // namespace fusedloss::inline FUSEDLOSS_SET
