// The CUDA kernels of mined triplets, in the order in which they run:
//
//   read_vectors   a warp a vector: to dense memory, normalised where that is wanted
//   and for every block of anchors
//     measure      a block of threads for 64 anchors and 64 vectors: their distances
//     mine_hardest   a block an anchor: its farthest positive and nearest negative; or, for the other minings,
//     sort_row       a block an anchor: its negatives, then its positives, by distance
//     mine_sorted    a block an anchor: what each of them counts for, by searches in these rows
//     move         a block an anchor: how its pairs move along a direction
//     pull         a warp a vector: its part in the pairs of the block
//   write_gradient   a warp a vector
//
// Labels stay on the device, so that every vector is taken for an anchor. All sums have a fixed order.
#pragma once
#include "core/numbers.cuh"
#include "core/warp.cuh"
#include "triplets/device.h"
#include "triplets/formula.h"

namespace fusedloss::triplets::inline FUSEDLOSS_SET {

constexpr int kWarps = kDeviceThreads / kWarp;

template <class T>
__device__ __forceinline__ T* at(void* memory, int64_t place) {
  return static_cast<T*>(memory) + place;
}

// Calls use(vector) for all vectors, a warp each.
template <class Use>
__device__ __forceinline__ void each_vector(const DevicePass& pass, Use use) {
  for (int64_t n = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp; n < pass.count; n += int64_t(gridDim.x) * kWarps)
    use(n);
}
// Calls use(place) for the numbers of a vector, each lane for some.
template <class Use>
__device__ __forceinline__ void each_number(const DevicePass& pass, Use use) {
  for (int64_t d = lane_of_warp(); d < pass.size; d += kWarp) use(d);
}
template <class Product>
__device__ __forceinline__ double sum_over_numbers(const DevicePass& pass, Product product) {
  double sum = 0;
  each_number(pass, [&](int64_t d) { sum += double(product(d)); });
  return sum_of_warp(sum);
}

// ---- read_vectors ---------------------------------------------------------------------------------------------------

// Divides a vector by its norm, and turns how it moves into how the quotient does.
template <class T>
__device__ __forceinline__ void normalize(const DevicePass& pass, int64_t n, T* x, T* v) {
  Norm<T> norm = Norm<T>::of(sum_over_numbers(pass, [&](int64_t d) { return x[d] * x[d]; }));
  each_number(pass, [&](int64_t d) { x[d] = quotient(x[d], norm.length); });
  if (pass.moved) {
    const T along = T(sum_over_numbers(pass, [&](int64_t d) { return x[d] * v[d]; }));
    norm.stretch = norm.moves * along / norm.length;
    each_number(pass, [&](int64_t d) { v[d] = norm.turned_back(x[d], v[d], along); });
  }
  if (lane_of_warp() == 0) *at<Norm<T>>(pass.norms, n) = norm;
}

template <class T>
__global__ void __launch_bounds__(kDeviceThreads, kDeviceBlocks) read_vectors(const __grid_constant__ DevicePass pass) {
  each_vector(pass, [&](int64_t n) {
    const int64_t row = n * pass.size;
    T *const x = at<T>(pass.vectors, row), *const v = at<T>(pass.moved, pass.moved ? row : 0);
    each_number(pass, [&](int64_t d) {
      x[d] = read<T>(pass.input, n * pass.input.vector + d * pass.input.step);
      if (pass.moved) v[d] = read<T>(pass.tangent, n * pass.tangent.vector + d * pass.tangent.step);
      if (pass.slopes) pass.slopes[row + d] = 0;
      if (pass.still_slopes) pass.still_slopes[row + d] = 0;
    });
    if (pass.normalize) normalize<T>(pass, n, x, v);
  });
}

// ---- measure --------------------------------------------------------------------------------------------------------

// A thread has 4 by 4 of the pairs, which are so far apart that neighbours read neighbours.
constexpr int kOfThread = 4, kSide = int(kTile) / kOfThread, kDepth = 16;

// So many numbers of so many vectors to shared memory, 0 where there are none. A row is one longer than it must be, so
// that numbers under each other lie in different banks.
template <class T>
__device__ __forceinline__ void load_tile(const DevicePass& pass, int64_t first, int64_t end, int64_t depth, T* tile) {
  for (int i = int(threadIdx.x); i < kTile * kDepth; i += kDeviceThreads) {
    const int64_t n = first + i / kDepth, d = depth + i % kDepth;
    tile[i / kDepth * (kDepth + 1) + i % kDepth] =
        n < end && d < pass.size ? *at<T>(pass.vectors, n * pass.size + d) : T(0);
  }
}

template <class T>
__global__ void __launch_bounds__(kDeviceThreads, kDeviceBlocks) measure(const __grid_constant__ DevicePass pass) {
  FUSEDLOSS_SHARED(T, anchors, kTile * (kDepth + 1));
  FUSEDLOSS_SHARED(T, others, kTile * (kDepth + 1));
  const int64_t anchor = int64_t(blockIdx.y) * kTile, other = int64_t(blockIdx.x) * kTile;
  const int row = int(threadIdx.x) / kSide, column = int(threadIdx.x) % kSide;
  T total[kOfThread][kOfThread] = {};
  for (int64_t depth = 0; depth < pass.size; depth += kDepth) {
    load_tile<T>(pass, pass.first + anchor, pass.first + pass.block, depth, anchors);
    load_tile<T>(pass, other, pass.count, depth, others);
    __syncthreads();
    T sum[kOfThread][kOfThread] = {};  // short sums are added up to long ones
#pragma unroll 4
    for (int d = 0; d < kDepth; ++d)
#pragma unroll
      for (int i = 0; i < kOfThread; ++i)
#pragma unroll
        for (int j = 0; j < kOfThread; ++j) {
          const T difference =
              anchors[(row + i * kSide) * (kDepth + 1) + d] - others[(column + j * kSide) * (kDepth + 1) + d];
          sum[i][j] += difference * difference;
        }
#pragma unroll
    for (int i = 0; i < kOfThread; ++i)
#pragma unroll
      for (int j = 0; j < kOfThread; ++j) total[i][j] += sum[i][j];
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < kOfThread; ++i)
#pragma unroll
    for (int j = 0; j < kOfThread; ++j) {
      const int64_t a = anchor + row + i * kSide, n = other + column + j * kSide;
      if (a < pass.block && n < pass.count)
        *at<T>(pass.distances, a * pass.count + n) = pass.squared ? total[i][j] : std::sqrt(total[i][j]);
    }
}

// ---- mining ---------------------------------------------------------------------------------------------------------

// The anchor of a block of threads, and its rows.
template <class T>
struct DeviceRow {
  const DevicePass& pass;
  int64_t anchor, label;
  const T* distances;
  T* weights;
  double factor;

