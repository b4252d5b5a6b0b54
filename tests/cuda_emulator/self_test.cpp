// Tests the emulator itself: small kernels, correct ones that must pass in every order of threads and blocks, and ones
// with a defect that must be reported in the words expected. Each runs in a process of its own, since sanitizers end
// theirs at the first report.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "cuda_emulator.h"
#include "options.h"

// The first report ends the process, under ThreadSanitizer too.
extern "C" const char* __tsan_default_options() { return "halt_on_error=1"; }

using fusedloss::launch;

namespace {

constexpr int kThreads = 128, kWarps = kThreads / 32;
constexpr unsigned kAll = 0xffffffffu;

// Correct kernels.

__device__ float sum_of_block(float value) {
  FUSEDLOSS_SHARED(float, of_warps, kWarps);
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_down_sync(kAll, value, offset);
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = value;
  __syncthreads();
  float total = 0;
  for (int warp = 0; warp < kWarps; ++warp) total += of_warps[warp];
  return total;
}

__global__ void __launch_bounds__(kThreads) sum(const float* x, float* partials, int n) {
  float value = 0;
  for (int i = int(blockIdx.x * kThreads + threadIdx.x); i < n; i += int(gridDim.x) * kThreads) value += x[i];
  const float total = sum_of_block(value);
  if (threadIdx.x == 0) partials[blockIdx.x] = total;
}

struct alignas(16) Packed {
  float of[4];
};

__device__ Packed load(const float* from) {
  FUSEDLOSS_ASSUME_ALIGNED(from, 16);
  return *reinterpret_cast<const Packed*>(from);
}

__global__ void doubled(const float* x, float* y, int n) {
  const int thread = int(blockIdx.x * kThreads + threadIdx.x), step = int(gridDim.x) * kThreads;
  for (int packet = thread; packet < n / 4; packet += step) {
    const Packed values = load(x + 4 * packet);
    for (int k = 0; k < 4; ++k) y[4 * packet + k] = 2 * values.of[k];
  }
  for (int i = n / 4 * 4 + thread; i < n; i += step) y[i] = 2 * x[i];
}

// Rounds of writing and reading the same shared array, which takes two barriers a round. `barriers` says which stand.
template <bool first, bool second>
__global__ void rotate(int* y) {
  FUSEDLOSS_SHARED(int, buffer, kThreads);
  int value = int(threadIdx.x);
  for (int round = 0; round < 3; ++round) {
    buffer[threadIdx.x] = value;
    if (first) __syncthreads();
    value = buffer[(threadIdx.x + 40) % kThreads];
    if (second) __syncthreads();
  }
  y[threadIdx.x] = value;
}

template <bool ordered>
__global__ void neighbour(int* y) {
  FUSEDLOSS_SHARED(int, buffer, kThreads);
  buffer[threadIdx.x] = int(threadIdx.x);
  if (ordered) __syncwarp();
  y[threadIdx.x] = buffer[threadIdx.x ^ 1];
}

// Both halves of a warp are in shuffles of their own at once.
__global__ void halves(int* y) {
  int value = int(threadIdx.x);
  if (threadIdx.x % 32 < 16) {
    for (int lanes = 8; lanes > 0; lanes /= 2) value += __shfl_xor_sync(0x0000ffffu, value, lanes);
  } else {
    value = __shfl_sync(0xffff0000u, value, 3, 16) + __shfl_down_sync(0xffff0000u, value, 1, 16);
  }
  y[threadIdx.x] = value;
}

__global__ void count_up(int* y) { atomicMax(y, int(blockIdx.x * kThreads + threadIdx.x)); }

// Kernels with a defect.

// The race is among what threads do before they wait for the first time.
__global__ void mirror(int* y) {
  FUSEDLOSS_SHARED(int, buffer, kThreads);
  buffer[threadIdx.x] = int(threadIdx.x);
  y[threadIdx.x] = buffer[kThreads - 1 - threadIdx.x];
  __syncthreads();
}

__global__ void divergent_barrier() {
  if (threadIdx.x < 64) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void return_before_barrier() {
  if (threadIdx.x == 5) return;
  __syncthreads();
}

__global__ void return_before_shuffle(int* y) {
  if (threadIdx.x == 5) return;
  y[threadIdx.x] = __shfl_xor_sync(kAll, 1, 1);
}

__global__ void barrier_against_shuffle(int* y) {
  if (threadIdx.x % 32 == 0) {
    __syncthreads();
  } else {
    y[threadIdx.x] = __shfl_xor_sync(kAll, 1, 1);
  }
}

__global__ void unset(float* y) {
  FUSEDLOSS_SHARED(float, buffer, kThreads + 1);
  buffer[threadIdx.x] = 1;
  __syncthreads();
  y[threadIdx.x] = buffer[threadIdx.x + 1];
}

__global__ void overrun(int* y, int excess) {
  FUSEDLOSS_SHARED(int, buffer, kThreads);
  int* const elements = buffer;  // as a pointer its indices are not UBSan's to check
  elements[int(threadIdx.x) + excess] = 1;
  __syncthreads();
  y[threadIdx.x] = elements[threadIdx.x];
}

__global__ void too_large(int* y) {
  FUSEDLOSS_SHARED(double, half, 3 << 10);
  FUSEDLOSS_SHARED(double, other_half, (3 << 10) + 1);
  half[threadIdx.x] = other_half[threadIdx.x] = 1;
  y[threadIdx.x] = int(half[threadIdx.x]);
}

__global__ void shuffle(int* y, unsigned mask, int lanes) { y[threadIdx.x] = __shfl_xor_sync(mask, 1, lanes); }

__global__ void different_masks(int* y) {
  const bool even = threadIdx.x % 2 == 0;
  y[threadIdx.x] = __shfl_xor_sync(even ? kAll : 0xfffffffeu, 1, 0);
}

__global__ void different_shuffles(int* y) {
  if (threadIdx.x % 2) {
    y[threadIdx.x] = __shfl_xor_sync(kAll, 1, 1);
  } else {
    y[threadIdx.x] = __shfl_xor_sync(kAll, 2, 1);
  }
}

__global__ void last_block(int* y) {
  if (threadIdx.x == 0) *y = int(blockIdx.x);
}

// Returns whether the result is right.
using Run = std::function<bool()>;

bool right(cudaError_t error) { return error == cudaSuccess; }

bool check_sum(int blocks, int n) {
  std::vector<float> x(size_t(n), 0), partials(size_t(blocks), -1);
  for (int i = 0; i < n; ++i) x[size_t(i)] = float(i % 7);
  if (!right(launch(sum, dim3(unsigned(blocks)), dim3(kThreads), nullptr, x.data(), partials.data(), n))) return false;
  float total = 0, expected = 0;
  for (float partial : partials) total += partial;
  for (float value : x) expected += value;
  return total == expected;
}

bool check_doubled(int n, int offset, int excess = 0) {
  std::vector<float> x(size_t(n + offset), 3), y(size_t(n), 0);
  const int count = n + excess;
  if (!right(launch(doubled, dim3(2), dim3(kThreads), nullptr, x.data() + offset, y.data(), count))) return false;
  for (float value : y)
    if (value != 6) return false;
  return true;
}

// Launches one block of `kernel` on an array and compares each element with `expected` of its index.
template <class T, class... P, class... A>
bool check_each(void (*kernel)(T*, P...), const std::function<T(int)>& expected, A... arguments) {
  std::vector<T> y(kThreads, T(-1));
  if (!right(launch(kernel, dim3(1), dim3(kThreads), nullptr, y.data(), arguments...))) return false;
  for (int i = 0; i < kThreads; ++i)
    if (!(y[size_t(i)] == expected(i))) return false;
  return true;
}

template <class... P, class... A>
bool runs(void (*kernel)(int*, P...), A... arguments) {
  return check_each<int>(kernel, [](int) { return 1; }, arguments...);
}

int of_halves(int i) {
  const int warp = i / 32 * 32, lane = i % 32;
  if (lane < 16) return 16 * warp + 120;
  return warp + 19 + (lane == 31 ? i : i + 1);
}

bool check_last_block(int expected) {
  int y = -1;
  return right(launch(last_block, dim3(5), dim3(32), nullptr, &y)) && y == expected;
}

bool check_count_up() {
  int y = 0;
  return right(launch(count_up, dim3(5), dim3(kThreads), nullptr, &y)) && y == 5 * kThreads - 1;
}

// What CUDA refuses is returned, and once told by cudaGetLastError.
bool check_refusal(dim3 grid, dim3 block) {
  return launch(divergent_barrier, grid, block, nullptr) == cudaErrorInvalidConfiguration &&
         cudaGetLastError() == cudaErrorInvalidConfiguration && cudaGetLastError() == cudaSuccess;
}

// After a defect was reported, in the middle of many a frame, the next launch is as if nothing had been.
bool check_recovery() {
  try {
    launch(divergent_barrier, dim3(1), dim3(kThreads), nullptr);
    return false;
  } catch (const fusedloss::emulator::Error&) {
    return check_sum(2, 1000);
  }
}

#if defined(__SANITIZE_ADDRESS__)
enum { kBuild = 1 };
#elif defined(__SANITIZE_THREAD__)
enum { kBuild = 2 };
#else
enum { kBuild = 0 };
#endif

const char kRight[] = "right", kWrong[] = "wrong result", kRace[] = "data race";

// What is said of a case, in plain builds, under AddressSanitizer with UndefinedBehaviorSanitizer, and under
// ThreadSanitizer. Null: that build cannot see the defect.
struct Case {
  const char* name;
  const char* expected[3];
  Run run;

  Case(const char* name, const char* expected, Run run)
      : name(name), expected{expected, expected, expected}, run(run) {}
  Case(const char* name, const char* plain, const char* address, const char* thread, Run run)
      : name(name), expected{plain, address, thread}, run(run) {}
};

std::vector<Case> cases() {
  const auto rotated = [](int i) { return (i + 120) % kThreads; };
  const auto beside = [](int i) { return i ^ 1; };
  return {
      {"sum of a block", kRight, [] { return check_sum(1, 100); }},
      {"grid-stride sum", kRight, [] { return check_sum(3, 5000); }},
      {"packets and tail", kRight, [] { return check_doubled(1003, 0) && check_doubled(1003, 4); }},
      {"two barriers a round", kRight, [=] { return check_each<int>(rotate<true, true>, rotated); }},
      {"order within a warp", kRight, [=] { return check_each<int>(neighbour<true>, beside); }},
      {"shuffles in both halves", kRight, [] { return check_each<int>(halves, of_halves); }},
      {"integer atomics", kRight, [] { return check_count_up(); }},
      {"empty grid", kRight, [] { return check_refusal(dim3(0), dim3(32)); }},
      {"block too large", kRight, [] { return check_refusal(dim3(1), dim3(1056)); }},
      {"launch after a failure", kRight, [] { return check_recovery(); }},

      {"no first barrier", kWrong, kWrong, kRace, [=] { return check_each<int>(rotate<false, true>, rotated); }},
      {"no second barrier", kWrong, kWrong, kRace, [=] { return check_each<int>(rotate<true, false>, rotated); }},
      {"barrier too late", kWrong, kWrong, kRace,
       [] { return check_each<int>(mirror, [](int i) { return kThreads - 1 - i; }); }},
      {"no __syncwarp", kWrong, kWrong, kRace, [=] { return check_each<int>(neighbour<false>, beside); }},
      {"race of blocks", kWrong, kWrong, kRace, [] { return check_last_block(4); }},
      {"divergent barrier", "at different barriers",
       [] { return right(launch(divergent_barrier, dim3(1), dim3(kThreads), nullptr)); }},
      {"return before a barrier", "returned",
       [] { return right(launch(return_before_barrier, dim3(1), dim3(kThreads), nullptr)); }},
      {"return before a shuffle", "returned", [] { return runs(return_before_shuffle); }},
      {"barrier against shuffle", "at a barrier", [] { return runs(barrier_against_shuffle); }},
      {"unset shared memory", kWrong, [] { return check_each<float>(unset, [](int) { return 1.f; }); }},
      {"overrun of shared memory", "outside of the shared array buffer", "use-after-poison",
       "outside of the shared array buffer", [] { return runs(overrun, 1); }},
      {"underrun of shared memory", "outside of the shared array buffer", "use-after-poison",
       "outside of the shared array buffer", [] { return runs(overrun, -1); }},
      {"too much shared memory", "more shared memory than", [] { return runs(too_large); }},
      {"mask without the caller", "lacks the lane", [] { return runs(shuffle, 0x7fffffffu, 0); }},
      {"source outside the mask", "outside of its mask", [] { return runs(shuffle, 0xfffffffdu, 1); }},
      {"different masks", "different warp operations", [] { return runs(different_masks); }},
      {"different shuffles", "different warp operations", [] { return runs(different_shuffles); }},
      {"misaligned packet", "misaligned address", [] { return check_doubled(1003, 1); }},
      {"read past the end", nullptr, "heap-buffer-overflow", nullptr, [] { return check_doubled(1003, 0, 1); }},
      {"part of a warp", "part of a warp", [] { return right(launch(divergent_barrier, dim3(1), dim3(33), nullptr)); }},
  };
}

// In every order; ends the process.
[[noreturn]] void run_case(const Case& test) {
  const char* said = kRight;
  try {
    for (int order = 0; order < 6 && said == kRight; ++order) {
      fusedloss::emulator::set_order(order);
      if (!test.run()) said = kWrong;
    }
    std::printf("%s\n", said);
  } catch (const fusedloss::emulator::Error& error) {
    std::printf("%s\n", error.what());
  }
  std::fflush(stdout);
  std::exit(0);
}

// What the case printed, sanitizers' reports included.
std::string output_of(const Case& test) {
  int ends[2];
  if (pipe(ends)) std::abort();
  std::fflush(stdout);
  if (fork() == 0) {
    dup2(ends[1], STDOUT_FILENO);
    dup2(ends[1], STDERR_FILENO);
    close(ends[0]);
    close(ends[1]);
    run_case(test);
  }
  close(ends[1]);
  std::string output;
  char buffer[4096];
  for (ssize_t count; (count = read(ends[0], buffer, sizeof buffer)) > 0;) output.append(buffer, size_t(count));
  close(ends[0]);
  wait(nullptr);
  return output;
}

}  // namespace

// With an argument: prints all that is said of the cases whose names contain it.
int main(int count, char** arguments) {
  int passed = 0, failed = 0;
  for (const Case& test : cases()) {
    const char* expected = test.expected[kBuild];
    if (!expected || (count > 1 && std::string(test.name).find(arguments[1]) == std::string::npos)) continue;
    const std::string output = output_of(test);
    // "right" must be all that is said: no report beside it.
    const bool met = expected == kRight ? output == "right\n" : output.find(expected) != std::string::npos;
    ++(met ? passed : failed);
    if (!met) std::printf("FAILED %s: expected \"%s\", got\n", test.name, expected);
    if (!met || count > 1) std::printf("%s\n", output.c_str());
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed != 0;
}
