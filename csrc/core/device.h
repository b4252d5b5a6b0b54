// What the launchers of all families know of a device: no torch, no CUDA header.
#pragma once
#include "core/view.h"

namespace fusedloss {

inline constexpr int kDeviceThreads = 256;  // of a block

// A number in device memory, or the first of many; absent if `data` is null.
struct Numbers {
  void* data = nullptr;
  DType dtype = DType::float32;
};
inline Numbers numbers_at(const View& view) { return {view.data, view.dtype}; }

// What a pass on a device has beside one on the host: numbers that stay there, because the host would wait for them.
struct DeviceNumbers {
  // What multiplies gradients: the pass's scale, times the number at `factor`, divided by the one at `divisor`, where
  // those are given.
  View factor;
  const double* divisor = nullptr;
  // The pass's sum, divided by `denominator` and the number at `divisor`, goes to `sum`, where it is given.
  View sum;
  double denominator = 1;
};

// The functions below return a cudaError_t; `stream` is a cudaStream_t.
//
// Writes the sum of `count` partials, divided by `denominator` and the number at `divisor`, if that is given. With
// `never_zero` a sum of 0 becomes infinite: what is divided by it is 0.
int launch_finish(const double* partials, int count, const Numbers& result, double denominator, const double* divisor,
                  bool never_zero, void* stream);
// Multiplies `count` floats or doubles by the number at `factor`; one that is 1 costs only the launch.
int launch_rescale(const Numbers& all, int64_t count, const Numbers& factor, int blocks, void* stream);
// How many blocks of kDeviceThreads run at once on the current device, `together` on each of its multiprocessors.
int blocks_of_one_wave(int together, int& blocks);
const char* describe_device_error(int error);

}  // namespace fusedloss
