// The five ops of triplets that are mined within a batch (torch/ops.h): one value an anchor.
//
// The operand is a tensor of vectors, (N, D). Labels are integers, (N).
#pragma once
#include <ATen/core/Tensor.h>
#include <c10/core/SymIntArrayRef.h>
#include <c10/util/DimVector.h>

#include <array>

#include "core/loss.h"
#include "torch/family.h"
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

FUSEDLOSS_DECLARE_OPS

}  // namespace fusedloss::triplets
