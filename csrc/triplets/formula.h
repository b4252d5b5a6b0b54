// Triplets that are mined within a batch, and normalised vectors: the formulas, for CPU and CUDA alike.
//
// With d the distances of an anchor and m the margin, a triplet of anchor, positive p and negative n is worth
//   f = max(0, d(p) - d(n) + m),
// whose derivative by d(p) is 1 and by d(n) is -1 where f > 0. A NaN is both the farthest and the nearest, so that it
// reaches every anchor that has triplets; and f is then not 0.
//
// With c the derivative by the distance d of x_i and x_j, their pair pulls x_i by c (x_i - x_j) / d, or 2 c (x_i - x_j)
// if d is the square, and x_j by the negative: by the same rule with the two exchanged. Along a direction v, with
// v_ij = v_i - v_j, d moves by x_ij.v_ij / d, and the pull of w = c / d moves to w v_ij - w (x_ij.v_ij / d^2) x_ij. At
// d = 0 all of it is 0, but for squares.
#pragma once
#include <cmath>

#include "core/instruction_set.h"

namespace fusedloss::triplets::inline FUSEDLOSS_SET {

// f without its bound, in float64: float distances then lose nothing.
FUSEDLOSS_INLINE double unbounded(double positive, double negative, double margin) {
  return positive - negative + margin;
}
FUSEDLOSS_INLINE bool counts(double f) { return !(f <= 0); }

// w above; 0 where a pair has no direction, and NaN where that is unknown: d - d is NaN if d is infinite.
FUSEDLOSS_INLINE double weight_of(double slope, double d, bool squared) {
  return squared ? 2 * slope : slope == 0 || d == 0 ? 0 : (slope + (d - d)) / d;
}
// What multiplies x_ij where w multiplies v_ij.
FUSEDLOSS_INLINE double turn_of(double weight, double along, double d, bool squared) {
  return squared || d == 0 ? 0 : -weight * along / (d * d);
}

// A vector y = x / max(|x|, 1e-12), and what derivatives by y are for x. With n the norm, the derivative
//   J = (I - y y') / n  is symmetric; along v, where y moves by w = J v,
//   J moves by -(w y' + y w') / n - (y'v / n) J.
// A norm that is too small is a constant: J = I / 1e-12.
template <class T>
struct Norm {
  T length;   // what the vector is divided by
  T moves;    // 1, or 0 where that is constant
  T stretch;  // y'v / n

  FUSEDLOSS_INLINE static Norm of(double sum_of_squares) {
    const T length = T(std::sqrt(sum_of_squares)), smallest = T(1e-12);
    return length <= smallest ? Norm{smallest, 0, 0} : Norm{length, 1, 0};
  }
  // J s at a number, and how it moves; `along` is y's, `along_moved` w's.
  FUSEDLOSS_INLINE T turned_back(T y, T s, T along) const { return (s - moves * y * along) / length; }
  FUSEDLOSS_INLINE T moved_back(T y, T w, T s, T along, T along_moved) const {
    return -moves * ((w * along + y * along_moved) / length + stretch * turned_back(y, s, along));
  }
};

}  // namespace fusedloss::triplets::inline FUSEDLOSS_SET
