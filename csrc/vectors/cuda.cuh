// The CUDA kernels of losses of vectors. A row is a warp's, or a block's where its vectors are long: their threads take
// components in turn, 16 bytes at a time where the tensors allow it.
//
// Included by a file that CMake writes (cmake/Cuda.cmake); without torch.
#pragma once
#include "core/numbers.cuh"
#include "core/roots.h"
#include "core/single.h"
#include "core/sum.h"
#include "vectors/device.h"
#include "vectors/losses.h"
#include "vectors/row.h"

namespace fusedloss::vectors::inline FUSEDLOSS_SET {

// ---- where a row is -----------------------------------------------------------------------------------------------

// Calls use(d, index) with the row's index along each dimension.
template <class Use>
__device__ __forceinline__ void each_index(const DeviceRows& rows, int64_t row, Use use) {
#pragma unroll 1
  for (int d = rows.dims - 1; d > 0; --d) {
    const int64_t rest = row / rows.sizes[d];
    use(d, row - rest * rows.sizes[d]);
    row = rest;
  }
  use(0, row);
}
__device__ __forceinline__ int64_t offset_of(const DeviceRows& rows, const RowView& view, int64_t row) {
  int64_t offset = 0;
  each_index(rows, row, [&](int d, int64_t index) { offset += index * view.strides[d]; });
  return offset;
}
template <class T>
__device__ __forceinline__ T number_of(const DeviceRows& rows, const RowView& view, int64_t row, T otherwise) {
  return view.data ? read<T>(view, offset_of(rows, view, row)) : otherwise;
}
template <class T>
__device__ __forceinline__ void put_number(const DeviceRows& rows, const RowView& view, int64_t row, T x) {
  if (view.data) write(view, offset_of(rows, view, row), x);
}

// ---- the threads of a row -----------------------------------------------------------------------------------------

inline constexpr int kWarps = kDeviceThreads / kWarp;
inline constexpr int kMostNumbers = 24;  // that are merged at once: of three pairs four, which are dual

// One array for all calls in a kernel.
template <class T>
__device__ __forceinline__ T* shared_numbers() {
  FUSEDLOSS_SHARED(T, numbers, kMostNumbers * kWarps);
  return numbers;
}

struct Sums {
  template <class T>
  static __device__ __forceinline__ T merge(T a, T b) {
    return a + b;
  }
};
struct Maxima {
  template <class T>
  static __device__ __forceinline__ T merge(T a, T b) {
    return b > a ? b : a;
  }
};

// Merges numbers of the threads that have a row together, in all of them and always in one order.
template <class How, class T, int count>
__device__ __forceinline__ void merge(T (&x)[count], int thread_bits) {
#pragma unroll
  for (int i = 0; i < count; ++i)
    for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) x[i] = How::merge(x[i], __shfl_xor_sync(kFullWarp, x[i], lanes));
  if ((1 << thread_bits) == kWarp) return;  // the same for all threads
  static_assert(count <= kMostNumbers);
  T* const of_warps = shared_numbers<T>();
  const int warp = int(threadIdx.x) / kWarp;
  if (threadIdx.x % kWarp == 0)
    for (int i = 0; i < count; ++i) of_warps[i * kWarps + warp] = x[i];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < count; ++i) {
    x[i] = of_warps[i * kWarps];
    for (int other = 1; other < kWarps; ++other) x[i] = How::merge(x[i], of_warps[i * kWarps + other]);
  }
  __syncthreads();  // before they are written again
}

// Components of some vectors at a place.
struct Component {
  int64_t index;
};
template <class T, int vectors, int size>
struct Components {
  T x[vectors][size];  // gradients take the place of what was read
};

// What the two accesses to a row (row.h) have in common.
template <class T, bool moving, int vectors>
struct Threads {
  using Number = Single<T>;
  using Many = std::conditional_t<moving, Dual<Number>, Number>;
  using One = Many;

