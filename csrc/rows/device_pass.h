// Passes over rows on a CUDA device.
#pragma once
#include "rows/device.h"
#include "rows/registry.h"
#include "torch/device.h"
#include "torch/views.h"

namespace fusedloss::rows {

// Runs a pass whose views are filled in; `like` is a tensor on its device. Returns before it is done.
void run_on_device(const Loss& loss, const DevicePass& pass, bool dense, bool wide, const at::Tensor& like);

// How many rows have a label that counts, or the sum of their weights; a float64 tensor on the device. With
// `never_zero` it is infinite instead of 0.
at::Tensor count_on_device(const Loss& loss, const DevicePass& pass, bool weighted, bool never_zero, bool wide,
                           const at::Tensor& like);

// Raises IndexError if some label was no class since the last call. Waits for the devices.
void check_targets();

}  // namespace fusedloss::rows