  __device__ __forceinline__ explicit DeviceRow(const DevicePass& pass)
      : pass(pass),
        anchor(pass.first + blockIdx.x),
        label(pass.labels[anchor]),
        distances(at<T>(pass.distances, int64_t(blockIdx.x) * pass.count)),
        weights(at<T>(pass.weights, int64_t(blockIdx.x) * pass.count)),
        factor(pass.incoming.data && !pass.reduces ? read<double>(pass.incoming, anchor * pass.incoming_step) : 1) {}

  __device__ __forceinline__ bool is_negative(int64_t n) const { return pass.labels[n] != label; }
  __device__ __forceinline__ double f(T positive, T negative) const {
    return unbounded(double(positive), double(negative), pass.margin);
  }
  __device__ __forceinline__ void put(int64_t n, double slope) const {
    weights[n] = T(weight_of(slope, double(distances[n]), pass.squared) * factor);
  }
  __device__ __forceinline__ void clear() const {
    for (int64_t n = threadIdx.x; n < pass.count; n += kDeviceThreads) weights[n] = 0;
  }
  // In thread 0.
  __device__ __forceinline__ void finish(double sum, double terms, double above) const {
    if (!pass.moved) finish_sum(sum);
    pass.terms[anchor] = terms;
    pass.above[anchor] = above;
  }
  __device__ __forceinline__ void finish_sum(double sum) const {
    pass.sums[anchor] = sum;
    if (pass.values.data) write(pass.values, anchor, sum);
  }
};

// Whether one distance is sooner found than another; a NaN is before all.
struct Farther {
  template <class T>
  __device__ __forceinline__ static bool before(T a, T b) {
    return a > b;
  }
};
struct Nearer {
  template <class T>
  __device__ __forceinline__ static bool before(T a, T b) {
    return a < b;
  }
};

// The first vector among those that are sooner found than all others; n is -1 where there is none.
template <class T, class Order>
struct Found {
  T distance = 0;
  int n = -1;

