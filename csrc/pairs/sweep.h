// The way over the matrix of products, some rows at a time.
#pragma once
#include <ATen/core/Tensor.h>

#include <functional>

#include "pairs/kernel.h"
#include "pairs/side.h"

namespace fusedloss::pairs {

struct Plan {
  bool wide, on_gpu;
  bool moving;           // along tangents
  bool symmetric;        // whether the loss is also a softmax over the rows
  Tile tile;             // what is the same for all tiles
  Side *first, *second;  // may be the same
  Side* own;             // the vectors that belong to rows and are no columns, or null
  at::Tensor own_products, own_moving;
  at::TensorOptions numbers;  // of the type of the computation, on the device of the vectors
  // On a device these are called for all rows or columns of a tile at once.
  std::function<void(const Tile&, int64_t begin, int64_t end)> run_rows;
  std::function<void(const Tile&, const Columns&, int64_t begin, int64_t end)> run_columns;
};

// Values and slopes of rows go where the plan's tile says, gradients to the sides that gather.
void sweep(const Plan& plan);

}  // namespace fusedloss::pairs
