// What the launchers of all families know of a device: no torch, no CUDA header.
#pragma once
#include "core/dtype.h"

namespace fusedloss {

inline constexpr int kDeviceThreads = 256;  // of a block

// A number in device memory, or the first of many; absent if `data` is null.
struct Numbers {
  void* data = nullptr;
  DType dtype = DType::float32;
};

// The functions below return a cudaError_t; `stream` is a cudaStream_t.
//
// Writes the sum of `count` partials, divided by `denominator` and the number at `divisor`, if that is given. With
// `never_zero` a sum of 0 becomes infinite: what is divided by it is 0.
int launch_finish(const double* partials, int count, const Numbers& result, double denominator, const double* divisor,
                  bool never_zero, void* stream);
// How many blocks of kDeviceThreads run at once on the current device, `together` on each of its multiprocessors.
int blocks_of_one_wave(int together, int& blocks);
const char* describe_device_error(int error);

}  // namespace fusedloss