  __device__ __forceinline__ void compare(T other, int other_n) {
    if (other_n < 0) return;
    const bool is_nan = distance != distance, other_is_nan = other != other;
    const bool same = is_nan ? other_is_nan : distance == other;
    const bool sooner = is_nan != other_is_nan ? other_is_nan : Order::before(other, distance);
    if (n >= 0 && !sooner && !(same && other_n < n)) return;
    distance = other;
    n = other_n;
  }
  __device__ __forceinline__ void over_warp() {
    for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
      const T other = __shfl_xor_sync(kFullWarp, distance, lanes);
      const int other_n = __shfl_xor_sync(kFullWarp, n, lanes);
      compare(other, other_n);
    }
  }
};

template <class T>
__global__ void __launch_bounds__(kDeviceThreads, kDeviceBlocks) mine_hardest(const __grid_constant__ DevicePass pass) {
  FUSEDLOSS_SHARED(T, distances, 2 * kWarps);
  FUSEDLOSS_SHARED(int, places, 2 * kWarps);
  const DeviceRow<T> row(pass);
  Found<T, Farther> positive;
  Found<T, Nearer> negative;
  for (int64_t n = threadIdx.x; n < pass.count; n += kDeviceThreads) {
    row.weights[n] = 0;
    if (row.is_negative(n))
      negative.compare(row.distances[n], int(n));
    else if (n != row.anchor)
      positive.compare(row.distances[n], int(n));
  }
  positive.over_warp();
  negative.over_warp();
  if (lane_of_warp() == 0) {
    const int warp = int(threadIdx.x) / kWarp;
    distances[warp] = positive.distance;
    places[warp] = positive.n;
    distances[kWarps + warp] = negative.distance;
    places[kWarps + warp] = negative.n;
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int warp = 1; warp < kWarps; ++warp) {
    positive.compare(distances[warp], places[warp]);
    negative.compare(distances[kWarps + warp], places[kWarps + warp]);
  }
  const bool exists = positive.n >= 0 && negative.n >= 0;
  const double f = row.f(positive.distance, negative.distance);
  const bool is_above = exists && counts(f);
  row.finish(is_above ? f : 0, exists, is_above);
  if (!is_above) return;
  row.put(positive.n, 1);
  row.put(negative.n, -1);
}

// ---- sort_row -------------------------------------------------------------------------------------------------------

constexpr uint32_t kNegative = 0, kPositive = 1, kNeither = 2;

// Negatives, positives, the rest; each by distance, NaN last, and then by their place in the batch.
template <class T>
__device__ __forceinline__ bool comes_before(T a, uint32_t place_a, T b, uint32_t place_b) {
  const bool a_is_nan = a != a, b_is_nan = b != b;
  if (place_a >> kClassShift != place_b >> kClassShift) return place_a < place_b;
  if (a_is_nan != b_is_nan) return b_is_nan;
  return a < b || (!(b < a) && place_a < place_b);
}

