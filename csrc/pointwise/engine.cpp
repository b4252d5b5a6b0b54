// The walk over memory that all pointwise losses share: brings tiles of any type and layout into cache as contiguous
// float or double, calls the loss, and puts results back. Dense memory of the right type is used in place.
// Compiled once for every instruction set.
#include "core/lanes.h"
#include "core/runs.h"
#include "core/stream.h"
#include "core/sum.h"
#include "pointwise/tiles.h"

namespace fusedloss::pointwise {
namespace {

// A stretch of memory, converted while the memory of the tile after it is asked for: a tile of a half type is a page,
// and the processor itself does not look beyond the page that it reads.
template <class S, class T>
void load_stretch(const S* source, T* destination, int64_t length) {
  constexpr int64_t kLine = 64 / sizeof(S);
  int64_t i = 0;
  for (; i + kLine <= length; i += kLine) {
    __builtin_prefetch(source + i + kTile, /*write=*/0, /*locality=*/2);  // to the second cache: the first is full
    for (int64_t k = 0; k < kLine; ++k) destination[i + k] = convert<T>(source[i + k]);
  }
  for (; i < length; ++i) destination[i] = convert<T>(source[i]);
}

// Whether a part of the view is one stretch of memory.
bool stretches(const Pass& pass, const View& view) { return view.dense && pass.across < 0; }

// Whether all tiles see the same elements of the view, as of a weight for each class: only the last dimension moves
// along it, and goes round a whole number of times in a tile.
bool repeats(const Pass& pass, const View& view) {
  if (pass.across >= 0 || kTile % pass.sizes[pass.dims - 1] != 0) return false;
  for (int d = 0; d < pass.dims - 1; ++d)
    if (view.strides[d] != 0) return false;
  return pass.dims > 1;
}

template <class T>
void load_tile(const Pass& pass, const View& view, const Part& part, T* buffer) {
  visit(view.dtype, [&](auto element) {
    const auto* data = static_cast<const decltype(element)*>(view.data);
    if (stretches(pass, view)) return load_stretch(data + part.start, buffer, part.count);
    if (pass.across >= 0) return load_grid(data, buffer, find_grid(pass, view, part));
    for_each_run(pass, view, part, [&](const Run& run) { load_run(data, buffer, run); });
  });
}

template <class T>
void store_tile(const Pass& pass, const View& view, const Part& part, const T* buffer) {
  visit_floating(view.dtype, [&](auto element) {
    auto* data = static_cast<decltype(element)*>(view.data);
    if (stretches(pass, view)) return store_run(buffer, data, Run{part.start, 1, 0, 1, part.count});
    if (pass.across >= 0) return store_grid(buffer, data, find_grid(pass, view, part));
    for_each_run(pass, view, part, [&](const Run& run) { store_run(buffer, data, run); });
  });
}

// The rows of a box in whole lines of a cache, past the caches.
template <class T>
void stream_box(const Pass& pass, const View& view, const Part& part, const T* buffer) {
  visit_floating(view.dtype, [&](auto element) {
    using S = decltype(element);
    alignas(64) S row[kTile];
    const Grid grid = find_grid(pass, view, part);
    for (int64_t i = 0; i < grid.count; ++i) {
      const Run run = run_number(i, grid);
      S* const data = static_cast<S*>(view.data) + run.offset;
      if (run.stride != 1 || reinterpret_cast<uintptr_t>(data) % 64 != 0 || run.length * sizeof(S) % 64 != 0) {
        store_run(buffer, static_cast<S*>(view.data), run);
      } else {
        store_run(buffer, row, Run{0, 1, run.at, run.step, run.length});
        stream_memory(row, data, run.length * sizeof(S));
      }
    }
  });
}

template <class T>
void stream_tile(const View& view, const Part& part, const T* buffer) {
  visit_floating(view.dtype, [&](auto element) {
    using S = decltype(element);
    alignas(64) S converted[kTile];
    store_run(buffer, converted, Run{0, 1, 0, 1, part.count});
    stream_memory(converted, static_cast<S*>(view.data) + part.start, part.count * sizeof(S));
  });
}

// One tensor of the pass during the walk: its memory where that can be used as it is, else a buffer of one tile.
template <class T>
class Stream {
 public:
  Stream(const Pass& pass, const View& view) : pass_(pass), view_(view) {
    in_place_ = stretches(pass, view) && view.dtype == kNative<T>;
    large_ = kStreams && pass.count * size_of(view.dtype) >= kStreamedBytes;
    streamed_ = large_ && stretches(pass, view) && reinterpret_cast<uintptr_t>(view.data) % 64 == 0;
    same_in_all_ = view.data && (view.constant || repeats(pass, view));
    if (!same_in_all_) return;
    Part first;  // no tile is longer
    Tiling(pass).find(0, first);
    load_tile(pass, view, first, buffer_);
  }
  const T* read(const Part& part) {
    if (!view_.data) return nullptr;
    if (in_place_) return static_cast<const T*>(view_.data) + part.start;
    if (!same_in_all_) load_tile(pass_, view_, part, buffer_);
    return buffer_;
  }
  // Asks for the memory of a part, a box: the processor does not see by itself where its rows go on.
  void prefetch(const Part& part) const {
    if (!view_.data || view_.constant) return;
    visit(view_.dtype, [&](auto element) {
      using S = decltype(element);
      const auto* data = static_cast<const S*>(view_.data);
      const Grid grid = find_grid(pass_, view_, part);
      if (grid.run.stride != 1) return;
      for (int64_t k = 0; k < grid.count; ++k) {
        const S* const run = data + run_number(k, grid).offset;
        for (int64_t i = 0; i < grid.run.length; i += 64 / sizeof(S)) __builtin_prefetch(run + i);
      }
    });
  }
  T* target(const Part& part) {
    if (!view_.data) return nullptr;
    return in_place_ ? static_cast<T*>(view_.data) + part.start : buffer_;
  }
  // Whether the tile function shall write to the target past the caches: that overlaps with its computation.
  bool streams(const Part& part) const { return view_.data && in_place_ && streamed_ && part.count == kTile; }
  void write(const Part& part) {
    if (!view_.data || in_place_) return;
    if (streamed_)
      stream_tile(view_, part, buffer_);
    else if (large_ && pass_.across >= 0)
      stream_box(pass_, view_, part, buffer_);
    else
      store_tile(pass_, view_, part, buffer_);
  }

