// Rows of numbers with a mantissa and an exponent: of all places of a lattice, in memory, for one frame.
#pragma once
#include <algorithm>

#include "core/some_lanes.h"
#include "lattice/losses/ctc_loss.h"

namespace fusedloss::lattice::inline FUSEDLOSS_SET {

template <class T, bool moving>
inline constexpr int kParts = moving ? 3 : 2;

// Numbers of so many places, each part of which lies `stride` behind the one before.
template <class T, bool moving>
struct ScaledRow {
  using V = Lanes<T>;
  T* data;
  int64_t stride;

  FUSEDLOSS_INLINE Scaled<V, moving> load(int64_t k) const {
    auto x = Scaled<V, moving>::of(V::load(data + k), V::load(data + stride + k));
    if constexpr (moving) x.slope = V::load(data + 2 * stride + k);
    return x;
  }
  FUSEDLOSS_INLINE void store(int64_t k, const Scaled<V, moving>& x) const {
    x.mantissa.store(data + k);
    x.exponent.store(data + stride + k);
    if constexpr (moving) x.slope.store(data + 2 * stride + k);
  }
  // Of one place, in all lanes.
  Scaled<V, moving> everywhere(int64_t k) const {
    auto x = Scaled<V, moving>::of(V(data[k]), V(data[stride + k]));
    if constexpr (moving) x.slope = V(data[2 * stride + k]);
    return x;
  }
  void set(int64_t k, T mantissa, T exponent) const {
    data[k] = mantissa;
    data[stride + k] = exponent;
    if constexpr (moving) data[2 * stride + k] = 0;
  }
  void clear(int64_t begin, int64_t end) const {
    for (int64_t k = begin; k < end; ++k) set(k, 1, T(kNothing));
  }
};

// Both states of every place.
template <class T, bool moving>
struct StateRow {
  using V = Lanes<T>;
  using Numbers = CtcLoss::States<Scaled<V, moving>>;
  ScaledRow<T, moving> blank, label;

  static constexpr int64_t numbers_for(int64_t stride) { return 2 * kParts<T, moving> * stride; }
  static StateRow at(T* data, int64_t stride) { return {{data, stride}, {data + kParts<T, moving> * stride, stride}}; }
  FUSEDLOSS_INLINE Numbers load(int64_t k) const { return {blank.load(k), label.load(k)}; }
  FUSEDLOSS_INLINE void store(int64_t k, const Numbers& states) const {
    blank.store(k, states.blank);
    label.store(k, states.label);
  }
  // Takes the largest exponent from all, which else would grow from frame to frame until they are no longer exact.
  T shift(int64_t width) const {
    V top = kNothing;
    for (int64_t k = 0; k < width; k += V::size)
      top = larger_of(top, larger_of(V::load(blank.data + blank.stride + k), V::load(label.data + label.stride + k)));
    top = across_lanes(top, [](V a, V b) { return larger_of(a, b); });
    for (const ScaledRow<T, moving>* row : {&blank, &label})
      for (int64_t k = 0; k < width; k += V::size) {
        T* const exponent = row->data + row->stride + k;
        (V::load(exponent) - top).store(exponent);
      }
    return top.raw[0];
  }
};

}  // namespace fusedloss::lattice::inline FUSEDLOSS_SET
