// The CUDA kernels of a loss over rows. A row is one thread's, where its classes are few or do not lie one after
// another in memory: neighbouring threads then have neighbouring rows. Else it is a warp's or a block's, whose threads
// take its classes in turn, 16 bytes at a time where the tensors allow it.
//
// Included by files that CMake writes, one for each loss (cmake/Cuda.cmake); without torch.
#pragma once
#include <algorithm>
#include <iterator>
#include <type_traits>
#include <utility>

#include "core/numbers.cuh"
#include "core/single.h"
#include "rows/device.h"
#include "rows/formula.h"

namespace fusedloss::rows::inline FUSEDLOSS_SET {

// ---- where a row is, and whether it counts ----------------------------------------------------------------------

// Calls use(d, index) with the row's index along each dimension. (Unrolled it would be half of a kernel's code, and no
// faster: each division waits for the one before.)
template <class Use>
__device__ __forceinline__ void each_index(const DeviceRows& rows, uint32_t row, Use use) {
#pragma unroll 1
  for (int d = rows.dims - 1; d > 0; --d) {
    const uint32_t rest = row / rows.sizes[d];
    use(d, int64_t(row - rest * rows.sizes[d]));
    row = rest;
  }
  use(0, int64_t(row));
}

// Where a row is in a tensor. It is found anew whenever it is needed: a thread has no registers to keep it in.
__device__ __forceinline__ int64_t offset_of(const DeviceRows& rows, const RowView& view, uint32_t row) {
  int64_t offset = 0;
  each_index(rows, row, [&](int d, int64_t index) { offset += index * view.strides[d]; });
  return offset;
}

// Where it is in tensors with classes.
struct RowPlace {
  int64_t of[kMaxOperands] = {};

  __device__ __forceinline__ RowPlace(const DeviceRows& rows, const RowClassView (&views)[kMaxOperands], uint32_t row) {
    each_index(rows, row, [&](int d, int64_t index) {
#pragma unroll
      for (int k = 0; k < kMaxOperands; ++k) of[k] += index * views[k].strides[d];
    });
  }
};

enum class Label { none, ignored, no_class, valid };

__device__ __forceinline__ const int64_t* place_of_label(const DeviceRows& rows, uint32_t row) {
  return static_cast<const int64_t*>(rows.labels.data) + offset_of(rows, rows.labels, row);
}

__device__ __forceinline__ Label label_of(const DeviceRows& rows, uint32_t row, int64_t& label) {
  if (!rows.labels.data) return Label::none;
  label = *place_of_label(rows, row);
  if (label == rows.ignored) return Label::ignored;
  return uint64_t(label) < uint64_t(rows.classes) ? Label::valid : Label::no_class;
}

// Keeps the first that is found. An error would have to wait for the device.
__device__ __forceinline__ void report(const DeviceRows& rows, uint32_t row, int64_t label) {
  if (atomicExch(&rows.offender->found, 1) != 0) return;
  rows.offender->classes = rows.classes;
  rows.offender->row = place_of_label(rows, row) - rows.first_label;
  rows.offender->label = label;
}

template <class T>
__device__ __forceinline__ T weight_of(const DeviceRows& rows, uint32_t row) {
  return rows.row_weight.data ? read<T>(rows.row_weight, offset_of(rows, rows.row_weight, row)) : T(1);
}
// What multiplies a row's gradients.
template <class T>
__device__ __forceinline__ T factor_of(const DeviceRows& rows, uint32_t row, const T& scale) {
  const T factor = scale * weight_of<T>(rows, row);
  return rows.grad_output.data ? factor * read<T>(rows.grad_output, offset_of(rows, rows.grad_output, row)) : factor;
}

// Whether a row is computed, and if not, what its value and all its gradients are.
template <class T>
struct RowFacts {
  bool computed;
  T otherwise = 0;
  int label = -1;  // the class, if there is one

