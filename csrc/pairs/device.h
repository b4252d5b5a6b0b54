// The contract between the ops of losses over pairs and their CUDA kernels: raw device pointers, no torch, no CUDA
// header. Products of matrices are torch's.
#pragma once
#include "core/device.h"
#include "pairs/kernel.h"

namespace fusedloss::pairs {

// So many blocks of a kernel fit into a multiprocessor: a thread has 64 registers, in double 80, or 128 with
// derivatives along a direction.
constexpr int device_blocks(bool wide, bool moving) { return wide ? (moving ? 2 : 3) : 4; }

struct DeviceLaunch {
  bool wide;     // whether the type of the computation is double
  void* stream;  // a cudaStream_t
};

// The rows of a tile: what an Engine's functions for rows do. Returns a cudaError_t.
int launch_rows(const Tile& tile, Kind kind, const DeviceLaunch& how);
// Adds a tile to what is known of all columns.
int launch_columns(const Tile& tile, const Columns& columns, const DeviceLaunch& how);

}  // namespace fusedloss::pairs
