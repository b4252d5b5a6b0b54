#include "torch/processor.h"

#include <ATen/Version.h>

#include <string>

namespace fusedloss {

InstructionSet chosen_set() {
  static const InstructionSet set = [] {
#ifdef FUSEDLOSS_X86
    const std::string capability = at::get_cpu_capability();
    if (capability.rfind("AVX512", 0) == 0) return InstructionSet::avx512;
    if (capability == "AVX2") return InstructionSet::avx2;
#endif
    return InstructionSet::baseline;
  }();
  return set;
}

const char* name_of(InstructionSet set) {
  switch (set) {
    case InstructionSet::avx512: return "AVX512";
    case InstructionSet::avx2: return "AVX2";
    default: return "DEFAULT";
  }
}

}  // namespace fusedloss
