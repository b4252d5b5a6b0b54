// Distances of a few vectors to all, from their differences: by products, |a|^2 + |b|^2 - 2 ab, near ones would cancel,
// and the nearest would be any. Vectors that are the same have the distance 0, and the same one to every other.
#pragma once
#include "triplets/vectors.h"

namespace fusedloss::triplets::inline FUSEDLOSS_SET {

template <class T>
class Distances {
 public:
  using V = Lanes<T>;
  // As many sums stay in registers, of each anchor and each side of a panel: a number that is loaded is used for all.
  static constexpr int kAnchors = sizeof(V) == 64 ? 8 : 4;

  Distances(const Pass& pass, const Vectors<T>& vectors, Workspace& workspace)
      : pass_(pass), vectors_(vectors), rows_(workspace.take<T>(kAnchors * vectors.rows())) {}

  // Measures from anchors, so many of a list; then `row` has the distances from each.
  void measure(const int32_t* anchors, int64_t count) {
    const T* from[kAnchors];
    for (int64_t a = 0; a < kAnchors; ++a) from[a] = vectors_.of(anchors[std::min(a, count - 1)]);
    for (int64_t panel = 0; panel * Vectors<T>::kPanel < pass_.count; ++panel) measure_panel(from, panel);
    if (!pass_.squared)
      for (int64_t a = 0; a < count; ++a) take_roots(row(a));
  }
  T* row(int64_t a) const { return rows_ + a * vectors_.rows(); }

 private:
  static constexpr int kSides = Vectors<T>::kSides;
  static constexpr int64_t kShort = 64;  // sums of so many terms are added up as one

  void measure_panel(const T* const (&from)[kAnchors], int64_t panel) {
    T* const to = rows_ + panel * Vectors<T>::kPanel;
    V total[kAnchors][kSides];
    for (int64_t first = 0; first == 0 || first < pass_.size; first += kShort) {
      sum_of_squares(from, panel, first, std::min(first + kShort, pass_.size), total);
#pragma GCC unroll 8
      for (int a = 0; a < kAnchors; ++a)
#pragma GCC unroll 2
        for (int s = 0; s < kSides; ++s) {
          T* const there = to + a * vectors_.rows() + s * V::size;
          (first == 0 ? total[a][s] : V::load(there) + total[a][s]).store(there);
        }
    }
  }
  FUSEDLOSS_INLINE void sum_of_squares(const T* const (&from)[kAnchors], int64_t panel, int64_t begin, int64_t end,
                                       V (&result)[kAnchors][kSides]) {
    const T* const others = vectors_.side(panel, 0);
    const int64_t apart = vectors_.padded() * V::size;
    V sum[kAnchors][kSides];
#pragma GCC unroll 8
    for (int a = 0; a < kAnchors; ++a)
#pragma GCC unroll 2
      for (int s = 0; s < kSides; ++s) sum[a][s] = 0;
    for (int64_t d = begin; d < end; ++d) {
      V other[kSides];
#pragma GCC unroll 2
      for (int s = 0; s < kSides; ++s) other[s] = V::load(others + s * apart + d * V::size);
#pragma GCC unroll 8
      for (int a = 0; a < kAnchors; ++a) {
        const V here = V(double(from[a][d]));
#pragma GCC unroll 2
        for (int s = 0; s < kSides; ++s) {
          const V difference = here - other[s];
          sum[a][s] = sum[a][s] + difference * difference;
        }
      }
    }
#pragma GCC unroll 8
    for (int a = 0; a < kAnchors; ++a)
#pragma GCC unroll 2
      for (int s = 0; s < kSides; ++s) result[a][s] = sum[a][s];
  }
  void take_roots(T* row) const {
    for (int64_t n = 0; n < pass_.count; ++n) row[n] = std::sqrt(row[n]);
  }

  const Pass& pass_;
  const Vectors<T>& vectors_;
  T* const rows_;
};

}  // namespace fusedloss::triplets::inline FUSEDLOSS_SET
