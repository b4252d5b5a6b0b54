#include "torch/views.h"

#include <ATen/ops/sum.h>
#include <c10/util/SmallVector.h>

namespace fusedloss {
namespace {

DType dtype_of(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kDouble: return DType::float64;
    case at::kHalf: return DType::float16;
    case at::kBFloat16: return DType::bfloat16;
    case at::kLong: return DType::int64;
    case at::kInt: return DType::int32;
    case at::kShort: return DType::int16;
    case at::kChar: return DType::int8;
    case at::kByte: return DType::uint8;
    case at::kBool: return DType::boolean;
    default: return DType::float32;
  }
}

// Every tensor has the whole shape and lies in memory in its order, or is a single element: one dimension does.
bool all_simple(at::IntArrayRef shape, c10::ArrayRef<Shown> tensors) {
  for (const Shown& shown : tensors) {
    const at::Tensor& t = *shown.tensor;
    if (shown.left_out >= 0 || (!(t.sizes() == shape && t.is_contiguous()) && t.numel() != 1)) return false;
  }
  return true;
}

void lay_out_simply(Extent& extent, c10::ArrayRef<Shown> tensors) {
  extent.dims = 1;
  extent.sizes[0] = extent.count;
  for (const Shown& shown : tensors) {
    const bool constant = shown.tensor->numel() == 1 && extent.count != 1;
    shown.view->dense = !constant;
    shown.view->constant = constant;
    shown.view->strides[0] = constant ? 0 : 1;
  }
}

// Strides along the dimensions of `shape` that are longer than 1; broadcast ones are 0.
void align(Extent& extent, at::IntArrayRef shape, c10::ArrayRef<Shown> tensors) {
  extent.dims = 0;
  for (int64_t d = 0; d < int64_t(shape.size()); ++d) {
    if (shape[d] == 1) continue;
    extent.sizes[extent.dims] = shape[d];
    for (const Shown& shown : tensors) {
      const int64_t own = d - int64_t(shape.size()) + shown.dim();
      const bool broadcast = own < 0 || shown.size(own) == 1;
      shown.view->strides[extent.dims] = broadcast ? 0 : shown.stride(own);
    }
    ++extent.dims;
  }
}

// Whether dimension a must run slower than b: the first tensor that moves along both decides.
bool slower(int a, int b, c10::ArrayRef<Shown> tensors) {
  for (const Shown& shown : tensors) {
    const int64_t along_a = shown.view->strides[a], along_b = shown.view->strides[b];
    if (along_a != 0 && along_b != 0 && along_a != along_b) return along_a > along_b;
  }
  return true;
}

void swap_dims(Extent& extent, int a, int b, c10::ArrayRef<Shown> tensors) {
  std::swap(extent.sizes[a], extent.sizes[b]);
  for (const Shown& shown : tensors) std::swap(shown.view->strides[a], shown.view->strides[b]);
}

void sort_by_stride(Extent& extent, c10::ArrayRef<Shown> tensors) {
  for (int d = 1; d < extent.dims; ++d)
    for (int k = d; k > 0 && !slower(k - 1, k, tensors); --k) swap_dims(extent, k - 1, k, tensors);
}

// Joins a dimension to the one before it where every tensor walks through both in one stride.
void join(Extent& extent, c10::ArrayRef<Shown> tensors) {
  int kept = 0;
  for (int d = 1; d < extent.dims; ++d) {
    bool joinable = true;
    for (const Shown& shown : tensors)
      joinable &= shown.view->strides[kept] == shown.view->strides[d] * extent.sizes[d];
    if (joinable)
      extent.sizes[kept] *= extent.sizes[d];
    else
      extent.sizes[++kept] = extent.sizes[d];
    for (const Shown& shown : tensors) shown.view->strides[kept] = shown.view->strides[d];
  }
  extent.dims = kept + 1;
}

// The dimension along which some tensor lies in memory instead of along the last, if both are so long that the cache
// lines of the first elements are gone when the next ones in them are needed.
int find_across(const Extent& extent, c10::ArrayRef<Shown> tensors) {
  constexpr int64_t kShort = 32;
  const int last = extent.dims - 1;
  if (extent.sizes[last] < kShort) return -1;
  for (const Shown& shown : tensors)
    for (int d = 0; d < last; ++d) {
      const int64_t stride = shown.view->strides[d];
      if (stride != 0 && stride < shown.view->strides[last] && extent.sizes[d] >= kShort) return d;
    }
  return -1;
}

void classify(const Extent& extent, View& view) {
  view.dense = view.constant = true;
  int64_t expected = 1;
  for (int d = extent.dims - 1; d >= 0; --d) {
    view.dense &= view.strides[d] == expected;
    view.constant &= view.strides[d] == 0;
    expected *= extent.sizes[d];
  }
}

}  // namespace

void point(View& view, const at::Tensor& tensor) {
  view.data = const_cast<void*>(tensor.const_data_ptr());
  view.dtype = dtype_of(tensor);
}

void lay_out(Extent& extent, at::IntArrayRef shape, c10::ArrayRef<Shown> all) {
  c10::SmallVector<Shown, 16> tensors;
  for (const Shown& shown : all)
    if (shown.tensor->defined()) tensors.push_back(shown);
  extent.count = c10::multiply_integers(shape);
  for (const Shown& shown : tensors) point(*shown.view, *shown.tensor);
  if (all_simple(shape, tensors) || extent.count <= 1) return lay_out_simply(extent, tensors);
  align(extent, shape, tensors);
  sort_by_stride(extent, tensors);
  join(extent, tensors);
  extent.across = find_across(extent, tensors);
  for (const Shown& shown : tensors) classify(extent, *shown.view);
}

at::Tensor summed_to(const at::Tensor& tensor, c10::SymIntArrayRef shape) {
  c10::SmallVector<int64_t, 8> axes;
  const int64_t lead = tensor.dim() - int64_t(shape.size());
  for (int64_t d = 0; d < tensor.dim(); ++d)
    if (d < lead || (shape[d - lead] == 1 && tensor.sym_size(d) != 1)) axes.push_back(d);
  const at::Tensor sums = at::sum(tensor, axes, /*keepdim=*/true);
  return sums.view_symint(shape);
}

}  // namespace fusedloss
