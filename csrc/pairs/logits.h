// What a loss makes of its products before it looks at them: logits, scale * product + bias.
#pragma once
#include "core/instruction_set.h"

namespace fusedloss::pairs::inline FUSEDLOSS_SET {

template <class V>
struct Logits {
  const V scale, bias, scale_dot, bias_dot;

  // From the numbers of a tile.
  FUSEDLOSS_INLINE explicit Logits(const double* numbers)
      : scale(numbers[0]), bias(numbers[1]), scale_dot(numbers[2]), bias_dot(numbers[3]) {}
  FUSEDLOSS_INLINE V at(V product) const { return scale * product + bias; }
  FUSEDLOSS_INLINE V along(V product, V product_dot) const {
    return scale_dot * product + scale * product_dot + bias_dot;
  }
  // Derivatives by a product, of those by its logit.
  FUSEDLOSS_INLINE V by_product(V slope) const { return scale * slope; }
  FUSEDLOSS_INLINE V by_product_along(V slope, V slope_dot) const { return scale_dot * slope + scale * slope_dot; }
};

}  // namespace fusedloss::pairs::inline FUSEDLOSS_SET
