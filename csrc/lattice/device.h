// The contract between the ops of losses over a lattice and their CUDA kernels: raw device pointers, no torch, no CUDA
// header.
#pragma once
#include "core/device.h"

namespace fusedloss::lattice {

struct DeviceSample {
  int64_t frames, labels, first;  // as in Sample
  double weight;                  // what its value counts for in the result
  bool fits;                      // whether there are enough frames for the labels
};
struct DeviceLabel {
  int32_t index;
  int32_t next;  // where in the sample's list the same label comes again, or -1
  bool leads;    // whether this is the first of them
};

struct DeviceFrames : Numbers {
  int64_t frame, sample, step;
};

// What became of a sample.
enum class Fate : int { counts, has_no_alignment, is_nan };

// One call. The type of the computation, T below, is float or double.
struct DevicePass {
  int64_t frames, count, classes;
  int64_t places;  // the most labels of a sample, and one
  const DeviceSample* samples;
  const DeviceLabel* labels;
  int32_t blank;
  bool from_logits, zero_infinity;
  DeviceFrames input, tangent, gradient;  // the last two need not be given
  Numbers incoming;                       // the gradient of the result, 1 if not given
  int64_t incoming_step;                  // from sample to sample
  Numbers values;                         // of every sample, if given
  double* weighted;                       // the same, times the weights, if given

  // Memory to work in, for every sample, or every frame of every sample.
  void* softmaxes;  // T: the largest logit, the sum of exp, the tangent's mean, and the base of the emissions
  void* emissions;  // T: parts of numbers, for every label and, behind them, the blank
  void* states;     // T: parts of numbers, of both states of every place; only where there is a gradient
  void* edges;      // T: the same for two frames of every sample, where the two programs meet
  void* rows;       // T: the same for the two frames that a program is at; only for more than kSharedPlaces
  double* shifts;   // two of every sample: what was taken from all exponents
  Fate* fates;      // of every sample
};

// Rows of so many places are worked on in shared memory.
inline constexpr int kSharedPlaces = 256;

// So many blocks of every kernel fit into a multiprocessor: a thread has 80 registers.
inline constexpr int kDeviceBlocks = 3;

struct DeviceLaunch {
  bool wide, moving;
  int blocks;    // for kernels in which a warp has a frame
  void* stream;  // a cudaStream_t
};

// Launches all kernels of a pass; returns a cudaError_t.
int launch_pass(const DevicePass& pass, const DeviceLaunch& how);

}  // namespace fusedloss::lattice
