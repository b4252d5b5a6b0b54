// The CPU's kernels of losses over pairs. Compiled once for every instruction set.
#include <algorithm>

#include "pairs/rows.h"

namespace fusedloss::pairs {
namespace {

template <template <class, bool> class LossRow, class T>
void run_rows(const Tile& tile, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row)
    tile.moves ? LossRow<T, true>(tile, row).run() : LossRow<T, false>(tile, row).run();
}

// Sums over the rows, for a register of columns.
template <class T, bool moving>
void add_to_columns(const Tile& tile, const Columns& columns, int64_t k, int64_t count) {
  using V = Lanes<T>;
  const Logits<V> logits(tile.logits);
  const auto product = [&](const void* matrix, int64_t row) {
    return load_some(static_cast<const T*>(matrix) + row * tile.pitch + k, count, T(0));
  };
  T* const tops = static_cast<T*>(columns.tops) + k;
  const V before = load_some(tops, count, T(0));
  V top = before;
  for (int64_t row = 0; row < tile.rows; ++row) top = larger_of(logits.at(product(tile.products, row)), top);
  store_some(top, tops, count);
  const V factor = SoftmaxOver<V>::exponential(before, top);
  const auto add = [&](double* sums, V sum) {
    for (int64_t lane = 0; lane < count; ++lane) sums[k + lane] += double(sum.raw[lane]);
  };
  for (int64_t lane = 0; lane < count; ++lane) {
    columns.sums[k + lane] *= double(factor.raw[lane]);
    if (moving) columns.weighted[k + lane] *= double(factor.raw[lane]);
  }
  constexpr int64_t kStretch = 64;  // more terms would lose digits in float
  for (int64_t begin = 0; begin < tile.rows; begin += kStretch) {
    V sum = 0, weighted = 0;
    for (int64_t row = begin; row < std::min(begin + kStretch, tile.rows); ++row) {
      const V x = product(tile.products, row);
      const V share = SoftmaxOver<V>::exponential(logits.at(x), top);
      sum = sum + share;
      if constexpr (moving) weighted = weighted + share * logits.along(x, product(tile.moving, row));
    }
    add(columns.sums, sum);
    if (moving) add(columns.weighted, weighted);
  }
}
template <class T>
void run_columns(const Tile& tile, const Columns& columns, int64_t begin, int64_t end) {
  each_register<T>(end - begin, [&](int64_t k, int64_t count) {
    tile.moves ? add_to_columns<T, true>(tile, columns, begin + k, count)
               : add_to_columns<T, false>(tile, columns, begin + k, count);
  });
}

}  // namespace

// FUSEDLOSS_ENGINE is the name of this instruction set's engine.
extern const Engine FUSEDLOSS_ENGINE;
const Engine FUSEDLOSS_ENGINE{run_rows<SoftmaxRow, float>,  run_rows<SoftmaxRow, double>, run_rows<SigmoidRow, float>,
                              run_rows<SigmoidRow, double>, run_columns<float>,           run_columns<double>};

}  // namespace fusedloss::pairs
