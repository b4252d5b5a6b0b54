// Passes over sequences on a CUDA device.
#pragma once
#include "lattice/labels.h"
#include "torch/device.h"
#include "torch/views.h"

namespace fusedloss::lattice {

// What a call on a device has beside its pass: tensors there, because the host would wait for them.
struct DeviceCall {
  const char* name;
  bool wide, zero_infinity;
  at::Tensor incoming;  // the gradient of the result, of a floating type: one number or one a sample; 1 if not given
  at::Tensor values;    // of every sample, if wanted
  at::Tensor sum;       // of all, each times its sample's factor, if wanted
};

// Runs a pass whose views are filled in; `like` is a tensor on its device. Returns before it is done.
void run_on_device(const DeviceCall& call, const Pass& pass, const Labels& labels, const at::Tensor& like);

}  // namespace fusedloss::lattice
