// The contract between the pointwise ops and their CUDA kernels: raw device pointers, no torch, no CUDA header.
#pragma once
#include "pointwise/kernel.h"

namespace fusedloss::pointwise {

// A pass over tensors on a device.
struct DevicePass : Pass {
  // What multiplies gradients: `scale`, times the number at `factor`, divided by the one at `divisor`, where those are
  // given. They stay on the device: the host would wait for them.
  View factor;
  const double* divisor = nullptr;
  // The sum over all elements, divided by `denominator` and the number at `divisor`, goes to `sum`, where it is given.
  View sum;
  double denominator = 1;
  // Of the elements of the loss's restricted operand. Outside of it the result and the gradients are NaN, because an
  // error would have to wait for the device.
  Domain domain = Domain::any;
};

// A part of a pass, as it travels to the device, by value. It is so small that its indices have 32 bits: of 64-bit
// ones a thread could not hold all that it needs in registers.
inline constexpr int kDeviceDims = 8;
inline constexpr int64_t kMostElements = int64_t(1) << 30;

struct PieceView {
  void* data;  // absent if null
  DType dtype;
  uint32_t strides[kDeviceDims];  // 0 where absent
};

// The view of one number.
inline PieceView number_at(const View& view) { return {view.data, view.dtype, {}}; }

struct Piece {
  uint32_t count;
  int dims;
  uint32_t sizes[kDeviceDims];
  PieceView operands[kMaxOperands], tangents[kMaxOperands], weight, grad_output, value, gradients[kMaxOperands];
  double scale;
  PieceView factor;
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

inline constexpr int kDeviceThreads = 256;
// So many blocks must fit into a multiprocessor. Of its 2048 threads that is three in four, and caps the registers of a
// thread at 40. Second derivatives run on duals; where these are of doubles, each is four registers long: half of the
// threads, and 64.
constexpr int device_blocks(bool wide, Mode mode) { return wide && mode == Mode::hvp ? 4 : 6; }

// Launches a loss's kernel; returns a cudaError_t, as the functions below do.
using DeviceFunction = int (*)(const Piece&, const DeviceLaunch&);

// The kernels that all losses share (pointwise/device.cuh).
// The second stage of a sum: `partials` numbers, divided, to where the pass wants its sum.
int launch_finish(const DevicePass& pass, const double* partials, int count, void* stream);
// Multiplies a dense tensor by the number at `factor`; one that is 1 costs only the launch.
int launch_rescale(const View& tensor, int64_t count, const View& factor, int blocks, void* stream);
// How many blocks of kDeviceThreads run at once on the current device, at most `together` on a multiprocessor.
int blocks_of_one_wave(int together, int& blocks);
const char* describe_device_error(int error);

}  // namespace fusedloss::pointwise
