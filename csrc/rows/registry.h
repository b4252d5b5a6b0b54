// The losses over rows at run time: what losses.def lists, with the kernels of every instruction set.
#pragma once
#include <array>

#include "rows/device.h"
#include "rows/kernel.h"

namespace fusedloss::rows {

inline constexpr int kLosses = 0
#define ROWS_LOSS(name, Loss) +1
#include "rows/losses.def"
#undef ROWS_LOSS
    ;

struct Loss {
  const Description* about;
  const TileFunctions* functions;  // for this processor
  DeviceFunction device;           // null in a build without CUDA
};

const std::array<Loss, kLosses>& losses();

// The engine for this processor.
const Engine& engine();

}  // namespace fusedloss::rows