// A bitonic sort: in every stage runs that rise and fall in turn become such runs of twice the length.
template <class T>
__global__ void __launch_bounds__(kDeviceThreads, kDeviceBlocks) sort_row(const __grid_constant__ DevicePass pass) {
  const DeviceRow<T> row(pass);
  const int64_t width = pass.sorted_row;
  T* const sorted = at<T>(pass.sorted, int64_t(blockIdx.x) * width);
  uint32_t* const order = pass.order + int64_t(blockIdx.x) * width;
  for (int64_t n = threadIdx.x; n < width; n += kDeviceThreads) {
    const bool is_other = n < pass.count && n != row.anchor;
    const uint32_t kind = !is_other ? kNeither : row.is_negative(n) ? kNegative : kPositive;
    sorted[n] = is_other ? row.distances[n] : T(0);
    order[n] = kind << kClassShift | uint32_t(n);
  }
  __syncthreads();
  for (int64_t run = 2; run <= width; run *= 2)
    for (int64_t apart = run / 2; apart > 0; apart /= 2) {
      for (int64_t i = threadIdx.x; i < width / 2; i += kDeviceThreads) {
        const int64_t low = i / apart * 2 * apart + i % apart, high = low + apart;
        const bool rises = (low & run) == 0;
        const T a = sorted[low], b = sorted[high];
        const uint32_t place_a = order[low], place_b = order[high];
        if (comes_before(b, place_b, a, place_a) != rises) continue;
        sorted[low] = b;
        order[low] = place_b;
        sorted[high] = a;
        order[high] = place_a;
      }
      __syncthreads();
    }
}

// ---- mine_sorted ----------------------------------------------------------------------------------------------------

// How many of the places from `begin` to `end` hold: the first ones do, the others do not.
template <class Holds>
__device__ __forceinline__ int64_t count_holding(int64_t begin, int64_t end, Holds holds) {
  const int64_t first = begin;
  while (begin < end) {
    const int64_t middle = begin + (end - begin) / 2;
    if (holds(middle))
      begin = middle + 1;
    else
      end = middle;
  }
  return begin - first;
}

// The sorted distances of an anchor.
template <class T>
class SortedRow {
 public:
  __device__ __forceinline__ explicit SortedRow(const DeviceRow<T>& row)
      : row_(row),
        sorted_(at<T>(row.pass.sorted, int64_t(blockIdx.x) * row.pass.sorted_row)),
        order_(row.pass.order + int64_t(blockIdx.x) * row.pass.sorted_row) {
    const auto until = [&](uint32_t kind) {
      return count_holding(0, row.pass.sorted_row, [&](int64_t k) { return order_[k] >> kClassShift < kind; });
    };
    negatives_ = until(kPositive);
    positives_ = until(kNeither) - negatives_;
    numbers_ = count_holding(0, negatives_, [&](int64_t k) { return sorted_[k] == sorted_[k]; });
  }

  __device__ __forceinline__ int64_t negatives() const { return negatives_; }
  __device__ __forceinline__ int64_t positives() const { return positives_; }
  __device__ __forceinline__ bool has_triplets() const { return negatives_ > 0 && positives_ > 0; }
  __device__ __forceinline__ T negative(int64_t k) const { return sorted_[k]; }
  __device__ __forceinline__ T positive(int64_t k) const { return sorted_[negatives_ + k]; }
  __device__ __forceinline__ void put_negative(int64_t k, double slope) const { put(k, slope); }
  __device__ __forceinline__ void put_positive(int64_t k, double slope) const { put(negatives_ + k, slope); }

  // ---- semi_hard

  // The nearest negative that is farther than this positive, or else the farthest.
  __device__ __forceinline__ int64_t semi_hard_negative(int64_t k) const {
    if (numbers_ < negatives_) return numbers_;  // the first NaN
    const T d = positive(k);
    const int64_t nearer = count_holding(0, negatives_, [&](int64_t n) { return !(negative(n) > d); });
    return nearer < negatives_ ? nearer : farthest();
  }
  // How many positives have this negative and a loss. Only the first of negatives at the same distance has any.
  __device__ __forceinline__ int64_t semi_hard_positives(int64_t n) const {
    if (numbers_ < negatives_) return n == numbers_ ? positives_ : 0;
    const T d = negative(n);
    const auto nearer_than = [&](T limit) {
      return count_holding(0, positives_, [&](int64_t k) { return positive(k) < limit; });
    };
    const int64_t begin = n == 0 ? 0 : nearer_than(negative(n - 1)), without = without_loss(n);
    const int64_t end = n == farthest() ? positives_ : nearer_than(d), first = without > begin ? without : begin;
    return end > first ? end - first : 0;
  }

  // ---- all

