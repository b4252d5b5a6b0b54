// soft_margin_loss: with z = -target input
//   f = softplus(z) = log(1 + exp(-target input))
//   df/dinput = -target sigmoid(z);   df/dtarget = -input sigmoid(z)
// Source: torch.nn.functional.soft_margin_loss.
#pragma once
#include "core/logistic.h"
#include "core/loss.h"

namespace fusedloss::inline FUSEDLOSS_SET {

struct SoftMarginLoss {
  static constexpr Description about{.name = "soft_margin_loss", .operands = {"input", "target"}};
  explicit SoftMarginLoss(const double*) {}

  template <class V>
  FUSEDLOSS_INLINE Partials<V, 2> operator()(V input, V target) const {
    const Logistic<V> z(-target * input);
    return {z.softplus(), {-target * z.sigmoid(), -input * z.sigmoid()}};
  }
};

}  // namespace fusedloss::inline FUSEDLOSS_SET
