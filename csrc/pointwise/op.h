// The five ops of every pointwise loss (torch/ops.h). Their operands are input, target and, for some losses, a third;
// the gradients of those that broadcast are summed.
#pragma once
#include <ATen/core/Tensor.h>
#include <c10/core/SymIntArrayRef.h>
#include <c10/util/DimVector.h>

#include "pointwise/registry.h"

namespace fusedloss::pointwise {

using OptionalTensor = std::optional<at::Tensor>;
using Mask = std::array<bool, kMaxOperands>;
using Tensors = std::array<at::Tensor, kMaxOperands>;  // those that are not given are not defined
// What _backward and _hvp return: a gradient for each operand, empty where the mask does not ask for it.
using Triple = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

// The arguments that all five ops end with.
struct Arguments {
  Tensors operands;
  at::Tensor weight;
  c10::ArrayRef<double> parameters;
  Reduction reduction;
  // The type of the result; that of the operands, promoted, if not given.
  std::optional<at::ScalarType> dtype;

  std::array<at::Tensor*, kMaxOperands + 1> tensors() { return {&operands[0], &operands[1], &operands[2], &weight}; }
};

// Checks all arguments and returns the shape of the loss for them: that of the required operands together.
c10::SymDimVector checked_shape(const Description& about, const Arguments& arguments);

// The type that the required operands have together, by torch's rules; TypeError if that is not a floating one.
at::ScalarType promoted_type(const Description& about, const Arguments& arguments);

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

// What the ops do below autograd, on every device: check, allocate, compute.
namespace kernels {
at::Tensor value(const Loss& loss, const Arguments& arguments);
std::tuple<at::Tensor, std::vector<at::Tensor>> value_and_gradient(const Loss& loss, Mask mask,
                                                                   const Arguments& arguments);
Triple backward(const Loss& loss, const at::Tensor& grad_output, Mask mask, const Arguments& arguments);
at::Tensor jvp(const Loss& loss, const Tensors& tangents, const Arguments& arguments);
Triple hvp(const Loss& loss, const at::Tensor& grad_output, const Tensors& tangents, Mask mask,
           const Arguments& arguments);
}  // namespace kernels

// What they do at the autograd key: record, and call the ones below.
namespace autograd {
at::Tensor value(const Loss& loss, const Arguments& arguments);
Triple backward(const Loss& loss, const at::Tensor& grad_output, Mask mask, const Arguments& arguments);
at::Tensor jvp(const Loss& loss, const Tensors& tangents, const Arguments& arguments);
Triple hvp(const Loss& loss, const at::Tensor& grad_output, const Tensors& tangents, Mask mask,
           const Arguments& arguments);
}  // namespace autograd

}  // namespace fusedloss::pointwise
