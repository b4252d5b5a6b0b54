// The CUDA kernels of losses over pairs, which turn a tile of products into derivatives and know its columns. The
// products themselves are made by torch. All sums have a fixed order.
//
// A row is a block's, whose threads take its columns in turn, 16 bytes at a time where the tile allows it: to find the
// largest logit, the sums, and once more for the derivatives. For what is of columns a block has as many of them as a
// warp has lanes, and its warps take the rows in turn.
#pragma once
#include "core/scaled.h"
#include "core/single.h"
#include "core/warp.cuh"
#include "pairs/device.h"
#include "pairs/logits.h"
#include "pairs/losses/sigmoid.h"
#include "pairs/losses/softmax.h"

namespace fusedloss::pairs::inline FUSEDLOSS_SET {

// ---- sums -----------------------------------------------------------------------------------------------------------

// How many terms are added in the type of the computation: more would lose digits in float.
inline constexpr unsigned kStretch = 64;

// What a thread adds up: stretches of terms, and these in double.
class ThreadSum {
 public:
  __device__ __forceinline__ void add(Single<float> x) { stretch_ += x.raw; }
  __device__ __forceinline__ void add(Single<double> x) { total_ += x.raw; }
  __device__ __forceinline__ void close() {
    total_ += double(stretch_);
    stretch_ = 0;
  }
  __device__ __forceinline__ double value() {
    close();
    return total_;
  }

 private:
  float stretch_ = 0;
  double total_ = 0;
};

// Over the threads of a block, in all of them. Calls in one kernel have places of their own.
template <int place, int count>
__device__ __forceinline__ void add_over_block(double (&sums)[count]) {
  constexpr int kWarps = kDeviceThreads / kWarp;
  FUSEDLOSS_SHARED(double, of_warps, count* kWarps);
#pragma unroll
  for (int k = 0; k < count; ++k) {
    sums[k] = sum_of_warp(sums[k]);
    if (threadIdx.x % kWarp == 0) of_warps[k * kWarps + threadIdx.x / kWarp] = sums[k];
  }
  __syncthreads();
#pragma unroll
  for (int k = 0; k < count; ++k) {
    sums[k] = 0;
    for (int warp = 0; warp < kWarps; ++warp) sums[k] += of_warps[k * kWarps + warp];
  }
}

// ---- a row ----------------------------------------------------------------------------------------------------------

// The row of a tile that this block has.
template <class T, bool moving>
class BlockRow {
 public:
  using V = Single<T>;

  __device__ __forceinline__ BlockRow(const Tile& tile, unsigned packs)
      : tile_(tile), packs_(packs), logits_(tile.logits), number_(tile.first + blockIdx.x) {}

 protected:
  __device__ __forceinline__ V of_row(const void* array, double otherwise) const {
    return array ? V::of(static_cast<const T*>(array)[number_]) : V(otherwise);
  }
  __device__ __forceinline__ T* row_of(void* matrix) const {
    return static_cast<T*>(matrix) + blockIdx.x * tile_.pitch;
  }

  // Calls use(k, x, x_dot) with the products of the columns that this thread has; what it leaves in them takes their
  // place if `writes`. Closes the sums, to which use adds, between stretches.
  template <class Use, class... Sums>
  __device__ __forceinline__ void each(bool writes, Use use, Sums&... sums) {
    constexpr unsigned kSize = Packed<T>::size;
    const auto close = [&](unsigned taken, unsigned every) {
      if (taken % every == every - 1) (sums.close(), ...);
    };
    T *const products = row_of(tile_.products), *const products_dot = moving ? row_of(tile_.moving) : nullptr;
#pragma unroll 1
    for (unsigned i = threadIdx.x; i < packs_; i += kDeviceThreads) {
      Packed<T> pack = Packed<T>::load(products + i * kSize), pack_dot = pack;
      T x[kSize], x_dot[kSize] = {};
      pack.get(x);
      if constexpr (moving) {
        pack_dot = Packed<T>::load(products_dot + i * kSize);
        pack_dot.get(x_dot);
      }
#pragma unroll
      for (unsigned lane = 0; lane < kSize; ++lane) use(i * kSize + lane, x[lane], x_dot[lane]);
      if (writes) {
        pack.replace(x);
        pack.store(products + i * kSize);
        if constexpr (moving) {
          pack_dot.replace(x_dot);
          pack_dot.store(products_dot + i * kSize);
        }
      }
      close(i / kDeviceThreads, kStretch / kSize);
    }
    const unsigned columns = unsigned(tile_.columns), rest = packs_ * kSize;
#pragma unroll 1
    for (unsigned k = rest + threadIdx.x; k < columns; k += kDeviceThreads) {
      T x = products[k], x_dot = moving ? products_dot[k] : T(0);
      use(k, x, x_dot);
      if (writes) {
        products[k] = x;
        if constexpr (moving) products_dot[k] = x_dot;
      }
      close((k - rest) / kDeviceThreads, kStretch);
    }
  }

