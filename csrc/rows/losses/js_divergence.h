// js_divergence: for two distributions p and q and m = beta p + (1 - beta) q
//   f = beta sum_c p_c log(p_c / m_c) + (1 - beta) sum_c q_c log(q_c / m_c), where p_c = 0 and q_c = 0 add nothing
//   df/dp_c = beta log(p_c / m_c), 0 where p_c = 0;   df/dq_c = (1 - beta) log(q_c / m_c), 0 where q_c = 0
// js_divergence_with_logits: for p = softmax(a) and q = softmax(b), given a and b
//   df/da_c = beta p_c (log(p_c / m_c) - sum_k p_k log(p_k / m_k)), and likewise by b
// Source: Lin 1991, Divergence Measures Based on the Shannon Entropy.
#pragma once
#include "rows/softmax.h"

namespace fusedloss::rows::inline FUSEDLOSS_SET {

struct JsDivergence {
  static constexpr Description about{.name = "js_divergence",
                                     .operands = {"p", "q"},
                                     .targets = Targets::dense,
                                     .parameters = {{"beta", Domain::open_unit}},
                                     .batchmean = true,
                                     .row_weight = "weight"};
  static constexpr bool dense = true;
  static constexpr Stage stages[] = {{Combine::sum, 1}};
  Constant beta, rest;  // rest: 1 - beta

  template <class V>
  struct Row : RowStart<V> {
    V loss;
  };

  template <int stage, class V, class At>
  FUSEDLOSS_INLINE Terms<V, 1> term(const Row<V>&, const At& at) const {
    const V p = at.input(), q = at.target(), m = beta * p + rest * q;
    return {{beta * (p * log_ratio(p, m)) + rest * (q * log_ratio(q, m))}};
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
    const V p = at.input(), q = at.target(), m = beta * p + rest * q;
    return {at.wants(0) ? beta * log_ratio(p, m) : V(0), at.wants(1) ? rest * log_ratio(q, m) : V(0)};
  }

  template <bool dense, class Use>
  static void with_formula(const double* parameters, int64_t, Use use) {
    use(JsDivergence{parameters[0], 1 - parameters[0]});
  }

 private:
  template <class V>
  FUSEDLOSS_INLINE static V log_ratio(V x, V mean) {
    return select(x == V(0), V(0), log(x / mean));
  }
};

struct JsDivergenceWithLogits {
  static constexpr Description about{.name = "js_divergence_with_logits",
                                     .operands = {"p", "q"},
                                     .targets = Targets::dense,
                                     .parameters = {{"beta", Domain::open_unit}},
                                     .batchmean = true,
                                     .row_weight = "weight",
                                     .heavy = true};
  static constexpr bool dense = true, heavy = true;
  static constexpr Stage stages[] = {{Combine::largest, 2}, {Combine::sum, 2}, {Combine::sum, 2}};
  Constant beta, rest;  // rest: 1 - beta

  template <class V>
  struct Row : RowStart<V> {
    Softmax<V> p, q;
    V from_p, from_q;  // the divergences of p and of q from their mean
  };
  // The logarithms of p / m and q / m
  template <class V>
  struct Ratios {
    V of_p, of_q;
  };

  template <int stage, class V, class At>
  FUSEDLOSS_INLINE Terms<V, 2> term(const Row<V>& row, const At& at) const {
    const V a = at.input(), b = at.target();
    if constexpr (stage == 0) return {{a, b}};
    const V p = row.p.share(a), q = row.q.share(b);
    if constexpr (stage == 1) return {{p, q}};
    const Ratios<V> log_ratio = ratios(row, a, b);
    return {{present(p, p * log_ratio.of_p), present(q, q * log_ratio.of_q)}};
  }
  template <int stage, class V>
  FUSEDLOSS_INLINE void close(Row<V>& row, const Terms<V, 2>& terms) const {
    if constexpr (stage == 0) {
      row.p.top = terms.of[0];
      row.q.top = terms.of[1];
    } else if constexpr (stage == 1) {
      row.p.close(terms.of[0]);
      row.q.close(terms.of[1]);
    } else {
      row.from_p = terms.of[0] * row.p.inverse;
      row.from_q = terms.of[1] * row.q.inverse;
    }
  }
  template <class V>
  FUSEDLOSS_INLINE V value(const Row<V>& row) const {
    return beta * row.from_p + rest * row.from_q;
  }
  template <class V, class At>
  FUSEDLOSS_INLINE Slopes<V> slopes(const Row<V>& row, const At& at) const {
    const V a = at.input(), b = at.target();
    const Ratios<V> log_ratio = ratios(row, a, b);
    return {at.wants(0) ? row.p.times_probability(a, beta * (log_ratio.of_p - row.from_p)) : V(0),
            at.wants(1) ? row.q.times_probability(b, rest * (log_ratio.of_q - row.from_q)) : V(0)};
  }

  template <bool dense, class Use>
  static void with_formula(const double* parameters, int64_t, Use use) {
    use(JsDivergenceWithLogits{parameters[0], 1 - parameters[0]});
  }

 private:
  template <class V>
  FUSEDLOSS_INLINE static V present(V share, V x) {
    return select(share == V(0), V(0), x);
  }
  // With d = |log p - log q|, m is the larger of p and q times 1 + w (e^-d - 1), where w is the weight of the other.
  template <class V>
  FUSEDLOSS_INLINE Ratios<V> ratios(const Row<V>& row, V a, V b) const {
    const V difference = row.p.log_probability(a) - row.q.log_probability(b);
    const auto q_is_larger = difference < V(0);
    const V d = select(q_is_larger, -difference, difference);  // not abs: at 0 it has a derivative here
    const V of_larger = -log1p(select(q_is_larger, V(beta), V(rest)) * expm1(-d)), of_smaller = of_larger - d;
    return {select(q_is_larger, of_smaller, of_larger), select(q_is_larger, of_larger, of_smaller)};
  }
};

}  // namespace fusedloss::rows::inline FUSEDLOSS_SET
