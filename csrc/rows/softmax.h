// The softmax of a row in two stages: its largest logit, then the sum of exp(x - largest). Nothing overflows.
//   log softmax(x)_c = (x_c - top) - log sum
// With a temperature T the difference is divided by it, not x: a product that is rounded in one stage and not in the
// next (the compiler may fuse it with what follows) would put the largest logit above the largest.
#pragma once
#include "rows/formula.h"

namespace fusedloss::rows::inline FUSEDLOSS_SET {

template <class V, bool tempered = false>
struct Softmax {
  V top, sum, log_sum, inverse;
  Constant sharpness = 1;  // 1 / T, if tempered

  FUSEDLOSS_INLINE V below_top(V x) const {
    if constexpr (tempered)
      return sharpness * (x - top);
    else
      return x - top;
  }
  // e^(x - top), which is softmax(x) times the sum
  FUSEDLOSS_INLINE V share(V x) const { return exp_nonpositive(below_top(x)); }
  FUSEDLOSS_INLINE void close(V total) {
    sum = total;
    inverse = 1.0 / total;
    log_sum = log(total);
  }
  FUSEDLOSS_INLINE V probability(V x) const {
    const V p = share(x) * inverse;
    // p' = p (x' - the mean of x'), as a difference of what is alike and not of what p has made small.
    if constexpr (is_dual<V>)
      return {p.value, p.value * (below_top(x).dot - log_sum.dot)};
    else
      return p;
  }
  // The same, of an x whose share was kept.
  template <int k, class At>
  FUSEDLOSS_INLINE V probability_at(const At& at, V x) const {
    if constexpr (is_dual<V>)
      return probability(x);
    else
      return at.template kept<k>([&] { return share(x); }) * inverse;
  }
  FUSEDLOSS_INLINE V log_probability(V x) const { return below_top(x) - log_sum; }
  // softmax(x) y, also where that is a number and softmax(x) has lost its last digits to underflow; 0 where it is 0.
  FUSEDLOSS_INLINE V times_probability(V x, V y) const {
    const V below = below_top(x);
    if constexpr (is_dual<V>) {
      const auto root = exp_nonpositive(0.5 * below.value);
      return {times_square(root, inverse.value * y.value),
              times_square(root, inverse.value * (y.value * (below.dot - log_sum.dot) + y.dot))};
    } else {
      return times_square(exp_nonpositive(0.5 * below), inverse * y);
    }
  }

 private:
  template <class W>
  FUSEDLOSS_INLINE static W times_square(W root, W x) {
    return select(root == W(0), W(0), (root * x) * root);
  }
};

}  // namespace fusedloss::rows::inline FUSEDLOSS_SET