  // Turns a product and its tangent into derivatives by it, from those by its logit.
  __device__ __forceinline__ void differentiate(V slope, V slope_dot, T& x, T& x_dot) {
    const V product = V::of(x), product_dot = V::of(x_dot);
    x = logits_.by_product(slope).raw;
    if constexpr (moving) {
      x_dot = logits_.by_product_along(slope, slope_dot).raw;
      by_scale_.add(slope_dot * product + slope * product_dot);
      by_bias_.add(slope_dot);
    } else {
      by_scale_.add(slope * product);
      by_bias_.add(slope);
    }
  }
  __device__ __forceinline__ void write_slopes(double by_scale, double by_bias) const {
    if (tile_.scale_slopes) tile_.scale_slopes[number_] = by_scale;
    if (tile_.bias_slopes) tile_.bias_slopes[number_] = by_bias;
  }

  const Tile& tile_;
  const unsigned packs_;  // of 16 bytes, with which the row begins
  const Logits<V> logits_;
  const int64_t number_;
  ThreadSum by_scale_, by_bias_;
};

// ---- a softmax ------------------------------------------------------------------------------------------------------

template <class T, bool moving>
class SoftmaxBlockRow : BlockRow<T, moving> {
  using Base = BlockRow<T, moving>;
  using V = Single<T>;
  using Base::logits_, Base::number_, Base::tile_, Base::by_scale_, Base::by_bias_;

 public:
  __device__ __forceinline__ SoftmaxBlockRow(const Tile& tile, unsigned packs)
      : Base(tile, packs),
        labels_(static_cast<const int64_t*>(tile.labels)),
        label_(labels_ ? labels_[number_] : 0),
        share_(this->of_row(tile.shares, 1)),
        itself_(labels_ ? unsigned(number_) : kNone),
        positive_(labels_ || tile.own ? kNone : unsigned(tile.offset + number_)) {}

  // All threads go the same way to every barrier.
  __device__ __forceinline__ void run() {
    if (share_.raw == 0) return leave_out();
    find_positive();
    find_top();
    find_sums();
    if (tile_.values && threadIdx.x == 0) write_value();
    if (tile_.differentiates) differentiate_all();
  }

 private:
  static constexpr unsigned kNone = ~0u;  // no column

  __device__ __forceinline__ bool has_columns() const { return tile_.column_tops; }
  __device__ __forceinline__ V of_column(const void* array, int64_t k) const {
    return V::of(static_cast<const T*>(array)[k]);
  }
  __device__ __forceinline__ bool belongs(unsigned k) const {
    return labels_ ? labels_[k] == label_ && k != itself_ : k == positive_;
  }

  __device__ __forceinline__ void leave_out() {
    if (tile_.values && threadIdx.x == 0) tile_.values[number_] = 0;
    if (!tile_.differentiates) return;
    this->each(true, [](unsigned, T& x, T& x_dot) { x = x_dot = 0; });
    if (threadIdx.x == 0) this->write_slopes(0, 0);
  }

