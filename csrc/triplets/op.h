// The five ops of triplets that are mined within a batch (torch/ops.h): one value an anchor.
//
// The operand is a tensor of vectors, (N, D). Labels are integers, (N).
#pragma once
#include <ATen/core/Tensor.h>
#include <c10/core/SymIntArrayRef.h>
#include <c10/util/DimVector.h>

#include <array>

#include "core/loss.h"
#include "triplets/kernel.h"

namespace fusedloss::triplets {

struct Loss {
  const Description* about;
};
const std::array<Loss, 1>& losses();
// The engine for this processor.
const Engine& engine();

using Mask = std::array<bool, 1>;
using Tensors = std::array<at::Tensor, 1>;
// What _backward and _hvp return: the gradient, empty where the mask does not ask for it.
using Result = std::tuple<at::Tensor>;

// The arguments that all five ops end with.
struct Arguments {
  Tensors operands;
  at::Tensor labels;
  double margin;
  int64_t mining;  // a Mining, if it is one
  bool squared, normalize;
  Reduction reduction;
  // The type of the result; that of the operand, if not given.
  std::optional<at::ScalarType> dtype;

  std::array<at::Tensor*, 2> tensors() { return {&operands[0], &labels}; }
};

// What the arguments come to when their shapes and types have been checked.
struct Checked {
  c10::SymInt count, size;  // vectors, and numbers of each
  c10::SymDimVector shape;  // of an unreduced result
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
Result backward(const Loss& loss, const at::Tensor& grad_output, Mask mask, const Arguments& arguments);
at::Tensor jvp(const Loss& loss, const Tensors& tangents, const Arguments& arguments);
Result hvp(const Loss& loss, const at::Tensor& grad_output, const Tensors& tangents, Mask mask,
           const Arguments& arguments);
}  // namespace kernels

// What they do at the autograd key: record, and call the ones below.
namespace autograd {
at::Tensor value(const Loss& loss, const Arguments& arguments);
Result backward(const Loss& loss, const at::Tensor& grad_output, Mask mask, const Arguments& arguments);
at::Tensor jvp(const Loss& loss, const Tensors& tangents, const Arguments& arguments);
Result hvp(const Loss& loss, const at::Tensor& grad_output, const Tensors& tangents, Mask mask,
           const Arguments& arguments);
}  // namespace autograd

}  // namespace fusedloss::triplets
