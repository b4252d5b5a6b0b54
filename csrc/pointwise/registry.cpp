#include "pointwise/registry.h"

#include "torch/processor.h"

namespace fusedloss::pointwise {

// Defined by the files that CMake writes: NAME_about once, NAME_SET and engine_SET for every instruction set SET.
#define POINTWISE_LOSS(name, Formula)    \
  extern const Description name##_about; \
  extern const TileFunctions name##_DEFAULT, name##_AVX2, name##_AVX512;
#include "pointwise/losses.def"
#undef POINTWISE_LOSS
extern const Engine engine_DEFAULT, engine_AVX2, engine_AVX512;
#ifdef FUSEDLOSS_CUDA
#define POINTWISE_LOSS(name, Formula) extern const DeviceFunction name##_device;
#include "pointwise/losses.def"
#undef POINTWISE_LOSS
#define FUSEDLOSS_DEVICE(name) name##_device
#else
#define FUSEDLOSS_DEVICE(name) nullptr
#endif

const std::array<Loss, kLosses>& losses() {
  static const std::array<Loss, kLosses> all{{
#define POINTWISE_LOSS(name, Formula) {&name##_about, &FUSEDLOSS_CHOOSE(name), FUSEDLOSS_DEVICE(name)},
#include "pointwise/losses.def"
#undef POINTWISE_LOSS
  }};
  return all;
}

const Engine& engine() { return FUSEDLOSS_CHOOSE(engine); }

}  // namespace fusedloss::pointwise
