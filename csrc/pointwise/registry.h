// The pointwise losses at run time: what losses.def lists, with the kernels of every instruction set.
#pragma once
#include <array>

#include "pointwise/device.h"
#include "pointwise/kernel.h"

namespace fusedloss::pointwise {

inline constexpr int kLosses = 0
#define POINTWISE_LOSS(name, Formula) +1
#include "pointwise/losses.def"
#undef POINTWISE_LOSS
    ;

struct Loss {
  const Description* about;
  const TileFunctions* functions;  // for this processor
  DeviceFunction device;           // null in a build without CUDA
};

const std::array<Loss, kLosses>& losses();

// The engine for this processor.
const Engine& engine();

}  // namespace fusedloss::pointwise
