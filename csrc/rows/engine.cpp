// The walk over memory that all losses over rows share: brings rows of any type and layout into cache as contiguous
// float or double, calls the loss, and puts results back. Memory that is laid out like a tile is used in place.
// Compiled once for every instruction set.
#include <algorithm>
#include <iterator>
#include <numeric>
#include <vector>

#include "core/lanes.h"
#include "core/runs.h"
#include "core/stream.h"
#include "core/sum.h"
#include "core/transpose.h"
#include "rows/label_walk.h"
#include "rows/listed_targets.h"
#include "rows/row_numbers.h"
#include "rows/row_scaling.h"
#include "rows/tiles.h"

namespace fusedloss::rows {
namespace {

// Memory for tiles, in whole lines of a cache: a register that lies in two of them takes twice the time.
template <class T>
class Buffer {
 public:
  // That of at least `count`; the first call decides.
  T* of(int64_t count) {
    if (lines_.empty()) lines_.resize((count + kOfLine - 1) / kOfLine);
    return data();
  }
  T* data() { return lines_.empty() ? nullptr : lines_[0].numbers; }

 private:
  static constexpr int64_t kOfLine = 64 / sizeof(T);
  struct alignas(64) Line {
    T numbers[kOfLine];
  };
  std::vector<Line> lines_;
};

// One tensor with classes during the walk: its memory where that is laid out like a tile, else a buffer.
template <class T, bool along>
class Stream {
 public:
  using Block = typename Tile<T>::template Block<T>;
  Stream(const Pass& pass, const ClassView& view) : pass_(pass), view_(view) {}

  // Where the rows of the part are, to be read.
  Block read(const Part& part) {
    if (!view_.data) return {};
    const Rows rows = find(part);
    if (is_tile(rows)) return {memory() + rows.offset, view_.step};
    const Block block = buffer();
    if (is_square(rows))
      load_square(rows, block);
    else
      for_each_run(pass_, view_, part, [&](const Run& run) {
        visit(view_.dtype, [&](auto element) {
          load_grid(static_cast<const decltype(element)*>(view_.data), block.data, classes_of(run));
        });
      });
    return block;
  }
  // Where they shall be put before `write` is called for the same part.
  Block target(const Part& part) {
    if (!view_.data) return {};
    const Rows rows = find(part);
    return is_tile(rows) ? Block{memory() + rows.offset, view_.step} : buffer();
  }
  void write(const Part& part, const Block& block) {
    if (!block.data || block.data != buffer_.data()) return;
    const Rows rows = find(part);
    if (is_square(rows))
      store_square(block, rows);
    else
      for_each_run(pass_, view_, part, [&](const Run& run) {
        visit_floating(view_.dtype, [&](auto element) {
          store_grid(block.data, static_cast<decltype(element)*>(view_.data), classes_of(run));
        });
      });
  }
  // Whether all of it is in place, and so large that nothing of it would be left in a cache when it is read. (A line of
  // a cache that two rows share is slow to stream: rows must have none, or be long.)
  bool streams() const {
    constexpr int64_t kLine = 64, kLong = 32 * 1024;
    const int64_t row = pass_.classes * sizeof(T);
    return kStreams && along && view_.data && is_native() && view_.step == 1 && (row % kLine == 0 || row >= kLong) &&
           pass_.count * row >= kStreamedBytes;
  }
  // Where the row of the part lies, if that is laid out like a tile.
  const T* in_place(const Part& part) const {
    if (!view_.data) return nullptr;
    const Rows rows = find(part);
    return is_tile(rows) ? memory() + rows.offset : nullptr;
  }
  void clear(const Part& part) {
    const Block block = target(part);
    std::fill_n(block.data, block.data ? pass_.classes : 0, T(0));
    write(part, block);
  }

 private:
  static constexpr int kLanes = along ? 1 : Lanes<T>::size;

  bool is_native() const { return view_.dtype == kNative<T>; }
  T* memory() const { return static_cast<T*>(view_.data); }

