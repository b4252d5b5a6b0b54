// The CUDA kernels of a loss. Two ways through memory: `dense`, 16 bytes at a time, where every tensor is contiguous,
// aligned and of one type; `strided`, one element at a time, for everything else.
//
// Included by files that CMake writes, one for each loss (cmake/Cuda.cmake); without torch.
#pragma once
#include "core/convert.h"
#include "core/cuda.h"
#include "core/single.h"
#include "core/sum.h"
#include "pointwise/compute.h"
#include "pointwise/device.h"

namespace fusedloss::pointwise::inline FUSEDLOSS_SET {

// ---- numbers in device memory ---------------------------------------------------------------------------------

template <class T>
__device__ __forceinline__ T read(const View& view, int64_t offset) {
  switch (view.dtype) {
    case DType::float64: return T(static_cast<const double*>(view.data)[offset]);
    case DType::float32: return T(static_cast<const float*>(view.data)[offset]);
    case DType::float16: return convert<T>(static_cast<const Float16*>(view.data)[offset]);
    default: return convert<T>(static_cast<const BFloat16*>(view.data)[offset]);
  }
}

template <class T>
__device__ __forceinline__ void write(const View& view, int64_t offset, T x) {
  switch (view.dtype) {
    case DType::float64: static_cast<double*>(view.data)[offset] = double(x); return;
    case DType::float32: static_cast<float*>(view.data)[offset] = float(x); return;
    case DType::float16: static_cast<Float16*>(view.data)[offset] = convert<Float16>(x); return;
    default: static_cast<BFloat16*>(view.data)[offset] = convert<BFloat16>(x); return;
  }
}

template <class T>
__device__ __forceinline__ T scale_of(const DevicePass& pass) {
  double scale = pass.scale;
  if (pass.factor.data) scale *= read<double>(pass.factor, 0);
  if (pass.divisor) scale /= *pass.divisor;
  return T(scale);
}

// NaN is in every domain: it goes on to the result.
template <class T>
__device__ __forceinline__ bool outside(Domain domain, T x) {
  switch (domain) {
    case Domain::unit: return x < 0 || x > 1;
    case Domain::open_unit: return x <= 0 || x >= 1;
    case Domain::nonnegative: return x < 0;
    case Domain::flag: return x < 0 || (x > 0 && x < 1) || x > 1;
    case Domain::signs: return x < -1 || (x > -1 && x < 1) || x > 1;
    default: return false;
  }
}

// What every access does alike: an element outside of its domain spoils the results.
template <class T>
class DeviceAccess {
 public:
  using V = Single<T>;
  __device__ __forceinline__ DeviceAccess(const DevicePass& pass, T scale) : pass_(pass), scale_(scale) {}
  __device__ __forceinline__ V scale() const { return V::of(scale_); }
  __device__ __forceinline__ bool has_tangent(int k) const { return pass_.tangents[k].data; }
  __device__ __forceinline__ bool has_weight() const { return pass_.weight.data; }
  __device__ __forceinline__ bool has_grad_output() const { return pass_.grad_output.data; }
  __device__ __forceinline__ bool wants_gradient(int k) const { return pass_.gradients[k].data; }
  // What the element adds to the sum.
  __device__ __forceinline__ V summand(V x) const { return V::of(result(x)); }

 protected:
  __device__ __forceinline__ V checked(int k, T x) {
    spoilt_ |= outside(pass_.domains[k], x);
    return V::of(x);
  }
  __device__ __forceinline__ T result(V x) const { return spoilt_ ? T(NAN) : x.raw; }

  const DevicePass& pass_;
  const T scale_;
  bool spoilt_ = false;
};

// ---- one element at a time --------------------------------------------------------------------------------------

__device__ __forceinline__ int64_t quotient(int64_t a, int64_t b) {
  // A 64-bit division is five times as long.
  return ((a | b) >> 32) == 0 ? int64_t(uint32_t(a) / uint32_t(b)) : a / b;
}

template <class T, int N>
class StridedAccess : public DeviceAccess<T> {
  using Base = DeviceAccess<T>;
  using Base::pass_;

