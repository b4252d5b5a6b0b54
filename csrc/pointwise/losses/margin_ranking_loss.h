// margin_ranking_loss: target is 1 where input1 should rank above input2, -1 where below
//   f = max(m, 0), m = margin - target (input1 - input2)
//   df/dinput1 = -target where m >= 0, else 0 = -df/dinput2;   df/dtarget = input2 - input1 there
//   At the corner the derivative is not 0, as torch's: equal scores with margin 0 are driven apart.
// Source: torch.nn.functional.margin_ranking_loss.
#pragma once
#include "core/dual.h"
#include "core/loss.h"

namespace fusedloss::inline FUSEDLOSS_SET {

struct MarginRankingLoss {
  static constexpr Description about{.name = "margin_ranking_loss",
                                     .operands = {"input1", "input2", "target"},
                                     .required_operands = 3,
                                     .parameters = {{"margin", Domain::any}},
                                     .shapes = Shapes::same_rank};
  Constant margin;
  explicit MarginRankingLoss(const double* parameters) : margin(parameters[0]) {}

  template <class V>
  FUSEDLOSS_INLINE Partials<V, 3> operator()(V input1, V input2, V target) const {
    const V lead = input1 - input2;
    const V gap = margin - target * lead;
    const V active = 1.0 - step(-gap);
    return {max(gap, 0), {-target * active, target * active, -lead * active}};
  }
};

}  // namespace fusedloss::inline FUSEDLOSS_SET
