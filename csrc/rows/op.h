// The five ops of every loss over rows (torch/ops.h), each of which has one value.
//
// The operands are the input, whose axis `axis` goes over the classes, and the target: a number for every class, or the
// label of every row. The rows are what is left of the input's shape without that axis.
#pragma once
#include <ATen/core/Tensor.h>
#include <c10/core/SymIntArrayRef.h>
#include <c10/util/DimVector.h>

#include "rows/registry.h"
#include "torch/family.h"

namespace fusedloss::rows {

using OptionalTensor = std::optional<at::Tensor>;
using Mask = std::array<bool, kMaxOperands>;
using Tensors = std::array<at::Tensor, kMaxOperands>;

// The arguments that all five ops end with.
struct Arguments {
  Tensors operands;
  at::Tensor weight;         // of every class
  at::Tensor sample_weight;  // of every row; 0 leaves the row out
  c10::ArrayRef<double> parameters;
  int64_t axis, ignore_index;
  Reduction reduction;
  // The type of the result; that of the operands, promoted, if not given.
  std::optional<at::ScalarType> dtype;

  std::array<at::Tensor*, kMaxOperands + 2> tensors() { return {&operands[0], &operands[1], &weight, &sample_weight}; }
};

// What the arguments come to when they have been checked.
struct Checked {
  int64_t axis;            // at least 0
  c10::SymDimVector rows;  // their shape
  c10::SymInt classes;
  bool dense;  // whether the target is a number for every class
  at::ScalarType dtype, compute;
};
Checked check(const Description& about, const Arguments& arguments);

FUSEDLOSS_DECLARE_OPS

namespace kernels {
// The gradient of the input, into memory of its shape and type, which may be the input's own.
void backward_into(const Loss& loss, const at::Tensor& grad_output, const Arguments& arguments,
                   const at::Tensor& gradient);
// An unreduced loss's gradient by one operand for an incoming gradient of 1, times the one that came; in place or not.
at::Tensor scaled_rows(const Loss& loss, const at::Tensor& gradient, const at::Tensor& grad_output,
                       const Arguments& arguments, bool in_place);
}  // namespace kernels

namespace autograd {
// The value, but the backward pass overwrites the input with its gradient.
at::Tensor value_with_in_place_backward(const Loss& loss, const Arguments& arguments);
}  // namespace autograd

}  // namespace fusedloss::rows
