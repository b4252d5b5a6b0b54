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

// Calls use(run) for the runs of a view that make up a part.
template <class Use>
void for_each_run(const Extent& extent, const View& view, const Part& part, Use use) {
  const int last = extent.dims - 1;
  const int64_t stride = view.strides[last];
  int64_t outer = 0;
  for (int d = 0; d < last; ++d) outer += part.index[d] * view.strides[d];
  if (extent.across >= 0) {
    const int64_t across = view.strides[extent.across];
    const int64_t offset = outer + part.index[last] * stride;
    if (across != 0 && across < stride)
      for (int64_t i = 0; i < part.along; ++i) use(Run{offset + i * stride, across, i, part.along, part.across});
    else
      for (int64_t i = 0; i < part.across; ++i) use(Run{offset + i * across, stride, i * part.along, 1, part.along});
    return;
  }
  int64_t index[kMaxDims];
  for (int d = 0; d <= last; ++d) index[d] = part.index[d];
  for (int64_t done = 0; done < part.count;) {
    const int64_t left = extent.sizes[last] - index[last];
    const int64_t length = left < part.count - done ? left : part.count - done;
    use(Run{outer + index[last] * stride, stride, done, 1, length});
    done += length;
    index[last] = 0;
    for (int d = last - 1; d >= 0; --d) {
      outer += view.strides[d];
      if (++index[d] < extent.sizes[d]) break;
      outer -= index[d] * view.strides[d];
      index[d] = 0;
    }
  }
}

}  // namespace fusedloss

namespace fusedloss::inline FUSEDLOSS_SET {

template <class S, class T>
void load_run(const S* source, T* destination, const Run& run) {
  source += run.offset;
  destination += run.at;
  if (run.stride == 1 && run.step == 1)
    for (int64_t i = 0; i < run.length; ++i) destination[i] = convert<T>(source[i]);
  else
    for (int64_t i = 0; i < run.length; ++i) destination[i * run.step] = convert<T>(source[i * run.stride]);
}

template <class S, class T>
void store_run(const T* source, S* destination, const Run& run) {
  source += run.at;
  destination += run.offset;
  if (run.stride == 1 && run.step == 1)
    for (int64_t i = 0; i < run.length; ++i) destination[i] = convert<S>(source[i]);
  else
    for (int64_t i = 0; i < run.length; ++i) destination[i * run.stride] = convert<S>(source[i * run.step]);
}

template <class T>
constexpr DType kNative = DType::float32;
template <>
constexpr DType kNative<double> = DType::float64;

// The elements of a part of an extent without a dimension `across`, one after another.
template <class T>
void load_part(const Extent& extent, const View& view, const Part& part, T* numbers) {
  visit(view.dtype, [&](auto element) {
    const auto* data = static_cast<const decltype(element)*>(view.data);
    for_each_run(extent, view, part, [&](const Run& run) { load_run(data, numbers, run); });
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