  // What belongs to the row, if it is one and not many. All threads read it before any changes it: there are barriers
  // in between.
  __device__ __forceinline__ void find_positive() {
    if (labels_) return;
    x_ = tile_.own ? static_cast<const T*>(tile_.own)[number_] : this->row_of(tile_.products)[positive_];
    if constexpr (moving)
      x_dot_ = tile_.own ? static_cast<const T*>(tile_.own_moving)[number_] : this->row_of(tile_.moving)[positive_];
    z_ = logits_.at(V::of(x_));
    z_dot_ = logits_.along(V::of(x_), V::of(x_dot_));
  }

  struct Logit {
    V value, dot;
  };
  // The row itself counts as nothing.
  __device__ __forceinline__ Logit logit_of(unsigned k, T& x, T& x_dot) const {
    if (k == itself_) x = x_dot = 0;
    const V logit = logits_.at(V::of(x));
    return {k == itself_ ? V(-INFINITY) : logit, moving ? logits_.along(V::of(x), V::of(x_dot)) : V(0)};
  }

  __device__ __forceinline__ void find_top() {
    V top = tile_.own ? z_ : V(-INFINITY);
    this->each(false, [&](unsigned k, T& x, T& x_dot) { top = larger_of(logit_of(k, x, x_dot).value, top); });
    top_ = V::of(largest_of_block(top.raw));
  }
  __device__ __forceinline__ void find_sums() {
    ThreadSum sum, weighted, belonging, belonging_dot;
    this->each(
        false,
        [&](unsigned k, T& x, T& x_dot) {
          const Logit logit = logit_of(k, x, x_dot);
          const V share = SoftmaxOver<V>::exponential(logit.value, top_);
          sum.add(share);
          if constexpr (moving) weighted.add(share * logit.dot);
          if (!labels_) return;
          belonging.add(belongs(k) ? logit.value : V(0));
          if constexpr (moving) belonging_dot.add(belongs(k) ? logit.dot : V(0));
        },
        sum, weighted, belonging, belonging_dot);
    double sums[] = {sum.value(), belonging.value(), weighted.value(), belonging_dot.value()};
    add_over_block<0>(sums);
    if (labels_) {
      z_ = V(sums[1]) * share_;
      z_dot_ = V(sums[3]) * share_;
    }
    if (tile_.own) {
      const V share = SoftmaxOver<V>::exponential(z_, top_);
      sums[0] += double(share.raw);
      sums[2] += double((share * z_dot_).raw);
    }
    sum_ = sums[0];
    mean_ = V(sums[2]) / V(sum_);
  }

  __device__ __forceinline__ void write_value() const {
    double value =
        moving ? double(mean_.raw) - double(z_dot_.raw) : std::log(sum_) + (double(top_.raw) - double(z_.raw));
    if (has_columns()) {
      const double of_column_itself =
          moving ? double(of_column(tile_.column_means, number_).raw) - double(z_dot_.raw)
                 : tile_.column_logs[number_] + (double(of_column(tile_.column_tops, number_).raw) - double(z_.raw));
      value = (value + of_column_itself) / 2;
    }
    tile_.values[number_] = value;
  }

  __device__ __forceinline__ SoftmaxOver<V> column(unsigned k) const {
    return {of_column(tile_.column_tops, k), of_column(tile_.column_inverses, k),
            moving ? of_column(tile_.column_means, k) : V(0)};
  }
  __device__ __forceinline__ void differentiate_all() {
    const SoftmaxOver<V> row{top_, V(1) / V(sum_), mean_};
    const V weight = this->of_row(tile_.weights, 1);
    this->each(
        true,
        [&](unsigned k, T& x, T& x_dot) {
          const Logit logit = logit_of(k, x, x_dot);
          const V share = row.share(logit.value), belonging = belongs(k) ? share_ : V(0);
          V slope = weight * (share - belonging), slope_dot = weight * row.share_dot(share, logit.dot);
          if (has_columns()) {
            const SoftmaxOver<V> of_k = column(k);
            const V its_weight = of_column(tile_.weights, k), its_share = of_k.share(logit.value);
            slope = slope + its_weight * (its_share - belonging);
            slope_dot = slope_dot + its_weight * of_k.share_dot(its_share, logit.dot);
          }
          this->differentiate(slope, slope_dot, x, x_dot);
        },
        by_scale_, by_bias_);
    if (tile_.own && threadIdx.x == 0) differentiate_own(row, weight);
    double sums[] = {by_scale_.value(), by_bias_.value()};
    add_over_block<1>(sums);
    if (threadIdx.x == 0) this->write_slopes(sums[0], sums[1]);
  }
  __device__ __forceinline__ void differentiate_own(const SoftmaxOver<V>& row, V weight) {
    const V share = row.share(z_);
    this->differentiate(weight * (share - V(1)), weight * row.share_dot(share, z_dot_), x_, x_dot_);
    static_cast<T*>(tile_.own)[number_] = x_;
    if constexpr (moving) static_cast<T*>(tile_.own_moving)[number_] = x_dot_;
  }

