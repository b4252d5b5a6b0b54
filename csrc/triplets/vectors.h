// The vectors of a call, read once from a tensor of any type and layout, and normalised where that is wanted; and the
// gradient, which is collected in float64 and written once.
#pragma once
#include <algorithm>
#include <cmath>

#include "core/runs.h"
#include "core/transpose.h"
#include "core/workspace.h"
#include "triplets/formula.h"
#include "triplets/kernel.h"

namespace fusedloss::triplets::inline FUSEDLOSS_SET {

// The first multiple of `step` that is not less.
inline int64_t rounded_up(int64_t count, int64_t step) { return (count + step - 1) / step * step; }

// The sum of products of two vectors that are padded with zeros to a multiple of the lanes. Float sums stay short.
template <class T>
double dot(const T* a, const T* b, int64_t padded) {
  using V = Lanes<T>;
  constexpr int64_t kShort = 32 * V::size;
  double total = 0;
  for (int64_t first = 0; first < padded; first += kShort) {
    V sum = 0;
    const int64_t end = std::min(first + kShort, padded);
    for (int64_t d = first; d < end; d += V::size) sum = sum + V::load(a + d) * V::load(b + d);
    for (int lane = 0; lane < V::size; ++lane) total += double(sum.raw[lane]);
  }
  return total;
}

// All of it, in memory that threads share.
template <class T>
class Vectors {
 public:
  using V = Lanes<T>;
  // Registers of which the loops over numbers take so many at a time.
  static constexpr int kAtOnce = 4;
  // Vectors side by side: a register has the same number of as many as it has lanes.
  static constexpr int kSides = 2;
  static constexpr int64_t kPanel = kSides * V::size;

  Vectors(const Pass& pass, Workspace& workspace)
      : pass_(pass),
        padded_(rounded_up(std::max<int64_t>(pass.size, 1), kAtOnce * V::size)),
        rows_(rounded_up(pass.count, kPanel)),
        given_(workspace.take<T>(rows_ * padded_)),
        beside_(workspace.take<T>(rows_ * padded_)),
        moved_(workspace.take<T>(pass.moving ? rows_ * padded_ : 0)),
        norms_(workspace.take<Norm<T>>(pass.normalize ? rows_ : 0)),
        slopes_(workspace.take<double>(pass.gradient.data ? rows_ * padded_ : 0)),
        still_slopes_(workspace.take<double>(needs_still_slopes() ? rows_ * padded_ : 0)) {}

  int64_t padded() const { return padded_; }  // the size, rounded up
  int64_t rows() const { return rows_; }      // their count, rounded up to whole panels
  const T* all() const { return given_; }
  const T* of(int64_t n) const { return given_ + n * padded_; }
  const T* all_moved() const { return moved_; }
  const T* moved(int64_t n) const { return moved_ + n * padded_; }
  // The numbers of the vectors of a panel's side, those with the same index together.
  const T* side(int64_t panel, int side) const { return beside_ + (panel * kPanel + side * V::size) * padded_; }
  double* slope(int64_t n) const { return slopes_ + n * padded_; }
  // Beside a gradient that moves, the one that stands still, where it is needed too.
  bool needs_still_slopes() const { return pass_.gradient.data && pass_.moving && pass_.normalize; }
  double* still_slope(int64_t n) const { return still_slopes_ + n * padded_; }

  void read_panel(int64_t panel) {
    for (int64_t n = panel * kPanel; n < (panel + 1) * kPanel; ++n) {
      T* const x = given_ + n * padded_;
      read(pass_.input, n, x);
      if (pass_.moving) read(pass_.tangent, n, moved_ + n * padded_);
      if (pass_.normalize) normalize(n, x);
      if (pass_.gradient.data) std::fill_n(slope(n), padded_, 0.0);
      if (needs_still_slopes()) std::fill_n(still_slope(n), padded_, 0.0);
    }
    for (int s = 0; s < kSides; ++s) {
      const int64_t first = panel * kPanel + s * V::size;
      load_across<V>(of(first), padded_, padded_, beside_ + first * padded_);
    }
  }

  // Writes the gradient of a vector; `row` has room for two.
  void write(int64_t n, T* row) const {
    T *const here = row, *const still = row + padded_;
    scaled(slope(n), here);
    if (pass_.normalize) turn_back(n, here);
    if (needs_still_slopes()) {
      scaled(still_slope(n), still);
      const T along = T(dot(of(n), still, padded_)), along_moved = T(dot(moved(n), still, padded_));
      for (int64_t d = 0; d < padded_; ++d)
        here[d] += norms_[n].moved_back(of(n)[d], moved(n)[d], still[d], along, along_moved);
    }
    visit_floating(pass_.gradient.dtype, [&](auto element) {
      store_run(here, static_cast<decltype(element)*>(pass_.gradient.data), run_of(pass_.gradient, n));
    });
  }

 private:
  Run run_of(const VectorView& view, int64_t n) const { return {n * view.vector, view.step, 0, 1, pass_.size}; }
  void read(const VectorView& view, int64_t n, T* to) const {
    const bool is_one = n < pass_.count;
    if (is_one)
      visit_floating(view.dtype, [&](auto element) {
        load_run(static_cast<const decltype(element)*>(view.data), to, run_of(view, n));
      });
    std::fill(to + (is_one ? pass_.size : 0), to + padded_, T(0));
  }
  void normalize(int64_t n, T* x) {
    Norm<T>& norm = norms_[n] = Norm<T>::of(dot(x, x, padded_));
    for (int64_t d = 0; d < padded_; ++d) x[d] /= norm.length;
    if (!pass_.moving) return;
    T* const v = moved_ + n * padded_;
    norm.stretch = norm.moves * T(dot(x, v, padded_)) / norm.length;
    turn_back(n, v);
  }
  void turn_back(int64_t n, T* slope) const {
    const T along = T(dot(of(n), slope, padded_));
    for (int64_t d = 0; d < padded_; ++d) slope[d] = norms_[n].turned_back(of(n)[d], slope[d], along);
  }
  void scaled(const double* from, T* to) const {
    for (int64_t d = 0; d < padded_; ++d) to[d] = T(from[d] * pass_.scale);
  }

  const Pass& pass_;
  const int64_t padded_, rows_;
  T *const given_, *const beside_, *const moved_;
  Norm<T>* const norms_;
  double *const slopes_, *const still_slopes_;
};

}  // namespace fusedloss::triplets::inline FUSEDLOSS_SET
