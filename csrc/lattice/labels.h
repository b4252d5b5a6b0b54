// The targets and lengths of a call, read from tensors of any integer type and checked.
#pragma once
#include <vector>

#include "lattice/op.h"

namespace fusedloss::lattice {

// Raises IndexError for a length that its tensor does not have, and for a label that is no class or the blank.
struct Labels {
  Labels(const char* loss, const Arguments& arguments);

  std::vector<Sample> samples;  // whose factor is 1
  std::vector<int32_t> labels;  // of all samples, one after another
};

}  // namespace fusedloss::lattice
