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

// What a mode reads beside operands and weight, and what it makes. (On the CPU value_and_gradient makes unreduced
// values too, if they are wanted.)
template <Mode mode>
inline constexpr bool kTakesTangents = mode == Mode::jvp || mode == Mode::hvp;
template <Mode mode>
inline constexpr bool kTakesGradOutput = mode == Mode::gradient || mode == Mode::hvp;
template <Mode mode>
inline constexpr bool kMakesValues = mode == Mode::value || mode == Mode::jvp;
template <Mode mode>
inline constexpr bool kMakesGradients = !kMakesValues<mode>;
template <Mode mode>
inline constexpr bool kMakesSums = !kTakesGradOutput<mode>;

// One pass over all elements.
struct Pass : Extent {
  View operands[kMaxOperands], tangents[kMaxOperands], weight, grad_output;
  View value, gradients[kMaxOperands];  // outputs; the absent ones are not computed
  double scale = 1;                     // multiplies gradients (and values that are written)
  const double* parameters = nullptr;
};

// What the elements of an operand must be.
struct Check {
  int operand;
  Domain domain;
};

// Up to kTile elements as contiguous T, in cache.
template <class T>
struct Tile {
  int64_t count;
  const T *operands[kMaxOperands], *tangents[kMaxOperands], *weight, *grad_output;
  T *value, *gradients[kMaxOperands];
  bool streams_value, streams_gradients[kMaxOperands];  // written past the caches: kTile elements, aligned
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

// Runs the blocks [begin, end) of a pass in float or double and puts each one's sum into sums[block]. With a check,
// elements are looked at before they are used; returns whether all passed.
struct Engine {
  bool (*run_float)(const Pass&, TileFunction<float>, const Check*, int64_t begin, int64_t end, double* sums);
  bool (*run_double)(const Pass&, TileFunction<double>, const Check*, int64_t begin, int64_t end, double* sums);
};

}  // namespace fusedloss::pointwise
