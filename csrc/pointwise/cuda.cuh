// The CUDA kernels of a loss. Two ways through memory: `dense`, 16 bytes at a time, where every tensor is contiguous,
// aligned and of one type; `strided`, one element at a time, for everything else.
//
// Included by files that CMake writes, one for each loss (cmake/Cuda.cmake); without torch.
#pragma once
#include "core/numbers.cuh"
#include "core/single.h"
#include "core/sum.h"
#include "pointwise/compute.h"
#include "pointwise/device.h"

namespace fusedloss::pointwise::inline FUSEDLOSS_SET {

// Numbers that take two registers.
template <class T>
inline constexpr bool kIsWide = sizeof(T) == sizeof(double);

template <class T>
__device__ __forceinline__ T scale_of(const Piece& piece) {
  double scale = piece.scale;
  if (piece.factor.data) scale *= read<double>(piece.factor, 0);
  if (piece.divisor) scale = quotient(scale, *piece.divisor);
  return T(scale);
}

// What every way of access does alike. Of a mode that takes no tangents, say, it is known when this is compiled.
template <class T, Mode mode>
class DeviceAccess {
 public:
  using V = Single<T>;
  __device__ __forceinline__ DeviceAccess(const Piece& piece, T scale) : piece_(piece), scale_(scale) {}
  __device__ __forceinline__ V scale() const { return V::of(scale_); }
  __device__ __forceinline__ bool has_tangent(int k) const { return kTakesTangents<mode> && piece_.tangents[k].data; }
  __device__ __forceinline__ bool has_weight() const { return piece_.weight.data; }
  __device__ __forceinline__ bool has_grad_output() const { return kTakesGradOutput<mode> && piece_.grad_output.data; }
  __device__ __forceinline__ bool wants_gradient(int k) const { return piece_.gradients[k].data; }

 protected:
  const Piece& piece_;
  const T scale_;
};

// Where the restricted operand is outside of its domain all results are NaN: every operand is made so.
template <int N, int restricted, class Operand>
__device__ __forceinline__ void check_domain(const Piece& piece, Operand operand) {
  if constexpr (0 <= restricted && restricted < N) {
    if (!piece.domain.excludes(operand(restricted))) return;
#pragma unroll
    for (int k = 0; k < N; ++k) operand(k) = NAN;
  }
}

// ---- one element at a time --------------------------------------------------------------------------------------

template <class T, int N, Mode mode, int restricted>
class StridedAccess : public DeviceAccess<T, mode> {
  using Base = DeviceAccess<T, mode>;
  using Base::piece_;

 public:
  using V = Single<T>;
  __device__ __forceinline__ StridedAccess(const Piece& piece, T scale, uint32_t element) : Base(piece, scale) {
#pragma unroll 1  // each division waits for the one before
    for (int d = piece.dims - 1; d > 0; --d) {
      const uint32_t rest = element / piece.sizes[d];
      move(d, element - rest * piece.sizes[d]);
      element = rest;
    }
    move(0, element);
#pragma unroll
    for (int k = 0; k < N; ++k) operand_[k] = read<T>(piece.operands[k], at_operand_[k]);
    check_domain<N, restricted>(piece, [&](int k) -> T& { return operand_[k]; });
  }
  __device__ __forceinline__ V operand(int k) const { return V::of(operand_[k]); }
  __device__ __forceinline__ V tangent(int k) const { return V::of(read<T>(piece_.tangents[k], at_tangent_[k])); }
  __device__ __forceinline__ V weight() const { return V::of(read<T>(piece_.weight, at_weight_)); }
  __device__ __forceinline__ V grad_output() const { return V::of(read<T>(piece_.grad_output, at_grad_output_)); }
  __device__ __forceinline__ void value(V x) const {
    if (kMakesValues<mode> && piece_.value.data) write(piece_.value, at_value_, x.raw);
  }
  __device__ __forceinline__ void gradient(int k, V x) const { write(piece_.gradients[k], at_gradient_[k], x.raw); }

 private:
  __device__ __forceinline__ void move(int d, uint32_t index) {
#pragma unroll
    for (int k = 0; k < N; ++k) {
      at_operand_[k] += index * piece_.operands[k].strides[d];
      if (kTakesTangents<mode>) at_tangent_[k] += index * piece_.tangents[k].strides[d];
      if (kMakesGradients<mode>) at_gradient_[k] += index * piece_.gradients[k].strides[d];
    }
    at_weight_ += index * piece_.weight.strides[d];
    if (kTakesGradOutput<mode>) at_grad_output_ += index * piece_.grad_output.strides[d];
    if (kMakesValues<mode>) at_value_ += index * piece_.value.strides[d];
  }

