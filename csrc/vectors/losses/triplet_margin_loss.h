// triplet_margin_loss: the negative shall be farther from the anchor than the positive is, by the margin
//   f = max(h, 0), h = margin + d(anchor, positive) - far
//   far = d(anchor, negative), or with swap the smaller of that and d(positive, negative); of equal ones each has half
//   of the slope, as torch.minimum gives it
// Source: Balntas, Riba, Ponsa, Mikolajczyk, "Learning local feature descriptors with triplets and shallow
// convolutional neural networks", BMVC 2016; torch.nn.functional.triplet_margin_loss.
#pragma once
#include "vectors/formula.h"

namespace fusedloss::vectors::inline FUSEDLOSS_SET {

template <bool swap>
struct TripletLoss {
  static constexpr int kPairs = swap ? 3 : 2;
  Constant margin;

  template <class V>
  FUSEDLOSS_INLINE Slopes<V> operator()(const V (&d)[kPairs], V) const {
    V far = d[1], share = 1;
    if constexpr (swap) {
      const V middle = V(0.5) * (d[1] + d[2]);  // NaN if one of them is
      far = select(d[1] < d[2], d[1], select(d[2] < d[1], d[2], middle));
      share = select(d[1] < d[2], V(1), select(d[2] < d[1], V(0), select(d[1] == d[2], V(0.5), middle)));
    }
    const V lead = V(margin) + d[0] - far;
    const V active = is_positive(lead);
    Slopes<V> found{positive_part(lead), {active, -active * share}, V(0)};
    if constexpr (swap) found.by_distance[2] = -active * (V(1) - share);
    return found;
  }
};

struct TripletMarginLoss {
  static constexpr Description about{.name = "triplet_margin_loss",
                                     .operands = {"anchor", "positive", "negative"},
                                     .formula = Formula::triplet,
                                     .parameters = {{"margin", Domain::nonnegative},
                                                    {"p", Domain::positive},
                                                    {"eps", Domain::any},
                                                    {"swap", Domain::flag}},
                                     .settings = [](const double* given) {
                                       return Settings{
                                           .margin = given[0], .p = given[1], .eps = given[2], .swap = given[3] != 0};
                                     }};
};

}  // namespace fusedloss::vectors::inline FUSEDLOSS_SET
