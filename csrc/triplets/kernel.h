// The contract between the ops of mined triplets and their kernels: raw pointers, no torch.
//
// An anchor has a positive, another vector of its label, and a negative, a vector of another one. Kernels go over the
// anchors in blocks: distances to all vectors, what is mined from them, and the pairs whose distances the loss then
// depends on. The matrix of all distances is never there, only the rows that threads are at.
#pragma once
#include "core/dtype.h"
#include "core/queue.h"

namespace fusedloss::triplets {

struct Description {
  const char* name;
};

enum class Mining : int {
  batch_hard,  // every anchor's farthest positive and nearest negative
  semi_hard,   // every positive, and the nearest negative that is farther, else the farthest one
  all,         // every positive and every negative
};
inline constexpr int kMinings = 3;

// A tensor of vectors: strides from vector to vector and from number to number.
struct VectorView {
  void* data = nullptr;  // absent if null
  DType dtype = DType::float32;
  int64_t vector = 0, step = 0;
};

// Vectors by their labels.
struct Groups {
  const int32_t* group;    // of every vector
  const int32_t* members;  // those of all groups, one group after another, each in order
  const int64_t* first;    // where the members of a group begin, and behind the last one where they end
  const int32_t* anchors;  // the vectors that have a positive and a negative, in order
  int64_t anchor_count;
  int64_t most_positives;  // of an anchor
  int64_t most_pairs;      // that the loss of an anchor depends on
};

struct Pass {
  int64_t count = 0, size = 0;  // vectors, and numbers of each
  Groups groups{};
  Mining mining{};
  bool squared = false, normalize = false;
  double margin = 0;
  VectorView input;
  bool moving = false;  // whether values and gradient are their derivatives along the tangent
  VectorView tangent;
  VectorView gradient;              // if given
  const double* factors = nullptr;  // of every vector as an anchor: what multiplies its part of the gradient, or 1
  double scale = 1;                 // multiplies the gradient when it is written
  int64_t block = 0;                // how many anchors a block has
  // Results for every vector: the sum over what it is the anchor of, and how many of these terms are above 0.
  double* values = nullptr;
  double* above = nullptr;
};

// Anchors from `first` on, numbers into Groups::anchors.
struct Block {
  int64_t first, count;
};

// Memory is of two kinds: what all threads see together, and what each has for itself.
using RoomFunction = int64_t (*)(const Pass& pass);
// In this order: reads the vectors, so many of a `piece` at a time; mines a block, so many of its anchors at a time;
// gives their pairs to the other vectors of each, those from `begin` to `end`; writes the gradient.
struct Functions {
  RoomFunction shared_room, own_room;
  int64_t read_piece, mine_piece;
  void (*read)(const Pass& pass, Queue& pieces, void* shared);
  void (*mine)(const Pass& pass, const Block& block, Queue& pieces, void* shared, void* own);
  void (*give)(const Pass& pass, const Block& block, int64_t begin, int64_t end, void* shared);
  void (*write)(const Pass& pass, Queue& pieces, void* shared, void* own);
};
struct Engine {
  Functions of_float, of_double;
};

}  // namespace fusedloss::triplets
