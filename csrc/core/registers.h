// Rows of numbers in memory, register by register, whatever their length.
#pragma once
#include "core/some_lanes.h"

namespace fusedloss::inline FUSEDLOSS_SET {

// Calls use(k, count) for registers of a row of so many numbers, with how many of their lanes are in it.
template <class T, class Use>
FUSEDLOSS_INLINE void each_register(int64_t numbers, Use use) {
  constexpr int64_t kLanes = Lanes<T>::size;
  int64_t c = 0;
  for (; c + kLanes <= numbers; c += kLanes) use(c, kLanes);
  if (c < numbers) use(c, numbers - c);
}
template <class T>
FUSEDLOSS_INLINE Lanes<T> load_some(const T* from, int64_t count, T otherwise) {
  using V = Lanes<T>;
  if (usual(count == V::size)) return V::load(from);
  return select(first_lanes<V>(count), load_first<V>(from, count), V(otherwise));
}
template <class T>
FUSEDLOSS_INLINE void store_some(Lanes<T> x, T* to, int64_t count) {
  if (usual(count == Lanes<T>::size)) return x.store(to);
  store_first(x, to, count);
}

// Sums of many registers, a stretch at a time: one long sum in float would lose digits.
template <class V>
class LongSum {
 public:
  FUSEDLOSS_INLINE void add(V x) {
    stretch_ = stretch_ + x;
    if (seldom(++count_ % 64 == 0)) flush();
  }
  FUSEDLOSS_INLINE typename V::Scalar value() {
    flush();
    return across_lanes(total_, [](V a, V b) { return a + b; }).raw[0];
  }

 private:
  FUSEDLOSS_INLINE void flush() {
    total_ = total_ + stretch_;
    stretch_ = V(0);
  }
  V total_ = 0, stretch_ = 0;
  int64_t count_ = 0;
};

}  // namespace fusedloss::inline FUSEDLOSS_SET