  T operand_[N];
  uint32_t at_operand_[N] = {}, at_tangent_[N] = {}, at_gradient_[N] = {};
  uint32_t at_weight_ = 0, at_grad_output_ = 0, at_value_ = 0;
};

template <class T>
__device__ __forceinline__ void put_partial(const Piece& piece, const Sum<Single<T>>& sum) {
  if (!piece.partials) return;  // the same for all threads
  const double lost = double(sum.lost.raw);
  const double of_thread = double(sum.total.raw) + (std::isfinite(lost) ? lost : 0);
  const double of_block = sum_of_block<kDeviceThreads>(of_thread);
  if (threadIdx.x == 0) piece.partials[blockIdx.x] = of_block;
}

template <int N, Mode mode, int restricted, class T, class Formula>
__global__ void __launch_bounds__(kDeviceThreads, kBlocksTogether)
    strided(const __grid_constant__ Piece piece, Formula formula) {
  if constexpr (kIsWide<T>) spill_to_shared_memory();
  const T scale = scale_of<T>(piece);
  const uint32_t step = gridDim.x * kDeviceThreads;
  Sum<Single<T>> sum;
  for (uint32_t i = blockIdx.x * kDeviceThreads + threadIdx.x; i < piece.count; i += step) {
    StridedAccess<T, N, mode, restricted> at(piece, scale, i);
    const auto value = compute<N, mode>(formula, at);
    if (kMakesSums<mode>) sum.add(value);
  }
  if (kMakesSums<mode>) put_partial(piece, sum);
}

// ---- 16 bytes at a time -----------------------------------------------------------------------------------------

// Calls visit(view, k) for each result that is wanted.
template <int N, Mode mode, class Visit>
__device__ __forceinline__ void for_each_result(const Piece& piece, Visit visit) {
  if (kMakesValues<mode> && piece.value.data) visit(piece.value, 0);
#pragma unroll
  for (int k = 0; k < N; ++k)
    if (kMakesGradients<mode> && piece.gradients[k].data) visit(piece.gradients[k], k);
}

// One lane of numbers taken from packs; results take the operands' places.
template <class S, class T, int N, Mode mode, int kLanes>
class LaneAccess : public DeviceAccess<T, mode> {
  using Base = DeviceAccess<T, mode>;
  using Base::piece_;

 public:
  using V = Single<T>;
  __device__ __forceinline__ LaneAccess(const Piece& piece, T scale, T (&x)[N][kLanes], int lane, uint32_t element)
      : Base(piece, scale), x_(x), lane_(lane), element_(element) {}
  __device__ __forceinline__ V operand(int k) const { return V::of(x_[k][lane_]); }
  __device__ __forceinline__ V tangent(int) const { return V(0); }
  __device__ __forceinline__ V weight() const { return factor(piece_.weight); }
  __device__ __forceinline__ V grad_output() const { return factor(piece_.grad_output); }
  __device__ __forceinline__ void value(V x) const {
    if (kMakesValues<mode>) x_[0][lane_] = x.raw;
  }
  __device__ __forceinline__ void gradient(int k, V x) const { x_[k][lane_] = x.raw; }

 private:
  // Factors are read one by one, from the cache: packs of them would need registers, and one that is the same for all
  // elements would be no pack.
  __device__ __forceinline__ V factor(const PieceView& view) const {
    return V::of(converted<T>(static_cast<const S*>(view.data)[element_ * view.strides[0]]));
  }

