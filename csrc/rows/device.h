// The contract between the rows' ops and their CUDA kernels: raw device pointers, no torch, no CUDA header.
#pragma once
#include "core/device.h"
#include "rows/kernel.h"

namespace fusedloss::rows {

// A pass over tensors on a device. Labels are of int64, contiguous; all else is of floating types.
struct DevicePass : Pass, DeviceNumbers {};

// The first label that was no class: where it stands among the labels, what it is, and how many classes there are.
struct Offender {
  int found, classes;
  int64_t row, label;
};

// A part of a pass, as it travels to the device, by value. Offsets have 64 bits; of rows and classes it has so few that
// their numbers have 32: of longer ones a thread could not hold all that it needs in registers.
inline constexpr int kDeviceDims = 16;
#ifdef FUSEDLOSS_EMULATED
inline constexpr int64_t kMostRows = 1000;  // tests shall see several parts
#else
inline constexpr int64_t kMostRows = int64_t(1) << 30;
#endif

struct RowView : Numbers {
  int64_t strides[kDeviceDims];
};
struct RowClassView : RowView {
  int64_t step;
};
struct DeviceRows {
  uint32_t count;
  int dims, classes;
  uint32_t sizes[kDeviceDims];
  RowClassView operands[kMaxOperands], tangents[kMaxOperands], gradients[kMaxOperands];
  RowView labels, row_weight, grad_output, value;
  Numbers weight;  // of every class, of the type of the computation
  int64_t ignored;
  double scale;
  Numbers factor;
  const double* divisor;
  double* partials;  // the sum of each block, or null
  Offender* offender;
  const int64_t* first_label;  // of the whole pass
  int thread_bits;             // the logarithm of how many threads have a row: 1, those of a warp or of a block
  const double* parameters;    // for the host
};

// How rows are launched.
struct DeviceLaunch {
  bool dense, moving;
  bool wide;  // computed in double
  int blocks;
  void* stream;  // a cudaStream_t
};

// So many blocks must fit into a multiprocessor. Of its 2048 threads that is three in four, and caps the registers of a
// thread at 40. Of doubles a heavy formula needs 64, and so do all that are dual, for half of the threads; heavy ones
// that are dual need 128, for one in four.
constexpr int device_blocks(bool wide, bool moving, bool heavy) {
  if (!wide) return 6;
  return moving ? (heavy ? 2 : 4) : (heavy ? 4 : 6);
}

template <class Formula>
inline constexpr bool is_heavy = requires { requires Formula::heavy; };

// Launches a loss's kernel; returns a cudaError_t.
using DeviceFunction = int (*)(const DeviceRows&, const DeviceLaunch&);

// Puts into the partials what the rows of each block count for: one each, or their weights if `weighted`.
int launch_count(const DeviceRows& rows, bool weighted, const DeviceLaunch& how);

}  // namespace fusedloss::rows