  // How many negatives have a loss with this positive: the nearest, and those that are NaN.
  __device__ __forceinline__ int64_t within(int64_t k) const {
    return count_holding(0, numbers_, [&](int64_t n) { return counts(row_.f(positive(k), negative(n))); });
  }
  __device__ __forceinline__ int64_t nans() const { return negatives_ - numbers_; }
  // How many positives have no loss with this negative: the nearest.
  __device__ __forceinline__ int64_t without_loss(int64_t n) const {
    return count_holding(0, positives_, [&](int64_t k) { return !counts(row_.f(positive(k), negative(n))); });
  }

  // The first of the farthest negatives.
  __device__ __forceinline__ int64_t farthest() const {
    const T most = negative(negatives_ - 1);
    return count_holding(0, negatives_, [&](int64_t n) { return negative(n) < most; });
  }

 private:
  __device__ __forceinline__ void put(int64_t k, double slope) const {
    row_.put(order_[k] & ((uint32_t(1) << kClassShift) - 1), slope);
  }

  const DeviceRow<T>& row_;
  const T* const sorted_;
  const uint32_t* const order_;
  int64_t negatives_, positives_;
  int64_t numbers_;  // negatives that are not NaN
};

template <class Use>
__device__ __forceinline__ void each_of_thread(int64_t count, Use use) {
  for (int64_t k = threadIdx.x; k < count; k += kDeviceThreads) use(k);
}

template <class T>
__device__ __forceinline__ void mine_semi_hard(const SortedRow<T>& sorted, const DeviceRow<T>& row, double& sum,
                                               double& above) {
  each_of_thread(sorted.positives(), [&](int64_t k) {
    const double f = row.f(sorted.positive(k), sorted.negative(sorted.semi_hard_negative(k)));
    if (!counts(f)) return;
    sum += f;
    above += 1;
    sorted.put_positive(k, 1);
  });
  each_of_thread(sorted.negatives(),
                 [&](int64_t n) { sorted.put_negative(n, -double(sorted.semi_hard_positives(n))); });
}

// Leaves in `before` the sums of the negatives before each: a thread has some that follow each other.
template <class T>
__device__ __forceinline__ void add_up(const SortedRow<T>& sorted, double* before) {
  FUSEDLOSS_SHARED(double, of_threads, kDeviceThreads);
  const int64_t each = (sorted.negatives() + kDeviceThreads - 1) / kDeviceThreads, begin = threadIdx.x * each;
  const int64_t end = begin + each < sorted.negatives() ? begin + each : sorted.negatives();
  double sum = 0;
  for (int64_t n = begin; n < end; ++n) sum += double(sorted.negative(n));
  of_threads[threadIdx.x] = sum;
  __syncthreads();
  sum = 0;
  for (int thread = 0; thread < int(threadIdx.x); ++thread) sum += of_threads[thread];
  for (int64_t n = begin; n < end; ++n) {
    before[n] = sum;
    sum += double(sorted.negative(n));
  }
  __syncthreads();
}

template <class T>
__device__ __forceinline__ void mine_all(const SortedRow<T>& sorted, const DeviceRow<T>& row, double& sum,
                                         double& above) {
  double* const before = row.pass.before + int64_t(blockIdx.x) * row.pass.count;
  add_up(sorted, before);
  each_of_thread(sorted.positives(), [&](int64_t k) {
    const int64_t within = sorted.within(k), all = within + sorted.nans();
    if (all == 0) return;
    const double taken = within == 0 ? 0 : before[within - 1] + double(sorted.negative(within - 1));
    sum += double(within) * (double(sorted.positive(k)) + row.pass.margin) - taken;
    if (all > within) sum = NAN;
    above += double(all);
    sorted.put_positive(k, double(all));
  });
  each_of_thread(sorted.negatives(),
                 [&](int64_t n) { sorted.put_negative(n, -double(sorted.positives() - sorted.without_loss(n))); });
}

template <class T, bool all>
__global__ void __launch_bounds__(kDeviceThreads, kDeviceBlocks) mine_sorted(const __grid_constant__ DevicePass pass) {
  const DeviceRow<T> row(pass);
  const SortedRow<T> sorted(row);
  row.clear();
  __syncthreads();
  double sum = 0, above = 0;
  if (sorted.has_triplets()) {
    if constexpr (all)
      mine_all(sorted, row, sum, above);
    else
      mine_semi_hard(sorted, row, sum, above);
  }
  sum = sum_of_block<kDeviceThreads>(sum);
  __syncthreads();
  above = sum_of_block<kDeviceThreads>(above);
  const double terms = double(sorted.positives()) * (all ? double(sorted.negatives()) : 1);
  if (threadIdx.x == 0) row.finish(sum, sorted.has_triplets() ? terms : 0, above);
}

