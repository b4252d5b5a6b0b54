// The contract between the pointwise ops and their kernels: raw pointers, sizes and strides.
#pragma once
#include <cstdint>

#include "core/loss.h"
#include "core/view.h"

namespace fusedloss::pointwise {

// The elements are processed in blocks, and a block in tiles of at most this many (pointwise/tiles.h).
inline constexpr int64_t kTile = 2048;

// What a kernel computes of the formula f at every element; weight and scale multiply it.
enum class Mode {
  value,               // f
  value_and_gradient,  // f and the df/doperand
  gradient,            // grad_output df/doperand
  jvp,                 // sum of df/doperand tangent: the derivative along a direction
  hvp,                 // grad_output d/doperand of the jvp: the second derivative along a direction
};
inline constexpr int kModes = 5;

// One pass over all elements.
struct Pass : Extent {
  View operands[kMaxOperands], tangents[kMaxOperands], weight, grad_output;
  View value, gradients[kMaxOperands];  // outputs; the absent ones are not computed
  double scale = 1;                     // multiplies gradients (and values that are written)
  const double* parameters = nullptr;
};

// The first operand with an element outside of its domain, or none.
struct Offence {
  int operand = -1;
  bool found() const { return operand >= 0; }
};

// Up to kTile elements as contiguous T, in cache.
template <class T>
struct Tile {
  int64_t count;
  const T *operands[kMaxOperands], *tangents[kMaxOperands], *weight, *grad_output;
  T *value, *gradients[kMaxOperands];
  T scale;
  const double* parameters;
};

// Computes one tile; returns the sum of the weighted values (for Mode::value, value_and_gradient and jvp).
template <class T>
using TileFunction = double (*)(const Tile<T>&);

// The tile functions of one loss for 2 and 3 operands; null where the formula does not take that many.
struct TileFunctions {
  TileFunction<float> of_float[2][kModes] = {};
  TileFunction<double> of_double[2][kModes] = {};
};

// Runs the blocks [begin, end) of a pass in float or double and puts each one's sum into sums[block].
// Where an operand's domain is restricted, elements are checked before they are used; returns the first offence.
struct Engine {
  Offence (*run_float)(const Pass&, TileFunction<float>, const Domain* domains, int64_t begin, int64_t end,
                       double* sums);
  Offence (*run_double)(const Pass&, TileFunction<double>, const Domain* domains, int64_t begin, int64_t end,
                        double* sums);
};

}  // namespace fusedloss::pointwise
