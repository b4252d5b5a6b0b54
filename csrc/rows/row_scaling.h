// The walk over memory that multiplies the gradient of an unreduced loss by what comes in for every row, in place.
#pragma once
#include "core/convert.h"
#include "core/lanes.h"
#include "rows/row_numbers.h"
#include "rows/tiles.h"

namespace fusedloss::rows::inline FUSEDLOSS_SET {

template <class T>
class RowScaling {
 public:
  explicit RowScaling(const Pass& pass) : pass_(pass), rows_(pass) {}

  void run(const Tiling& tiling, int64_t begin, int64_t end) {
    Part part;
    for (int64_t block = begin; block < end; ++block)
      for (int64_t row = tiling.begin(block); row < tiling.end(block); row += kRows) {
        find_stretch(pass_, row, std::min(kRows, tiling.end(block) - row), part);
        rows_.take(pass_, part, part.count);
        // (What is left out has slopes of 0, and keeps them whatever comes in; the others have their rows' weights.)
        for (int64_t k = 0; k < part.count; ++k) factor_[k] = rows_.counted[k] == 0 ? T(0) : grad_output_[k];
        scale(part);
      }
  }

 private:
  static constexpr int64_t kRows = 256;

  void scale(const Part& part) const {
    const ClassView& view = pass_.gradients[0];
    for_each_run(pass_, view, part, [&](const Run& run) {
      visit_floating(view.dtype, [&](auto element) {
        auto* const data = static_cast<decltype(element)*>(view.data) + run.offset;
        if (pass_.reads_label_only)
          scale_labels(data, run);
        else if (view.step == 1)
          for (int64_t i = 0; i < run.length; ++i) scale_row(data + i * run.stride, factor_[run.at + i]);
        else
          for (int64_t c = 0; c < pass_.classes; ++c) scale_class(data + c * view.step, run);
      });
    });
  }
  // (What is 0 elsewhere stays 0.)
  template <class S>
  void scale_labels(S* data, const Run& run) const {
    for (int64_t i = 0; i < run.length; ++i) {
      S& slope = data[i * run.stride + rows_.labels[run.at + i] * pass_.gradients[0].step];
      slope = convert<S>(factor_[run.at + i] * convert<T>(slope));
    }
  }
  template <class S>
  void scale_row(S* data, T factor) const {
    for (int64_t c = 0; c < pass_.classes; ++c) data[c] = convert<S>(factor * convert<T>(data[c]));
  }
  template <class S>
  void scale_class(S* data, const Run& run) const {
    const T* const factor = factor_ + run.at;
    if (run.stride == 1)
      for (int64_t i = 0; i < run.length; ++i) data[i] = convert<S>(factor[i] * convert<T>(data[i]));
    else
      for (int64_t i = 0; i < run.length; ++i)
        data[i * run.stride] = convert<S>(factor[i] * convert<T>(data[i * run.stride]));
  }

  const Pass& pass_;
  RowNumbers<T, kRows> rows_;
  T* const grad_output_ = rows_.value;  // where `take` puts it
  T factor_[kRows];
};

}  // namespace fusedloss::rows::inline FUSEDLOSS_SET
