// The contract between the ops of losses over pairs and their kernels: raw pointers, no torch.
//
// Every vector of one matrix meets every vector of another. Kernels see of that a tile: some rows of the matrix of
// inner products, which they turn, in place, into the loss's derivatives by them. Logits are scale * product + bias.
#pragma once
#include "core/dtype.h"

namespace fusedloss::pairs {

// The operands: two matrices; vectors that each have a product with one row only, in the place of a column of its own;
// and what multiplies the products and is added to them. Only the first must be there.
enum Place { kFirst, kSecond, kPositive, kScale, kBias, kOperands };

// What the logits of a row mean: together a distribution over the columns, or each a yes or no.
enum class Kind { softmax, sigmoid };

struct Description {
  const char* name;
  const char* operands[kOperands];
  Kind kind;
  bool by_label;  // whether the vectors with the same label are those that belong together
};

// T is the type of the computation, float or double. Arrays of rows and columns are of all rows and columns, not only
// of the tile's; those that are not needed are null.
struct Tile {
  int64_t rows = 0, columns = 0;
  int64_t first = 0;           // which of all rows is its first
  int64_t pitch = 0;           // from row to row
  void* products = nullptr;    // T
  bool moves = false;          // whether there are tangents (pointers of empty matrices are null)
  void* moving = nullptr;      // T: the products' derivatives along them
  bool differentiates = true;  // whether both become the loss's derivatives by the products, first and second ones

  const double* logits = nullptr;  // scale, bias, and the derivatives of the two along tangents
  // Which column belongs to a row: this one for row 0, and so on; or those with the same label, without the row's own.
  int64_t offset = 0;
  const void* labels = nullptr;  // T on the CPU, int64 on a device
  const void* shares = nullptr;  // T of every row with labels: 1 / how many belong to it; 0 leaves the row out
  // T of every row: the product with the vector that belongs to it, and is no column; treated like those of the tile.
  void *own = nullptr, *own_moving = nullptr;

  const void* weights = nullptr;  // T of every row: what its loss counts for in the result
  // T of every column, where the loss is also a softmax over the rows, with the same weights: the largest logit, and
  // 1 / the sum of the exponentials of what logits are below it; the tangents' mean. `column_logs`, double, has the
  // sum's logarithm.
  const void *column_tops = nullptr, *column_inverses = nullptr, *column_means = nullptr;
  const double* column_logs = nullptr;

  // Of every row: its loss, or the loss's derivative along the tangents; the derivatives (with the weight, and second
  // ones where there are tangents) by scale and bias.
  double *values = nullptr, *scale_slopes = nullptr, *bias_slopes = nullptr;
};

// What is known of the columns after some tiles, for a softmax over the rows.
struct Columns {
  void* tops = nullptr;                         // T: the largest logit
  double *sums = nullptr, *weighted = nullptr;  // of exponentials; the same, times the logits' tangents, if not null
};

using RowsFunction = void (*)(const Tile& tile, int64_t begin, int64_t end);
using ColumnsFunction = void (*)(const Tile& tile, const Columns& columns, int64_t begin, int64_t end);
struct Engine {
  RowsFunction softmax_float, softmax_double, sigmoid_float, sigmoid_double;  // rows [begin, end) of a tile
  ColumnsFunction columns_float, columns_double;  // adds the tile to what is known of columns [begin, end)
};

}  // namespace fusedloss::pairs
