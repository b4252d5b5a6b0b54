// multi_margin_loss: with x = input of C classes, y the label, w the class weights and h = max(0, margin - x_y + x_c)
//   f = w_y / C sum_{c != y} h_c^p
//   df/dx_c = w_y / C p h_c^(p-1) where h_c > 0;   df/dx_y = -sum of the others
// Source: torch.nn.functional.multi_margin_loss.
#pragma once
#include "rows/formula.h"

namespace fusedloss::rows::inline FUSEDLOSS_SET {

template <bool squared>
struct MultiMarginFormula {
  static constexpr bool dense = false;
  static constexpr Stage stages[] = {{Combine::sum, 2}};
  Constant margin;

  template <class V>
  struct Row : RowStart<V> {
    V factor, sum, slope;
  };

  template <int stage, class V, class At>
  FUSEDLOSS_INLINE Terms<V, 2> term(const Row<V>& row, const At& at) const {
    const V excess = excess_at(row, at), positive = positive_part(excess);
    return {{squared ? positive * positive : positive, slope_of(excess)}};
  }
  template <int stage, class V>
  FUSEDLOSS_INLINE void close(Row<V>& row, const Terms<V, 2>& terms) const {
    row.factor = row.weight / row.classes;
    row.sum = terms.of[0];
    row.slope = terms.of[1];
  }
  template <class V>
  FUSEDLOSS_INLINE V value(const Row<V>& row) const {
    return row.factor * row.sum;
  }
  template <class V, class At>
  FUSEDLOSS_INLINE Slopes<V> slopes(const Row<V>& row, const At& at) const {
    return {row.factor * select(at.is_label(), -row.slope, slope_of(excess_at(row, at))), 0};
  }

 private:
  // At the label there is none.
  template <class V, class At>
  FUSEDLOSS_INLINE V excess_at(const Row<V>& row, const At& at) const {
    return select(at.is_label(), V(0), margin - row.input + at.input());
  }
  template <class V>
  FUSEDLOSS_INLINE static V positive_part(V x) {
    return select(x < V(0), V(0), x);
  }
  template <class V>
  FUSEDLOSS_INLINE static V slope_of(V excess) {
    return squared ? 2.0 * positive_part(excess) : step(excess);
  }
};

struct MultiMargin {
  static constexpr Description about{.name = "multi_margin_loss",
                                     .parameters = {{"p", Domain::one_or_two}, {"margin", Domain::any}}};
  template <bool dense, class Use>
  static void with_formula(const double* parameters, int64_t, Use use) {
    if (parameters[0] == 2) return use(MultiMarginFormula<true>{parameters[1]});
    use(MultiMarginFormula<false>{parameters[1]});
  }
};

}  // namespace fusedloss::rows::inline FUSEDLOSS_SET
