// binary_cross_entropy_with_logits: with x = input a logit, y = target (1 - label_smoothing) + label_smoothing / 2,
// and w = pos_weight (1 when not given)
//   f = (1 - y) softplus(x) + w y softplus(-x)
//   df/dx = (1 - y) sigmoid(x) - w y sigmoid(-x)
//   df/dy = w softplus(-x) - softplus(x);   df/dw = y softplus(-x)
// Source: torch.nn.functional.binary_cross_entropy_with_logits; label_smoothing is Keras's.
#pragma once
#include "core/logistic.h"
#include "core/loss.h"

namespace fusedloss::inline FUSEDLOSS_SET {

struct BinaryCrossEntropyWithLogits {
  static constexpr Description about{.name = "binary_cross_entropy_with_logits",
                                     .operands = {"input", "target", "pos_weight"},
                                     .parameters = {{"label_smoothing", Domain::unit}},
                                     .shapes = Shapes::same};
  Constant kept, shift;
  explicit BinaryCrossEntropyWithLogits(const double* parameters) : kept(1 - parameters[0]), shift(parameters[0] / 2) {}

  template <class V>
  FUSEDLOSS_INLINE Partials<V, 3> operator()(V input, V target, V pos_weight) const {
    const Logistic<V> x(input);
    const V y = target * kept + shift;
    const V positive = pos_weight * y;
    return {(1.0 - y) * x.softplus() + positive * x.softplus_negative(),
            {(1.0 - y) * x.sigmoid() - positive * x.sigmoid_negative(),
             linear_slope(target, kept * (pos_weight * x.softplus_negative() - x.softplus())),
             linear_slope(pos_weight, y * x.softplus_negative())}};
  }
  template <class V>
  FUSEDLOSS_INLINE Partials<V, 2> operator()(V input, V target) const {
    const LabelledLogit<V> x(input, target * kept + shift);
    return {x.cross_entropy(), {x.turned(x.excess()), linear_slope(target, -(kept * input))}};
  }
};

}  // namespace fusedloss::inline FUSEDLOSS_SET
