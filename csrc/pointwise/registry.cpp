#include "pointwise/registry.h"

#include <ATen/Version.h>

#include <string>

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

namespace {

// torch's own choice, which ATEN_CPU_CAPABILITY can lower.
enum class Set { baseline, avx2, avx512 };
Set chosen_set() {
  static const Set set = [] {
#ifdef FUSEDLOSS_X86
    const std::string capability = at::get_cpu_capability();
    if (capability.rfind("AVX512", 0) == 0) return Set::avx512;
    if (capability == "AVX2") return Set::avx2;
#endif
    return Set::baseline;
  }();
  return set;
}

template <class T>
const T& choose(const T& baseline, [[maybe_unused]] const T* avx2, [[maybe_unused]] const T* avx512) {
  switch (chosen_set()) {
    case Set::avx512: return *avx512;
    case Set::avx2: return *avx2;
    default: return baseline;
  }
}

#ifdef FUSEDLOSS_X86
#define FUSEDLOSS_CHOOSE(name) choose(name##_DEFAULT, &name##_AVX2, &name##_AVX512)
#else
#define FUSEDLOSS_CHOOSE(name) choose(name##_DEFAULT, decltype (&name##_DEFAULT)(), decltype (&name##_DEFAULT)())
#endif

}  // namespace

const std::array<Loss, kLosses>& losses() {
  static const std::array<Loss, kLosses> all{{
#define POINTWISE_LOSS(name, Formula) {&name##_about, &FUSEDLOSS_CHOOSE(name), FUSEDLOSS_DEVICE(name)},
#include "pointwise/losses.def"
#undef POINTWISE_LOSS
  }};
  return all;
}

const Engine& engine() { return FUSEDLOSS_CHOOSE(engine); }

const char* instruction_set() {
  switch (chosen_set()) {
    case Set::avx512: return "AVX512";
    case Set::avx2: return "AVX2";
    default: return "DEFAULT";
  }
}

}  // namespace fusedloss::pointwise
