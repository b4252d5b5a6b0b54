// hinge_embedding_loss: input is a distance, target 1 for alike and -1 for different
//   f = [target is not -1] input + [target is not 1] max(margin - input, 0)
//   df/dinput = [target is not -1] - [target is not 1] [input <= margin]
//   At the corner the derivative is -1, as torch's; target is a label and has none.
// Source: torch.nn.functional.hinge_embedding_loss.
#pragma once
#include "core/dual.h"
#include "core/loss.h"

namespace fusedloss::inline FUSEDLOSS_SET {

struct HingeEmbeddingLoss {
  static constexpr Description about{
      .name = "hinge_embedding_loss", .operands = {"input", "target"}, .parameters = {{"margin", Domain::any}}};
  Constant margin;
  explicit HingeEmbeddingLoss(const double* parameters) : margin(parameters[0]) {}

  template <class V>
  FUSEDLOSS_INLINE Partials<V, 2> operator()(V input, V target) const {
    const V gap = margin - input;
    const auto different = target == V(-1);
    const auto alike = target == V(1);
    const V value = select(different, V(0), input) + select(alike, V(0), max(gap, 0));
    const V slope = select(different, V(0), V(1)) - select(alike, V(0), 1.0 - step(-gap));
    return {value, {linear_slope(input, slope), V(0)}};
  }
};

}  // namespace fusedloss::inline FUSEDLOSS_SET