 private:
  const Pass& pass_;
  const View& view_;
  bool in_place_, large_, streamed_, same_in_all_;
  alignas(64) T buffer_[kTile];
};

// Whether `outside` holds for none of the elements.
template <class T, class Outside>
bool none_is(const T* x, int64_t count, Outside outside) {
  using V = Lanes<T>;
  auto found = outside(V(x[0]));
  int64_t i = 0;
  for (; i + V::size <= count; i += V::size) found = found | outside(V::load(x + i));
  V rest = x[0];
  std::memcpy(&rest.raw, x + i, (count - i) * sizeof(T));
  return !any(found | outside(rest));
}

// NaN is in every domain: it goes on to the result.
template <class T>
bool all_in(const T* x, int64_t count, const Interval& domain) {
  using V = Lanes<T>;
  const V low = double(domain.low), high = double(domain.high);
  if (!domain.has_ends) return none_is(x, count, [=](V v) { return (v <= low) | (v >= high); });
  if (!domain.has_interior) return none_is(x, count, [=](V v) { return !((v == low) | (v == high) | !(v == v)); });
  return none_is(x, count, [=](V v) { return (v < low) | (v > high); });
}

template <class T>
class Walk {
 public:
  explicit Walk(const Pass& pass)
      : pass_(pass),
        operands_{{pass, pass.operands[0]}, {pass, pass.operands[1]}, {pass, pass.operands[2]}},
        tangents_{{pass, pass.tangents[0]}, {pass, pass.tangents[1]}, {pass, pass.tangents[2]}},
        weight_(pass, pass.weight),
        grad_output_(pass, pass.grad_output),
        value_(pass, pass.value),
        gradients_{{pass, pass.gradients[0]}, {pass, pass.gradients[1]}, {pass, pass.gradients[2]}} {}

  bool run(TileFunction<T> function, const Check* check, int64_t begin, int64_t end, double* sums) {
    const Tiling tiling(pass_);
    Part part, next;
    for (int64_t block = begin; block < end; ++block) {
      Sum<double> sum;
      for (int64_t number = tiling.first_of(block); number < tiling.first_of(block + 1); ++number) {
        tiling.find(number, part);
        const Tile<T> tile = read(part);
        if (check && !all_in(tile.operands[check->operand], tile.count, interval_of(check->domain))) return false;
        if (pass_.across >= 0 && number + 1 < tiling.first_of(block + 1)) {
          tiling.find(number + 1, next);
          for (const Stream<T>& operand : operands_) operand.prefetch(next);
        }
        sum.add(function(tile));
        write(part);
      }
      sums[block] = value_of(sum);
    }
    finish_streams();
    return true;
  }

 private:
  Tile<T> read(const Part& part) {
    Tile<T> tile;
    tile.count = part.count;
    tile.scale = T(pass_.scale);
    tile.parameters = pass_.parameters;
    for (int k = 0; k < kMaxOperands; ++k) {
      tile.operands[k] = operands_[k].read(part);
      tile.tangents[k] = tangents_[k].read(part);
      tile.gradients[k] = gradients_[k].target(part);
      tile.streams_gradients[k] = gradients_[k].streams(part);
    }
    tile.weight = weight_.read(part);
    tile.grad_output = grad_output_.read(part);
    tile.value = value_.target(part);
    tile.streams_value = value_.streams(part);
    return tile;
  }
  void write(const Part& part) {
    value_.write(part);
    for (Stream<T>& gradient : gradients_) gradient.write(part);
  }

  const Pass& pass_;
  Stream<T> operands_[kMaxOperands], tangents_[kMaxOperands], weight_, grad_output_, value_, gradients_[kMaxOperands];
};

template <class T>
bool run(const Pass& pass, TileFunction<T> function, const Check* check, int64_t begin, int64_t end, double* sums) {
  return Walk<T>(pass).run(function, check, begin, end, sums);
}

}  // namespace

// FUSEDLOSS_ENGINE is the name of this instruction set's engine.
extern const Engine FUSEDLOSS_ENGINE;
const Engine FUSEDLOSS_ENGINE{run<float>, run<double>};

}  // namespace fusedloss::pointwise