 public:
  using V = Single<T>;
  __device__ __forceinline__ StridedAccess(const DevicePass& pass, T scale, int64_t element) : Base(pass, scale) {
    for (int d = pass.dims - 1; d >= 0; --d) {
      const int64_t rest = quotient(element, pass.sizes[d]);
      const int64_t index = element - rest * pass.sizes[d];
      element = rest;
#pragma unroll
      for (int k = 0; k < N; ++k) {
        operand_[k] += index * pass.operands[k].strides[d];
        tangent_[k] += index * pass.tangents[k].strides[d];
        gradient_[k] += index * pass.gradients[k].strides[d];
      }
      weight_ += index * pass.weight.strides[d];
      grad_output_ += index * pass.grad_output.strides[d];
      value_ += index * pass.value.strides[d];
    }
  }
  __device__ __forceinline__ V operand(int k) { return this->checked(k, read<T>(pass_.operands[k], operand_[k])); }
  __device__ __forceinline__ V tangent(int k) const { return V::of(read<T>(pass_.tangents[k], tangent_[k])); }
  __device__ __forceinline__ V weight() const { return V::of(read<T>(pass_.weight, weight_)); }
  __device__ __forceinline__ V grad_output() const { return V::of(read<T>(pass_.grad_output, grad_output_)); }
  __device__ __forceinline__ void value(V x) const {
    if (pass_.value.data) write(pass_.value, value_, this->result(x));
  }
  __device__ __forceinline__ void gradient(int k, V x) const {
    write(pass_.gradients[k], gradient_[k], this->result(x));
  }

 private:
  int64_t operand_[N] = {}, tangent_[N] = {}, gradient_[N] = {}, weight_ = 0, grad_output_ = 0, value_ = 0;
};

template <class T>
__device__ __forceinline__ void put_partial(const DevicePass& pass, const Sum<Single<T>>& sum) {
  if (!pass.partials) return;  // the same for all threads
  const double lost = double(sum.lost.raw);
  const double of_thread = double(sum.total.raw) + (std::isfinite(lost) ? lost : 0);
  const double of_block = sum_of_block<kDeviceThreads>(of_thread);
  if (threadIdx.x == 0) pass.partials[blockIdx.x] = of_block;
}

template <int N, Mode mode, class T, class Formula>
__global__ void __launch_bounds__(kDeviceThreads, kDeviceBlocks)
    strided(const __grid_constant__ DevicePass pass, Formula formula) {
  const T scale = scale_of<T>(pass);
  const int64_t step = int64_t(gridDim.x) * kDeviceThreads;
  Sum<Single<T>> sum;
  for (int64_t i = int64_t(blockIdx.x) * kDeviceThreads + threadIdx.x; i < pass.count; i += step) {
    StridedAccess<T, N> at(pass, scale, i);
    const auto value = compute<N, mode>(formula, at);
    sum.add(at.summand(value));
  }
  put_partial(pass, sum);
}

// ---- 16 bytes at a time -----------------------------------------------------------------------------------------

// The packs of all tensors at one place.
template <class S, int N>
struct Packs {
  Packed<S> operands[N], weight, grad_output, value, gradients[N];

  template <class Move>
  __device__ __forceinline__ void read(const DevicePass& pass, Move move) {
#pragma unroll
    for (int k = 0; k < N; ++k) move(pass.operands[k], operands[k]);
    if (pass.weight.data) move(pass.weight, weight);
    if (pass.grad_output.data) move(pass.grad_output, grad_output);
  }
  template <class Move>
  __device__ __forceinline__ void write(const DevicePass& pass, Move move) const {
    if (pass.value.data) move(pass.value, value);
#pragma unroll
    for (int k = 0; k < N; ++k)
      if (pass.gradients[k].data) move(pass.gradients[k], gradients[k]);
  }
};

template <class S, class T, int N>
class PackAccess : public DeviceAccess<T> {
 public:
  using V = Single<T>;
  __device__ __forceinline__ PackAccess(const DevicePass& pass, T scale, Packs<S, N>& packs, int lane)
      : DeviceAccess<T>(pass, scale), packs_(packs), lane_(lane) {}
  __device__ __forceinline__ V operand(int k) { return this->checked(k, convert<T>(packs_.operands[k].of[lane_])); }
  __device__ __forceinline__ V tangent(int) const { return V(0); }
  __device__ __forceinline__ V weight() const { return V::of(convert<T>(packs_.weight.of[lane_])); }
  __device__ __forceinline__ V grad_output() const { return V::of(convert<T>(packs_.grad_output.of[lane_])); }
  __device__ __forceinline__ void value(V x) const { packs_.value.of[lane_] = convert<S>(this->result(x)); }
  __device__ __forceinline__ void gradient(int k, V x) const {
    packs_.gradients[k].of[lane_] = convert<S>(this->result(x));
  }

