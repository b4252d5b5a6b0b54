// The labels of a call, read from a tensor of any integer type.
#pragma once
#include <vector>

#include "triplets/op.h"

namespace fusedloss::triplets {

// The vectors of each label, and which of all have triplets.
class Labels {
 public:
  explicit Labels(const at::Tensor& labels);
  Groups groups(Mining mining) const;
  // How many terms a mean is over.
  double terms(Mining mining) const;

 private:
  int64_t size_of(int64_t group) const { return first_[group + 1] - first_[group]; }
  bool has_triplets(int64_t group) const { return size_of(group) > 1 && size_of(group) < int64_t(group_.size()); }

  std::vector<int32_t> group_, members_, anchors_;
  std::vector<int64_t> first_;
};

}  // namespace fusedloss::triplets