  __device__ __forceinline__ RowFacts(const DeviceRows& rows, uint32_t row, bool reports) {
    int64_t given = -1;
    const Label kind = label_of(rows, row, given);
    computed = kind != Label::ignored && kind != Label::no_class && weight_of<T>(rows, row) != 0;
    if (kind == Label::valid) label = int(given);
    if (kind != Label::no_class) return;
    otherwise = NAN;
    if (reports) report(rows, row, given);
  }
};

template <class T>
__device__ __forceinline__ T scale_of(const DeviceRows& rows) {
  double scale = rows.scale;
  if (rows.factor.data) scale *= read<double>(rows.factor, 0);
  if (rows.divisor) scale = quotient(scale, *rows.divisor);
  return T(scale);
}

// ---- combining the terms of threads -----------------------------------------------------------------------------

template <Stage stage, class T>
__device__ __forceinline__ Single<T> of_warp(Single<T> x) {
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
    const auto other = Single<T>::of(__shfl_xor_sync(kFullWarp, x.raw, lanes));
    x = stage.combine == Combine::sum ? x + other : larger(x, other);
  }
  return x;
}
template <Stage stage, class T>
__device__ __forceinline__ Dual<Single<T>> of_warp(Dual<Single<T>> x) {
  return {of_warp<stage>(x.value), stage.combine == Combine::sum ? of_warp<stage>(x.dot) : Single<T>(0)};
}

// One array for all calls in a kernel.
template <class V, int count>
__device__ __forceinline__ V* shared_terms() {
  FUSEDLOSS_SHARED(V, terms, count);
  return terms;
}

// Combines the terms of the threads that have a row together, in all of them. Calls take the two places in turn: no
// thread writes to one before all have read what was there, because they have passed the barrier in between.
template <Stage stage, int place, class V>
__device__ __forceinline__ void merge(Terms<V, stage.terms>& terms, int thread_bits) {
  constexpr int kWarps = kDeviceThreads / kWarp, kMostTerms = 3;
  static_assert(stage.terms <= kMostTerms && place < 2);
  if (thread_bits == 0) return;  // the same for all threads, as below
#pragma unroll
  for (int k = 0; k < stage.terms; ++k) terms.of[k] = of_warp<stage>(terms.of[k]);
  if (1 << thread_bits == kWarp) return;
  V* const of_warps = shared_terms<V, 2 * kWarps * kMostTerms>() + place * kWarps * kMostTerms;
  if (threadIdx.x % kWarp == 0)
    for (int k = 0; k < stage.terms; ++k) of_warps[threadIdx.x / kWarp * kMostTerms + k] = terms.of[k];
  __syncthreads();
  terms = empty<stage, V>();
#pragma unroll
  for (int k = 0; k < stage.terms; ++k)
    for (int warp = 0; warp < kWarps; ++warp) {
      const V& term = of_warps[warp * kMostTerms + k];
      terms.of[k] = stage.combine == Combine::sum ? terms.of[k] + term : larger(terms.of[k], term);
    }
}

// ---- the classes of a row ---------------------------------------------------------------------------------------

template <class Formula>
inline constexpr int kStages = int(std::size(Formula::stages));
template <class Formula, int k>
inline constexpr Stage kStage = Formula::stages[k];

struct Any {};  // elements of whatever type, apart by whatever step

// What a formula reads at a class.
template <class V, bool is_dense, class Loop>
struct ClassAt {
  using W = Single<typename V::Scalar>;
  const Loop& loop;
  V operands[kMaxOperands];
  bool at_label;
  const typename V::Scalar* weight_of_class;  // null if all are 1