// ---- move -----------------------------------------------------------------------------------------------------------

template <class T>
__global__ void __launch_bounds__(kDeviceThreads, kDeviceBlocks) move(const __grid_constant__ DevicePass pass) {
  const DeviceRow<T> row(pass);
  T* const turns = at<T>(pass.turns, int64_t(blockIdx.x) * pass.count);
  const T *const x = at<T>(pass.vectors, row.anchor * pass.size), *const v = at<T>(pass.moved, row.anchor * pass.size);
  double sum = 0;
  for (int64_t n = threadIdx.x / kWarp; n < pass.count; n += kWarps) {
    const T weight = row.weights[n];
    if (weight == 0) continue;
    const T *const y = at<T>(pass.vectors, n * pass.size), *const w = at<T>(pass.moved, n * pass.size);
    const double along = sum_over_numbers(pass, [&](int64_t d) { return (x[d] - y[d]) * (v[d] - w[d]); });
    if (lane_of_warp() != 0) continue;
    turns[n] = T(turn_of(double(weight), along, double(row.distances[n]), pass.squared));
    sum += double(weight) * along;
  }
  sum = sum_of_block<kDeviceThreads>(sum);
  if (threadIdx.x == 0) row.finish_sum(sum);
}

// ---- pull -----------------------------------------------------------------------------------------------------------

// Some numbers of a vector's gradient, a lane's: float sums stay short.
template <class T>
class Pulled {
 public:
  __device__ __forceinline__ Pulled(const DevicePass& pass, int64_t n, int64_t d)
      : pass_(pass),
        n_(n),
        d_(d),
        x_(*at<T>(pass.vectors, n * pass.size + d)),
        v_(pass.moved ? *at<T>(pass.moved, n * pass.size + d) : T(0)) {}

  __device__ __forceinline__ void add(int64_t other, int64_t place) {
    const T weight = *at<T>(pass_.weights, place);
    if (weight == 0) return;
    const T x = x_ - *at<T>(pass_.vectors, other * pass_.size + d_);
    if (pass_.moved) {
      moved_ += weight * (v_ - *at<T>(pass_.moved, other * pass_.size + d_)) + *at<T>(pass_.turns, place) * x;
    }
    still_ += weight * x;
    if (++held_ == kShort) flush();
  }
  __device__ __forceinline__ void finish() {
    flush();
    const int64_t place = n_ * pass_.size + d_;
    pass_.slopes[place] += pass_.moved ? moved_total_ : still_total_;
    if (pass_.still_slopes) pass_.still_slopes[place] += still_total_;
  }

 private:
  static constexpr int kShort = 128;
  __device__ __forceinline__ void flush() {
    still_total_ += double(still_);
    moved_total_ += double(moved_);
    still_ = moved_ = 0;
    held_ = 0;
  }

  const DevicePass& pass_;
  const int64_t n_, d_;
  const T x_, v_;
  T still_ = 0, moved_ = 0;
  double still_total_ = 0, moved_total_ = 0;
  int held_ = 0;
};

template <class T>
__global__ void __launch_bounds__(kDeviceThreads, kDeviceBlocks) pull(const __grid_constant__ DevicePass pass) {
  each_vector(pass, [&](int64_t n) {
    const bool is_anchor = pass.first <= n && n < pass.first + pass.block;
    each_number(pass, [&](int64_t d) {
      Pulled<T> pulled(pass, n, d);
      for (int64_t a = 0; a < pass.block; ++a) pulled.add(pass.first + a, a * pass.count + n);
      if (is_anchor)
        for (int64_t other = 0; other < pass.count; ++other) pulled.add(other, (n - pass.first) * pass.count + other);
      pulled.finish();
    });
  });
}

// ---- write_gradient -------------------------------------------------------------------------------------------------