  const DeviceRows& rows;
  int64_t at[vectors], tangent[vectors], gradient[vectors];  // where the row's vectors begin
  int thread;                                                // of those that the row has

  __device__ __forceinline__ void go_to(int64_t row) {
#pragma unroll
    for (int k = 0; k < vectors; ++k) {
      const auto& operand = rows.vectors[k];
      at[k] = offset_of(rows, operand.at, row);
      if (moving) tangent[k] = offset_of(rows, operand.tangent, row);
      gradient[k] = offset_of(rows, operand.gradient, row);
    }
  }
  __device__ __forceinline__ bool wants(int k) const { return rows.vectors[k].gradient.data; }

  static __device__ __forceinline__ Many spread(One x) { return x; }
  static __device__ __forceinline__ bool is_zero(Number x) { return x.raw == 0; }
  static __device__ __forceinline__ bool is_zero(Dual<Number> x) { return x.value.raw == 0 && x.dot.raw == 0; }
  static __device__ __forceinline__ T number(Number x) { return x.raw; }
  static __device__ __forceinline__ T number(Dual<Number> x) { return x.dot.raw; }
  static __device__ __forceinline__ One of_row(T value, T dot) {
    if constexpr (moving)
      return {Number::of(value), Number::of(dot)};
    else
      return Number::of(value);
  }

 protected:
  template <int count>
  __device__ __forceinline__ Few<One, count> summed(const Many (&plain)[count]) const {
    constexpr int kParts = moving ? 2 : 1;
    T numbers[count * kParts];
#pragma unroll
    for (int i = 0; i < count; ++i) {
      if constexpr (moving) {
        numbers[2 * i] = plain[i].value.raw;
        numbers[2 * i + 1] = plain[i].dot.raw;
      } else {
        numbers[i] = plain[i].raw;
      }
    }
    merge<Sums>(numbers, rows.thread_bits);
    Few<One, count> all;
#pragma unroll
    for (int i = 0; i < count; ++i) all.of[i] = of_row(numbers[kParts * i], numbers[kParts * i + kParts - 1]);
    return all;
  }
};

// Component by component, of any type and wherever they lie.
template <class T, bool moving, int vectors>
struct StridedThreads : Threads<T, moving, vectors> {
  using Base = Threads<T, moving, vectors>;
  using typename Base::Many;
  using typename Base::Number;
  using typename Base::One;

  __device__ __forceinline__ Many load(int k, Component place) const {
    const auto& operand = this->rows.vectors[k];
    const Number x = Number::of(read<T>(operand.at, this->at[k] + place.index * operand.at.step));
    if constexpr (moving) {
      if (!operand.tangent.data) return {x, Number(0)};
      return {x, Number::of(read<T>(operand.tangent, this->tangent[k] + place.index * operand.tangent.step))};
    } else {
      return x;
    }
  }
  __device__ __forceinline__ void store(int k, Component place, Many x) const {
    const auto& gradient = this->rows.vectors[k].gradient;
    write(gradient, this->gradient[k] + place.index * gradient.step, Base::number(x));
  }
  template <class Use>
  __device__ __forceinline__ void each_place(const Use& use) const {
    const int64_t step = int64_t(1) << this->rows.thread_bits;
#pragma unroll 1
    for (int64_t index = this->thread; index < this->rows.length; index += step) use(Component{index});
  }
  template <int count, class Use>
  __device__ __forceinline__ Few<One, count> sums(const Use& use) const {
    Many all[count];
#pragma unroll
    for (int i = 0; i < count; ++i) all[i] = Many(0);
    each_place([&](Component place) {
      Many parts[count];
      use(place, parts);
#pragma unroll
      for (int i = 0; i < count; ++i) all[i] = all[i] + parts[i];
    });
    return this->template summed<count>(all);
  }
  template <int count, class Use>
  __device__ __forceinline__ Few<One, count> largest(const Use& use) const {
    T all[count] = {};
    each_place([&](Component place) {
      Number parts[count];
      use(place, parts);
#pragma unroll
      for (int i = 0; i < count; ++i) all[i] = Maxima::merge(all[i], parts[i].raw);
    });
    merge<Maxima>(all, this->rows.thread_bits);
    Few<One, count> found;
#pragma unroll
    for (int i = 0; i < count; ++i) found.of[i] = Base::of_row(all[i], 0);
    return found;
  }
};