  __device__ __forceinline__ V input() const { return operands[0]; }
  __device__ __forceinline__ V target() const { return is_dense ? operands[1] : V(at_label ? 1 : 0); }
  __device__ __forceinline__ V weight() const { return weight_of_class ? V(double(*weight_of_class)) : V(1); }
  __device__ __forceinline__ typename W::Mask is_label() const { return {at_label}; }
  __device__ __forceinline__ bool wants(int k) const { return loop.wants(k); }
  // Arithmetic is cheap here, and memory is not.
  template <int>
  __device__ __forceinline__ V keep(V x) const {
    return x;
  }
  template <int, class Compute>
  __device__ __forceinline__ V kept(Compute compute) const {
    return compute();
  }
  template <class Use>
  __device__ __forceinline__ void each_class(bool with_target, Use use) const {
    for (unsigned c = 0; c < loop.classes(); ++c) {
      const V target = loop.operand(1, c);
      if (any(target == V(0)) != with_target) use(loop.operand(0, c), target, typename W::Mask{true});
    }
  }
};

// A row, and the share that this thread has of its classes. S is the type of all elements, which then lie one after
// another: they are taken in packs, but for those before the first aligned address and after the last pack.
template <class Formula, class S, class T, bool moving>
class RowLoop {
 public:
  using W = Single<T>;
  using V = std::conditional_t<moving, Dual<W>, W>;

  __device__ __forceinline__ RowLoop(const Formula& formula, const DeviceRows& rows, uint32_t row, int label)
      : formula_(formula),
        rows_(rows),
        index_(row),
        label_(label),
        lane_(threadIdx.x & (threads() - 1)),
        operands_(rows, rows.operands, row),
        tangents_(rows, rows.tangents, row) {
    if constexpr (kPacked) find_packs();
  }

  // Writes the gradients, times `scale` and what else multiplies them; returns the value.
  __device__ __forceinline__ W run(const T& scale) {
    start();
    [&]<int... stage>(std::integer_sequence<int, stage...>) {
      (gather<stage>(), ...);
    }(std::make_integer_sequence<int, kStages<Formula>>{});
    // The next row starts with the first place again.
    if (kStages<Formula> % 2 != 0 && 1 << rows_.thread_bits == kDeviceThreads) __syncthreads();
    const W value = number(formula_.value(row_));
    // They may take the memory of the input, of which all threads have read the number at the label.
    if (rows_.thread_bits != 0) __syncwarp();
    if (rows_.gradients[0].data || rows_.gradients[1].data) make_gradients(scale);
    return value;
  }
  __device__ __forceinline__ void fill(T x) const {
    const RowPlace gradients = place_of_gradients();
    for (unsigned c = lane_; c < unsigned(rows_.classes); c += threads())
      for (int k = 0; k < kOperands; ++k)
        if (rows_.gradients[k].data) put(gradients, k, c, x);
  }

  __device__ __forceinline__ unsigned classes() const { return rows_.classes; }
  __device__ __forceinline__ bool wants(int k) const { return rows_.gradients[k].data; }
  __device__ __forceinline__ V operand(int k, unsigned c) const {
    const W x = W::of(get(rows_.operands[k], offset(operands_, k), c));
    if constexpr (moving)
      return {x, rows_.tangents[k].data ? W::of(get(rows_.tangents[k], tangents_.of[k], c)) : W(0)};
    else
      return x;
  }

 private:
  using At = ClassAt<V, Formula::dense, RowLoop>;
  static constexpr int kOperands = Formula::dense ? 2 : 1;
  static constexpr bool kPacked = !std::is_same_v<S, Any>;

  __device__ __forceinline__ unsigned threads() const { return 1u << rows_.thread_bits; }
  __device__ __forceinline__ static W number(W x) { return x; }
  __device__ __forceinline__ static W number(Dual<W> x) { return x.dot; }

  // Where packs are taken, a row has one offset in all tensors.
  __device__ __forceinline__ RowPlace place_of_gradients() const {
    if constexpr (kPacked)
      return operands_;
    else
      return {rows_, rows_.gradients, index_};
  }
  __device__ __forceinline__ static int64_t offset(const RowPlace& place, int k) { return place.of[kPacked ? 0 : k]; }

  // ---- single classes ----

