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
    if (is_tile(rows)) return {rows.first, view_.step};
    const Block block = buffer();
    if (is_square(rows))
      load_across<Lanes<T>>(rows.first, rows.stride, pass_.classes, block.data);
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
    return is_tile(rows) ? Block{rows.first, view_.step} : buffer();
  }
  void write(const Part& part, const Block& block) {
    if (!block.data || block.data != buffer_.data()) return;
    const Rows rows = find(part);
    if (is_square(rows))
      store_across<Lanes<T>>(block.data, rows.first, rows.stride, pass_.classes);
    else
      for_each_run(pass_, view_, part, [&](const Run& run) {
        visit_floating(view_.dtype, [&](auto element) {
          store_grid(block.data, static_cast<decltype(element)*>(view_.data), classes_of(run));
        });
      });
  }
  // Whether all of it is in place, and so large that nothing of it would be left in a cache when it is read.
  bool streams() const {
    return kStreams && along && view_.data && view_.dtype == kNative<T> && view_.step == 1 &&
           pass_.count * pass_.classes * int64_t(sizeof(T)) >= kStreamedBytes;
  }
  // Of every row of the part the number at its label.
  const T* at_labels(const Part& part, const int64_t* labels, T* numbers) const {
    if (!view_.data) return nullptr;
    for_each_run(pass_, view_, part, [&](const Run& run) {
      visit_floating(view_.dtype, [&](auto element) {
        const auto* data = static_cast<const decltype(element)*>(view_.data);
        for (int64_t at = run.at, i = 0; i < run.length; ++i, at += run.step)
          numbers[at] = convert<T>(data[run.offset + i * run.stride + labels[at] * view_.step]);
      });
    });
    return numbers;
  }
  // Writes of every row of the part the number at its label, and 0 elsewhere.
  void write_at_labels(const Part& part, const int64_t* labels, const T* numbers) {
    for_each_run(pass_, view_, part, [&](const Run& run) {
      visit_floating(view_.dtype, [&](auto element) {
        using S = decltype(element);
        S* const data = static_cast<S*>(view_.data) + run.offset;
        if (view_.step == 1 && run.stride == pass_.classes)
          std::fill_n(data, run.length * pass_.classes, S());
        else if (view_.step == 1)
          for (int64_t i = 0; i < run.length; ++i) std::fill_n(data + i * run.stride, pass_.classes, S());
        else
          for (int64_t c = 0; c < pass_.classes; ++c)
            for (int64_t i = 0; i < run.length; ++i) data[i * run.stride + c * view_.step] = S();
        for (int64_t at = run.at, i = 0; i < run.length; ++i, at += run.step)
          data[i * run.stride + labels[at] * view_.step] = convert<S>(numbers[at]);
      });
    });
  }
  void clear(const Part& part) {
    const Block block = target(part);
    std::fill_n(block.data, block.data ? pass_.classes : 0, T(0));
    write(part, block);
  }

 private:
  static constexpr int kLanes = along ? 1 : Lanes<T>::size;

  // The rows of a part in memory, if they are as many as a tile has, at one distance, and of a tile's type; else null.
  struct Rows {
    T* first = nullptr;
    int64_t stride = 0;
  };
  Rows find(const Part& part) const {
    Rows rows;
    if (view_.dtype != kNative<T> || part.count != kLanes) return rows;
    if (pass_.dims == 1)
      rows = {static_cast<T*>(view_.data) + part.start * view_.strides[0], view_.strides[0]};
    else
      for_each_run(pass_, view_, part, [&](const Run& run) {
        if (run.length == kLanes) rows = {static_cast<T*>(view_.data) + run.offset, run.stride};
      });
    return rows;
  }
  bool is_tile(const Rows& rows) const { return rows.first && (along ? view_.step : rows.stride) == 1; }
  bool is_square(const Rows& rows) const { return !along && rows.first && view_.step == 1 && pass_.classes >= kLanes; }
  // All classes of rows: of the one row, or those of one class each.
  Grid classes_of(const Run& rows) const {
    if (along) return {{rows.offset, view_.step, 0, 1, pass_.classes}, 1, 0, 0};
    return {rows, pass_.classes, view_.step, kLanes};
  }
  Block buffer() { return {buffer_.of(pass_.classes * kLanes), kLanes}; }

  const Pass& pass_;
  const ClassView& view_;
  Buffer<T> buffer_;
};

template <class T, bool along>
class Walk {
 public:
  Walk(const Pass& pass, const FunctionsOf<T>& functions)
      : pass_(pass),
        function_(functions.of[!pass.labels.data][!along][pass.moving]),
        keeps_(pass.moving || !(pass.gradients[0].data || pass.gradients[1].data) ? 0 : functions.kept),
        reads_label_only_(functions.reads_label_only),
        is_sparse_(functions.reads_label_only && !along && pass.gradients[0].data),
        reads_listed_(functions.reads_listed),
        operands_{{pass, pass.operands[0]}, {pass, pass.operands[1]}},
        tangents_{{pass, pass.tangents[0]}, {pass, pass.tangents[1]}},
        gradients_{{pass, pass.gradients[0]}, {pass, pass.gradients[1]}} {
    std::fill(std::begin(weight_), std::end(weight_), T(1));
    tile_.classes = pass.classes;
    tile_.weight = static_cast<const T*>(pass.weight);
    tile_.labels = labels_;
    tile_.counted = counted_;
    tile_.factor = factor_;
    tile_.slope_at_label = is_sparse_ ? slope_at_label_ : nullptr;
    tile_.value = value_;
    tile_.parameters = pass.parameters;
  }