  const int64_t* const labels_;
  const int64_t label_;
  const V share_;
  const unsigned itself_, positive_;  // columns: the row's own, which does not count, and the one that belongs to it
  T x_ = 0, x_dot_ = 0;               // the product that belongs to the row
  V z_ = 0, z_dot_ = 0;               // its logit, or the mean of those that do
  V top_ = 0, mean_ = 0;
  double sum_ = 0;
};

template <class T, bool moving>
__global__ void __launch_bounds__(kDeviceThreads, device_blocks(sizeof(T) == sizeof(double), moving))
    softmax_rows(const __grid_constant__ Tile tile, unsigned packs) {
  SoftmaxBlockRow<T, moving>(tile, packs).run();
}

// ---- yes or no ------------------------------------------------------------------------------------------------------

template <class T, bool moving>
class SigmoidBlockRow : BlockRow<T, moving> {
  using Base = BlockRow<T, moving>;
  using V = Single<T>;
  using Base::logits_, Base::number_, Base::tile_, Base::by_scale_, Base::by_bias_;

 public:
  using Base::Base;

  __device__ __forceinline__ void run() {
    const unsigned positive = unsigned(tile_.offset + number_);
    const V weight = this->of_row(tile_.weights, 1);
    ThreadSum value;
    this->each(
        tile_.differentiates,
        [&](unsigned k, T& x, T& x_dot) {
          const SigmoidPair<V> pair(logits_.at(V::of(x)), typename V::Mask{k == positive});
          const V dot = moving ? logits_.along(V::of(x), V::of(x_dot)) : V(0);
          value.add(moving ? pair.slope * dot : pair.value);
          if (tile_.differentiates) this->differentiate(weight * pair.slope, weight * pair.curvature * dot, x, x_dot);
        },
        value, by_scale_, by_bias_);
    double sums[] = {by_scale_.value(), by_bias_.value(), value.value()};
    add_over_block<0>(sums);
    if (threadIdx.x != 0) return;
    if (tile_.values) tile_.values[number_] = sums[2];
    if (tile_.differentiates) this->write_slopes(sums[0], sums[1]);
  }
};

template <class T, bool moving>
__global__ void __launch_bounds__(kDeviceThreads, device_blocks(sizeof(T) == sizeof(double), moving))
    sigmoid_rows(const __grid_constant__ Tile tile, unsigned packs) {
  SigmoidBlockRow<T, moving>(tile, packs).run();
}

// ---- columns --------------------------------------------------------------------------------------------------------

// A lane has a column, and a warp every so many rows of the tile.
template <class T, bool moving>
__global__ void __launch_bounds__(kDeviceThreads, device_blocks(sizeof(T) == sizeof(double), moving))
    add_to_columns(const __grid_constant__ Tile tile, const __grid_constant__ Columns columns) {
  using V = Single<T>;
  constexpr unsigned kWarps = kDeviceThreads / kWarp;
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t k = int64_t(blockIdx.x) * kWarp + lane, column = k < tile.columns ? k : tile.columns - 1;
  const Logits<V> logits(tile.logits);
  const auto product = [&](const void* matrix, unsigned row) {
    return V::of(static_cast<const T*>(matrix)[row * tile.pitch + column]);
  };
  T* const tops = static_cast<T*>(columns.tops);
  FUSEDLOSS_SHARED(T, found, kDeviceThreads);
  const V before = V::of(tops[column]);
  V top = before;
  for (unsigned row = warp; row < unsigned(tile.rows); row += kWarps)
    top = larger_of(logits.at(product(tile.products, row)), top);
  found[threadIdx.x] = top.raw;
  __syncthreads();
  for (unsigned other = 0; other < kWarps; ++other) top = larger_of(V::of(found[other * kWarp + lane]), top);

  ThreadSum sum, weighted;
  for (unsigned row = warp, taken = 0; row < unsigned(tile.rows); row += kWarps) {
    const V x = product(tile.products, row), share = SoftmaxOver<V>::exponential(logits.at(x), top);
    sum.add(share);
    if constexpr (moving) weighted.add(share * logits.along(x, product(tile.moving, row)));
    if (++taken % kStretch == 0) {
      sum.close();
      weighted.close();
    }
  }
  FUSEDLOSS_SHARED(double, sums, 2 * kDeviceThreads);
  sums[threadIdx.x] = sum.value();
  sums[kDeviceThreads + threadIdx.x] = weighted.value();
  __syncthreads();
  if (warp != 0 || k != column) return;
  const double factor = double(SoftmaxOver<V>::exponential(before, top).raw);
  const auto add = [&](double& known, const double* more) {
    double all = known * factor;
    for (unsigned other = 0; other < kWarps; ++other) all += more[other * kWarp + lane];
    known = all;
  };
  tops[column] = top.raw;
  add(columns.sums[column], sums);
  if constexpr (moving) add(columns.weighted[column], sums + kDeviceThreads);
}

// ---- launching ------------------------------------------------------------------------------------------------------

// With how many packs of 16 bytes all rows begin.
inline unsigned packs_of(const Tile& tile, int64_t bytes) {
  const auto lies_aligned = [](const void* matrix) { return reinterpret_cast<uintptr_t>(matrix) % 16 == 0; };
  const bool all = tile.pitch * bytes % 16 == 0 && lies_aligned(tile.products) && lies_aligned(tile.moving);
  return all ? unsigned(tile.columns * bytes / 16) : 0;
}

template <class T, bool moving>
int launch_rows_of(const Tile& tile, Kind kind, const DeviceLaunch& how) {
  const auto kernel = kind == Kind::softmax ? softmax_rows<T, moving> : sigmoid_rows<T, moving>;
  return launch(kernel, dim3(unsigned(tile.rows)), dim3(kDeviceThreads), static_cast<cudaStream_t>(how.stream), tile,
                packs_of(tile, sizeof(T)));
}
template <class T, bool moving>
int launch_columns_of(const Tile& tile, const Columns& columns, const DeviceLaunch& how) {
  const unsigned blocks = unsigned((tile.columns + kWarp - 1) / kWarp);
  return launch(add_to_columns<T, moving>, dim3(blocks), dim3(kDeviceThreads), static_cast<cudaStream_t>(how.stream),
                tile, columns);
}

}  // namespace fusedloss::pairs::inline FUSEDLOSS_SET

namespace fusedloss::pairs {

int launch_rows(const Tile& tile, Kind kind, const DeviceLaunch& how) {
  if (how.wide)
    return tile.moves ? launch_rows_of<double, true>(tile, kind, how) : launch_rows_of<double, false>(tile, kind, how);
  return tile.moves ? launch_rows_of<float, true>(tile, kind, how) : launch_rows_of<float, false>(tile, kind, how);
}

int launch_columns(const Tile& tile, const Columns& columns, const DeviceLaunch& how) {
  if (how.wide)
    return tile.moves ? launch_columns_of<double, true>(tile, columns, how)
                      : launch_columns_of<double, false>(tile, columns, how);
  return tile.moves ? launch_columns_of<float, true>(tile, columns, how)
                    : launch_columns_of<float, false>(tile, columns, how);
}

}  // namespace fusedloss::pairs
