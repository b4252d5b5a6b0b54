// sigmoid_focal_loss: with x = input a logit, p = sigmoid(x), t = target
//   q = p (1 - t) + (1 - p) t           the probability given to the wrong side
//   a = alpha t + (1 - alpha) (1 - t)   1 if alpha < 0
//   f = a q^gamma bce(x, t)
//   df/dx = a q^gamma (gamma (q'/q) bce + p - t),   q'/q = p (1 - p) (1 - 2 t) / q
// In general q is kept as its logarithm: with e = exp(-|x|), q = (A + e B) / (1 + e), where A is what the target gives
// to the other side than x's sign and B = 1 - A. A sure and right answer has A = 0, and log q = -|x| - log(1 + e) stays
// finite where q itself is 0.
// Source: Lin et al. 2017, Focal Loss for Dense Object Detection; torchvision.ops.sigmoid_focal_loss.
#pragma once
#include "core/logistic.h"
#include "core/loss.h"

namespace fusedloss::inline FUSEDLOSS_SET {

struct SigmoidFocalLoss {
  static constexpr Description about{.name = "sigmoid_focal_loss",
                                     .operands = {"input", "target"},
                                     .parameters = {{"alpha", Domain::at_most_one}, {"gamma", Domain::nonnegative}},
                                     .shapes = Shapes::same};
  double base, tilt, gamma;  // a = base + tilt t
  explicit SigmoidFocalLoss(const double* parameters)
      : base(parameters[0] < 0 ? 1 : 1 - parameters[0]),
        tilt(parameters[0] < 0 ? 0 : 2 * parameters[0] - 1),
        gamma(parameters[1]) {}

  template <class V>
  Partials<V, 2> operator()(V input, V target) const {
    const Logistic<V> x(input);
    const Focus<V> focus = gamma == 2 ? squared(target, x) : general(input, target, x);
    const V bce = (1.0 - target) * x.softplus + target * x.softplus_negative;
    const V a = base + tilt * target;
    const V by_input = a * (focus.by_logit * (1.0 - 2.0 * target) * bce + focus.value * x.excess_over(target));
    const V by_target =
        focus.value * (tilt * bce - a * input) + a * focus.by_wrong * (x.sigmoid_negative - x.sigmoid) * bce;
    return {a * focus.value * bce, {by_input, by_target}};
  }

 private:
  template <class V>
  struct Focus {
    V value;     // q^gamma
    V by_wrong;  // its derivative with respect to q
    V by_logit;  // that times p (1 - p)
  };

  // gamma = 2, everybody's choice: without a logarithm, and nothing is divided by q.
  template <class V>
  FUSEDLOSS_INLINE static Focus<V> squared(V target, const Logistic<V>& x) {
    const V q = (1.0 - target) * x.sigmoid + target * x.sigmoid_negative;
    const V slope = q + q;
    return {q * q, slope, slope * (x.sigmoid * x.sigmoid_negative)};
  }

  template <class V>
  FUSEDLOSS_INLINE Focus<V> general(V input, V target, const Logistic<V>& x) const {
    constexpr auto kTiny = MathConstants<typename V::Scalar>::kSmallestNormal;
    const auto negative = input < V(0);
    const V other = select(negative, target, 1.0 - target);
    const V wrong = other + x.small * (1.0 - other);
    const auto sure = other == V(0);
    // Where `other` is 0, its first order carries the derivative with respect to the target.
    V change = 0;
    if constexpr (is_dual<V>) change = other * (1.0 - x.small) / max(x.small, kTiny);
    const V log_q = select(sure, select(negative, input, -input) + change, log(wrong)) - x.log1p_small;
    const V relative = select(sure, 1.0 - change, x.small / wrong) / (1.0 + x.small);  // p (1 - p) / q
    const V value = exp(gamma * log_q);
    // Where q is not even the smallest number, q^gamma decides.
    return {value, gamma * value / max(exp(log_q), kTiny), gamma * value * relative};
  }
};

}  // namespace fusedloss::inline FUSEDLOSS_SET
