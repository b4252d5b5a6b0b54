// multilabel_soft_margin_loss: with x = input of C classes, t = target and w the class weights
//   f = 1/C sum_c w_c (log(1 + e^x_c) - t_c x_c), the mean of the binary cross-entropies of the classes
//   df/dx_c = w_c (sigmoid(x_c) - t_c) / C;   df/dt_c = -w_c x_c / C
// Source: torch.nn.functional.multilabel_soft_margin_loss.
#pragma once
#include "core/logistic.h"
#include "rows/formula.h"

namespace fusedloss::rows::inline FUSEDLOSS_SET {

struct MultilabelSoftMargin {
  static constexpr Description about{.name = "multilabel_soft_margin_loss", .targets = Targets::dense};
  static constexpr bool dense = true;
  static constexpr Stage stages[] = {{Combine::sum, 1}};

  template <class V>
  struct Row : RowStart<V> {
    V loss;
  };

  template <int stage, class V, class At>
  FUSEDLOSS_INLINE Terms<V, 1> term(const Row<V>&, const At& at) const {
    return {{at.weight() * LabelledLogit<V>(at.input(), at.target()).cross_entropy()}};
  }
  template <int stage, class V>
  FUSEDLOSS_INLINE void close(Row<V>& row, const Terms<V, 1>& terms) const {
    row.loss = terms.of[0] / row.classes;
  }
  template <class V>
  FUSEDLOSS_INLINE V value(const Row<V>& row) const {
    return row.loss;
  }
  template <class V, class At>
  FUSEDLOSS_INLINE Slopes<V> slopes(const Row<V>& row, const At& at) const {
    const LabelledLogit<V> x(at.input(), at.target());
    const V factor = at.weight() / row.classes;
    return {factor * x.turned(x.excess()), at.wants(1) ? -factor * at.input() : V(0)};
  }

  template <bool dense, class Use>
  static void with_formula(const double*, int64_t, Use use) {
    use(MultilabelSoftMargin{});
  }
};

}  // namespace fusedloss::rows::inline FUSEDLOSS_SET
