// One side of the pairs: a matrix of vectors as products need them, and the gradient that is gathered for it.
#pragma once
#include <ATen/core/Tensor.h>

namespace fusedloss::pairs {

// Products take dense rows of the type of the computation. Rows that are not so in memory, or are to be normalized, are
// made so once if they are few, and else a stretch at a time.
//
// With a norm r and the unit vector u = x / r, a tangent of x moves u by (x' - u (u . x')) / r, and a gradient by u is
// (g - u (u . g)) / r by x. Where r is below its bound it counts as that constant, and both lose their second term.
class Side {
 public:
  // `tangent` need not be given.
  Side(const at::Tensor& vectors, const at::Tensor& tangent, bool normalize, at::ScalarType compute);

  int64_t count() const { return vectors_.size(0); }
  int64_t numbers() const { return vectors_.numel(); }
  bool moves() const { return tangent_.defined(); }
  // How many rows to ask for at once.
  int64_t stretch() const;
  at::Tensor rows(int64_t begin, int64_t count) const;
  at::Tensor moving_rows(int64_t begin, int64_t count) const;
  // Whether they are bfloat16 numbers, as they lie in memory, and these.
  bool are_short() const;
  at::Tensor short_rows(int64_t begin, int64_t count) const { return vectors_.narrow(0, begin, count); }

  // Makes room for a gradient, or for its derivative along the tangents.
  void gather(bool moving);
  bool gathers() const { return moving_ ? moving_gradient_.defined() : gradient_.defined(); }
  // Whether gradients by the vectors that products are made of are wanted, and their derivatives along the tangents.
  bool gathers_first() const { return gradient_.defined(); }
  bool gathers_second() const { return moving_gradient_.defined(); }
  at::Tensor gradient(int64_t begin, int64_t count) const { return gradient_.narrow(0, begin, count); }
  at::Tensor moving_gradient(int64_t begin, int64_t count) const { return moving_gradient_.narrow(0, begin, count); }
  // What was gathered, as the gradient by the given vectors, in their type.
  at::Tensor finished() const;

 private:
  void find_norms();
  static bool lies_densely(const at::Tensor& matrix);
  bool lies_ready(const at::Tensor& matrix) const;
  at::Tensor ready(const at::Tensor& matrix, int64_t begin, int64_t count) const;
  at::Tensor without_part_along(const at::Tensor& vectors, const at::Tensor& unit, int64_t begin) const;
  at::Tensor by_given(int64_t begin, int64_t count) const;

  const at::Tensor vectors_, tangent_;
  const bool normalize_;
  const at::ScalarType compute_;
  at::Tensor copies_;            // of all vectors, as products need them, or not defined
  at::Tensor inverse_, counts_;  // of every row: 1 / its norm, and whether the norm is not below its bound
  bool moving_ = false;
  at::Tensor gradient_, moving_gradient_;
};

}  // namespace fusedloss::pairs
