// softmax_focal_loss: with p = softmax(input), y the label, a the class weights and u = -log p_y
//   f = a_y (1 - p_y)^gamma u
//   df/dinput_c = g (p_c - [c = y]),   g = a_y (1 - p_y)^gamma (1 + gamma p_y u / (1 - p_y))
// 1 - p_y is the sum of the others' exponentials, so that nothing cancels where the answer is sure and right.
// Source: Lin et al. 2017, Focal Loss for Dense Object Detection, for more than two classes.
#pragma once
#include "rows/softmax.h"

namespace fusedloss::rows::inline FUSEDLOSS_SET {

struct SoftmaxFocalLoss {
  static constexpr Description about{
      .name = "softmax_focal_loss", .parameters = {{"gamma", Domain::nonnegative}}, .weight = "alpha", .heavy = true};
  static constexpr bool dense = false, heavy = true;
  static constexpr int kept = 1;
  static constexpr Stage stages[] = {{Combine::largest, 1}, {Combine::sum, 1}};
  Constant gamma;

  template <class V>
  struct Row : RowStart<V> {
    Softmax<V> softmax;
    V loss, pull, rest;  // pull: g; rest: 1 - p_y
  };

  template <int stage, class V, class At>
  FUSEDLOSS_INLINE Terms<V, 1> term(const Row<V>& row, const At& at) const {
    if constexpr (stage == 0) return {{at.input()}};
    // A NaN is not left out: it is in `own`.
    return {{select(at.is_label(), V(0), at.template keep<0>(row.softmax.share(at.input())))}};
  }
  template <int stage, class V>
  FUSEDLOSS_INLINE void close(Row<V>& row, const Terms<V, 1>& terms) const {
    if constexpr (stage == 0) {
      row.softmax.top = terms.of[0];
    } else {
      constexpr auto kTiny = MathConstants<typename V::Scalar>::kSmallestNormal;
      const V others = terms.of[0], below = row.input - row.softmax.top, own = exp_nonpositive(below);
      row.softmax.close(own + others);
      const V cost = select(below == V(0), log1p(others / own), row.softmax.log_sum - below);
      const V probability = row.softmax.probability(row.input);
      row.rest = others * row.softmax.inverse;
      if constexpr (is_dual<V>) row.rest.dot = -probability.dot;  // without cancellation
      // log(1 - p_y), by whichever of the two is not near 1.
      const V log_rest =
          select(probability < V(0.5), log1p(-probability), log(max(others, kTiny)) - row.softmax.log_sum);
      V focus = 1;
      if (double(gamma) == 2)
        focus = row.rest * row.rest;  // with fewer roundings
      else if (double(gamma) != 0)
        focus = exp(gamma * log_rest);
      // p_y u / (1 - p_y) goes to 1 where 1 - p_y goes to 0.
      const V relative = select(others < V(kTiny), V(1), own / max(others, kTiny) * cost);
      row.loss = row.weight * focus * cost;
      row.pull = row.weight * focus * (1.0 + gamma * relative);
    }
  }
  template <class V>
  FUSEDLOSS_INLINE V value(const Row<V>& row) const {
    return row.loss;
  }
  template <class V, class At>
  FUSEDLOSS_INLINE Slopes<V> slopes(const Row<V>& row, const At& at) const {
    const V p = row.softmax.template probability_at<0>(at, at.input());
    return {row.pull * select(at.is_label(), -row.rest, p), 0};
  }

  template <bool dense, class Use>
  static void with_formula(const double* parameters, int64_t, Use use) {
    use(SoftmaxFocalLoss{parameters[0]});
  }
};

}  // namespace fusedloss::rows::inline FUSEDLOSS_SET
