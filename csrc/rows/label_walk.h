// The walk over memory of losses that read the label's input only, and have no slope elsewhere: many rows at once, so
// that the processor does not wait for one input after another.
#pragma once
#include <cstring>

#include "core/lanes.h"
#include "core/stream.h"
#include "rows/row_numbers.h"
#include "rows/tiles.h"

namespace fusedloss::rows::inline FUSEDLOSS_SET {

template <class T>
class LabelWalk {
 public:
  LabelWalk(const Pass& pass, const FunctionsOf<T>& functions)
      : pass_(pass), function_(functions.at_labels[pass.moving]), rows_(pass) {
    tile_.classes = pass.classes;
    tile_.input = input_;
    tile_.tangent = pass.tangents[0].data ? tangent_ : nullptr;
    tile_.weight = pass.weight ? weight_ : nullptr;
    tile_.counted = rows_.counted;
    tile_.factor = rows_.factor;
    tile_.value = rows_.value;
    tile_.slope = pass.gradients[0].data ? slope_ : nullptr;
    tile_.parameters = pass.parameters;
  }

  void run(const Tiling& tiling, int64_t begin, int64_t end, double* sums) {
    for (int64_t block = begin; block < end; ++block) {
      Sum<double> sum;
      for (int64_t row = tiling.begin(block); row < tiling.end(block); row += kRows)
        run_rows(row, std::min(kRows, tiling.end(block) - row), sum);
      sums[block] = value_of(sum);
    }
    finish_streams();
  }

 private:
  static constexpr int64_t kRows = 256, kLanes = Lanes<T>::size;
  // Zeros of so many bytes may stay in a cache: hardly anything is read beside them.
  static constexpr int64_t kMostCleared = 4 * kStreamedBytes;

  void run_rows(int64_t start, int64_t count, Sum<double>& sum) {
    Part part;
    find_stretch(pass_, start, count, part);
    const int64_t in_registers = (count + kLanes - 1) / kLanes * kLanes;
    rows_.take(pass_, part, in_registers);
    read_labels(pass_.operands[0], part, input_);
    read_labels(pass_.tangents[0], part, tangent_);
    if (const auto* of_class = static_cast<const T*>(pass_.weight))
      for (int64_t k = 0; k < count; ++k) weight_[k] = of_class[rows_.labels[k]];
    tile_.rows = in_registers;
    function_(tile_);
    rows_.weigh_values(count, in_registers);
    if (pass_.value.data) store_part(pass_, pass_.value, part, rows_.value);
    if (pass_.gradients[0].data) write_labels(pass_.gradients[0], part);
    if (pass_.sums_values) add_registers(rows_.value, in_registers, sum);
  }
  // Of every row the number at its label; of a row that is ignored, any.
  void read_labels(const ClassView& view, const Part& part, T* numbers) const {
    if (!view.data) return;
    for_each_run(pass_, view, part, [&](const Run& run) {
      visit_floating(view.dtype, [&](auto element) {
        const auto* data = static_cast<const decltype(element)*>(view.data) + run.offset;
        for (int64_t i = 0; i < run.length; ++i)
          numbers[run.at + i] = convert<T>(data[i * run.stride + rows_.labels[run.at + i] * view.step]);
      });
    });
  }
  // Writes of every row the slope at its label, and 0 elsewhere.
  void write_labels(const ClassView& view, const Part& part) const {
    for_each_run(pass_, view, part, [&](const Run& run) {
      visit_floating(view.dtype, [&](auto element) {
        using S = decltype(element);
        S* const data = static_cast<S*>(view.data) + run.offset;
        clear(data, run, view.step);
        for (int64_t i = 0; i < run.length; ++i)
          data[i * run.stride + rows_.labels[run.at + i] * view.step] = convert<S>(slope_[run.at + i]);
      });
    });
  }
  // Both kinds of zeros are all bits 0.
  template <class S>
  void clear(S* data, const Run& run, int64_t step) const {
    const int64_t classes = pass_.classes, bytes = classes * int64_t(sizeof(S));
    if (step == 1 && run.stride == classes)
      clear_memory(data, run.length * bytes, pass_.count * bytes >= kMostCleared);
    else if (run.stride == 1)
      for (int64_t c = 0; c < classes; ++c) std::memset(data + c * step, 0, run.length * sizeof(S));
    else
      for (int64_t c = 0; c < classes; ++c)
        for (int64_t i = 0; i < run.length; ++i) data[i * run.stride + c * step] = S();
  }

  const Pass& pass_;
  const LabelFunction<T> function_;
  LabelTile<T> tile_{};
  RowNumbers<T, kRows> rows_;
  T input_[kRows] = {}, tangent_[kRows] = {}, weight_[kRows] = {}, slope_[kRows];
};

}  // namespace fusedloss::rows::inline FUSEDLOSS_SET
