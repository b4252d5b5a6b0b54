// Passes on a CUDA device.
#pragma once
#include "pointwise/registry.h"
#include "torch/device.h"

namespace fusedloss::pointwise {

// Runs a pass whose views are filled in; `like` is a tensor on its device. Returns before it is done.
void run_on_device(const Loss& loss, DevicePass& pass, Mode mode, int operands, bool wide, const at::Tensor& like);

}  // namespace fusedloss::pointwise
