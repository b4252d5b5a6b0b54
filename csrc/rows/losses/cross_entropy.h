// cross_entropy: with x = input, or cap tanh(input / cap), p = softmax(x), q = (1 - s) target + s / C for smoothing s,
// and w the class weights
//   f = -sum_c w_c q_c log p_c + z log(sum_c e^x_c)^2
//   df/dx_c = p_c (sum_k w_k q_k + 2 z log(sum_k e^x_k)) - w_c q_c;   df/dtarget_c = -(1 - s) w_c log p_c
// A label y is the target that is 1 at y. A class with w_c q_c = 0 adds nothing, also where log p_c is -inf.
// Source: torch.nn.functional.cross_entropy; z: de Brebisson & Vincent 2016, in PaLM; cap: Gemma 2.
#pragma once
#include "rows/softmax.h"

namespace fusedloss::rows::inline FUSEDLOSS_SET {

// `plain`: the target has mass only at a label. `may_cap`: logits may have a cap.
template <bool is_dense, bool plain, bool may_cap>
struct CrossEntropyFormula {
  static constexpr bool dense = is_dense;
  static constexpr Stage stages[] = {{Combine::largest, 1}, {Combine::sum, plain ? 1 : 3}};
  Constant kept, spread, square, cap, inverse_cap;
  bool has_cap;

  CrossEntropyFormula(const double* parameters, int64_t classes)
      : kept(1 - parameters[0]),
        spread(parameters[0] / double(classes)),
        square(parameters[1]),
        cap(parameters[2]),
        inverse_cap(1 / parameters[2]),
        has_cap(parameters[2] != 0) {}

  template <class V>
  struct Row : RowStart<V> {
    Softmax<V> softmax;
    V mass, pull;  // sums of w q, and of w q (x - top)
    V by_log_sum;  // df by the logarithm of the sum of exponentials
    V log_total;   // that logarithm
  };

  template <int stage, class V, class At>
  FUSEDLOSS_INLINE auto term(const Row<V>& row, const At& at) const {
    const V x = logit(at.input());
    if constexpr (stage == 0) {
      return Terms<V, 1>{{x}};
    } else if constexpr (plain) {
      return Terms<V, 1>{{at.template keep<0>(row.softmax.share(x))}};
    } else {
      const V m = mass_at(V(), at), share = row.softmax.share(x);
      return Terms<V, 3>{
          {capped() ? share : at.template keep<0>(share), m, select(m == V(0), V(0), m * (x - row.softmax.top))}};
    }
  }
  template <int stage, class V>
  FUSEDLOSS_INLINE void close(Row<V>& row, const Terms<V, stages[stage].terms>& terms) const {
    if constexpr (stage == 0) {
      row.softmax.top = terms.of[0];
    } else {
      row.softmax.close(terms.of[0]);
      if constexpr (plain) {
        row.mass = row.weight;
        row.pull = row.weight * (row.input - row.softmax.top);
      } else {
        row.mass = terms.of[1];
        row.pull = terms.of[2];
      }
      row.log_total = row.softmax.top + row.softmax.log_sum;
      row.by_log_sum = row.mass + 2.0 * (square * row.log_total);
    }
  }
  template <class V>
  FUSEDLOSS_INLINE V value(const Row<V>& row) const {
    const V entropy = row.mass * row.softmax.log_sum - row.pull;
    return double(square) == 0 ? entropy : entropy + square * (row.log_total * row.log_total);
  }
  template <class V, class At>
  FUSEDLOSS_INLINE Slopes<V> slopes(const Row<V>& row, const At& at) const {
    const V x = logit(at.input());
    // (With a cap the input is needed again, whose memory the gradient may have.)
    const V p = capped() ? row.softmax.probability(x) : row.softmax.template probability_at<0>(at, x);
    V by_x = p * row.by_log_sum;
    if constexpr (plain) {
      by_x = select(at.is_label(), by_x - row.weight, by_x);
    } else {
      by_x = by_x - mass_at(V(), at);
      if (capped()) by_x = by_x * slope_of_logit(at.input(), x);
    }
    if constexpr (dense)
      return {by_x, at.wants(1) ? -(kept * at.weight()) * row.softmax.log_probability(x) : V(0)};
    else
      return {by_x, 0};
  }

 private:
  FUSEDLOSS_INLINE bool capped() const { return may_cap && has_cap; }
  template <class V>
  FUSEDLOSS_INLINE V logit(V input) const {
    if constexpr (!plain)
      if (capped()) return cap * tanh(input * inverse_cap);
    return input;
  }
  // 1 - tanh^2 = 4 e / (1 + e)^2 with e = exp(-2 |input / cap|), where nothing cancels; tanh is logit / cap.
  template <class V>
  FUSEDLOSS_INLINE V slope_of_logit(V input, V logit) const {
    if constexpr (is_dual<V>) {
      const auto slope = slope_of_logit(input.value, logit.value);
      return {slope, -2.0 * (logit.value * inverse_cap) * slope * (input.dot * inverse_cap)};
    } else {
      const V e = exp_nonpositive(2.0 * minus_abs(input * inverse_cap)), ratio = 2.0 / (1.0 + e);
      return e * (ratio * ratio);
    }
  }
  template <class V, class At>
  FUSEDLOSS_INLINE V mass_at(V, const At& at) const {
    return at.weight() * (kept * at.target() + spread);
  }
};

struct CrossEntropy {
  static constexpr int kept = 1;
  static constexpr Description about{.name = "cross_entropy",
                                     .targets = Targets::labels_or_dense,
                                     .parameters = {{"label_smoothing", Domain::unit},
                                                    {"z_loss", Domain::nonnegative},
                                                    {"softcap", Domain::nonnegative}},
                                     .weighted_mean = true,
                                     .weighs_mass = true};

  template <bool dense, class Use>
  static void with_formula(const double* parameters, int64_t classes, Use use) {
    const bool smooths = parameters[0] != 0, caps = parameters[2] != 0;
    if (!caps && (dense || !smooths)) return use(CrossEntropyFormula<dense, !dense, false>(parameters, classes));
    use(CrossEntropyFormula<dense, false, true>(parameters, classes));
  }
};

}  // namespace fusedloss::rows::inline FUSEDLOSS_SET
