// The contract between the ops of losses over a lattice and their kernels: raw pointers, no torch.
//
// A sample is a sequence of frames, each with a number for every class, and the labels that it shall spell. Kernels
// give every sample its value, and where wanted the gradient of all its frames.
#pragma once
#include "core/dtype.h"
#include "core/queue.h"

namespace fusedloss::lattice {

struct Description {
  const char* name;
};

// A tensor of frames: strides from frame to frame, sample to sample, class to class.
struct FrameView {
  void* data = nullptr;  // absent if null
  DType dtype = DType::float32;
  int64_t frame = 0, sample = 0, step = 0;
};

struct Sample {
  int64_t frames;         // those that count; the others' gradient is 0
  int64_t labels, first;  // how many, and where in Pass::labels they begin
  double factor;          // multiplies its gradient
};

struct Pass {
  int64_t frames = 0, count = 0, classes = 0;  // of the tensors: frames, samples, classes
  const Sample* samples = nullptr;
  const int32_t* labels = nullptr;
  int32_t blank = 0;
  bool from_logits = false;  // else the input holds logarithms of probabilities
  FrameView input;
  bool moving = false;  // whether value and gradient are their derivatives along the tangent
  FrameView tangent;
  FrameView gradient;        // if given
  double* values = nullptr;  // of every sample; infinite where no alignment is possible, whose gradient is 0
};

// How many bytes each thread needs to work in.
using RoomFunction = int64_t (*)(const Pass& pass);
// Computes samples; or multiplies their gradients, made for a factor of 1, by theirs: what is exactly 0 stays so.
using RunFunction = void (*)(const Pass& pass, Queue& samples, void* memory);
struct Engine {
  RoomFunction room_float, room_double;
  RunFunction run_float, run_double;
  RunFunction scale_float, scale_double;
};

}  // namespace fusedloss::lattice
