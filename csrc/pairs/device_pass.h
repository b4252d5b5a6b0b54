// The way over the matrix of products on a CUDA device.
#pragma once
#include "pairs/sweep.h"

namespace fusedloss::pairs {

// Sweeps with the device's kernels; `like` is a tensor there. Returns before it is done.
void sweep_on_device(Plan& plan, const Description& about, const at::Tensor& like);

}  // namespace fusedloss::pairs
