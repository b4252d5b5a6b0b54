// The probabilities of a frame's classes, and what they come to along a tangent.
#pragma once
#include "core/registers.h"
#include "core/scaled.h"
#include "lattice/kernel.h"

namespace fusedloss::lattice::inline FUSEDLOSS_SET {

// Probabilities are exp(x - top) / sum; `mean` is the tangent's, weighted by them.
template <class T>
struct Softmax {
  T top = 0, sum = 1, mean = 0;
};

template <class T>
T largest_of(const T* x, int64_t classes) {
  using V = Lanes<T>;
  constexpr T kLeast = -MathConstants<T>::kInfinity;
  V top = kLeast;
  each_register<T>(classes, [&](int64_t c, int64_t count) {
    const V here = load_some(x + c, count, kLeast);
    top = larger_of(here, top);
  });
  return across_lanes(top, [](V a, V b) { return larger_of(a, b); }).raw[0];
}

// Of logits; exp(x - top) goes to `shares`, if that is not null.
template <class T>
Softmax<T> softmax_of(const T* x, int64_t classes, T* shares) {
  using V = Lanes<T>;
  const T top = largest_of(x, classes);
  LongSum<V> sum;
  each_register<T>(classes, [&](int64_t c, int64_t count) {
    const V share = exp_nonpositive(load_some(x + c, count, -MathConstants<T>::kInfinity) - V(top));
    if (shares) store_some(share, shares + c, count);
    sum.add(share);
  });
  return {top, sum.value(), 0};
}

// Of logarithms of probabilities, which are taken as they are; the probabilities go to `shares`.
template <class T>
Softmax<T> exponentials_of(const T* x, int64_t classes, T* shares) {
  each_register<T>(
      classes, [&](int64_t c, int64_t count) { store_some(exp(load_some(x + c, count, T(0))), shares + c, count); });
  return {};
}

template <class T>
void multiply(T* row, int64_t classes, T factor) {
  using V = Lanes<T>;
  each_register<T>(classes, [&](int64_t c, int64_t count) {
    store_some(load_some(row + c, count, T(0)) * V(factor), row + c, count);
  });
}

// The same, but 0 stays 0 whatever it is multiplied by.
template <class T>
void multiply_counted(T* row, int64_t classes, T factor) {
  using V = Lanes<T>;
  each_register<T>(classes, [&](int64_t c, int64_t count) {
    const V x = load_some(row + c, count, T(0));
    store_some(select(x == V(0), x, x * V(factor)), row + c, count);
  });
}

// The tangent's mean, weighted by the shares.
template <class T>
T mean_along(const T* shares, const T* tangent, int64_t classes, T sum) {
  using V = Lanes<T>;
  LongSum<V> weighted;
  each_register<T>(classes, [&](int64_t c, int64_t count) {
    weighted.add(load_some(shares + c, count, T(0)) * load_some(tangent + c, count, T(0)));
  });
  return weighted.value() / sum;
}

// Shares times factor (tangent - mean), in place.
template <class T>
void move_along(T* shares, const T* tangent, int64_t classes, T mean, T factor) {
  using V = Lanes<T>;
  each_register<T>(classes, [&](int64_t c, int64_t count) {
    const V change = load_some(tangent + c, count, T(0)) - V(mean);
    store_some(load_some(shares + c, count, T(0)) * change * V(factor), shares + c, count);
  });
}

}  // namespace fusedloss::lattice::inline FUSEDLOSS_SET
