// The only CUDA header that kernels include: the real one under nvcc, the test-only emulator under a plain compiler
// (tests/cuda_emulator).
#pragma once
#include <cmath>

#include "core/convert.h"

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

// Says that registers of this kernel for which there is no room go to shared memory, instead of memory off the chip
// (from CUDA 13 on). Kernels that do not need it should not say it: the compiler then likes to move more than it must.
__device__ __forceinline__ void spill_to_shared_memory() {
#if defined(__CUDACC_VER_MAJOR__) && __CUDACC_VER_MAJOR__ >= 13
  asm volatile(".pragma \"enable_smem_spilling\";");
#endif
}

inline constexpr unsigned kFullWarp = 0xffffffffu;
inline constexpr int kWarp = 32;

// Between element types: halves by the GPU's own instructions, which round as core/convert.h does. (CUDA's headers for
// them would be a tenth of the time that a file takes to compile.)
template <class To, class From>
__device__ __forceinline__ To converted(From x) {
#ifdef __CUDA_ARCH__
  if constexpr (std::is_same_v<From, Float16>) {
    float result;
    asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(x.bits));
    return To(result);
  } else if constexpr (std::is_same_v<To, Float16>) {
    Float16 result;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(float(x)));
    return result;
  } else if constexpr (std::is_same_v<To, BFloat16>) {
    BFloat16 result;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(float(x)));
    return result;
  }
#endif
  return convert<To>(x);
}
// Converts two numbers by one instruction; `a` in the lower half.
template <class S, class T>
__device__ __forceinline__ uint32_t two_halves(T a, T b) {
#ifdef __CUDA_ARCH__
  uint32_t result;
  if constexpr (std::is_same_v<S, Float16>)
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(float(b)), "f"(float(a)));
  else
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(float(b)), "f"(float(a)));
  return result;
#else
  return convert<S>(float(a)).bits | uint32_t(convert<S>(float(b)).bits) << 16;
#endif
}

// ---- division -------------------------------------------------------------------------------------------------------

// 1 / x to 20 bits, by the GPU's instruction: it sees the upper half of x, gives the upper half of the result, and
// takes what is smaller than a normal number for 0.
FUSEDLOSS_INLINE double rough_reciprocal(double x) {
#ifdef __CUDA_ARCH__
  double result;
  asm("rcp.approx.ftz.f64 %0, %1;" : "=d"(result) : "d"(x));
  return result;
#else
  const auto seen = [](double y) {
    const double upper = bit_copy<double>(bit_copy<uint64_t>(y) & ~uint64_t(0xffffffff));
    return std::fabs(y) < 0x1p-1022 ? std::copysign(0.0, y) : upper;
  };
  return seen(1 / seen(x));
#endif
}

// 1 / x for x neither very large nor very small. A rough one is off by e, and 1 / (1 - e) = 1 + e + e^2 + O(2^-60).
FUSEDLOSS_INLINE double reciprocal_bounded(double x) {
  const double rough = rough_reciprocal(x);
  const double e = std::fma(-x, rough, 1.0);
  return std::fma(std::fma(e, e, e), rough, rough);
}
FUSEDLOSS_INLINE float reciprocal_bounded(float x) { return 1 / x; }

// a / b within a unit in the last place. The compiler's division calls a function where b is very large or very small,
// and what must survive that call does not fit into a thread's registers.
FUSEDLOSS_INLINE double quotient(double a, double b) {
  const double size = std::fabs(b);
  const double scale = size < 0x1p-1000 ? 0x1p60 : size > 0x1p1000 ? 0x1p-60 : 1;
  a *= scale;
  b *= scale;
  const double rough = a * rough_reciprocal(b);  // right where the quotient is 0, infinite or NaN
  const double inverse = reciprocal_bounded(b);
  const double near = a * inverse;
  const double result = std::fma(std::fma(-near, b, a), inverse, near);
  return result == result ? result : rough;
}
FUSEDLOSS_INLINE float quotient(float a, float b) { return a / b; }

// ---- packs and sums -----------------------------------------------------------------------------------------------

// 16 bytes of elements S, moved by one instruction. They are kept in registers as words, for halves two in each.
template <class S>
struct alignas(16) Packed {
  static constexpr int size = 16 / sizeof(S);
  uint32_t words[4];

  static __device__ __forceinline__ Packed load(const S* source) {
    FUSEDLOSS_ASSUME_ALIGNED(source, 16);
    return *reinterpret_cast<const Packed*>(source);
  }
  __device__ __forceinline__ void store(S* destination) const {
    FUSEDLOSS_ASSUME_ALIGNED(destination, 16);
#ifdef __CUDA_ARCH__
    // By an intrinsic: the compiler does not join four words in every kernel. (Past L1: nobody reads them again.)
    __stcg(reinterpret_cast<uint4*>(destination), make_uint4(words[0], words[1], words[2], words[3]));
#else
    *reinterpret_cast<Packed*>(destination) = *this;
#endif
  }
  // The first `count` elements as numbers to compute with.
  template <class T, int count>
  __device__ __forceinline__ void get(T (&x)[count]) const {
#pragma unroll
    for (int k = 0; k < count; ++k) {
      if constexpr (sizeof(S) == 2) {
        x[k] = converted<T>(S{uint16_t(k % 2 ? words[k / 2] >> 16 : words[k / 2] & 0xffff)});
      } else {
        S element;
        memcpy(&element, words + k * (sizeof(S) / 4), sizeof(S));
        x[k] = element;
      }
    }
  }
  // Puts numbers in their places, and turns the pack so that the next ones are the first.
  template <class T, int count>
  __device__ __forceinline__ void replace(const T (&x)[count]) {
    constexpr int kWords = count * sizeof(S) / 4;
    uint32_t done[kWords];
    if constexpr (sizeof(S) == 2) {
#pragma unroll
      for (int k = 0; k < kWords; ++k) done[k] = two_halves<S>(x[2 * k], x[2 * k + 1]);
    } else {
      memcpy(done, x, sizeof done);
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) words[k] = k + kWords < 4 ? words[k + kWords] : done[k + kWords - 4];
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