// 16 bytes at a time, of elements S that lie one after another.
template <class T, class S, int vectors>
struct PackedThreads : Threads<T, false, vectors> {
  using Base = Threads<T, false, vectors>;
  using typename Base::Many;
  using typename Base::One;
  static constexpr int kSize = Packed<S>::size;
  using Some = Components<T, vectors, kSize>;
  struct Place {
    Some& some;
    int number;
  };

  __device__ __forceinline__ Many load(int k, Place place) const { return Many::of(place.some.x[k][place.number]); }
  __device__ __forceinline__ void store(int k, Place place, Many x) const { place.some.x[k][place.number] = x.raw; }
  template <class Use>
  __device__ __forceinline__ void each_place(const Use& use) const {
    each_pack([&](Some& some, int64_t first) {
#pragma unroll
      for (int i = 0; i < kSize; ++i) use(Place{some, i});
#pragma unroll
      for (int k = 0; k < vectors; ++k) {
        if (!this->wants(k)) continue;
        Packed<S> pack;
        pack.replace(some.x[k]);
        pack.store(static_cast<S*>(this->rows.vectors[k].gradient.data) + this->gradient[k] + first);
      }
    });
  }
  template <int count, class Use>
  __device__ __forceinline__ Few<One, count> sums(const Use& use) const {
    Many all[count];
#pragma unroll
    for (int i = 0; i < count; ++i) all[i] = Many(0);
    each_pack([&](Some& some, int64_t) {
#pragma unroll
      for (int i = 0; i < kSize; ++i) {
        Many parts[count];
        use(Place{some, i}, parts);
#pragma unroll
        for (int n = 0; n < count; ++n) all[n] = all[n] + parts[n];
      }
    });
    return this->template summed<count>(all);
  }

 private:
  template <class Use>
  __device__ __forceinline__ void each_pack(const Use& use) const {
    const int64_t step = int64_t(kSize) << this->rows.thread_bits;
#pragma unroll 1
    for (int64_t first = int64_t(kSize) * this->thread; first < this->rows.length; first += step) {
      Some some;
#pragma unroll
      for (int k = 0; k < vectors; ++k)
        Packed<S>::load(static_cast<const S*>(this->rows.vectors[k].at.data) + this->at[k] + first).get(some.x[k]);
      use(some, first);
    }
  }
};

// ---- the kernels ----------------------------------------------------------------------------------------------------

template <class T>
__device__ __forceinline__ T scale_of(const DeviceRows& rows) {
  return T(rows.factor.data ? rows.scale * read<double>(rows.factor, 0) : rows.scale);
}

// A row's loss times its weight, in all threads that have it; its results are written.
template <class T, class Loss, class Measure, class Access>
__device__ __forceinline__ T run_row(const DeviceRows& rows, const Loss& loss, const Measure& measure,
                                     const Access& access, int64_t row) {
  using One = typename Access::One;
  Row<Loss, Measure, Access> computed(loss, measure, rows.settings, access);
  const T weight = number_of<T>(rows, rows.weight.at, row, 1);
  T value = 0, by_target = 0, by_weight = 0;
  if (weight == 0) {
    if (rows.has_gradients) computed.clear_gradients();
  } else {
    const One target =
        Access::of_row(number_of<T>(rows, rows.target.at, row, 0), number_of<T>(rows, rows.target.tangent, row, 0));
    const One factor = Access::of_row(weight, number_of<T>(rows, rows.weight.tangent, row, 0));
    const One incoming = Access::of_row(scale_of<T>(rows) * number_of<T>(rows, rows.grad_output, row, 1), 0);
    const Slopes<One> slopes = computed.measure(target);
    value = Access::number(factor * slopes.value);
    by_target = Access::number(incoming * factor * slopes.by_target);
    by_weight = Access::number(incoming * slopes.value);
    if (rows.has_gradients) computed.put_gradients(slopes, incoming * factor);
  }
  if (access.thread != 0) return value;
  put_number(rows, rows.value, row, value);
  put_number(rows, rows.target.gradient, row, by_target);
  put_number(rows, rows.weight.gradient, row, by_weight);
  return value;
}

