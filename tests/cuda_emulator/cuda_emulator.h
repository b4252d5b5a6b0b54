// The part of CUDA that kernels of this project may use, as plain C++ on the CPU. core/cuda.h includes it in place of
// <cuda_runtime.h> where FUSEDLOSS_EMULATED is defined. What is missing here does not compile, which is how the rules
// for kernels (no atomics on floating-point numbers, no dynamic shared memory, no <<<>>>) are enforced.
#pragma once
#include <bit>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <source_location>
#include <type_traits>

// Defined empty, so that declarations can stand as nvcc wants them.
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// Of the CUDA thread that is running: set whenever the scheduler switches to another.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

// With the numbers of the CUDA runtime.
enum cudaError { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9 };
using cudaError_t = cudaError;
using cudaStream_t = struct CUstream_st*;

cudaError_t cudaGetLastError();

// A device small enough that the kernels' loops go round in tests: two multiprocessors of 512 threads.
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16, cudaDevAttrMaxThreadsPerMultiProcessor = 39 };
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount ? 2 : 512;
  return cudaSuccess;
}
const char* cudaGetErrorString(cudaError_t error);

namespace fusedloss::emulator {

using Location = std::source_location;

enum class WarpOperation { shuffle, shuffle_down, shuffle_xor, synchronize };

// Waits for all lanes in `mask`, then returns what lane `source` gave.
uint64_t exchange(WarpOperation operation, unsigned mask, uint64_t value, int source, Location where);
void synchronize_block(Location where);

// The variable of the running block that `key` stands for.
void* shared_variable(const void* key, const char* name, size_t bytes, Location where);

void check_aligned(const void* pointer, size_t bytes, Location where = Location::current());

// Calls body(context) once for each CUDA thread.
cudaError_t run(dim3 grid, dim3 block, void (*body)(void*), void* context);

inline int lane() { return int((threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % 32); }

template <class T>
T shuffle(WarpOperation operation, unsigned mask, T value, int source, int width, Location where) {
  static_assert(std::is_arithmetic_v<T> && sizeof(T) <= 8, "CUDA shuffles numbers of at most 8 bytes");
  // A lane whose source is not in its segment of `width` lanes keeps its own value, as on the GPU.
  const int first = lane() / width * width;
  if (source < first || source >= first + width) source = lane();
  using Bits = std::conditional_t<
      sizeof(T) == 8, uint64_t,
      std::conditional_t<sizeof(T) == 4, uint32_t, std::conditional_t<sizeof(T) == 2, uint16_t, uint8_t>>>;
  return std::bit_cast<T>(Bits(exchange(operation, mask, std::bit_cast<Bits>(value), source, where)));
}

}  // namespace fusedloss::emulator

inline void __syncthreads(std::source_location where = std::source_location::current()) {
  fusedloss::emulator::synchronize_block(where);
}

inline void __syncwarp(unsigned mask = 0xffffffffu, std::source_location where = std::source_location::current()) {
  using namespace fusedloss::emulator;
  exchange(WarpOperation::synchronize, mask, 0, lane(), where);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32,
              std::source_location where = std::source_location::current()) {
  using namespace fusedloss::emulator;
  const int first = lane() / width * width;
  return shuffle(WarpOperation::shuffle, mask, value, first + (source & (width - 1)), width, where);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   std::source_location where = std::source_location::current()) {
  using namespace fusedloss::emulator;
  return shuffle(WarpOperation::shuffle_down, mask, value, lane() + int(delta), width, where);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32,
                  std::source_location where = std::source_location::current()) {
  using namespace fusedloss::emulator;
  return shuffle(WarpOperation::shuffle_xor, mask, value, lane() ^ lanes, width, where);
}

// For flags that several threads may set. Only integers: a sum of floating-point atomics differs from run to run.
template <std::integral T>
T atomicExch(T* address, std::type_identity_t<T> value) {
  return __atomic_exchange_n(address, value, __ATOMIC_RELAXED);
}

template <std::integral T>
T atomicMax(T* address, std::type_identity_t<T> value) {
  T old = __atomic_load_n(address, __ATOMIC_RELAXED);
  while (old < value && !__atomic_compare_exchange_n(address, &old, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return old;
}

// An array in the shared memory of the block. The static variable's address tells arrays apart, one for each
// instantiation of the function around it, as nvcc has it. Being an array, not a pointer, UBSan checks its indices.
#define FUSEDLOSS_SHARED(T, name, count)                                      \
  static char shared_key_of_##name;                                           \
  T(&name)                                                                    \
  [count] = *static_cast<T(*)[count]>(::fusedloss::emulator::shared_variable( \
      &shared_key_of_##name, #name, sizeof(T) * (count), std::source_location::current()))

#define FUSEDLOSS_ASSUME_ALIGNED(pointer, bytes) ::fusedloss::emulator::check_aligned(pointer, bytes)

namespace fusedloss {

// Runs the kernel to its end: the stream is of no consequence. Returns the errors that a GPU would return, throws
// emulator::Error for those that it would not.
template <class... P, class... A>
cudaError_t launch(void (*kernel)(P...), dim3 grid, dim3 block, cudaStream_t, A... arguments) {
  static_assert((std::is_trivially_copyable_v<P> && ...), "kernel arguments reach the device byte by byte");
  auto body = [&] { kernel(P(arguments)...); };
  return emulator::run(grid, block, [](void* context) { (*static_cast<decltype(body)*>(context))(); }, &body);
}

}  // namespace fusedloss
