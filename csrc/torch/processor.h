// For which instruction sets kernels were built, and which of them this processor runs.
#pragma once
#include <array>

namespace fusedloss {

enum class InstructionSet { baseline, avx2, avx512 };

// The best that was built of those up to torch's own choice, which ATEN_CPU_CAPABILITY can lower.
InstructionSet chosen_set();
const char* name_of(InstructionSet set);
// Whether torch's products of matrices of bfloat16 are much faster here than those of float.
bool multiplies_bfloat16();

// Those that were built, best last.
constexpr const char* kInstructionSets = FUSEDLOSS_INSTRUCTION_SETS;

// One of the objects for the three sets; null are those of sets that were not built.
template <class T>
const T& choose(const T* baseline, const T* avx2, const T* avx512) {
  return *(std::array{baseline, avx2, avx512}[int(chosen_set())]);
}

// Of the objects NAME_SET that CMake's files define for every instruction set SET, the one for this processor.
#define FUSEDLOSS_CHOOSE(name) \
  choose(FUSEDLOSS_IF_DEFAULT(&name##_DEFAULT), FUSEDLOSS_IF_AVX2(&name##_AVX2), FUSEDLOSS_IF_AVX512(&name##_AVX512))

#ifdef FUSEDLOSS_HAS_DEFAULT
#define FUSEDLOSS_IF_DEFAULT(object) object
#else
#define FUSEDLOSS_IF_DEFAULT(object) decltype(object)()
#endif
#ifdef FUSEDLOSS_HAS_AVX2
#define FUSEDLOSS_IF_AVX2(object) object
#else
#define FUSEDLOSS_IF_AVX2(object) decltype(object)()
#endif
#ifdef FUSEDLOSS_HAS_AVX512
#define FUSEDLOSS_IF_AVX512(object) object
#else
#define FUSEDLOSS_IF_AVX512(object) decltype(object)()
#endif

}  // namespace fusedloss