  // The rows of a part in memory, if they are as many as a tile has, at one distance.
  struct Rows {
    bool found = false;
    int64_t offset = 0, stride = 0;
  };
  Rows find(const Part& part) const {
    Rows rows;
    if (part.count != kLanes) return rows;
    if (pass_.dims == 1)
      rows = {true, part.start * view_.strides[0], view_.strides[0]};
    else
      for_each_run(pass_, view_, part, [&](const Run& run) {
        if (run.length == kLanes) rows = {true, run.offset, run.stride};
      });
    return rows;
  }
  bool is_tile(const Rows& rows) const { return rows.found && is_native() && (along ? view_.step : rows.stride) == 1; }
  bool is_square(const Rows& rows) const { return !along && rows.found && view_.step == 1 && pass_.classes >= kLanes; }

  // Rows of another type are converted first, as they lie: each is a stretch of memory.
  void load_square(const Rows& rows, const Block& block) {
    if (is_native()) return load_across<Lanes<T>>(memory() + rows.offset, rows.stride, pass_.classes, block.data);
    T* const converted = converted_.of(pass_.classes * kLanes);
    visit(view_.dtype,
          [&](auto element) { load_grid(static_cast<const decltype(element)*>(view_.data), converted, lying(rows)); });
    load_across<Lanes<T>>(converted, pass_.classes, pass_.classes, block.data);
  }
  void store_square(const Block& block, const Rows& rows) {
    if (is_native()) return store_across<Lanes<T>>(block.data, memory() + rows.offset, rows.stride, pass_.classes);
    T* const converted = converted_.of(pass_.classes * kLanes);
    store_across<Lanes<T>>(block.data, converted, pass_.classes, pass_.classes);
    visit_floating(view_.dtype, [&](auto element) {
      store_grid(converted, static_cast<decltype(element)*>(view_.data), lying(rows));
    });
  }
  Grid lying(const Rows& rows) const {
    return {{rows.offset, 1, 0, 1, pass_.classes}, kLanes, rows.stride, pass_.classes};
  }
  // All classes of rows: of the one row, or those of one class each.
  Grid classes_of(const Run& rows) const {
    if (along) return {{rows.offset, view_.step, 0, 1, pass_.classes}, 1, 0, 0};
    return {rows, pass_.classes, view_.step, kLanes};
  }
  Block buffer() { return {buffer_.of(pass_.classes * kLanes), kLanes}; }

  const Pass& pass_;
  const ClassView& view_;
  Buffer<T> buffer_, converted_;
};

template <class T, bool along>
class Walk {
 public:
  Walk(const Pass& pass, const FunctionsOf<T>& functions)
      : pass_(pass),
        function_(functions.of[!pass.labels.data][!along][pass.moving]),
        keeps_(pass.moving || !(pass.gradients[0].data || pass.gradients[1].data) ? 0 : functions.kept),
        operands_{{pass, pass.operands[0]}, {pass, pass.operands[1]}},
        tangents_{{pass, pass.tangents[0]}, {pass, pass.tangents[1]}},
        gradients_{{pass, pass.gradients[0]}, {pass, pass.gradients[1]}},
        lists_(pass),
        rows_(pass) {
    tile_.classes = pass.classes;
    tile_.weight = static_cast<const T*>(pass.weight);
    tile_.labels = rows_.labels;
    tile_.counted = rows_.counted;
    tile_.factor = rows_.factor;
    tile_.value = rows_.value;
    tile_.parameters = pass.parameters;
  }

  void run(const Tiling& tiling, int64_t begin, int64_t end, double* sums) {
    Part part;
    for (int64_t block = begin; block < end; ++block) {
      Sum<double> sum;
      for (int64_t row = tiling.begin(block); row < tiling.end(block); row += kLanes) {
        const int64_t left = tiling.end(block) - row;
        find_stretch(pass_, row, left < kLanes ? left : kLanes, part);
        rows_.take(pass_, part, kLanes);
        run_tile(part, row + kLanes < tiling.end(end - 1) ? row + kLanes : row);
        sum.add(std::accumulate(rows_.value, rows_.value + kLanes, 0.0));
        if (pass_.value.data) store_part(pass_, pass_.value, part, rows_.value);
      }
      sums[block] = value_of(sum);
    }
    finish_streams();
  }

