// cosine_embedding_loss: target is 1 where both vectors shall point in one direction, -1 where they shall not
//   f = 1 - cos for 1;  max(cos - margin, 0) for -1;  0 for every other target, as torch's
//   cos = a.b / sqrt((|a|^2 + 1e-12) (|b|^2 + 1e-12))
// Source: torch.nn.functional.cosine_embedding_loss.
#pragma once
#include "vectors/formula.h"

namespace fusedloss::vectors::inline FUSEDLOSS_SET {

struct CosineEmbeddingLoss {
  static constexpr int kPairs = 1;
  static constexpr Description about{
      .name = "cosine_embedding_loss",
      .operands = {"input1", "input2", "target"},
      .formula = Formula::cosine_embedding,
      .parameters = {{"margin", Domain::any}},
      .settings = [](const double* given) { return Settings{.margin = given[0], .distance = Distance::cosine}; }};

  Constant margin;

  template <class V>
  FUSEDLOSS_INLINE Slopes<V> operator()(const V (&similarity)[1], V target) const {
    const auto alike = target == V(1), other = target == V(-1);
    const V above = similarity[0] - V(margin);
    return {select(alike, V(1) - similarity[0], select(other, positive_part(above), V(0))),
            {select(alike, V(-1), select(other, is_positive(above), V(0)))},
            V(0)};
  }
};

}  // namespace fusedloss::vectors::inline FUSEDLOSS_SET
