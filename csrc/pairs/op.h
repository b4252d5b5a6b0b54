// The five ops of every loss over pairs (torch/ops.h): one value a row.
//
// The operands are matrices of vectors, first (N, D) and second (M, D), the first itself if it is not given; positive
// (N, D), one vector for every row; scale and bias, tensors of one number, which multiply and add to the parameters.
#pragma once
#include <ATen/core/Tensor.h>
#include <c10/core/SymIntArrayRef.h>
#include <c10/util/DimVector.h>

#include <array>

#include "core/loss.h"
#include "pairs/kernel.h"

namespace fusedloss::pairs {

struct Loss {
  const Description* about;
};
const std::array<Loss, 4>& losses();
// The engine for this processor.
const Engine& engine();

using Mask = std::array<bool, kOperands>;
using Tensors = std::array<at::Tensor, kOperands>;
// What _backward and _hvp return: a gradient for each operand, empty where the mask does not ask for it.
using Results = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

// The arguments that all five ops end with.
struct Arguments {
  Tensors operands;
  at::Tensor labels;                 // of every row, for losses that go by them
  c10::ArrayRef<double> parameters;  // the logits' scale and bias
  // The column that belongs to row 0; if not given, there are as many columns as rows.
  std::optional<int64_t> offset;
  bool symmetric;  // whether the loss is the mean of those of the rows and of the columns
  bool normalize;  // whether vectors are divided by their norms
  Reduction reduction;
  // The type of the result; that of the first operand, if not given.
  std::optional<at::ScalarType> dtype;

  std::array<at::Tensor*, kOperands + 1> tensors() {
    return {&operands[0], &operands[1], &operands[2], &operands[3], &operands[4], &labels};
  }
  // The matrix whose vectors are the columns.
  const at::Tensor& columns() const { return operands[kSecond].defined() ? operands[kSecond] : operands[kFirst]; }
};

// What the arguments come to when their shapes and types have been checked.
struct Checked {
  c10::SymDimVector shape;  // of an unreduced result
  at::ScalarType dtype, compute;
};
// What callers call an operand; `apart` if the vectors that belong to rows are not among the columns.
const char* name_of(const Description& about, int place, bool apart);
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
Results backward(const Loss& loss, const at::Tensor& grad_output, Mask mask, const Arguments& arguments);
at::Tensor jvp(const Loss& loss, const Tensors& tangents, const Arguments& arguments);
Results hvp(const Loss& loss, const at::Tensor& grad_output, const Tensors& tangents, Mask mask,
            const Arguments& arguments);
}  // namespace kernels

// What they do at the autograd key: record, and call the ones below.
namespace autograd {
at::Tensor value(const Loss& loss, const Arguments& arguments);
Results backward(const Loss& loss, const at::Tensor& grad_output, Mask mask, const Arguments& arguments);
at::Tensor jvp(const Loss& loss, const Tensors& tangents, const Arguments& arguments);
Results hvp(const Loss& loss, const at::Tensor& grad_output, const Tensors& tangents, Mask mask,
            const Arguments& arguments);
}  // namespace autograd

}  // namespace fusedloss::pairs