  __device__ __forceinline__ T get(const RowClassView& view, int64_t row, unsigned c) const {
    if constexpr (kPacked)
      return converted<T>(static_cast<const S*>(view.data)[row + c]);
    else
      return read<T>(view, row + c * view.step);
  }
  __device__ __forceinline__ void put(const RowPlace& place, int k, unsigned c, T x) const {
    const RowClassView& view = rows_.gradients[k];
    if constexpr (kPacked)
      static_cast<S*>(view.data)[offset(place, k) + c] = converted<S>(x);
    else
      write(view, offset(place, k) + c * view.step, x);
  }
  __device__ __forceinline__ const T* class_weight(unsigned c) const {
    return rows_.weight.data ? static_cast<const T*>(rows_.weight.data) + c : nullptr;
  }
  __device__ __forceinline__ At at(unsigned c) const {
    At at{*this, {}, int(c) == label_, class_weight(c)};
    for (int k = 0; k < kOperands; ++k) at.operands[k] = operand(k, c);
    return at;
  }
  __device__ __forceinline__ void start() {
    row_.classes = double(rows_.classes);
    if constexpr (!Formula::dense) {
      const At label = at(label_);
      row_.input = label.input();
      row_.weight = label.weight();
    }
  }

  // ---- packs ----

  __device__ __forceinline__ void find_packs() {
    const auto address = reinterpret_cast<uintptr_t>(static_cast<const S*>(rows_.operands[0].data) + operands_.of[0]);
    const unsigned before = unsigned(-address % 16 / sizeof(S)), classes = rows_.classes;
    if (classes < before) return;
    head_ = before;
    packs_ = (classes - before) / Packed<S>::size;
  }
  __device__ __forceinline__ unsigned first_of(unsigned pack) const { return head_ + pack * Packed<S>::size; }
  // How many are not in packs.
  __device__ __forceinline__ unsigned singles() const {
    if constexpr (kPacked)
      return rows_.classes - packs_ * Packed<S>::size;
    else
      return rows_.classes;
  }
  // The class that is single number i.
  __device__ __forceinline__ unsigned single(unsigned i) const {
    if constexpr (kPacked)
      return i < head_ ? i : i + packs_ * Packed<S>::size;
    else
      return i;
  }
  // Calls use(at, x) for the classes of pack number i, which were loaded. What it leaves in x(k) takes the place of
  // operand k.
  template <class Use>
  __device__ __forceinline__ void each_part(Packed<S> (&packs)[kOperands], unsigned i, Use use) const {
    constexpr int kLanes = Formula::dense && sizeof(S) == 4 ? 1 : 2;
    unsigned first = first_of(i);
    const unsigned end = first + Packed<S>::size;
#pragma unroll 1
    do {
      T x[kOperands][kLanes];
#pragma unroll
      for (int k = 0; k < kOperands; ++k) packs[k].get(x[k]);
#pragma unroll
      for (int lane = 0; lane < kLanes; ++lane) {
        At at{*this, {}, int(first) + lane == label_, class_weight(first + lane)};
        for (int k = 0; k < kOperands; ++k) at.operands[k] = W::of(x[k][lane]);
        use(at, [&](int k) -> T& { return x[k][lane]; });
      }
#pragma unroll
      for (int k = 0; k < kOperands; ++k) packs[k].replace(x[k]);
      first += kLanes;
    } while (kLanes < Packed<S>::size && first != end);
  }
  __device__ __forceinline__ void load(Packed<S> (&packs)[kOperands], unsigned i) const {
#pragma unroll
    for (int k = 0; k < kOperands; ++k)
      packs[k] = Packed<S>::load(static_cast<const S*>(rows_.operands[k].data) + offset(operands_, k) + first_of(i));
  }

  // ---- the formula ----