 private:
  Packs<S, N>& packs_;
  const int lane_;
};

template <int N, Mode mode, class S, class T, class Formula>
__global__ void __launch_bounds__(kDeviceThreads, kDeviceBlocks)
    dense(const __grid_constant__ DevicePass pass, Formula formula) {
  constexpr int kSize = Packed<S>::size;
  const T scale = scale_of<T>(pass);
  const int64_t first = int64_t(blockIdx.x) * kDeviceThreads + threadIdx.x;
  const int64_t step = int64_t(gridDim.x) * kDeviceThreads;
  Sum<Single<T>> sum;
  Packs<S, N> packs;
  const auto compute_lane = [&](int lane) {
    PackAccess<S, T, N> at(pass, scale, packs, lane);
    const auto value = compute<N, mode>(formula, at);
    sum.add(at.summand(value));
  };
  for (int64_t start = first * kSize; start + kSize <= pass.count; start += step * kSize) {
    packs.read(pass, [&](const View& view, Packed<S>& pack) {
      pack = Packed<S>::load(static_cast<const S*>(view.data) + start);
    });
#pragma unroll
    for (int lane = 0; lane < kSize; ++lane) compute_lane(lane);
    packs.write(pass, [&](const View& view, const Packed<S>& pack) { pack.store(static_cast<S*>(view.data) + start); });
  }
  // The last elements, fewer than a pack: one for each of the first threads.
  const int64_t i = pass.count / kSize * kSize + first;
  if (i < pass.count) {
    packs.read(pass, [&](const View& view, Packed<S>& pack) { pack.of[0] = static_cast<const S*>(view.data)[i]; });
    compute_lane(0);
    packs.write(pass, [&](const View& view, const Packed<S>& pack) { static_cast<S*>(view.data)[i] = pack.of[0]; });
  }
  put_partial(pass, sum);
}

// ---- launching --------------------------------------------------------------------------------------------------

// Whether the `dense` kernel of type `dtype` can serve all tensors of the pass.
inline bool is_dense(const DevicePass& pass, DType dtype) {
  const auto fits = [&](const View& view) {
    return !view.data || (view.dense && view.dtype == dtype && reinterpret_cast<uintptr_t>(view.data) % 16 == 0);
  };
  bool all = fits(pass.weight) && fits(pass.grad_output) && fits(pass.value);
  for (int k = 0; k < kMaxOperands; ++k) all = all && fits(pass.operands[k]) && fits(pass.gradients[k]);
  return all;
}

template <int N, Mode mode, class T, class Formula>
int launch_mode(Formula formula, const DevicePass& pass, const DeviceLaunch& how) {
  const auto start = [&](auto kernel) {
    return int(
        launch(kernel, dim3(how.blocks), dim3(kDeviceThreads), static_cast<cudaStream_t>(how.stream), pass, formula));
  };
  // Directions are a rare thing: only the way that fits them all.
  if constexpr (mode != Mode::jvp && mode != Mode::hvp) {
    if constexpr (sizeof(T) == sizeof(double)) {
      if (is_dense(pass, DType::float64)) return start(dense<N, mode, double, T, Formula>);
    } else {
      if (is_dense(pass, DType::float32)) return start(dense<N, mode, float, T, Formula>);
      if (is_dense(pass, DType::float16)) return start(dense<N, mode, Float16, T, Formula>);
      if (is_dense(pass, DType::bfloat16)) return start(dense<N, mode, BFloat16, T, Formula>);
    }
  }
  return start(strided<N, mode, T, Formula>);
}

template <int N, class T, class Formula>
int launch_formula(Formula formula, const DevicePass& pass, const DeviceLaunch& how) {
  switch (how.mode) {
    case Mode::value: return launch_mode<N, Mode::value, T>(formula, pass, how);
    case Mode::value_and_gradient: return launch_mode<N, Mode::value_and_gradient, T>(formula, pass, how);
    case Mode::gradient: return launch_mode<N, Mode::gradient, T>(formula, pass, how);
    case Mode::jvp: return launch_mode<N, Mode::jvp, T>(formula, pass, how);
    default: return launch_mode<N, Mode::hvp, T>(formula, pass, how);
  }
}

template <class Loss>
int launch_loss(const DevicePass& pass, const DeviceLaunch& how) {
  return with_formula<Loss>(pass.parameters, [&](auto formula) {
    if constexpr (Loss::about.operands[2] != nullptr)
      if (how.operands == 3)
        return how.wide ? launch_formula<3, double>(formula, pass, how) : launch_formula<3, float>(formula, pass, how);
    if constexpr (Loss::about.required_operands == 2)
      return how.wide ? launch_formula<2, double>(formula, pass, how) : launch_formula<2, float>(formula, pass, how);
    return int(cudaErrorInvalidConfiguration);  // unreachable
  });
}

}  // namespace fusedloss::pointwise::inline FUSEDLOSS_SET
