// Where the elements of a part of an extent stand in memory, and moving them between there and a buffer.
#pragma once
#include "core/convert.h"
#include "core/view.h"

namespace fusedloss {

// Some elements of an extent, in the order of a buffer: a stretch in the order of the extent; or, in an extent with a
// dimension `across`, a box of `across` rows of `along` elements, rows lying along the last dimension.
struct Part {
  int64_t count;
  int64_t start;            // of a stretch, in the order of the extent
  int64_t along, across;    // of a box
  int64_t index[kMaxDims];  // of the first element
};

// A stretch, in the order of the extent.
inline void find_stretch(const Extent& extent, int64_t start, int64_t count, Part& part) {
  part.start = start;
  part.count = count;
  int64_t rest = start;
  for (int d = extent.dims - 1; d > 0; --d) {
    part.index[d] = rest % extent.sizes[d];
    rest /= extent.sizes[d];
  }
  part.index[0] = rest;
}

// Elements that stand at one distance in memory, and in the buffer.
struct Run {
  int64_t offset, stride;  // in memory
  int64_t at, step;        // in the buffer
  int64_t length;
};

// Calls use(run) for the runs of a view that make up a stretch.
template <class Use>
void for_each_run(const Extent& extent, const View& view, const Part& part, const Use& use) {
  const int last = extent.dims - 1;
  const int64_t in_row = extent.sizes[last], count = part.count;
  int64_t outer = 0, index[kMaxDims];
  for (int d = 0; d < last; ++d) outer += part.index[d] * view.strides[d];
  Run run{outer + part.index[last] * view.strides[last], view.strides[last], 0, 1, in_row - part.index[last]};
  for (bool first = true;; first = false) {
    if (run.length > count - run.at) run.length = count - run.at;
    use(run);
    run.at += run.length;
    if (run.at == count) return;
    // On to the next row. (Most stretches are of one.)
    for (int d = 0; first && d < last; ++d) index[d] = part.index[d];
    for (int d = last - 1; d >= 0; --d) {
      outer += view.strides[d];
      if (++index[d] < extent.sizes[d]) break;
      outer -= index[d] * view.strides[d];
      index[d] = 0;
    }
    run.offset = outer;
    run.length = in_row;
  }
}

// Runs at one distance from each other, in memory and in the buffer.
struct Grid {
  Run run;  // the first
  int64_t count, memory_step, buffer_step;
};

// The runs of a view that make up a box: its rows, or, where that is nearer in memory, what lies crosswise.
inline Grid find_grid(const Extent& extent, const View& view, const Part& part) {
  const int64_t along = view.strides[extent.dims - 1], across = view.strides[extent.across];
  int64_t offset = 0;
  for (int d = 0; d < extent.dims; ++d) offset += part.index[d] * view.strides[d];
  if (across != 0 && across < along) return {{offset, across, 0, part.along, part.across}, part.along, along, 1};
  return {{offset, along, 0, 1, part.along}, part.across, across, part.along};
}
inline Run run_number(int64_t i, const Grid& grid) {
  Run run = grid.run;
  run.offset += i * grid.memory_step;
  run.at += i * grid.buffer_step;
  return run;
}

}  // namespace fusedloss

namespace fusedloss::inline FUSEDLOSS_SET {

// Converts `length` elements, at one distance from each other here and at another there.
template <class From, class To>
void move_run(const From* source, int64_t from, To* destination, int64_t to, int64_t length) {
  if (from == 1 && to == 1)
    for (int64_t i = 0; i < length; ++i) destination[i] = convert<To>(source[i]);
  else
    for (int64_t i = 0; i < length; ++i) destination[i * to] = convert<To>(source[i * from]);
}
template <class S, class T>
FUSEDLOSS_INLINE void load_run(const S* memory, T* buffer, const Run& run) {
  move_run(memory + run.offset, run.stride, buffer + run.at, run.step, run.length);
}
template <class S, class T>
FUSEDLOSS_INLINE void store_run(const T* buffer, S* memory, const Run& run) {
  move_run(buffer + run.at, run.step, memory + run.offset, run.stride, run.length);
}

// The same for all runs of a grid. (By a function that is not inlined: what the compiler makes of the loops shall not
// depend on what is around them.)
template <class From, class To>
[[gnu::noinline]] void move_runs(const From* source, int64_t from, int64_t from_step, To* destination, int64_t to,
                                 int64_t to_step, int64_t length, int64_t count) {
  for (int64_t i = 0; i < count; ++i) move_run(source + i * from_step, from, destination + i * to_step, to, length);
}
template <class S, class T>
FUSEDLOSS_INLINE void load_grid(const S* memory, T* buffer, const Grid& grid) {
  const Run& run = grid.run;
  move_runs(memory + run.offset, run.stride, grid.memory_step, buffer + run.at, run.step, grid.buffer_step, run.length,
            grid.count);
}
template <class S, class T>
FUSEDLOSS_INLINE void store_grid(const T* buffer, S* memory, const Grid& grid) {
  const Run& run = grid.run;
  move_runs(buffer + run.at, run.step, grid.buffer_step, memory + run.offset, run.stride, grid.memory_step, run.length,
            grid.count);
}

template <class T>
constexpr DType kNative = DType::float32;
template <>
constexpr DType kNative<double> = DType::float64;

// The elements of a part of an extent without a dimension `across`, one after another.
template <class T>
void load_part(const Extent& extent, const View& view, const Part& part, T* numbers) {
  for_each_run(extent, view, part, [&](const Run& run) {
    visit(view.dtype, [&](auto element) { load_run(static_cast<const decltype(element)*>(view.data), numbers, run); });
  });
}
template <class T>
void store_part(const Extent& extent, const View& view, const Part& part, const T* numbers) {
  visit_floating(view.dtype, [&](auto element) {
    auto* data = static_cast<decltype(element)*>(view.data);
    for_each_run(extent, view, part, [&](const Run& run) { store_run(numbers, data, run); });
  });
}

}  // namespace fusedloss::inline FUSEDLOSS_SET
