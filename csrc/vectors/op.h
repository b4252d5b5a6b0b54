// The five ops of every loss of vectors (torch/ops.h): one value a row.
//
// The operands are two vectors a row and the row's target, or three vectors; and the weight of rows. Vectors lie along
// the last axis and are of one length; the axes before it are broadcast, and are the shape of the rows. Target and
// weight broadcast to that.
#pragma once
#include <ATen/core/Tensor.h>
#include <c10/core/SymIntArrayRef.h>
#include <c10/util/DimVector.h>

#include <array>

#include "vectors/kernel.h"

namespace fusedloss::vectors {

struct Loss {
  const Description* about;
};
const std::array<Loss, 4>& losses();
// The engine for this processor.
const Engine& engine();

using OptionalTensor = std::optional<at::Tensor>;
using Mask = std::array<bool, kMaxOperands>;
using Tensors = std::array<at::Tensor, kMaxOperands>;
// What _backward and _hvp return: a gradient for each operand, empty where the mask does not ask for it.
using Results = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

// The arguments that all five ops end with.
struct Arguments {
  Tensors operands;
  c10::ArrayRef<double> parameters;
  bool normalize;
  Reduction reduction;
  // The type of the result; that of the operands, promoted, if not given.
  std::optional<at::ScalarType> dtype;

  std::array<at::Tensor*, kMaxOperands> tensors() { return {&operands[0], &operands[1], &operands[2], &operands[3]}; }
};

// The operand that is the weight of rows.
inline constexpr int kWeight = kMaxOperands - 1;
// What operand k is called.
inline const char* name_of(const Description& about, int k) { return k == kWeight ? "weight" : about.operands[k]; }

// What the arguments come to when they have been checked.
struct Checked {
  c10::SymDimVector rows;  // their shape
  c10::SymInt length;      // of vectors
  at::ScalarType dtype, compute;

  // The shape that operand k is broadcast to.
  c10::SymDimVector shape_of(const Description& about, int k) const;
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

}  // namespace fusedloss::vectors
