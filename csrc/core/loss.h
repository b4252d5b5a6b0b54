// What a loss says about itself, apart from its formula: names, domains and shapes, as plain data.
// Checks, error messages, documentation and tests read it from here.
#pragma once

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
};

// How operands of different shapes are treated.
enum class Shapes {
  same,                // refused
  broadcast,           // broadcast
  same_rank,           // broadcast, but all must have the same number of dimensions
  broadcast_and_warn,  // broadcast with a UserWarning, as torch does where it is most often a mistake
};

// Names of the reductions; the numbers are those of torch's enum, continued.
enum class Reduction {
  none,       // one value an element
  mean,       // over the elements (of weights, where Description::weighted_mean says so)
  sum,        //
  batchmean,  // sum / size of the first axis
  rowmean,    // sum / number of rows along the last axis
};

struct Parameter {
  const char* name = nullptr;
  Domain domain = Domain::any;
};

inline constexpr int kMaxOperands = 3;
inline constexpr int kMaxParameters = 3;

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
  // What the elements of an operand may be, given the parameters.
  Domain (*domain)(int operand, const double* parameters) = [](int, const double*) { return Domain::any; };
};

// The value of a loss at one element and its derivative with respect to each of N operands.
template <class V, int N>
struct Partials {
  V value;
  V slope[N];
};

}  // namespace fusedloss
