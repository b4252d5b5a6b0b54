// For which instruction sets kernels were built, and which of them this processor runs.
#pragma once

namespace fusedloss {

enum class InstructionSet { baseline, avx2, avx512 };

// torch's own choice, which ATEN_CPU_CAPABILITY can lower.
InstructionSet chosen_set();
const char* name_of(InstructionSet set);

// Those that were built, best last.
constexpr const char* kInstructionSets = FUSEDLOSS_INSTRUCTION_SETS;

template <class T>
const T& choose(const T& baseline, [[maybe_unused]] const T* avx2, [[maybe_unused]] const T* avx512) {
  switch (chosen_set()) {
    case InstructionSet::avx512: return *avx512;
    case InstructionSet::avx2: return *avx2;
    default: return baseline;
  }
}

// Of the objects NAME_SET that CMake's files define for every instruction set SET, the one for this processor.
#ifdef FUSEDLOSS_X86
#define FUSEDLOSS_CHOOSE(name) choose(name##_DEFAULT, &name##_AVX2, &name##_AVX512)
#else
#define FUSEDLOSS_CHOOSE(name) choose(name##_DEFAULT, decltype (&name##_DEFAULT)(), decltype (&name##_DEFAULT)())
#endif

}  // namespace fusedloss
