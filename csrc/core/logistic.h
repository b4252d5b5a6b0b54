// The logistic function and its integral, from one exponential: everything that losses on logits are made of.
//   softplus(x) = log(1 + exp(x)),   sigmoid(x) = softplus'(x) = 1 / (1 + exp(-x))
#pragma once
#include "core/dual.h"

namespace fusedloss::inline FUSEDLOSS_SET {

template <class V>
struct Logistic {
  decltype(V(0) < V(0)) negative;  // x < 0
  V magnitude;                     // |x|
  V small;                         // exp(-|x|), never above 1: nothing overflows
  V log1p_small;                   // log(1 + exp(-|x|))
  V larger, smaller;               // sigmoid(|x|) and sigmoid(-|x|)

  FUSEDLOSS_INLINE explicit Logistic(V x) : negative(x < V(0)) {
    const V minus_magnitude = minus_abs(x);
    magnitude = -minus_magnitude;
    small = exp_nonpositive(minus_magnitude);
    log1p_small = log1p_unit(small, reciprocal_bounded(2.0 + small));
    larger = reciprocal_bounded(1.0 + small);
    smaller = small * larger;
    if constexpr (is_dual<V>) smaller.dot = -larger.dot;  // their sum is 1: as a product's it would cancel
  }

  FUSEDLOSS_INLINE V softplus() const { return select(negative, V(0), magnitude) + log1p_small; }           // of x
  FUSEDLOSS_INLINE V softplus_negative() const { return select(negative, magnitude, V(0)) + log1p_small; }  // of -x
  FUSEDLOSS_INLINE V sigmoid() const { return select(negative, smaller, larger); }                          // of x
  // sigmoid(-x) = 1 - sigmoid(x), without the cancellation
  FUSEDLOSS_INLINE V sigmoid_negative() const { return select(negative, larger, smaller); }
};

// A logit x and its label t from 0 to 1. Losses of the two do not change when the classes change places, x to -x and
// t to 1 - t. So they are computed for |x|, and turned where x is negative.
template <class V>
struct LabelledLogit : Logistic<V> {
  V own, other;  // what the label gives to the side of x's sign, and to the other side; together 1

  FUSEDLOSS_INLINE LabelledLogit(V x, V label) : Logistic<V>(x) {
    const V rest = 1.0 - label;
    own = select(this->negative, rest, label);
    other = select(this->negative, label, rest);
  }

  // -t log sigmoid(x) - (1 - t) log sigmoid(-x)
  FUSEDLOSS_INLINE V cross_entropy() const { return this->magnitude * other + this->log1p_small; }
  // Its derivative, sigmoid(|x|) - own: of the two ways to write it the one in which a rounded 1 - t does not matter.
  FUSEDLOSS_INLINE V excess() const { return select(other < V(0.5), other - this->smaller, this->larger - own); }
  // A derivative by |x| as one by x.
  FUSEDLOSS_INLINE V turned(V slope) const { return select(this->negative, -slope, slope); }
};

}  // namespace fusedloss::inline FUSEDLOSS_SET
