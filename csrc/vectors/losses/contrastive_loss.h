// contrastive_loss: y is 1 where both vectors shall be near each other, 0 where they shall be apart, or in between
//   f = y d^2 + (1 - y) h^2, h = max(margin - d, 0), d the distance
//   df/dd = 2 y d - 2 (1 - y) h;   df/dy = d^2 - h^2
// Source: Hadsell, Chopra, LeCun, "Dimensionality Reduction by Learning an Invariant Mapping", CVPR 2006.
#pragma once
#include "vectors/formula.h"

namespace fusedloss::vectors::inline FUSEDLOSS_SET {

struct ContrastiveLoss {
  static constexpr int kPairs = 1;
  static constexpr Description about{
      .name = "contrastive_loss",
      .operands = {"input1", "input2", "target"},
      .formula = Formula::contrastive,
      .parameters = {{"margin", Domain::nonnegative}, {"p", Domain::positive}},
      .settings = [](const double* given) { return Settings{.margin = given[0], .p = given[1]}; },
      .soft_target = true};

  Constant margin;

  template <class V>
  FUSEDLOSS_INLINE Slopes<V> operator()(const V (&d)[1], V target) const {
    const V gap = positive_part(V(margin) - d[0]);
    const V near = target * d[0], apart = (V(1) - target) * gap;
    return {near * d[0] + apart * gap, {V(2) * (near - apart)}, d[0] * d[0] - gap * gap};
  }
};

}  // namespace fusedloss::vectors::inline FUSEDLOSS_SET
