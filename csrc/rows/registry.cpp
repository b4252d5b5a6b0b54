#include "rows/registry.h"

#include "torch/processor.h"

namespace fusedloss::rows {

// Defined by the files that CMake writes: NAME_about once, NAME_SET and engine_SET for every instruction set SET.
#define ROWS_LOSS(name, Loss)            \
  extern const Description name##_about; \
  extern const TileFunctions name##_DEFAULT, name##_AVX2, name##_AVX512;
#include "rows/losses.def"
#undef ROWS_LOSS
extern const Engine engine_DEFAULT, engine_AVX2, engine_AVX512;
#ifdef FUSEDLOSS_CUDA
#define ROWS_LOSS(name, Loss) extern const DeviceFunction name##_device;
#include "rows/losses.def"
#undef ROWS_LOSS
#define FUSEDLOSS_DEVICE(name) name##_device
#else
#define FUSEDLOSS_DEVICE(name) nullptr
#endif

const std::array<Loss, kLosses>& losses() {
  static const std::array<Loss, kLosses> all{{
#define ROWS_LOSS(name, Loss) {&name##_about, &FUSEDLOSS_CHOOSE(name), FUSEDLOSS_DEVICE(name)},
#include "rows/losses.def"
#undef ROWS_LOSS
  }};
  return all;
}

const Engine& engine() { return FUSEDLOSS_CHOOSE(engine); }

}  // namespace fusedloss::rows
