// The pointwise losses at run time: what losses.def lists, with the kernels of every instruction set.
#pragma once
#include <array>

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
};

const std::array<Loss, kLosses>& losses();

// The engine for this processor, and the name of its instruction set.
const Engine& engine();
const char* instruction_set();

// Those that were built, best last.
constexpr const char* kInstructionSets = FUSEDLOSS_INSTRUCTION_SETS;

}  // namespace fusedloss::pointwise
