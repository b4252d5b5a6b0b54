// kl_divergence: for two distributions p and q
//   f = sum_c p_c (log p_c - log q_c), where p_c = 0 adds nothing
//   df/dp_c = log p_c - log q_c + 1;   df/dq_c = -p_c / q_c;   both 0 where p_c = 0
// kl_divergence_with_logits: for p = softmax(a / T) and q = softmax(b / T), given a and b
//   df/da_c = p_c (log p_c - log q_c - f) / T;   df/db_c = (q_c - p_c) / T
// Source: Kullback & Leibler 1951; with a temperature T: Hinton et al. 2015, Distilling the Knowledge in a Neural
// Network.
#pragma once
#include "rows/softmax.h"

namespace fusedloss::rows::inline FUSEDLOSS_SET {

struct KlDivergence {
  static constexpr Description about{.name = "kl_divergence", .operands = {"p", "q"}, .targets = Targets::dense};
  static constexpr bool dense = true;
  static constexpr Stage stages[] = {{Combine::sum, 1}};

  template <class V>
  struct Row : RowStart<V> {
    V loss;
  };

  template <int stage, class V, class At>
  FUSEDLOSS_INLINE Terms<V, 1> term(const Row<V>&, const At& at) const {
    const V p = at.input(), q = at.target();
    return {{select(absent(p, q), V(0), p * (log(p) - log(q)))}};
  }
  template <int stage, class V>
  FUSEDLOSS_INLINE void close(Row<V>& row, const Terms<V, 1>& terms) const {
    row.loss = terms.of[0];
  }
  template <class V>
  FUSEDLOSS_INLINE V value(const Row<V>& row) const {
    return row.loss;
  }
  template <class V, class At>
  FUSEDLOSS_INLINE Slopes<V> slopes(const Row<V>&, const At& at) const {
    const V p = at.input(), q = at.target();
    const auto none = absent(p, q);
    return {select(none, V(0), log(p) - log(q) + 1.0), select(none, V(0), -p / q)};
  }

  template <bool dense, class Use>
  static void with_formula(const double*, int64_t, Use use) {
    use(KlDivergence{});
  }

 private:
  template <class V>
  FUSEDLOSS_INLINE static auto absent(V p, V q) {
    return (p == V(0)) & (q == q);
  }
};

struct KlDivergenceWithLogits {
  static constexpr Description about{.name = "kl_divergence_with_logits",
                                     .operands = {"p", "q"},
                                     .targets = Targets::dense,
                                     .parameters = {{"temperature", Domain::positive}}};
  static constexpr bool dense = true;
  static constexpr Stage stages[] = {{Combine::largest, 2}, {Combine::sum, 3}};
  Constant sharpness;  // 1 / T

  template <class V>
  struct Row : RowStart<V> {
    Softmax<V> p, q;
    V shift, loss;  // shift: what log p - log q has that is the same for all classes
  };

  template <int stage, class V, class At>
  FUSEDLOSS_INLINE auto term(const Row<V>& row, const At& at) const {
    const V a = sharpness * at.input(), b = sharpness * at.target();
    if constexpr (stage == 0) {
      return Terms<V, 2>{{a, b}};
    } else {
      const V p = row.p.share(a);
      return Terms<V, 3>{{p, row.q.share(b), select(p == V(0), V(0), p * distance(row, a, b))}};
    }
  }
  template <int stage, class V>
  FUSEDLOSS_INLINE void close(Row<V>& row, const Terms<V, stages[stage].terms>& terms) const {
    if constexpr (stage == 0) {
      row.p.top = terms.of[0];
      row.q.top = terms.of[1];
    } else {
      row.p.close(terms.of[0]);
      row.q.close(terms.of[1]);
      row.shift = row.q.log_sum - row.p.log_sum;
      row.loss = terms.of[2] * row.p.inverse + row.shift;
    }
  }
  template <class V>
  FUSEDLOSS_INLINE V value(const Row<V>& row) const {
    return row.loss;
  }
  template <class V, class At>
  FUSEDLOSS_INLINE Slopes<V> slopes(const Row<V>& row, const At& at) const {
    const V a = sharpness * at.input(), b = sharpness * at.target();
    const V p = row.p.probability(a), q = row.q.probability(b);
    const V by_a = select(p == V(0), V(0), p * (distance(row, a, b) + (row.shift - row.loss)));
    return {sharpness * by_a, sharpness * (q - p)};
  }

  template <bool dense, class Use>
  static void with_formula(const double* parameters, int64_t, Use use) {
    use(KlDivergenceWithLogits{1 / parameters[0]});
  }

 private:
  // log p - log q without the shift
  template <class V>
  FUSEDLOSS_INLINE static V distance(const Row<V>& row, V a, V b) {
    return (a - row.p.top) - (b - row.q.top);
  }
};

}  // namespace fusedloss::rows::inline FUSEDLOSS_SET
