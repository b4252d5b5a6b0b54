// The five ops of every pointwise loss (torch/ops.h). Their operands are input, target and, for some losses, a third;
// the gradients of those that broadcast are summed.
#pragma once
#include <ATen/core/Tensor.h>
#include <c10/core/SymIntArrayRef.h>
#include <c10/util/DimVector.h>

#include "pointwise/registry.h"
#include "torch/family.h"

namespace fusedloss::pointwise {

using OptionalTensor = std::optional<at::Tensor>;
using Mask = std::array<bool, kMaxOperands>;
using Tensors = std::array<at::Tensor, kMaxOperands>;  // those that are not given are not defined

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

FUSEDLOSS_DECLARE_OPS

}  // namespace fusedloss::pointwise
