// nll_loss: with x = input, the logarithms of probabilities, y the label and w the class weights
//   f = -w_y x_y;   df/dx_y = -w_y, 0 elsewhere
// Source: torch.nn.functional.nll_loss.
#pragma once
#include <array>

#include "rows/formula.h"

namespace fusedloss::rows::inline FUSEDLOSS_SET {

struct NllLoss {
  static constexpr Description about{.name = "nll_loss", .weighted_mean = true, .reads_label_only = true};
  static constexpr bool dense = false;
  static constexpr std::array<Stage, 0> stages{};

  template <class V>
  using Row = RowStart<V>;
  template <class V>
  FUSEDLOSS_INLINE V value(const Row<V>& row) const {
    return -row.weight * row.input;
  }
  template <class V, class At>
  FUSEDLOSS_INLINE Slopes<V> slopes(const Row<V>& row, const At& at) const {
    return {select(at.is_label(), linear_slope(row.input, -row.weight), V(0)), 0};
  }

  template <bool dense, class Use>
  static void with_formula(const double*, int64_t, Use use) {
    use(NllLoss{});
  }
};

}  // namespace fusedloss::rows::inline FUSEDLOSS_SET
