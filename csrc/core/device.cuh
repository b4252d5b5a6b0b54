// The kernels and questions to the device that all families share.
#pragma once
#include <algorithm>
#include <type_traits>

#include "core/numbers.cuh"
#include "core/sum.h"

namespace fusedloss {
inline namespace FUSEDLOSS_SET {

// One block: the partials of the first stage, each thread's in order.
__global__ void __launch_bounds__(kDeviceThreads) finish(const double* partials, int count, Numbers result,
                                                         double denominator, const double* divisor, bool never_zero) {
  Sum<double> sum;
  for (int i = int(threadIdx.x); i < count; i += kDeviceThreads) sum.add(partials[i]);
  const double total = sum_of_block<kDeviceThreads>(value_of(sum));
  if (threadIdx.x != 0) return;
  const double quotient = total / (denominator * (divisor ? *divisor : 1));
  write(result, 0, never_zero && quotient == 0 ? double(INFINITY) : quotient);
}

template <class T>
__global__ void __launch_bounds__(kDeviceThreads) rescale(T* data, int64_t count, Numbers factor) {
  const T by = T(read<double>(factor, 0));
  if (by == 1) return;
  const int64_t step = int64_t(gridDim.x) * kDeviceThreads;
  for (int64_t i = int64_t(blockIdx.x) * kDeviceThreads + threadIdx.x; i < count; i += step) data[i] *= by;
}

}  // namespace FUSEDLOSS_SET

int launch_finish(const double* partials, int count, const Numbers& result, double denominator, const double* divisor,
                  bool never_zero, void* stream) {
  return launch(finish, dim3(1), dim3(kDeviceThreads), static_cast<cudaStream_t>(stream), partials, count, result,
                denominator, divisor, never_zero);
}

int launch_rescale(const Numbers& all, int64_t count, const Numbers& factor, int blocks, void* stream) {
  const auto start = [&](auto* data) {
    return launch(rescale<std::remove_pointer_t<decltype(data)>>, dim3(blocks), dim3(kDeviceThreads),
                  static_cast<cudaStream_t>(stream), data, count, factor);
  };
  if (all.dtype == DType::float64) return start(static_cast<double*>(all.data));
  return start(static_cast<float*>(all.data));
}

int blocks_of_one_wave(int together, int& blocks) {
  int device = 0, processors = 0, threads = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&threads, cudaDevAttrMaxThreadsPerMultiProcessor, device);
  blocks = processors * std::min(threads / kDeviceThreads, together);
  return error;
}

const char* describe_device_error(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

}  // namespace fusedloss
