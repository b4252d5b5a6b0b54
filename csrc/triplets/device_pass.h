// Passes over vectors and their distances on a CUDA device.
#pragma once
#include "core/loss.h"
#include "torch/device.h"
#include "torch/views.h"
#include "triplets/kernel.h"

namespace fusedloss::triplets {

// What a call on a device has beside its pass: tensors there, because the host would wait for them.
struct DeviceCall {
  const char* name;
  bool wide;
  Reduction reduction;
  at::Tensor labels;
  at::Tensor incoming;  // the gradient of the result, of a floating type: one number or one an anchor; 1 if not given
  at::Tensor value;     // of the result's shape, if wanted
  at::Tensor gradient;  // if wanted
};

// Runs a pass whose views are filled in; `like` is a tensor on its device. Returns before it is done.
void run_on_device(const DeviceCall& call, const Pass& pass, const at::Tensor& like);

}  // namespace fusedloss::triplets
