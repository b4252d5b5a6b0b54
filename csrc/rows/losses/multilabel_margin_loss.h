// multilabel_margin_loss: with x = input of C classes and t_c how often class c is in the list of those that are right
//   f = 1/C sum_{j: t_j > 0} t_j sum_{i: t_i = 0} max(0, 1 - x_j + x_i)
//   df/dx_i = 1/C sum_{j: x_j < 1 + x_i} t_j where t_i = 0;   df/dx_j = -t_j/C (how many i have that) where t_j > 0
// Source: torch.nn.functional.multilabel_margin_loss.
#pragma once
#include "rows/formula.h"

namespace fusedloss::rows::inline FUSEDLOSS_SET {

struct MultilabelMargin {
  static constexpr Description about{.name = "multilabel_margin_loss", .targets = Targets::lists};
  static constexpr bool dense = true;
  static constexpr Stage stages[] = {{Combine::sum, 1}};

  template <class V>
  struct Row : RowStart<V> {
    V loss;
  };

  template <int stage, class V, class At>
  FUSEDLOSS_INLINE Terms<V, 1> term(const Row<V>&, const At& at) const {
    const V x = at.input();
    V sum = 0;
    at.each_class(/*with_target=*/true, [&](V right, V times, auto is_right) {
      const V excess = 1.0 - right + x;
      sum = sum + select(is_right, times * select(excess < V(0), V(0), excess), V(0));
    });
    return {{select(at.target() == V(0), sum, V(0))}};
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
    const V x = at.input(), own_times = at.target();
    const auto is_listed = own_times > V(0);
    V rises = 0, falls = 0;
    at.each_class(true, [&](V right, V times, auto is_right) {
      rises = rises + select(is_right, times * step(1.0 - right + x), V(0));
    });
    if (any(is_listed))
      at.each_class(false,
                    [&](V wrong, V, auto is_other) { falls = falls + select(is_other, step(1.0 - x + wrong), V(0)); });
    return {select(is_listed, -own_times * falls, rises) / row.classes, 0};
  }

  template <bool dense, class Use>
  static void with_formula(const double*, int64_t, Use use) {
    use(MultilabelMargin{});
  }
};

}  // namespace fusedloss::rows::inline FUSEDLOSS_SET
