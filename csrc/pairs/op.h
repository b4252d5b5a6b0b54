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
#include "torch/family.h"

namespace fusedloss::pairs {

struct Loss {
  const Description* about;
};
const std::array<Loss, 4>& losses();
// The engine for this processor.
const Engine& engine();

using Mask = std::array<bool, kOperands>;
using Tensors = std::array<at::Tensor, kOperands>;

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

FUSEDLOSS_DECLARE_OPS

}  // namespace fusedloss::pairs
