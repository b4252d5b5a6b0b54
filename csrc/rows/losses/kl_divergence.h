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
  static constexpr Description about{.name = "kl_divergence",
                                     .operands = {"p", "q"},
                                     .targets = Targets::dense,
                                     .batchmean = true,
                                     .row_weight = "weight"};
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
    return {at.wants(0) ? select(none, V(0), log(p) - log(q) + 1.0) : V(0),
            at.wants(1) ? select(none, V(0), -p / q) : V(0)};
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
                                     .parameters = {{"temperature", Domain::positive}},
                                     .batchmean = true,
                                     .row_weight = "weight",
                                     .heavy = true};
  static constexpr bool dense = true, heavy = true;
  static constexpr int kept = 2;
  static constexpr Stage stages[] = {{Combine::largest, 2}, {Combine::sum, 3}, {Combine::sum, 1}};
  Constant sharpness;  // 1 / T

  template <class V>
  struct Row : RowStart<V> {
    Softmax<V, true> p, q;
    V loss;
  };

  template <int stage, class V, class At>
  FUSEDLOSS_INLINE auto term(const Row<V>& row, const At& at) const {
    const V a = at.input(), b = at.target();
    if constexpr (stage == 0)
      return Terms<V, 2>{{a, b}};
    else if constexpr (stage == 1)
      return shares(row, at, a, b);
    else
      return Terms<V, 1>{{excess(row, at, a, b)}};
  }
  template <int stage, class V>
  FUSEDLOSS_INLINE void close(Row<V>& row, const Terms<V, stages[stage].terms>& terms) const {
    if constexpr (stage == 0) {
      row.p.top = terms.of[0];
      row.q.top = terms.of[1];
      row.p.sharpness = row.q.sharpness = sharpness;
    } else if constexpr (stage == 1) {
      row.p.close(terms.of[0]);
      row.q.close(terms.of[1]);
      row.loss = terms.of[2] * row.p.inverse - log(row.p.sum * row.q.inverse);
    } else {
      row.loss = is_dual<V> ? terms.of[0] : select(is_near(row), terms.of[0], row.loss);
    }
  }
  // The last stage is for distributions so near to one another that the difference in the one before has lost digits.
  template <int stage, class V>
  FUSEDLOSS_INLINE bool skips(const Row<V>& row) const {
    if constexpr (stage < 2 || is_dual<V>)
      return false;
    else
      return !any(is_near(row));
  }
  template <class V>
  FUSEDLOSS_INLINE V value(const Row<V>& row) const {
    return row.loss;
  }
  template <class V, class At>
  FUSEDLOSS_INLINE Slopes<V> slopes(const Row<V>& row, const At& at) const {
    const V a = at.input(), b = at.target();
    const V by_a = at.wants(0) ? row.p.times_probability(a, distance(row, a, b) - row.loss) : V(0);
    const V by_b = row.q.template probability_at<1>(at, b) - row.p.template probability_at<0>(at, a);
    return {sharpness * by_a, sharpness * by_b};
  }

  template <bool dense, class Use>
  static void with_formula(const double* parameters, int64_t, Use use) {
    use(KlDivergenceWithLogits{1 / parameters[0]});
  }

 private:
  template <class V>
  FUSEDLOSS_INLINE static auto is_near(const Row<V>& row) {
    return row.loss < V(0.125);
  }
  template <class V, class At>
  FUSEDLOSS_INLINE static Terms<V, 3> shares(const Row<V>& row, const At& at, V a, V b) {
    const V p = at.template keep<0>(row.p.share(a)), q = at.template keep<1>(row.q.share(b));
    return {{p, q, select(p == V(0), V(0), p * (row.p.below_top(a) - row.q.below_top(b)))}};
  }
  // log p - log q
  template <class V>
  FUSEDLOSS_INLINE static V distance(const Row<V>& row, V a, V b) {
    return row.p.log_probability(a) - row.q.log_probability(b);
  }
  // p (log p - log q) + q - p. What is added has the sum 0 over a row, but no class has less than 0 now: where p and q
  // are nearly the same, nothing cancels, and an error of the sums of exponentials does not show.
  template <class V, class At>
  FUSEDLOSS_INLINE static V excess(const Row<V>& row, const At& at, V a, V b) {
    const V p = row.p.template probability_at<0>(at, a), q = row.q.template probability_at<1>(at, b);
    const V d = distance(row, a, b);
    const auto near = (d < V(0.34)) & (d > V(-0.34));
    return select(p == V(0), q, select(near, p * exp_beyond_linear(-d), p * d + (q - p)));
  }
};

}  // namespace fusedloss::rows::inline FUSEDLOSS_SET