template <class T, class Loss, class Measure, class Access>
__device__ __forceinline__ void run_rows(const DeviceRows& rows, const Loss& loss, const Measure& measure) {
  const int in_block = kDeviceThreads >> rows.thread_bits;
  Access access{{rows, {}, {}, {}, int(threadIdx.x) & ((1 << rows.thread_bits) - 1)}};
  Sum<double> sum;
  const int64_t step = int64_t(gridDim.x) * in_block;
#pragma unroll 1
  for (int64_t row = int64_t(blockIdx.x) * in_block + (int(threadIdx.x) >> rows.thread_bits); row < rows.count;
       row += step) {
    access.go_to(row);
    const T value = run_row<T>(rows, loss, measure, access, row);
    if (access.thread == 0) sum.add(double(value));
  }
  if (!rows.partials) return;
  const double of_block = sum_of_block<kDeviceThreads>(value_of(sum));
  if (threadIdx.x == 0) rows.partials[blockIdx.x] = of_block;
}

template <class Loss, class Measure, class T, bool moving>
__global__ void __launch_bounds__(kDeviceThreads, device_blocks(sizeof(T) == 8, moving))
    strided(const __grid_constant__ DeviceRows rows, const __grid_constant__ Loss loss,
            const __grid_constant__ Measure measure) {
  run_rows<T, Loss, Measure, StridedThreads<T, moving, vectors_of(Loss::kPairs)>>(rows, loss, measure);
}

template <class Loss, class Measure, class T, class S>
__global__ void __launch_bounds__(kDeviceThreads, device_blocks(sizeof(T) == 8, false))
    packed(const __grid_constant__ DeviceRows rows, const __grid_constant__ Loss loss,
           const __grid_constant__ Measure measure) {
  run_rows<T, Loss, Measure, PackedThreads<T, S, vectors_of(Loss::kPairs)>>(rows, loss, measure);
}

// ---- launching ------------------------------------------------------------------------------------------------------

// Of the frequent distances only: what takes longer than to move memory need not be moved in packs.
template <class Measure>
inline constexpr bool kHasPacked = Measure::kOfProducts || std::is_same_v<Measure, Squares>;

}  // namespace fusedloss::vectors::inline FUSEDLOSS_SET

namespace fusedloss::vectors {

int launch_rows(const DeviceRows& rows, const DeviceLaunch& how) {
  return with_formula(how.formula, rows.settings, [&](const auto& loss, const auto& measure) {
    using Loss = std::decay_t<decltype(loss)>;
    using Measure = std::decay_t<decltype(measure)>;
    const auto start = [&](auto kernel) {
      return int(launch(kernel, dim3(how.blocks), dim3(kDeviceThreads), static_cast<cudaStream_t>(how.stream), rows,
                        loss, measure));
    };
    if constexpr (kHasPacked<Measure>)
      if (how.packed) {
        switch (rows.vectors[0].at.dtype) {
          case DType::float64: return start(packed<Loss, Measure, double, double>);
          case DType::float32: return start(packed<Loss, Measure, float, float>);
          case DType::float16: return start(packed<Loss, Measure, float, Float16>);
          default: return start(packed<Loss, Measure, float, BFloat16>);
        }
      }
    if (how.wide)
      return how.moving ? start(strided<Loss, Measure, double, true>) : start(strided<Loss, Measure, double, false>);
    return how.moving ? start(strided<Loss, Measure, float, true>) : start(strided<Loss, Measure, float, false>);
  });
}

}  // namespace fusedloss::vectors
