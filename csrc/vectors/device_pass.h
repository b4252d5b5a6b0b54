// Passes over rows of vectors on a CUDA device.
#pragma once
#include "torch/device.h"
#include "torch/views.h"
#include "vectors/device.h"
#include "vectors/op.h"

namespace fusedloss::vectors {

// Runs a pass whose views are filled in; `like` is a tensor on its device. Returns before it is done.
void run_on_device(const Loss& loss, const DevicePass& pass, bool wide, const at::Tensor& like);

}  // namespace fusedloss::vectors
