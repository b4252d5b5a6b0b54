// What the threads of a warp or of a block find out together. The trees are fixed: the same bits every time.
#pragma once
#include "core/cuda.h"
#include "core/device.h"

namespace fusedloss::inline FUSEDLOSS_SET {

__device__ __forceinline__ int lane_of_warp() { return int(threadIdx.x % kWarp); }

template <class T>
__device__ __forceinline__ T sum_of_warp(T x) {
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) x += __shfl_xor_sync(kFullWarp, x, lanes);
  return x;
}
template <class T>
__device__ __forceinline__ T largest_of_warp(T x) {
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
    const T other = __shfl_xor_sync(kFullWarp, x, lanes);
    x = other > x ? other : x;
  }
  return x;
}

// In all threads. What is read is safe from the next call only if there is a barrier between.
template <class T>
__device__ __forceinline__ T largest_of_block(T x) {
  FUSEDLOSS_SHARED(T, of_warps, kDeviceThreads / kWarp);
  x = largest_of_warp(x);
  if (threadIdx.x % kWarp == 0) of_warps[threadIdx.x / kWarp] = x;
  __syncthreads();
  for (int warp = 0; warp < kDeviceThreads / kWarp; ++warp) x = of_warps[warp] > x ? of_warps[warp] : x;
  return x;
}

}  // namespace fusedloss::inline FUSEDLOSS_SET
