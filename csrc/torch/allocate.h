// Fresh memory for results.
#pragma once
#include <ATen/core/Tensor.h>

namespace fusedloss {

// A tensor of `shape` on model's device, laid out in memory like `model` where that has the same shape and fills its
// memory without gaps, else contiguous.
at::Tensor empty_laid_out_like(const at::Tensor& model, c10::SymIntArrayRef shape, c10::ScalarType dtype);

// Writes the only number of a CPU tensor of a floating type.
void fill(const at::Tensor& scalar, double value);

}  // namespace fusedloss
