// The CPU's passes over rows of vectors. Compiled once for every instruction set.
#include <algorithm>
#include <vector>

#include "vectors/cpu.h"
#include "vectors/losses.h"

namespace fusedloss::vectors {
namespace {

template <class T, class Loss, class Measure>
void run_blocks(const Pass& pass, const Loss& loss, const Measure& measure, int64_t begin, int64_t end, double* sums) {
  if (pass.moving)
    Walk<Loss, Measure, T, true>(pass, loss, measure).run(begin, end, sums);
  else
    Walk<Loss, Measure, T, false>(pass, loss, measure).run(begin, end, sums);
}

template <class T>
void run(const Pass& pass, int64_t begin, int64_t end, double* sums) {
  with_formula(pass.formula, pass.settings,
               [&](const auto& loss, const auto& measure) { run_blocks<T>(pass, loss, measure, begin, end, sums); });
}

}  // namespace

// FUSEDLOSS_ENGINE is the name of this instruction set's engine.
extern const Engine FUSEDLOSS_ENGINE;
const Engine FUSEDLOSS_ENGINE{run<float>, run<double>};

}  // namespace fusedloss::vectors
