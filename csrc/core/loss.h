// What a loss says about itself, apart from its formula: names, domains and shapes, as plain data.
// Checks, error messages, documentation and tests read it from here.
#pragma once
#include "core/instruction_set.h"

namespace fusedloss {

// The values that a parameter or the elements of an operand may take.
enum class Domain {
  any,          // every number but NaN for a parameter; everything for an operand
  positive,     // (0, inf)
  nonnegative,  // [0, inf)
  unit,         // [0, 1]
  open_unit,    // (0, 1)
  at_most_one,  // (-inf, 1]
  flag,         // 0 or 1
  signs,        // -1 or 1
  one_or_two,   // 1 or 2
  distance,     // the number of a distance between vectors
};

// A domain as an interval. Its bounds are exact in float; NaN is none.
struct Interval {
  float low = __builtin_nanf(""), high = __builtin_nanf("");
  bool has_ends = true;      // whether the bounds belong to it
  bool has_interior = true;  // whether what is between them does

  // NaN is nowhere outside: it goes on to the results.
  template <class T>
  FUSEDLOSS_INLINE constexpr bool excludes(T x) const {
    const bool at_end = (x == T(low)) | (x == T(high));
    return (x < T(low)) | (x > T(high)) | (at_end ? !has_ends : !has_interior & (x == x));
  }
};

constexpr Interval interval_of(Domain domain) {
  switch (domain) {
    case Domain::positive: return {.low = 0, .has_ends = false};
    case Domain::nonnegative: return {.low = 0};
    case Domain::unit: return {.low = 0, .high = 1};
    case Domain::open_unit: return {.low = 0, .high = 1, .has_ends = false};
    case Domain::at_most_one: return {.high = 1};
    case Domain::flag: return {.low = 0, .high = 1, .has_interior = false};
    case Domain::signs: return {.low = -1, .high = 1, .has_interior = false};
    case Domain::one_or_two: return {.low = 1, .high = 2, .has_interior = false};
    case Domain::distance: return {.low = 0, .high = 2};
    default: return {};
  }
}

// How operands of different shapes are treated.
enum class Shapes {
  same,                // refused
  broadcast,           // broadcast
  same_rank,           // broadcast, but all must have the same number of dimensions
  broadcast_and_warn,  // broadcast with a UserWarning, as torch does where it is most often a mistake
};

// Names of the reductions; the numbers are those of torch's enum, continued.
enum class Reduction {
  none,          // one value an element
  mean,          // over the elements (of weights, where Description::weighted_mean says so)
  sum,           //
  batchmean,     // sum / size of the first axis; over rows, their mean
  rowmean,       // sum / number of rows along the last axis
  mean_or_zero,  // the mean, and 0 where nothing counts
  mean_nonzero,  // sum / number of terms above 0, and 0 where none is
};

struct Parameter {
  const char* name = nullptr;
  Domain domain = Domain::any;
};

inline constexpr int kMaxOperands = 3;
inline constexpr int kMaxParameters = 5;

// The operand whose elements may not be everything, if there is one, and what they may be, given the parameters.
struct Restriction {
  int operand = -1;
  Domain (*domain)(const double* parameters) = nullptr;
};

struct Description {
  const char* name;
  const char* operands[kMaxOperands];
  // Operands that must be given; the formula takes this many, or all.
  int required_operands = 2;
  Parameter parameters[kMaxParameters] = {};
  Shapes shapes = Shapes::broadcast;
  // A weighted 'mean' divides by the sum of the weights instead of the number of elements.
  bool weighted_mean = false;
  // The only reduction by groups that this loss offers beside none, mean and sum.
  Reduction grouped = Reduction::sum;
  Restriction restriction = {};
};

// The value of a loss at one element and its derivative with respect to each of N operands.
template <class V, int N>
struct Partials {
  V value;
  V slope[N];
};

}  // namespace fusedloss
