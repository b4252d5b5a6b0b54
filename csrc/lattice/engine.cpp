// The CPU's passes over sequences. Compiled once for every instruction set.
#include "lattice/sequence.h"

namespace fusedloss::lattice {
namespace {

template <class T, bool moving>
void run_all(const Pass& pass, Queue& samples, Workspace& workspace) {
  Sequences<T, moving> sequences(pass, workspace);
  for (int64_t n; samples.take(n);) pass.values[n] = sequences.run(n);
}
template <class T>
void run(const Pass& pass, Queue& samples, void* memory) {
  Workspace workspace(memory);
  pass.moving ? run_all<T, true>(pass, samples, workspace) : run_all<T, false>(pass, samples, workspace);
}
template <class T>
int64_t room(const Pass& pass) {
  Workspace asked;
  pass.moving ? void(Sequences<T, true>(pass, asked)) : void(Sequences<T, false>(pass, asked));
  return asked.bytes();
}

template <class T>
void scale(const Pass& pass, Queue& samples, void* memory) {
  Workspace workspace(memory);
  Frames<T> gradient(pass.gradient, pass.classes, workspace);
  for (int64_t n; samples.take(n);) {
    gradient.go_to(n);
    for (int64_t t = 0; t < pass.samples[n].frames; ++t) {
      gradient.read(t);
      multiply_counted(gradient.target(t), pass.classes, T(pass.samples[n].factor));
      gradient.write(t);
    }
  }
}

}  // namespace

// FUSEDLOSS_ENGINE is the name of this instruction set's engine.
extern const Engine FUSEDLOSS_ENGINE;
const Engine FUSEDLOSS_ENGINE{room<float>, room<double>, run<float>, run<double>, scale<float>, scale<double>};

}  // namespace fusedloss::lattice
