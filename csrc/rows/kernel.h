// The contract between the rows' ops and their kernels: raw pointers, sizes and strides.
#pragma once
#include <cstdint>

#include "core/loss.h"
#include "core/view.h"

namespace fusedloss::rows {

inline constexpr int kMaxOperands = 2;  // input and target, or two distributions

// What stands in the place of the target.
enum class Targets {
  labels,           // integers, one for a row: the class that is right
  dense,            // a number for every class
  labels_or_dense,  //
  lists,            // integers, as many as classes: those that are right, ended by -1
};
constexpr bool takes_labels(Targets targets) {
  return targets == Targets::labels || targets == Targets::labels_or_dense;
}
constexpr bool takes_dense(Targets targets) { return targets != Targets::labels; }

// What a loss says about itself, apart from its formula.
struct Description {
  const char* name;
  const char* operands[kMaxOperands] = {"input", "target"};
  Targets targets = Targets::labels;
  Parameter parameters[kMaxParameters] = {};
  // With labels, 'mean' divides by the sum of the class weights of the rows that count instead of their number.
  bool weighted_mean = false;
  // A class weight multiplies the target's number for the class, of which the loss is linear, and the first parameter
  // smooths the target; else it multiplies rows with that label.
  bool weighs_mass = false;
  // 'batchmean' is a name for 'mean'.
  bool batchmean = false;
  // What users call the weights of classes and of rows.
  const char *weight = "weight", *row_weight = "sample_weight";
  // It has an input and a slope that is not 0 at the label only.
  bool reads_label_only = false;
  // Whether in float64 its formula needs more registers of a GPU than others do. (Formulas say it too, to their
  // kernels.)
  bool heavy = false;
};

// A tensor with classes: the view of its rows, and how far apart in memory a row's classes are.
struct ClassView : View {
  int64_t step = 0;
};

// One pass over all rows; the extent is that of the rows.
struct Pass : Extent {
  int64_t classes = 0;
  int64_t few_classes = 0;  // so many are taken one after another, for many rows at once
  ClassView operands[kMaxOperands], tangents[kMaxOperands];
  View labels;                   // of every row, absent if the target is dense
  const void* weight = nullptr;  // of every class, dense and of the type of the computation; null if all are 1
  View row_weight, grad_output;  // of every row
  View value;                    // outputs; the absent ones are not computed
  ClassView gradients[kMaxOperands];
  int64_t ignored = 0;  // rows with this label do not count
  bool reads_label_only = false;
  bool takes_lists = false;   // the second operand holds lists of classes, in the place of how often each is right
  bool sums_values = false;   // whether somebody asks for the sum of the weighted values
  bool sums_weights = false;  // whether a count is to sum the weights of rows, by which a mean may divide
  bool moving = false;        // along the tangents: derivatives instead of values, and second ones instead of gradients
  double scale = 1;           // multiplies gradients
  const double* parameters = nullptr;
};

// Rows in cache, as contiguous T: one whose classes lie one after another, or as many as a register has lanes, one in
// each lane.
template <class T>
struct Tile {
  // Element (class c, lane k) stands at data[c * pitch + k]; of a single row at data[c].
  template <class U>
  struct Block {
    U* data = nullptr;  // absent if null
    int64_t pitch = 0;
    operator Block<const U>() const { return {data, pitch}; }
  };

  int64_t classes;
  // Of a single row: memory that the next one needs, or where that is not known, this one's. It is asked for while
  // this row is computed; by itself a processor asks for nothing beyond the page that it reads.
  const T* ahead[kMaxOperands + 1];
  Block<const T> operands[kMaxOperands], tangents[kMaxOperands];
  const T* weight;
  // Of every lane: the label, within range; 0 where the row does not count, whose gradients are 0; and what multiplies
  // the gradients of the others.
  const int64_t* labels;
  const T *counted, *factor;
  // The classes whose target is not 0 in some lane, for losses that ask for them.
  const int64_t* listed;
  int64_t listed_count;
  Block<T> gradients[kMaxOperands];
  Block<T> kept[kMaxOperands];  // for numbers of every class that are used again; where absent they are made again
  bool streams;                 // gradients of a single row are written past the caches, where they are aligned
  T* value;                     // of every lane
  const double* parameters;
};

// Rows of a loss that reads no class but the label's, as many as fill some registers.
template <class T>
struct LabelTile {
  int64_t rows, classes;
  const T *input, *tangent, *weight;  // of the label's class; there need not be the last two
  const T *counted, *factor;          // as in a tile
  T *value, *slope;                   // the second, by the input at the label, if not null
  const double* parameters;
};

// Computes one tile.
template <class T>
using TileFunction = void (*)(const Tile<T>&);
template <class T>
using LabelFunction = void (*)(const LabelTile<T>&);

// The tile functions of one loss.
template <class T>
struct FunctionsOf {
  int kept = 0;  // how many numbers of every class are used again when gradients are made
  // Whether the target is dense; whether there is a row in each lane; whether they move along tangents.
  TileFunction<T> of[2][2][2] = {};
  // In their place, where the label's class only is read; whether they move.
  LabelFunction<T> at_labels[2] = {};
};
struct TileFunctions {
  FunctionsOf<float> of_float;
  FunctionsOf<double> of_double;
};

// What a look at the labels of some rows tells.
struct Count {
  double weight = 0;  // of the rows that count: the row's own times that of its class
  int64_t rows = 0;   // that count
  bool in_range = true;
};

// For passes in float and in double. `run` computes the blocks [begin, end) and puts each one's sum of weighted values
// into sums[block]; `scale` multiplies their gradients by what comes in; `count` looks at `rows` rows from `first` on.
struct Engine {
  void (*run_float)(const Pass&, const FunctionsOf<float>&, int64_t begin, int64_t end, double* sums);
  void (*run_double)(const Pass&, const FunctionsOf<double>&, int64_t begin, int64_t end, double* sums);
  void (*scale_float)(const Pass&, int64_t begin, int64_t end);
  void (*scale_double)(const Pass&, int64_t begin, int64_t end);
  Count (*count_float)(const Pass&, int64_t first, int64_t rows);
  Count (*count_double)(const Pass&, int64_t first, int64_t rows);
  int float_lanes, double_lanes;
};

}  // namespace fusedloss::rows
