#include "torch/processor.h"

#include <ATen/Version.h>

#include <string>
#include <string_view>

namespace fusedloss {

namespace {
InstructionSet best_of_processor() {
  const std::string capability = at::get_cpu_capability();
  if (capability.rfind("AVX512", 0) == 0) return InstructionSet::avx512;
  return capability == "AVX2" ? InstructionSet::avx2 : InstructionSet::baseline;
}
bool is_built(InstructionSet set) { return std::string_view(kInstructionSets).find(name_of(set)) != std::string::npos; }
}  // namespace

InstructionSet chosen_set() {
  static const InstructionSet set = [] {
    int set = int(best_of_processor());
    while (!is_built(InstructionSet(set))) set = set > 0 ? set - 1 : 2;
    return InstructionSet(set);
  }();
  return set;
}

bool multiplies_bfloat16() {
#ifdef __x86_64__
  static const bool known = best_of_processor() == InstructionSet::avx512 && __builtin_cpu_supports("avx512bf16");
  return known;
#else
  return false;
#endif
}

const char* name_of(InstructionSet set) {
  switch (set) {
    case InstructionSet::avx512: return "AVX512";
    case InstructionSet::avx2: return "AVX2";
    default: return "DEFAULT";
  }
}

}  // namespace fusedloss