  T (&x_)[N][kLanes];
  const int lane_;
  const uint32_t element_;
};

template <int N, Mode mode, int restricted, class S, class T, class Formula>
__global__ void __launch_bounds__(kDeviceThreads, kBlocksTogether)
    dense(const __grid_constant__ Piece piece, Formula formula) {
  constexpr int kSize = Packed<S>::size;
  // So many lanes of a pack are computed together: all of them would need more registers than there are.
  constexpr int kLanes = kIsWide<T> ? 1 : sizeof(S) == 2 ? 2 : 4;
  if constexpr (kIsWide<T>) spill_to_shared_memory();
  const T scale = scale_of<T>(piece);
  const uint32_t first = blockIdx.x * kDeviceThreads + threadIdx.x;
  const uint32_t step = gridDim.x * kDeviceThreads;
  Sum<Single<T>> sum;
  const auto compute_lane = [&](auto& x, int lane, uint32_t element) {
    check_domain<N, restricted>(piece, [&](int k) -> T& { return x[k][lane]; });
    LaneAccess<S, T, N, mode, sizeof(x[0]) / sizeof(T)> at(piece, scale, x, lane, element);
    return compute<N, mode>(formula, at);
  };
  const uint32_t end = piece.count / kSize * kSize;
  for (uint32_t i = first * kSize; i < end; i += (step - 1) * kSize) {
    Packed<S> packs[N];
#pragma unroll
    for (int k = 0; k < N; ++k) packs[k] = Packed<S>::load(static_cast<const S*>(piece.operands[k].data) + i);
#pragma unroll 1
    do {
      T x[N][kLanes];
#pragma unroll
      for (int k = 0; k < N; ++k) packs[k].get(x[k]);
      Single<T> together = 0;
#pragma unroll
      for (int lane = 0; lane < kLanes; ++lane) together = together + compute_lane(x, lane, i + lane);
      if (kMakesSums<mode>) sum.add(together);
#pragma unroll
      for (int k = 0; k < N; ++k) packs[k].replace(x[k]);
      i += kLanes;
    } while (kLanes < kSize && i % kSize != 0);
    for_each_result<N, mode>(
        piece, [&](const PieceView& view, int k) { packs[k].store(static_cast<S*>(view.data) + i - kSize); });
  }
  // The last elements, fewer than a pack: one for each of the first threads.
  const uint32_t last = end + first;
  if (last < piece.count) {
    T x[N][1];
#pragma unroll
    for (int k = 0; k < N; ++k) x[k][0] = converted<T>(static_cast<const S*>(piece.operands[k].data)[last]);
    const auto value = compute_lane(x, 0, last);
    if (kMakesSums<mode>) sum.add(value);
    for_each_result<N, mode>(
        piece, [&](const PieceView& view, int k) { static_cast<S*>(view.data)[last] = converted<S>(x[k][0]); });
  }
  if (kMakesSums<mode>) put_partial(piece, sum);
}

// ---- launching --------------------------------------------------------------------------------------------------

// Whether the `dense` kernel of type `dtype` can serve all tensors of the piece.
inline bool is_dense(const Piece& piece, DType dtype) {
  const auto is_factor = [&](const PieceView& view) { return !view.data || view.dtype == dtype; };
  const auto is_packs = [&](const PieceView& view) {
    return !view.data ||
           (view.dtype == dtype && view.strides[0] == 1 && reinterpret_cast<uintptr_t>(view.data) % 16 == 0);
  };
  bool all = piece.dims == 1 && is_factor(piece.weight) && is_factor(piece.grad_output) && is_packs(piece.value);
  for (int k = 0; k < kMaxOperands; ++k) all = all && is_packs(piece.operands[k]) && is_packs(piece.gradients[k]);
  return all;
}

template <int N, Mode mode, int restricted, class T, class Formula>
int launch_mode(Formula formula, const Piece& piece, const DeviceLaunch& how) {
  const auto start = [&](auto kernel) {
    return int(
        launch(kernel, dim3(how.blocks), dim3(kDeviceThreads), static_cast<cudaStream_t>(how.stream), piece, formula));
  };
  // Directions are a rare thing: only the way that fits them all.
  if constexpr (!kTakesTangents<mode>) {
    if constexpr (kIsWide<T>) {
      if (is_dense(piece, DType::float64)) return start(dense<N, mode, restricted, double, T, Formula>);
    } else {
      if (is_dense(piece, DType::float32)) return start(dense<N, mode, restricted, float, T, Formula>);
      if (is_dense(piece, DType::float16)) return start(dense<N, mode, restricted, Float16, T, Formula>);
      if (is_dense(piece, DType::bfloat16)) return start(dense<N, mode, restricted, BFloat16, T, Formula>);
    }
  }
  return start(strided<N, mode, restricted, T, Formula>);
}

template <int N, int restricted, class T, class Formula>
int launch_formula(Formula formula, const Piece& piece, const DeviceLaunch& how) {
  switch (how.mode) {
    case Mode::value: return launch_mode<N, Mode::value, restricted, T>(formula, piece, how);
    case Mode::value_and_gradient: return launch_mode<N, Mode::value_and_gradient, restricted, T>(formula, piece, how);
    case Mode::gradient: return launch_mode<N, Mode::gradient, restricted, T>(formula, piece, how);
    case Mode::jvp: return launch_mode<N, Mode::jvp, restricted, T>(formula, piece, how);
    default: return launch_mode<N, Mode::hvp, restricted, T>(formula, piece, how);
  }
}

template <class Loss>
int launch_loss(const Piece& piece, const DeviceLaunch& how) {
  constexpr int restricted = Loss::about.restriction.operand;
  return with_formula<Loss>(piece.parameters, [&](auto formula) {
    if constexpr (Loss::about.operands[2] != nullptr)
      if (how.operands == 3)
        return how.wide ? launch_formula<3, restricted, double>(formula, piece, how)
                        : launch_formula<3, restricted, float>(formula, piece, how);
    if constexpr (Loss::about.required_operands == 2)
      return how.wide ? launch_formula<2, restricted, double>(formula, piece, how)
                      : launch_formula<2, restricted, float>(formula, piece, how);
    return int(cudaErrorInvalidConfiguration);  // unreachable
  });
}

}  // namespace fusedloss::pointwise::inline FUSEDLOSS_SET
