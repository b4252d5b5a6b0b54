// What is known of rows beside their classes: labels, weights, and whether they count.
#pragma once
#include <algorithm>
#include <iterator>

#include "core/lanes.h"
#include "core/runs.h"
#include "core/sum.h"
#include "rows/listed_targets.h"

namespace fusedloss::rows::inline FUSEDLOSS_SET {

// Of some rows, and their values. Those without a row read what a row has left there.
template <class T, int most>
struct RowNumbers {
  // (In whole registers: one that lies in two lines of a cache takes twice the time.)
  alignas(64) T weight[most], counted[most], factor[most], value[most] = {};
  alignas(64) int64_t labels[most] = {};

  explicit RowNumbers(const Pass& pass) {
    std::fill_n(weight, most, T(1));
    std::fill_n(counted, most, T(1));
    std::fill_n(factor, most, T(pass.scale));
  }

  // `count` is that of the rows, or above it: a loop whose length is known may be no loop.
  void take(const Pass& pass, const Part& part, int64_t count) {
    const bool weighs = pass.row_weight.data;
    if (weighs) {
      load_part(pass, pass.row_weight, part, weight);
      for (int64_t k = 0; k < count; ++k) counted[k] = weight[k] == 0 ? 0 : 1;
      for (int64_t k = 0; k < count; ++k) factor[k] = T(pass.scale) * weight[k];
    }
    if (pass.labels.data) {
      load_part(pass, pass.labels, part, labels);
      for (int64_t k = 0; k < count; ++k) {
        const bool ignored = labels[k] == pass.ignored;
        counted[k] = ignored || (weighs && counted[k] == 0) ? 0 : 1;
        labels[k] = ignored ? 0 : labels[k];
      }
    }
    if (!pass.grad_output.data) return;
    load_part(pass, pass.grad_output, part, value);
    for (int64_t k = 0; k < count; ++k) factor[k] = T(pass.scale) * weight[k] * value[k];
  }
  // Values of rows that do not count become 0, and of `count` those beyond the `rows` that there are.
  void weigh_values(int64_t rows, int64_t count) {
    for (int64_t k = 0; k < count; ++k) value[k] = k < rows && counted[k] != 0 ? weight[k] * value[k] : T(0);
  }
};

// Adds numbers that fill whole registers; a few of them plainly, before the sum takes them.
template <class T>
void add_registers(const T* x, int64_t count, Sum<double>& sum) {
  using V = Lanes<T>;
  constexpr int64_t kTogether = 8 * V::size;
  Sum<V> lanes;
  for (int64_t begin = 0; begin < count; begin += kTogether) {
    V some = 0;
    for (int64_t i = begin; i < std::min(begin + kTogether, count); i += V::size) some = some + V::load(x + i);
    lanes.add(some);
  }
  for (int lane = 0; lane < V::size; ++lane)
    sum.add(value_of({double(lanes.total.raw[lane]), double(lanes.lost.raw[lane])}));
}

// Multiplies weights of rows by those of their labels, which are classes; of rows that do not count they are 0. (A loop
// without branches, which the compiler makes one over registers.)
template <class T>
void weigh_by_class(const T* of_class, const int64_t* labels, int64_t ignored, int64_t rows, double* weights) {
  for (int64_t k = 0; k < rows; ++k) {
    const bool counts = (labels[k] != ignored) & (weights[k] != 0);
    const double of_label = of_class[counts ? labels[k] : 0];
    weights[k] = counts ? weights[k] * of_label : 0;
  }
}

// A look at labels and weights of some rows, before anything is computed.
template <class T>
Count count(const Pass& pass, int64_t first, int64_t rows) {
  constexpr int64_t kTogether = 256;
  const bool weighted = pass.sums_weights && (pass.weight || pass.row_weight.data);
  const int64_t ignored = pass.ignored, end = first + rows;
  const uint64_t classes = pass.classes;
  Count result{.rows = rows, .in_range = !pass.takes_lists || lists_in_range(pass, first, rows)};
  Sum<double> weight;
  Part part;
  int64_t labels[kTogether] = {};
  double weights[kTogether];
  for (; first < end; first += kTogether) {
    find_stretch(pass, first, std::min(kTogether, end - first), part);
    int64_t outside = 0;
    if (pass.labels.data) {
      load_part(pass, pass.labels, part, labels);
      for (int64_t k = 0; k < part.count; ++k) {
        result.rows -= labels[k] == ignored;
        outside += (labels[k] != ignored) & (uint64_t(labels[k]) >= classes);
      }
    }
    result.in_range &= outside == 0;
    if (!weighted || outside != 0) continue;
    std::fill_n(weights, part.count, 1.0);
    std::fill(weights + part.count, std::end(weights), 0.0);
    if (pass.row_weight.data) load_part(pass, pass.row_weight, part, weights);
    if (pass.labels.data && pass.weight && classes > 0)
      weigh_by_class(static_cast<const T*>(pass.weight), labels, ignored, part.count, weights);
    else if (pass.labels.data)
      for (int64_t k = 0; k < part.count; ++k) weights[k] = labels[k] == ignored ? 0 : weights[k];
    add_registers(weights, kTogether, weight);
  }
  result.weight = weighted ? value_of(weight) : double(result.rows);
  return result;
}

}  // namespace fusedloss::rows::inline FUSEDLOSS_SET
