// How a kernel walks tensors of one (broadcast) shape: fewest dimensions, in the order of the first tensor's memory.
#pragma once
#include <ATen/core/Tensor.h>

#include "core/view.h"

namespace fusedloss {

// A tensor and the view of the extent that shows it. A tensor that is not defined leaves its view absent.
struct Shown {
  const at::Tensor* tensor;
  View* view;
  int64_t left_out = -1;  // an axis of the tensor that the extent does not have

  int64_t dim() const { return tensor->dim() - (left_out >= 0); }
  int64_t size(int64_t d) const { return tensor->size(own(d)); }
  int64_t stride(int64_t d) const { return tensor->stride(own(d)); }

 private:
  int64_t own(int64_t d) const { return left_out >= 0 && d >= left_out ? d + 1 : d; }
};

// Gives the view the memory and the type of a tensor that check_real (torch/checks.h) has accepted.
void point(View& view, const at::Tensor& tensor);

// Fills the extent and every view. Each tensor broadcasts to `shape`.
void lay_out(Extent& extent, at::IntArrayRef shape, c10::ArrayRef<Shown> tensors);

// The sum over the axes along which a tensor of this shape was broadcast to that of `tensor`.
at::Tensor summed_to(const at::Tensor& tensor, c10::SymIntArrayRef shape);

}  // namespace fusedloss
