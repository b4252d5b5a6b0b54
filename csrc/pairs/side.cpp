#include "pairs/side.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linalg_vector_norm.h>

#include "torch/allocate.h"

namespace fusedloss::pairs {
namespace {

constexpr double kSmallestNorm = 1e-12;  // torch.nn.functional.normalize's
constexpr int64_t kStretch = 512;
constexpr int64_t kCopiedBytes = int64_t(8) << 20;  // of vectors that are made ready once for all products

// Of every row, as a column.
at::Tensor each_dot(const at::Tensor& a, const at::Tensor& b) {
  return (a * b).sum(at::IntArrayRef{1}, /*keepdim=*/true);
}

}  // namespace

Side::Side(const at::Tensor& vectors, const at::Tensor& tangent, bool normalize, at::ScalarType compute)
    : vectors_(vectors), tangent_(tangent), normalize_(normalize), compute_(compute) {
  if (normalize) find_norms();
  const int64_t bytes = vectors.numel() * int64_t(c10::elementSize(compute));
  if (bytes <= kCopiedBytes && (normalize || !lies_ready(vectors))) copies_ = rows(0, count());
}

void Side::find_norms() {
  const at::Tensor norm = at::empty({count(), 1}, vectors_.options().dtype(compute_));
  for (int64_t begin = 0; begin < count(); begin += kStretch) {
    at::Tensor some = norm.narrow(0, begin, std::min(kStretch, count() - begin));
    at::linalg_vector_norm_out(some, ready(vectors_, begin, some.size(0)), 2, at::IntArrayRef{1}, /*keepdim=*/true);
  }
  inverse_ = norm.clamp_min(kSmallestNorm).reciprocal();
  counts_ = norm.ge(kSmallestNorm).to(compute_);
}

// BLAS takes rows of any distance.
bool Side::lies_densely(const at::Tensor& matrix) {
  return (matrix.size(1) <= 1 || matrix.stride(1) == 1) && matrix.stride(0) >= std::max<int64_t>(matrix.size(1), 1);
}
bool Side::lies_ready(const at::Tensor& matrix) const {
  return matrix.scalar_type() == compute_ && lies_densely(matrix);
}
bool Side::are_short() const {
  return vectors_.scalar_type() == at::kBFloat16 && !normalize_ && lies_densely(vectors_);
}
int64_t Side::stretch() const {
  const bool vectors = copies_.defined() || (!normalize_ && lies_ready(vectors_));
  const bool all = vectors && (!moves() || (!normalize_ && lies_ready(tangent_)));
  return std::max<int64_t>(all ? count() : std::min(count(), kStretch), 1);
}
at::Tensor Side::ready(const at::Tensor& matrix, int64_t begin, int64_t count) const {
  const at::Tensor some = matrix.narrow(0, begin, count);
  return lies_ready(matrix) ? some : some.to(compute_).contiguous();
}
at::Tensor Side::rows(int64_t begin, int64_t count) const {
  if (copies_.defined()) return copies_.narrow(0, begin, count);
  const at::Tensor some = ready(vectors_, begin, count);
  return normalize_ ? some * inverse_.narrow(0, begin, count) : some;
}
at::Tensor Side::without_part_along(const at::Tensor& vectors, const at::Tensor& unit, int64_t begin) const {
  return vectors - unit * (each_dot(unit, vectors) * counts_.narrow(0, begin, vectors.size(0)));
}
at::Tensor Side::moving_rows(int64_t begin, int64_t count) const {
  const at::Tensor some = ready(tangent_, begin, count);
  if (!normalize_) return some;
  return without_part_along(some, rows(begin, count), begin) * inverse_.narrow(0, begin, count);
}

void Side::gather(bool moving) {
  moving_ = moving;
  const auto room = [&] { return empty_laid_out_like(vectors_, vectors_.sym_sizes(), compute_).zero_(); };
  if (moving) moving_gradient_ = room();
  if (!moving || (normalize_ && moves())) gradient_ = room();
}

at::Tensor Side::by_given(int64_t begin, int64_t count) const {
  const at::Tensor gathered = moving_ ? moving_gradient(begin, count) : gradient(begin, count);
  if (!normalize_) return gathered;
  const at::Tensor unit = rows(begin, count), inverse = inverse_.narrow(0, begin, count);
  const at::Tensor first = without_part_along(gathered, unit, begin) * inverse;
  if (!moving_ || !moves()) return first;
  // What the change of the unit vectors and of the norms adds.
  const at::Tensor of_first = gradient(begin, count), unit_dot = moving_rows(begin, count);
  const at::Tensor counts = counts_.narrow(0, begin, count);
  const at::Tensor turned = (unit * each_dot(of_first, unit_dot) + unit_dot * each_dot(of_first, unit)) * counts;
  const at::Tensor norm_dot = each_dot(unit, ready(tangent_, begin, count)) * counts;
  return first - (turned + without_part_along(of_first, unit, begin) * (norm_dot * inverse)) * inverse;
}

at::Tensor Side::finished() const {
  const at::Tensor gathered = moving_ ? moving_gradient_ : gradient_;
  if (!normalize_ && vectors_.scalar_type() == compute_) return gathered;
  const at::Tensor result = empty_laid_out_like(vectors_, vectors_.sym_sizes(), vectors_.scalar_type());
  for (int64_t begin = 0; begin < count(); begin += kStretch) {
    const int64_t some = std::min(kStretch, count() - begin);
    result.narrow(0, begin, some).copy_(by_given(begin, some));
  }
  return result;
}

}  // namespace fusedloss::pairs
