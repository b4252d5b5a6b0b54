// The contract between the ops of losses of vectors and their kernels: raw pointers, sizes and strides.
//
// A row has two or three vectors. A loss is a function of distances between them, one number a row.
#pragma once
#include "core/loss.h"
#include "core/view.h"

namespace fusedloss::vectors {

inline constexpr int kMaxVectors = 3;
inline constexpr int kMaxPairs = 3;
inline constexpr int kMaxOperands = 4;  // two vectors and a target, or three vectors; and the weight of rows

// Between which vectors there is a distance: 0 and 1, 0 and 2, 1 and 2. A loss takes the first one, two or three.
FUSEDLOSS_INLINE constexpr int first_of(int pair) { return pair == 2 ? 1 : 0; }
FUSEDLOSS_INLINE constexpr int second_of(int pair) { return pair == 0 ? 1 : 2; }
FUSEDLOSS_INLINE constexpr int vectors_of(int pairs) { return pairs == 1 ? 2 : 3; }

enum class Formula { contrastive, cosine_embedding, triplet };
enum class Distance { p_norm, squared_euclidean, cosine };

// What the parameters of a loss come to.
struct Settings {
  double margin = 0;
  Distance distance = Distance::p_norm;
  double p = 2, eps = 0;  // of the norm; and what is added to every difference
  bool swap = false;      // whether the nearer of anchor and positive counts as the negative's neighbour
  bool normalize = false;
};

// What a loss says about itself, apart from its formula.
struct Description {
  const char* name;
  const char* operands[kMaxOperands - 1];
  Formula formula;
  Parameter parameters[kMaxParameters] = {};
  Settings (*settings)(const double* parameters);
  // Whether a target of a floating type is an operand, with a gradient and a say in the type of the result.
  bool soft_target = false;

  constexpr int vectors() const { return formula == Formula::triplet ? 3 : 2; }
};

// A tensor of vectors: the view of its rows, and how far apart in memory the components of a vector are.
struct VectorView : View {
  int64_t step = 0;
};
// An operand, the tangent along which it moves, and where its gradient goes; the last two need not be given.
struct Operand {
  VectorView at, tangent, gradient;
};

// One pass over all rows; the extent is that of the rows.
struct Pass : Extent {
  int64_t length = 0;  // of a vector
  Operand vectors[kMaxVectors];
  Operand target, weight;  // of every row; rows of weight 0 do not count
  View grad_output;        // of every row
  View value;              // of every row, if given
  bool moving = false;     // along the tangents: derivatives instead of values, and second ones instead of gradients
  double scale = 1;        // multiplies gradients
  Formula formula;
  Settings settings;

  // Rows are taken in blocks, which follow from the pass alone: sums come out the same to the bit for every number of
  // threads.
  int64_t rows_in_block() const { return 1 + kComponentsInBlock / (length + 1); }
  int64_t blocks() const { return (count + rows_in_block() - 1) / rows_in_block(); }
  // Below this a second thread costs more than it brings.
  int64_t blocks_for_a_thread() const { return 1 + kComponentsInBlock / (rows_in_block() * (length + 1)); }

 private:
  static constexpr int64_t kComponentsInBlock = 1 << 13;
};

// For passes in float and in double. Computes the blocks [begin, end) and puts each one's sum of weighted values into
// sums[block].
struct Engine {
  void (*run_float)(const Pass&, int64_t begin, int64_t end, double* sums);
  void (*run_double)(const Pass&, int64_t begin, int64_t end, double* sums);
};

}  // namespace fusedloss::vectors