  template <int k>
  __device__ __forceinline__ void gather() {
    if (skips<k>(formula_, row_)) return;  // the same for all threads of a row
    constexpr Stage stage = kStage<Formula, k>;
    Chunks<stage> chunks;
    for (unsigned i = lane_; i < singles(); i += threads()) {
      chunks.take(formula_.template term<k>(row_, at(single(i))));
      if (!kPacked && (i >> rows_.thread_bits) % 4 == 3) chunks.close();  // beside packs a thread has at most one
    }
    if constexpr (kPacked)
      for (unsigned i = lane_; i < packs_; i += threads()) {
        Packed<S> packs[kOperands];
        load(packs, i);
        each_part(packs, i, [&](const At& at, auto) { chunks.take(formula_.template term<k>(row_, at)); });
        chunks.close();
      }
    Terms<V, stage.terms> all = chunks.all();
    merge<stage, k % 2>(all, rows_.thread_bits);
    formula_.template close<k>(row_, all);
  }
  // Combines the terms of a thread's classes. Some are added plainly, before what they come to is added to the others
  // with what that loses: long sums would drift.
  template <Stage stage>
  struct Chunks {
    Terms<V, stage.terms> some = empty<stage, V>();
    Terms<Sum<V>, stage.combine == Combine::sum ? stage.terms : 0> sums;

    __device__ __forceinline__ void take(const Terms<V, stage.terms>& terms) { combine<stage>(some, terms); }
    __device__ __forceinline__ void close() {
      if constexpr (stage.combine == Combine::sum) {
        for (int n = 0; n < stage.terms; ++n) sums.of[n].add(some.of[n]);
        some = empty<stage, V>();
      }
    }
    __device__ __forceinline__ Terms<V, stage.terms> all() {
      close();
      if constexpr (stage.combine == Combine::sum)
        for (int n = 0; n < stage.terms; ++n) some.of[n] = together(sums.of[n]);
      return some;
    }
  };

  __device__ __forceinline__ void make_gradients(const T& scale) const {
    const RowPlace gradients = place_of_gradients();
    const T factor = factor_of(rows_, index_, scale);
    for (unsigned i = lane_; i < singles(); i += threads()) {
      const unsigned c = single(i);
      const Slopes<V> slopes = formula_.slopes(row_, at(c));
      if (rows_.gradients[0].data) put(gradients, 0, c, factor * number(slopes.by_input).raw);
      if constexpr (Formula::dense)
        if (rows_.gradients[1].data) put(gradients, 1, c, factor * number(slopes.by_target).raw);
    }
    if constexpr (kPacked) make_packs(gradients, factor);
  }
  __device__ __forceinline__ void make_packs(const RowPlace& gradients, T factor) const {
    for (unsigned i = lane_; i < packs_; i += threads()) {
      Packed<S> packs[kOperands];
      load(packs, i);
      each_part(packs, i, [&](const At& at, auto x) {
        const Slopes<V> slopes = formula_.slopes(row_, at);
        x(0) = factor * slopes.by_input.raw;
        if constexpr (Formula::dense) x(1) = factor * slopes.by_target.raw;
      });
#pragma unroll
      for (int k = 0; k < kOperands; ++k)
        if (rows_.gradients[k].data)
          packs[k].store(static_cast<S*>(rows_.gradients[k].data) + offset(gradients, k) + first_of(i));
    }
  }

  const Formula& formula_;
  const DeviceRows& rows_;
  const uint32_t index_;
  const int label_;
  const unsigned lane_;
  const RowPlace operands_, tangents_;
  unsigned head_ = 0, packs_ = 0;  // single classes before the packs, if there are packs
  typename Formula::template Row<V> row_;
};

