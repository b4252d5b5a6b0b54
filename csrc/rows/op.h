// The five ops of every loss over rows (torch/ops.h), each of which has one value.
//
// The operands are the input, whose axis `axis` goes over the classes, and the target: a number for every class, or the
// label of every row. The rows are what is left of the input's shape without that axis.
#pragma once
#include <ATen/core/Tensor.h>
#include <c10/core/SymIntArrayRef.h>
#include <c10/util/DimVector.h>

#include "rows/registry.h"

namespace fusedloss::rows {

using OptionalTensor = std::optional<at::Tensor>;
using Mask = std::array<bool, kMaxOperands>;
using Tensors = std::array<at::Tensor, kMaxOperands>;
// What _backward and _hvp return: a gradient for each operand, empty where the mask does not ask for it.
using Pair = std::tuple<at::Tensor, at::Tensor>;

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

// Calls through the dispatcher. Gradients that the mask does not ask for are not defined here.
struct Gradients {
  at::Tensor value;
  Tensors of;
};
at::Tensor call_value(const Loss& loss, const Arguments& arguments);
Gradients call_value_and_gradient(const Loss& loss, Mask mask, const Arguments& arguments);
Tensors call_backward(const Loss& loss, const at::Tensor& grad_output, Mask mask, const Arguments& arguments);
at::Tensor call_jvp(const Loss& loss, const Tensors& tangents, const Arguments& arguments);
Tensors call_hvp(const Loss& loss, const at::Tensor& grad_output, const Tensors& tangents, Mask mask,
                 const Arguments& arguments);

// What the ops do below autograd: check, allocate, compute.
namespace kernels {
at::Tensor value(const Loss& loss, const Arguments& arguments);
std::tuple<at::Tensor, std::vector<at::Tensor>> value_and_gradient(const Loss& loss, Mask mask,
                                                                   const Arguments& arguments);
Pair backward(const Loss& loss, const at::Tensor& grad_output, Mask mask, const Arguments& arguments);
at::Tensor jvp(const Loss& loss, const Tensors& tangents, const Arguments& arguments);
Pair hvp(const Loss& loss, const at::Tensor& grad_output, const Tensors& tangents, Mask mask,
         const Arguments& arguments);
// The gradient of the input, into memory of its shape and type, which may be the input's own.
void backward_into(const Loss& loss, const at::Tensor& grad_output, const Arguments& arguments,
                   const at::Tensor& gradient);
// An unreduced loss's gradient by one operand for an incoming gradient of 1, times the one that came; in place or not.
at::Tensor scaled_rows(const Loss& loss, const at::Tensor& gradient, const at::Tensor& grad_output,
                       const Arguments& arguments, bool in_place);
}  // namespace kernels

// What they do at the autograd key: record, and call the ones below.
namespace autograd {
at::Tensor value(const Loss& loss, const Arguments& arguments);
// The same, but the backward pass overwrites the input with its gradient.
at::Tensor value_with_in_place_backward(const Loss& loss, const Arguments& arguments);
Pair backward(const Loss& loss, const at::Tensor& grad_output, Mask mask, const Arguments& arguments);
at::Tensor jvp(const Loss& loss, const Tensors& tangents, const Arguments& arguments);
Pair hvp(const Loss& loss, const at::Tensor& grad_output, const Tensors& tangents, Mask mask,
         const Arguments& arguments);
}  // namespace autograd

}  // namespace fusedloss::rows
