// The five ops of every loss over a lattice (torch/ops.h): one value a sample.
//
// The operand is a tensor of frames, (T, N, C), or (T, C) for a single sample. Targets and lengths are integers:
// targets (N, S), of whose rows the first target_lengths count, or those of all samples one after another.
#pragma once
#include <ATen/core/Tensor.h>
#include <c10/core/SymIntArrayRef.h>
#include <c10/util/DimVector.h>

#include <array>

#include "core/loss.h"
#include "lattice/kernel.h"
#include "torch/family.h"

namespace fusedloss::lattice {

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
  at::Tensor targets, input_lengths, target_lengths;
  int64_t blank;
  bool zero_infinity, from_logits;
  Reduction reduction;
  // The type of the result; that of the operand, if not given.
  std::optional<at::ScalarType> dtype;

  std::array<at::Tensor*, 4> tensors() { return {&operands[0], &targets, &input_lengths, &target_lengths}; }
};

// What the arguments come to when their shapes and types have been checked.
struct Checked {
  bool batched;
  c10::SymInt frames, samples, classes;
  c10::SymDimVector shape;  // of an unreduced result
  at::ScalarType dtype, compute;
};
Checked check(const Description& about, const Arguments& arguments);

FUSEDLOSS_DECLARE_OPS

namespace kernels {
// An unreduced loss's gradient for an incoming gradient of 1, times the one that came; in place or not.
at::Tensor scaled_samples(const Loss& loss, const at::Tensor& gradient, const at::Tensor& grad_output,
                          const Arguments& arguments, bool in_place);
}  // namespace kernels

}  // namespace fusedloss::lattice
