// The contract between the pointwise ops and their CUDA kernels: raw device pointers, no torch, no CUDA header.
#pragma once
#include "pointwise/kernel.h"

namespace fusedloss::pointwise {

// A pass as it travels to the device, by value. `domains` of the elements are seen to there: outside of them the
// result and the gradients are NaN, because an error would have to wait for the device.
struct DevicePass : Pass {
  // What multiplies gradients: `scale`, times the number at `factor`, divided by the one at `divisor`, where those are
  // given. They stay on the device: the host would wait for them.
  View factor;
  const double* divisor = nullptr;
  // The sums of the blocks, where a sum is wanted; their sum, divided by `denominator` and the number at `divisor`,
  // goes to `sum`.
  double* partials = nullptr;
  View sum;
  double denominator = 1;
  Domain domains[kMaxOperands] = {};
};

// How a pass is launched. All tensors are of floating types.
struct DeviceLaunch {
  Mode mode;
  int operands;  // 2 or 3
  bool wide;     // computed in double
  int blocks;
  void* stream;  // a cudaStream_t
};

inline constexpr int kDeviceThreads = 256;
// So many blocks must fit into a multiprocessor: of 2048 threads, three in four. It caps a kernel's registers at 40.
inline constexpr int kDeviceBlocks = 6;

// Launches a loss's kernel; returns a cudaError_t, as the functions below do.
using DeviceFunction = int (*)(const DevicePass&, const DeviceLaunch&);

// The kernels that all losses share (pointwise/device.cuh).
// The second stage of a sum: from `blocks` partials to pass.sum.
int launch_finish(const DevicePass& pass, int blocks, void* stream);
// Multiplies a dense tensor by the number at `factor`; one that is 1 costs only the launch.
int launch_rescale(const View& tensor, int64_t count, const View& factor, int blocks, void* stream);
// How many blocks of kDeviceThreads run at once on the current device.
int blocks_of_one_wave(int& blocks);
const char* describe_device_error(int error);

}  // namespace fusedloss::pointwise
