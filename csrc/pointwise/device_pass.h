// Passes on a CUDA device. In a build without CUDA nothing of this is compiled but the question where tensors are.
#pragma once
#include <ATen/core/Tensor.h>

#include "pointwise/registry.h"
#include "torch/views.h"

namespace fusedloss::pointwise {

// Whether the CUDA kernels are what computes on this tensor. In the emulated build that is so for CPU tensors.
inline bool on_device(const at::Tensor& tensor) {
#ifdef FUSEDLOSS_EMULATED
  return tensor.is_cpu();
#else
  return kHasDevice && tensor.is_cuda();
#endif
}

// Runs a pass whose views are filled in; `like` is a tensor on its device. Returns before it is done.
void run_on_device(const Loss& loss, DevicePass& pass, Mode mode, int operands, bool wide, const at::Tensor& like);

// Multiplies a dense float32 or float64 tensor, in place, by a tensor of one number.
void rescale_on_device(const at::Tensor& tensor, const at::Tensor& factor);

}  // namespace fusedloss::pointwise
