// The contract between the ops of losses of vectors and their CUDA kernels: raw device pointers, no torch, no CUDA
// header.
#pragma once
#include "core/device.h"
#include "vectors/kernel.h"

namespace fusedloss::vectors {

// A pass over tensors on a device, all of floating types.
struct DevicePass : Pass, DeviceNumbers {};

// The same as it travels to the device, by value.
inline constexpr int kDeviceDims = 8;
struct RowView : Numbers {
  int64_t strides[kDeviceDims];
};
struct DeviceVectors : RowView {
  int64_t step;
};
template <class View>
struct DeviceOperand {
  View at, tangent, gradient;
};
struct DeviceRows {
  int64_t count, length;
  int dims;
  int64_t sizes[kDeviceDims];
  DeviceOperand<DeviceVectors> vectors[kMaxVectors];
  DeviceOperand<RowView> target, weight;
  RowView grad_output, value;
  double scale;
  Numbers factor;
  double* partials;    // the sum of each block, or null
  int thread_bits;     // the logarithm of how many threads have a row: those of a warp or of a block
  bool has_gradients;  // of vectors
  Settings settings;
};

// How they are launched.
struct DeviceLaunch {
  Formula formula;
  bool wide, moving;
  bool packed;  // whether all vectors and gradients are of one type and can be moved 16 bytes at a time
  int blocks;
  void* stream;  // a cudaStream_t
};

// So many blocks of a kernel fit into a multiprocessor at least: a thread has at most 128 registers, or 255 where
// numbers are dual ones of doubles.
constexpr int device_blocks(bool wide, bool moving) { return wide && moving ? 1 : 2; }

// Returns a cudaError_t.
int launch_rows(const DeviceRows& rows, const DeviceLaunch& how);

}  // namespace fusedloss::vectors