 private:
  static constexpr int kLanes = along ? 1 : Lanes<T>::size;

  void run_tile(const Part& part, int64_t next) {
    if (along && rows_.counted[0] == 0) {
      rows_.value[0] = 0;
      for (auto& gradient : gradients_) gradient.clear(part);
      return;
    }
    read(part);
    for (int k = 0; k < kMaxOperands; ++k) tile_.gradients[k] = gradients_[k].target(part);
    // (What takes the place of the logits is in a cache already.)
    tile_.streams = gradients_[0].streams() && tile_.gradients[0].data != tile_.operands[0].data;
    for (int k = 0; k < keeps_; ++k) tile_.kept[k] = place_to_keep(k);
    if (along) look_ahead(next);
    function_(tile_);
    rows_.weigh_values(part.count, kLanes);
    for (int k = 0; k < kMaxOperands; ++k) gradients_[k].write(part, tile_.gradients[k]);
  }

  // To a row that comes next. (What it brings of the longest would be gone from the caches before it is read.)
  void look_ahead(int64_t row) {
    constexpr int64_t kMostAhead = 1024 * 1024;
    std::fill(std::begin(tile_.ahead), std::end(tile_.ahead), tile_.operands[0].data);
    if (pass_.classes * int64_t(sizeof(T)) > kMostAhead) return;
    Part part;
    find_stretch(pass_, row, 1, part);
    const auto look = [&](const auto& stream, int k) {
      if (const T* const place = stream.in_place(part)) tile_.ahead[k] = place;
    };
    for (int k = 0; k < kMaxOperands; ++k) look(operands_[k], k);
    if (!tile_.streams) look(gradients_[0], kMaxOperands);
  }

  void read(const Part& part) {
    tile_.operands[0] = operands_[0].read(part);
    if (pass_.takes_lists)
      lists_.read(part, tile_);
    else
      tile_.operands[1] = operands_[1].read(part);
    for (int k = 0; k < kMaxOperands; ++k) tile_.tangents[k] = tangents_[k].read(part);
  }

  // The gradient itself, until it is written; but not memory that shall not come into caches.
  typename Tile<T>::template Block<T> place_to_keep(int k) {
    constexpr int64_t kMostKept = 256 * 1024;
    if (tile_.gradients[k].data && !tile_.streams) return tile_.gradients[k];
    if (pass_.classes * kLanes * int64_t(sizeof(T)) > kMostKept) return {};
    return {kept_[k].of(pass_.classes * kLanes), kLanes};
  }

  const Pass& pass_;
  const TileFunction<T> function_;
  const int keeps_;
  Buffer<T> kept_[kMaxOperands];
  Tile<T> tile_{};
  Stream<T, along> operands_[kMaxOperands], tangents_[kMaxOperands], gradients_[kMaxOperands];
  ListedTargets<T, along> lists_;
  RowNumbers<T, kLanes> rows_;
};

template <class T>
void run(const Pass& pass, const FunctionsOf<T>& functions, int64_t begin, int64_t end, double* sums) {
  const Tiling tiling(pass, Lanes<T>::size);
  if (pass.reads_label_only)
    LabelWalk<T>(pass, functions).run(tiling, begin, end, sums);
  else if (Tiling::along(pass))
    Walk<T, true>(pass, functions).run(tiling, begin, end, sums);
  else
    Walk<T, false>(pass, functions).run(tiling, begin, end, sums);
}

template <class T>
void scale(const Pass& pass, int64_t begin, int64_t end) {
  RowScaling<T>(pass).run(Tiling(pass, Lanes<T>::size), begin, end);
}

}  // namespace

// FUSEDLOSS_ENGINE is the name of this instruction set's engine.
extern const Engine FUSEDLOSS_ENGINE;
const Engine FUSEDLOSS_ENGINE{run<float>,   run<double>,   scale<float>,       scale<double>,
                              count<float>, count<double>, Lanes<float>::size, Lanes<double>::size};

}  // namespace fusedloss::rows
