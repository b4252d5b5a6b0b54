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

#include "torch/family.h"
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

FUSEDLOSS_DECLARE_OPS

}  // namespace fusedloss::vectors
