// The contract between the pointwise ops and their CUDA kernels: raw device pointers, no torch, no CUDA header.
#pragma once
#include "core/device.h"
#include "pointwise/kernel.h"

namespace fusedloss::pointwise {

// A pass over tensors on a device.
struct DevicePass : Pass, DeviceNumbers {
  // Of the elements of the loss's restricted operand. Outside of it the result and the gradients are NaN, because an
  // error would have to wait for the device.
  Domain domain = Domain::any;
};

// A part of a pass, as it travels to the device, by value. It is so small that its indices have 32 bits: of 64-bit
// ones a thread could not hold all that it needs in registers.
inline constexpr int kDeviceDims = 8;
inline constexpr int64_t kMostElements = int64_t(1) << 30;

struct PieceView : Numbers {
  uint32_t strides[kDeviceDims];  // 0 where absent
};

struct Piece {
  uint32_t count;
  int dims;
  uint32_t sizes[kDeviceDims];
  PieceView operands[kMaxOperands], tangents[kMaxOperands], weight, grad_output, value, gradients[kMaxOperands];
  double scale;
  Numbers factor;
  const double* divisor;
  double* partials;          // the sum of each block, or null
  const double* parameters;  // for the host
  Interval domain;
};

// How a piece is launched. All tensors are of floating types.
struct DeviceLaunch {
  Mode mode;
  int operands;  // 2 or 3
  bool wide;     // computed in double
  int blocks;
  void* stream;  // a cudaStream_t
};

// So many blocks must fit into a multiprocessor. Of its 2048 threads that is three in four, and caps the registers of a
// thread at 40.
inline constexpr int kBlocksTogether = 6;

// Launches a loss's kernel; returns a cudaError_t.
using DeviceFunction = int (*)(const Piece&, const DeviceLaunch&);

}  // namespace fusedloss::pointwise
