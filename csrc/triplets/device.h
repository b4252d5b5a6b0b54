// The contract between the ops of mined triplets and their CUDA kernels: raw device pointers, no torch, no CUDA header.
#pragma once
#include "core/device.h"
#include "triplets/kernel.h"

namespace fusedloss::triplets {

struct DeviceVectors : Numbers {
  int64_t vector, step;
};

// One call. The type of the computation, T below, is float or double. A tile has a row for every anchor of a block,
// with a number for every vector.
struct DevicePass {
  int64_t count, size;
  const int64_t* labels;
  bool squared, normalize;
  double margin;
  DeviceVectors input, tangent, gradient;  // the last two need not be given
  Numbers incoming;                        // the gradient of the result, 1 if not given
  int64_t incoming_step;                   // from anchor to anchor
  bool reduces;                            // whether the result is one number
  Numbers values;                          // of every anchor, if given

  // For every vector as an anchor: the sum of its terms, how many there are for a mean, and how many are above 0.
  double *sums, *terms, *above;
  // The numbers of all terms, and of those that the result is divided by, if it is; infinite for none.
  const double *exists, *divisor;

  // Memory to work in.
  void *vectors, *moved;          // T: dense, and how they move
  void* norms;                    // Norm<T> of every vector, if they are normalised
  double *slopes, *still_slopes;  // the gradient; and, beside one that moves and of normalised vectors, as it stands
  // Of a block of anchors.
  int64_t first, block;
  void *distances, *weights, *turns;  // T: tiles; the last where derivatives move
  void* sorted;                       // T: distances in order, and where they were, so many a row; not for batch_hard
  uint32_t* order;
  int64_t sorted_row;  // a power of 2
  double* before;      // of sorted negatives, the sum of those before, so many a row; for all triplets
};

// Where a row of sorted distances came from: negatives, then positives, then the rest.
inline constexpr int kClassShift = 30;

// So many anchors by so many vectors are measured by a block of threads.
inline constexpr int64_t kTile = 64;

// So many blocks of every kernel fit into a multiprocessor: a thread has 128 registers.
inline constexpr int kDeviceBlocks = 2;

struct DeviceLaunch {
  bool wide;
  Mining mining;
  int blocks;    // for kernels in which a warp has a vector
  void* stream;  // a cudaStream_t
};

// Launch the kernels of the steps of a pass; each returns a cudaError_t.
int launch_read(const DevicePass& pass, const DeviceLaunch& how);
int launch_block(const DevicePass& pass, const DeviceLaunch& how);
int launch_write(const DevicePass& pass, const DeviceLaunch& how);

}  // namespace fusedloss::triplets
