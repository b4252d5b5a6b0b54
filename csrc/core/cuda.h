// The only CUDA header that kernels include: the real one under nvcc, the test-only emulator under a plain compiler
// (tests/cuda_emulator).
#pragma once
#include "core/instruction_set.h"

#ifdef FUSEDLOSS_EMULATED
#include "cuda_emulator.h"
#else
#include <cuda_runtime.h>

#define FUSEDLOSS_SHARED(T, name, count) __shared__ T name[count]
#define FUSEDLOSS_ASSUME_ALIGNED(pointer, bytes)

namespace fusedloss {

template <class... P, class... A>
cudaError_t launch(void (*kernel)(P...), dim3 grid, dim3 block, cudaStream_t stream, A... arguments) {
  // clang-format off
  kernel<<<grid, block, 0, stream>>>(P(arguments)...);
  // clang-format on
  return cudaGetLastError();
}

}  // namespace fusedloss
#endif

namespace fusedloss::inline FUSEDLOSS_SET {

inline constexpr unsigned kFullWarp = 0xffffffffu;
inline constexpr int kWarp = 32;

// 16 bytes of T, moved by one instruction.
template <class T>
struct alignas(16) Packed {
  static constexpr int size = 16 / sizeof(T);
  T of[size];

  static __device__ __forceinline__ Packed load(const T* source) {
    FUSEDLOSS_ASSUME_ALIGNED(source, 16);
    return *reinterpret_cast<const Packed*>(source);
  }
  __device__ __forceinline__ void store(T* destination) const {
    FUSEDLOSS_ASSUME_ALIGNED(destination, 16);
    *reinterpret_cast<Packed*>(destination) = *this;
  }
};

// The sum over the threads of a block, in thread 0. All threads must call it, and once in a kernel. The tree is fixed:
// the same bits every time.
template <int threads>
__device__ __forceinline__ double sum_of_block(double value) {
  FUSEDLOSS_SHARED(double, of_warps, threads / kWarp);
  for (int offset = kWarp / 2; offset > 0; offset /= 2) value += __shfl_down_sync(kFullWarp, value, offset);
  if (threadIdx.x % kWarp == 0) of_warps[threadIdx.x / kWarp] = value;
  __syncthreads();
  double total = 0;
  if (threadIdx.x == 0)
    for (int warp = 0; warp < threads / kWarp; ++warp) total += of_warps[warp];
  return total;
}

}  // namespace fusedloss::inline FUSEDLOSS_SET