  void run(const Tiling& tiling, int64_t begin, int64_t end, double* sums) {
    Part part;
    for (int64_t block = begin; block < end; ++block) {
      Sum<double> sum;
      for (int64_t row = tiling.begin(block); row < tiling.end(block); row += kLanes) {
        const int64_t left = tiling.end(block) - row;
        find_stretch(pass_, row, left < kLanes ? left : kLanes, part);
        take_numbers(part);
        run_tile(part);
        sum.add(std::accumulate(value_, value_ + kLanes, 0.0));
        if (pass_.value.data) store_part(pass_, pass_.value, part, value_);
      }
      sums[block] = value_of(sum);
    }
    finish_streams();
  }

 private:
  static constexpr int kLanes = along ? 1 : Lanes<T>::size;

  // (Of all lanes, also those without a row: a loop whose length is known is no loop.)
  void take_numbers(const Part& part) {
    if (pass_.row_weight.data) load_part(pass_, pass_.row_weight, part, weight_);
    for (int k = 0; k < kLanes; ++k) counted_[k] = weight_[k] == 0 ? 0 : 1;
    if (pass_.labels.data) {
      load_part(pass_, pass_.labels, part, labels_);
      for (int k = 0; k < kLanes; ++k) {
        const bool ignored = labels_[k] == pass_.ignored;
        counted_[k] = ignored ? 0 : counted_[k];
        labels_[k] = ignored ? 0 : labels_[k];
      }
    }
    for (int k = 0; k < kLanes; ++k) factor_[k] = T(pass_.scale) * weight_[k];
    if (!pass_.grad_output.data) return;
    load_part(pass_, pass_.grad_output, part, value_);
    for (int k = 0; k < kLanes; ++k) factor_[k] = factor_[k] * value_[k];
  }

  void run_tile(const Part& part) {
    if (along && counted_[0] == 0) {
      value_[0] = 0;
      for (auto& gradient : gradients_) gradient.clear(part);
      return;
    }
    read(part);
    if (!is_sparse_)
      for (int k = 0; k < kMaxOperands; ++k) tile_.gradients[k] = gradients_[k].target(part);
    // (What takes the place of the logits is in a cache already.)
    tile_.streams = gradients_[0].streams() && tile_.gradients[0].data != tile_.operands[0].data;
    for (int k = 0; k < keeps_; ++k) tile_.kept[k] = place_to_keep(k);
    function_(tile_);
    for (int k = 0; k < kLanes; ++k) value_[k] = k < part.count && counted_[k] != 0 ? weight_[k] * value_[k] : T(0);
    if (is_sparse_) return gradients_[0].write_at_labels(part, labels_, slope_at_label_);
    for (int k = 0; k < kMaxOperands; ++k) gradients_[k].write(part, tile_.gradients[k]);
  }

  void read(const Part& part) {
    if (reads_label_only_) {
      tile_.input_at_label = operands_[0].at_labels(part, labels_, input_at_label_);
      tile_.tangent_at_label = tangents_[0].at_labels(part, labels_, tangent_at_label_);
      return;
    }
    for (int k = 0; k < kMaxOperands; ++k) {
      tile_.operands[k] = operands_[k].read(part);
      tile_.tangents[k] = tangents_[k].read(part);
    }
    if (reads_listed_) list_targets();
  }
  void list_targets() {
    tile_.listed_count = 0;
    int64_t* const listed = listed_.of(pass_.classes);
    for (int64_t c = 0; c < pass_.classes; ++c) {
      const T* const targets = tile_.operands[1].data + c * (along ? 1 : tile_.operands[1].pitch);
      listed[tile_.listed_count] = c;
      tile_.listed_count += std::any_of(targets, targets + kLanes, [](T x) { return x != 0; });
    }
    tile_.listed = listed;
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
  const bool reads_label_only_, is_sparse_, reads_listed_;
  Buffer<T> kept_[kMaxOperands];
  Buffer<int64_t> listed_;
  Tile<T> tile_{};
  Stream<T, along> operands_[kMaxOperands], tangents_[kMaxOperands], gradients_[kMaxOperands];
  // Of the rows of a tile. Lanes without a row read what a row has left there.
  T weight_[Lanes<T>::size], counted_[Lanes<T>::size] = {}, factor_[Lanes<T>::size] = {};
  T value_[Lanes<T>::size] = {}, input_at_label_[Lanes<T>::size] = {}, tangent_at_label_[Lanes<T>::size] = {};
  T slope_at_label_[Lanes<T>::size];
  int64_t labels_[Lanes<T>::size] = {};
};

template <class T>
void run(const Pass& pass, const FunctionsOf<T>& functions, int64_t begin, int64_t end, double* sums) {
  const Tiling tiling(pass, Lanes<T>::size);
  if (Tiling::along(pass))
    Walk<T, true>(pass, functions).run(tiling, begin, end, sums);
  else
    Walk<T, false>(pass, functions).run(tiling, begin, end, sums);
}

}  // namespace

// FUSEDLOSS_ENGINE is the name of this instruction set's engine.
extern const Engine FUSEDLOSS_ENGINE;
const Engine FUSEDLOSS_ENGINE{run<float>, run<double>, Lanes<float>::size, Lanes<double>::size};

}  // namespace fusedloss::rows
