// categorical_cross_entropy: with r = p / sum(p) for p = input, c(r) = r clipped to [eps, 1 - eps], eps = 1e-7,
// t = (1 - s) target + s / C for smoothing s, and w the class weights
//   f = -sum_c w_c t_c log c(r_c)
//   df/dp_c = (E - e_c / r_c) / sum(p) with e = w t where r is not clipped, 0 elsewhere, and E = sum(e)
//   df/dtarget_c = -(1 - s) w_c log c(r_c)
// A label y is the target that is 1 at y.
// Source: keras.losses.categorical_crossentropy and sparse_categorical_crossentropy.
#pragma once
#include <array>

#include "rows/formula.h"

namespace fusedloss::rows::inline FUSEDLOSS_SET {

// `soft`: the target has mass at every class, and not only at a label.
template <bool is_dense, bool soft>
struct CategoricalCrossEntropyFormula {
  static constexpr bool dense = is_dense;
  static constexpr auto stages = [] {
    if constexpr (soft)
      return std::array{Stage{Combine::sum, 1}, Stage{Combine::sum, 2}};
    else
      return std::array{Stage{Combine::sum, 1}};
  }();
  Constant kept, spread;

  CategoricalCrossEntropyFormula(const double* parameters, int64_t classes)
      : kept(1 - parameters[0]), spread(parameters[0] / double(classes)) {}

  template <class V>
  struct Row : RowStart<V> {
    V total;        // sum(p); divided by, as its inverse may overflow
    V loss, inner;  // E
  };

  template <int stage, class V, class At>
  FUSEDLOSS_INLINE auto term(const Row<V>& row, const At& at) const {
    if constexpr (stage == 0) {
      return Terms<V, 1>{{at.input()}};
    } else {
      const Share<V> share(at.input() / row.total);
      const V mass = mass_at(V(), at);
      return Terms<V, 2>{{-mass * share.logarithm(), share.passed(mass)}};
    }
  }
  template <int stage, class V>
  FUSEDLOSS_INLINE void close(Row<V>& row, const Terms<V, stages[stage].terms>& terms) const {
    if constexpr (stage == 1) {
      row.loss = terms.of[0];
      row.inner = terms.of[1];
      return;
    }
    row.total = terms.of[0];
    if constexpr (!soft) {
      const Share<V> share(row.input / row.total);
      row.loss = -row.weight * share.logarithm();
      row.inner = share.passed(row.weight);
    }
  }
  template <class V>
  FUSEDLOSS_INLINE V value(const Row<V>& row) const {
    return row.loss;
  }
  template <class V, class At>
  FUSEDLOSS_INLINE Slopes<V> slopes(const Row<V>& row, const At& at) const {
    const Share<V> share(at.input() / row.total);
    if constexpr (soft) {
      const V mass = mass_at(V(), at);
      const V by_target = dense && at.wants(1) ? -(kept * at.weight()) * share.logarithm() : V(0);
      return {(row.inner - share.passed(mass / share.ratio)) / row.total, by_target};
    } else {
      const V own = select(at.is_label(), share.passed(row.weight / share.ratio), V(0));
      return {(row.inner - own) / row.total, 0};
    }
  }

 private:
  static constexpr double kEps = 1e-7;
  template <class V>
  struct Share {
    V ratio, clipped;
    FUSEDLOSS_INLINE explicit Share(V r) : ratio(r), clipped(min(max(r, kEps), 1 - kEps)) {}
    FUSEDLOSS_INLINE V logarithm() const { return log(clipped); }
    // x where nothing is clipped; NaN is not.
    FUSEDLOSS_INLINE V passed(V x) const { return select((ratio < V(kEps)) | (ratio > V(1 - kEps)), V(0), x); }
  };
  template <class V, class At>
  FUSEDLOSS_INLINE V mass_at(V, const At& at) const {
    return at.weight() * (kept * at.target() + spread);
  }
};

struct CategoricalCrossEntropy {
  static constexpr Description about{.name = "categorical_cross_entropy",
                                     .targets = Targets::labels_or_dense,
                                     .parameters = {{"label_smoothing", Domain::unit}},
                                     .weighs_mass = true};
  template <bool dense, class Use>
  static void with_formula(const double* parameters, int64_t classes, Use use) {
    if constexpr (!dense)
      if (parameters[0] == 0) return use(CategoricalCrossEntropyFormula<dense, false>(parameters, classes));
    use(CategoricalCrossEntropyFormula<dense, true>(parameters, classes));
  }
};

}  // namespace fusedloss::rows::inline FUSEDLOSS_SET