template <class S, class T, bool moving, class Formula>
__global__ void __launch_bounds__(kDeviceThreads, device_blocks(sizeof(T) == sizeof(double), moving, is_heavy<Formula>))
    over_rows(const __grid_constant__ DeviceRows rows, Formula formula) {
  if constexpr (sizeof(T) == sizeof(double) || moving || Formula::dense) spill_to_shared_memory();
  // Not in registers: there are none to spare.
  FUSEDLOSS_SHARED(T, scale, 1);
  FUSEDLOSS_SHARED(double, sums, kDeviceThreads);
  if (threadIdx.x == 0) scale[0] = scale_of<T>(rows);
  sums[threadIdx.x] = 0;
  __syncthreads();
  const bool first = (threadIdx.x & ((1u << rows.thread_bits) - 1)) == 0;
  // All threads of a row go the same way, barriers included.
  for (uint32_t row = (blockIdx.x * kDeviceThreads + threadIdx.x) >> rows.thread_bits; row < rows.count;
       row += (gridDim.x * kDeviceThreads) >> rows.thread_bits) {
    const RowFacts<T> facts(rows, row, first);
    RowLoop<Formula, S, T, moving> loop(formula, rows, row, facts.label);
    auto value = Single<T>::of(facts.otherwise);
    if (facts.computed)
      value = loop.run(scale[0]) * Single<T>::of(weight_of<T>(rows, row));
    else
      loop.fill(facts.otherwise);
    if (!first) continue;
    if (rows.value.data) write(rows.value, offset_of(rows, rows.value, row), value.raw);
    sums[threadIdx.x] += double(value.raw);
  }
  if (!rows.partials) return;  // the same for all threads
  const double of_block = sum_of_block<kDeviceThreads>(sums[threadIdx.x]);
  if (threadIdx.x == 0) rows.partials[blockIdx.x] = of_block;
}

// ---- launching --------------------------------------------------------------------------------------------------

// Whether the kernel that takes packs of `dtype` can serve all tensors: they are laid out alike, and come to aligned
// addresses together.
inline bool is_packs(const DeviceRows& rows, DType dtype) {
  const RowClassView& first = rows.operands[0];
  const auto is_alike = [&](const RowClassView& view) {
    return view.dtype == dtype && view.step == 1 && std::equal(view.strides, view.strides + rows.dims, first.strides) &&
           (reinterpret_cast<uintptr_t>(view.data) - reinterpret_cast<uintptr_t>(first.data)) % 16 == 0;
  };
  bool all = rows.thread_bits > 0;
  for (int k = 0; k < kMaxOperands; ++k)
    for (const RowClassView* view : {&rows.operands[k], &rows.gradients[k]})
      all = all && (!view->data || is_alike(*view));
  return all;
}

template <class Formula>
int launch_formula(const Formula& formula, const DeviceRows& rows, const DeviceLaunch& how) {
  const auto start = [&](auto kernel) {
    return int(
        launch(kernel, dim3(how.blocks), dim3(kDeviceThreads), static_cast<cudaStream_t>(how.stream), rows, formula));
  };
  if (how.wide)
    return start(how.moving ? over_rows<Any, double, true, Formula> : over_rows<Any, double, false, Formula>);
  if (how.moving) return start(over_rows<Any, float, true, Formula>);
  if (is_packs(rows, DType::float32)) return start(over_rows<float, float, false, Formula>);
  if (is_packs(rows, DType::float16)) return start(over_rows<Float16, float, false, Formula>);
  if (is_packs(rows, DType::bfloat16)) return start(over_rows<BFloat16, float, false, Formula>);
  return start(over_rows<Any, float, false, Formula>);
}

template <class Loss>
int launch_loss(const DeviceRows& rows, const DeviceLaunch& how) {
  int error = cudaErrorInvalidConfiguration;
  const auto use = [&](const auto& formula) { error = launch_formula(formula, rows, how); };
  if constexpr (takes_dense(Loss::about.targets))
    if (how.dense) Loss::template with_formula<true>(rows.parameters, rows.classes, use);
  if constexpr (takes_labels(Loss::about.targets))
    if (!how.dense) Loss::template with_formula<false>(rows.parameters, rows.classes, use);
  return error;
}

}  // namespace fusedloss::rows::inline FUSEDLOSS_SET
