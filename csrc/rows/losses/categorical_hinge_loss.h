// categorical_hinge_loss: with x = input, y the label, t a dense target and w the class weights
//   f = w_y max(0, 1 + max_{c != y} x_c - x_y), or max(0, 1 + max_c (1 - t_c) x_c - sum_c t_c x_c)
// Where it is positive, df/dx is -w_y at y and w_y at the largest other class; or -t_c, and 1 - t_c more at the largest
// (1 - t_c) x_c; df/dtarget_c = -x_c, and -x_c more there. Classes that are largest together share what is theirs.
// Source: keras.losses.categorical_hinge; Crammer & Singer 2001.
#pragma once
#include "rows/formula.h"

namespace fusedloss::rows::inline FUSEDLOSS_SET {

template <bool is_dense>
struct CategoricalHingeFormula {
  static constexpr bool dense = is_dense;
  static constexpr Stage stages[] = {{Combine::largest, 1}, {Combine::sum, dense ? 3 : 2}};

  template <class V>
  struct Row : RowStart<V> {
    V largest, share, loss;  // share: what a class that is largest has of the slope
    V weight_if_positive;
  };

  template <int stage, class V, class At>
  FUSEDLOSS_INLINE auto term(const Row<V>& row, const At& at) const {
    const V other = other_at(V(), at);
    if constexpr (stage == 0) {
      return Terms<V, 1>{{other}};
    } else {
      const auto is_largest = other == row.largest;
      // Beside `largest`, which is a constant here: its change, and what is NaN, which is never larger.
      const V kept = select(is_largest, change_of(other), select(other == other, V(0), other));
      const V one = select(is_largest, V(1), V(0));
      if constexpr (dense)
        return Terms<V, 3>{{one, kept, at.target() * at.input()}};
      else
        return Terms<V, 2>{{one, kept}};
    }
  }
  template <int stage, class V>
  FUSEDLOSS_INLINE void close(Row<V>& row, const Terms<V, stages[stage].terms>& terms) const {
    if constexpr (stage == 0) {
      row.largest = terms.of[0];
    } else {
      row.share = 1.0 / terms.of[0];
      V own = row.input, weight = row.weight;
      if constexpr (dense) {
        own = terms.of[2];
        weight = 1;
      }
      const V margin = 1.0 + ((row.largest + terms.of[1] * row.share) - own);
      row.weight_if_positive = weight * step(margin);
      row.loss = weight * select(margin > V(0), margin, select(margin == margin, V(0), margin));
    }
  }
  template <class V>
  FUSEDLOSS_INLINE V value(const Row<V>& row) const {
    return row.loss;
  }
  template <class V, class At>
  FUSEDLOSS_INLINE Slopes<V> slopes(const Row<V>& row, const At& at) const {
    const V share = select(other_at(V(), at) == row.largest, row.share, V(0));
    if constexpr (dense) {
      const V t = at.target(), x = at.input();
      return {row.weight_if_positive * (share * (1.0 - t) - t),
              at.wants(1) ? -row.weight_if_positive * (share * x + x) : V(0)};
    } else {
      return {row.weight_if_positive * select(at.is_label(), V(-1), share), 0};
    }
  }

 private:
  // What the others' largest is taken of.
  template <class V, class At>
  FUSEDLOSS_INLINE V other_at(V, const At& at) const {
    if constexpr (dense)
      return (1.0 - at.target()) * at.input();
    else
      return select(at.is_label(), V(-__builtin_inf()), at.input());
  }
};

struct CategoricalHinge {
  static constexpr Description about{.name = "categorical_hinge_loss", .targets = Targets::labels_or_dense};
  template <bool dense, class Use>
  static void with_formula(const double*, int64_t, Use use) {
    use(CategoricalHingeFormula<dense>{});
  }
};

}  // namespace fusedloss::rows::inline FUSEDLOSS_SET