template <class T>
__global__ void __launch_bounds__(kDeviceThreads, kDeviceBlocks)
    write_gradient(const __grid_constant__ DevicePass pass) {
  const double incoming = pass.incoming.data && pass.reduces ? read<double>(pass.incoming, 0) : 1;
  const double scale = quotient(incoming, pass.divisor ? *pass.divisor : 1);
  const bool exists = !std::isinf(*pass.exists);
  each_vector(pass, [&](int64_t n) {
    const int64_t row = n * pass.size;
    const T *const y = at<T>(pass.vectors, row), *const w = at<T>(pass.moved, pass.moved ? row : 0);
    const Norm<T> norm = pass.normalize ? *at<Norm<T>>(pass.norms, n) : Norm<T>{1, 0, 0};
    const auto slope = [&](int64_t d) { return T(pass.slopes[row + d] * scale); };
    const auto still = [&](int64_t d) { return T(pass.still_slopes[row + d] * scale); };
    T along = 0, still_along = 0, moved_along = 0;
    if (pass.normalize) along = T(sum_over_numbers(pass, [&](int64_t d) { return y[d] * slope(d); }));
    if (pass.still_slopes) {
      still_along = T(sum_over_numbers(pass, [&](int64_t d) { return y[d] * still(d); }));
      moved_along = T(sum_over_numbers(pass, [&](int64_t d) { return w[d] * still(d); }));
    }
    each_number(pass, [&](int64_t d) {
      T result = pass.normalize ? norm.turned_back(y[d], slope(d), along) : slope(d);
      if (pass.still_slopes) result += norm.moved_back(y[d], w[d], still(d), still_along, moved_along);
      write(pass.gradient, n * pass.gradient.vector + d * pass.gradient.step, exists ? result : T(0));
    });
  });
}

// ---- launching ------------------------------------------------------------------------------------------------------

template <class T>
int launch_block(const DevicePass& pass, const DeviceLaunch& how) {
  const auto stream = static_cast<cudaStream_t>(how.stream);
  const auto tiles = [](int64_t count) { return unsigned((count + kTile - 1) / kTile); };
  const dim3 threads(kDeviceThreads), anchors(unsigned(pass.block)), vectors(how.blocks);
  const auto mine = how.mining == Mining::all ? mine_sorted<T, true> : mine_sorted<T, false>;
  cudaError_t error = launch(measure<T>, dim3(tiles(pass.count), tiles(pass.block)), threads, stream, pass);
  if (how.mining == Mining::batch_hard) {
    if (error == cudaSuccess) error = launch(mine_hardest<T>, anchors, threads, stream, pass);
  } else {
    if (error == cudaSuccess) error = launch(sort_row<T>, anchors, threads, stream, pass);
    if (error == cudaSuccess) error = launch(mine, anchors, threads, stream, pass);
  }
  if (error == cudaSuccess && pass.moved) error = launch(move<T>, anchors, threads, stream, pass);
  if (error == cudaSuccess && pass.slopes) error = launch(pull<T>, vectors, threads, stream, pass);
  return error;
}

}  // namespace fusedloss::triplets::inline FUSEDLOSS_SET

namespace fusedloss::triplets {

namespace {
// One of two kernels in which a warp has a vector.
int launch_over_vectors(void (*of_float)(DevicePass), void (*of_double)(DevicePass), const DevicePass& pass,
                        const DeviceLaunch& how) {
  return launch(how.wide ? of_double : of_float, dim3(how.blocks), dim3(kDeviceThreads),
                static_cast<cudaStream_t>(how.stream), pass);
}
}  // namespace

int launch_read(const DevicePass& pass, const DeviceLaunch& how) {
  return launch_over_vectors(read_vectors<float>, read_vectors<double>, pass, how);
}
int launch_block(const DevicePass& pass, const DeviceLaunch& how) {
  return how.wide ? launch_block<double>(pass, how) : launch_block<float>(pass, how);
}
int launch_write(const DevicePass& pass, const DeviceLaunch& how) {
  return launch_over_vectors(write_gradient<float>, write_gradient<double>, pass, how);
}

}  // namespace fusedloss::triplets
