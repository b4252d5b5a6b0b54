// The frames of one sample in a tensor of any type and layout, as contiguous rows of float or double.
#pragma once
#include <algorithm>

#include "core/runs.h"
#include "core/workspace.h"
#include "lattice/kernel.h"

namespace fusedloss::lattice::inline FUSEDLOSS_SET {

template <class T>
class Frames {
 public:
  Frames(const FrameView& view, int64_t classes, Workspace& workspace)
      : view_(view), classes_(classes), row_(given() && !in_place() ? workspace.take<T>(classes) : nullptr) {}

  bool given() const { return view_.data; }
  void go_to(int64_t sample) { start_ = sample * view_.sample; }

  // All classes of a frame, to be read.
  const T* read(int64_t frame) {
    if (in_place()) return memory(frame);
    visit_floating(view_.dtype, [&](auto element) {
      load_run(static_cast<const decltype(element)*>(view_.data), row_, run_of(frame));
    });
    return row_;
  }
  // Some of them.
  void gather(int64_t frame, const int32_t* classes, int64_t count, T* to) const {
    visit_floating(view_.dtype, [&](auto element) {
      const auto* const from = static_cast<const decltype(element)*>(view_.data) + run_of(frame).offset;
      for (int64_t k = 0; k < count; ++k) to[k] = convert<T>(from[classes[k] * view_.step]);
    });
  }
  // Where they shall be put before `write` is called for the same frame.
  T* target(int64_t frame) { return in_place() ? memory(frame) : row_; }
  void write(int64_t frame) {
    if (in_place()) return;
    visit_floating(view_.dtype,
                   [&](auto element) { store_run(row_, static_cast<decltype(element)*>(view_.data), run_of(frame)); });
  }
  void fill(int64_t begin, int64_t end, T value) {
    for (int64_t frame = begin; frame < end; ++frame) {
      std::fill_n(target(frame), classes_, value);
      write(frame);
    }
  }

 private:
  bool in_place() const { return view_.dtype == kNative<T> && view_.step == 1; }
  T* memory(int64_t frame) const { return static_cast<T*>(view_.data) + run_of(frame).offset; }
  Run run_of(int64_t frame) const { return {start_ + frame * view_.frame, view_.step, 0, 1, classes_}; }

  const FrameView view_;
  const int64_t classes_;
  T* const row_;  // to convert them in, where they do not lie as they are wanted
  int64_t start_ = 0;
};

}  // namespace fusedloss::lattice::inline FUSEDLOSS_SET
