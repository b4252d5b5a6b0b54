// sigmoid_focal_loss: with x = input a logit, p = sigmoid(x), t = target
//   q = p (1 - t) + (1 - p) t           the probability given to the wrong side
//   a = alpha t + (1 - alpha) (1 - t)   1 if alpha < 0
//   f = a q^gamma bce(x, t)
//   df/dx = a q^gamma (gamma (q'/q) bce + p - t),   q'/q = p (1 - p) (1 - 2 t) / q
// With e = exp(-|x|), q = wrong / (1 + e), where wrong = A + e B, A is what the target gives to the other side than x's
// sign and B = 1 - A. In general q is kept as its logarithm: a sure and right answer has A = 0, and
// log q = -|x| - log(1 + e) stays finite where q itself is 0.
// Source: Lin et al. 2017, Focal Loss for Dense Object Detection; torchvision.ops.sigmoid_focal_loss.
#pragma once
#include "core/logistic.h"
#include "core/loss.h"

namespace fusedloss::inline FUSEDLOSS_SET {

// gamma = 2, everybody's choice, is a formula of its own: without a logarithm, and nothing is divided by q.
template <bool gamma_is_2>
struct SigmoidFocalFormula {
  Constant base, tilt, gamma;  // a = base + tilt t
  FUSEDLOSS_INLINE explicit SigmoidFocalFormula(const double* parameters)
      : base(parameters[0] < 0 ? 1 : 1 - parameters[0]),
        tilt(parameters[0] < 0 ? 0 : 2 * parameters[0] - 1),
        gamma(parameters[1]) {}

  template <class V>
  FUSEDLOSS_INLINE Partials<V, 2> operator()(V input, V target) const {
    const LabelledLogit<V> x(input, target);
    const V wrong = x.other + x.small * x.own;
    const V bce = x.cross_entropy();
    const V a = base + tilt * target;
    const Focus<V> focus = focus_on(wrong, x);
    const V aq = a * focus.outer;
    const V by_input = aq * (focus.half_by_logit * (4.0 * x.other - 2.0) * bce + focus.inner * (x.other - x.smaller));
    const V by_label = a * (focus.by_wrong * (x.smaller - x.larger) * bce - focus.inner * x.magnitude);
    const V by_target = focus.outer * (tilt * (focus.inner * bce) + x.turned(by_label));
    return {aq * (focus.inner * bce), {x.turned(by_input), by_target}};
  }

 private:
  // q^gamma = outer inner; its derivative with respect to q is outer by_wrong, and half of that times p (1 - p) is
  // outer half_by_logit. (The other half is in 4 other - 2 = 2 (other - own).)
  template <class V>
  struct Focus {
    V outer, inner, by_wrong, half_by_logit;
  };

  template <class V>
  FUSEDLOSS_INLINE Focus<V> focus_on(V wrong, const LabelledLogit<V>& x) const {
    if constexpr (gamma_is_2) {
      const V q = wrong * x.larger;
      return {q, q, 2, x.larger * x.smaller};
    } else {
      return focus_by_logarithm(wrong, x);
    }
  }
  template <class V>
  FUSEDLOSS_INLINE Focus<V> focus_by_logarithm(V wrong, const LabelledLogit<V>& x) const {
    constexpr auto kTiny = MathConstants<typename V::Scalar>::kSmallestNormal;
    const auto sure = x.other == V(0);
    const Divisor<V> by_wrong(max_straight_through(wrong, kTiny));
    // Where `other` is 0, and `wrong` is `small`, its first order carries the derivative with respect to the target.
    V change = 0;
    if constexpr (is_dual<V>) change = by_wrong.divide(x.other) * (1.0 - x.small);
    const V log_q = select(sure, change - x.magnitude, log(wrong, by_wrong)) - x.log1p_small;
    const V relative = select(sure, 1.0 - change, by_wrong.divide(x.small)) * x.larger;  // p (1 - p) / q
    const V value = exp(gamma * log_q);
    // Where q is not even the smallest number, q^gamma decides.
    return {1, value, by_wrong.divide(gamma * value) * (1.0 + x.small), 0.5 * (gamma * value * relative)};
  }
};

struct SigmoidFocalLoss {
  static constexpr Description about{.name = "sigmoid_focal_loss",
                                     .operands = {"input", "target"},
                                     .parameters = {{"alpha", Domain::at_most_one}, {"gamma", Domain::nonnegative}},
                                     .shapes = Shapes::same};
  template <class Use>
  static auto with_formula(const double* parameters, Use use) {
    return parameters[1] == 2 ? use(SigmoidFocalFormula<true>(parameters))
                              : use(SigmoidFocalFormula<false>(parameters));
  }
};

}  // namespace fusedloss::inline FUSEDLOSS_SET
