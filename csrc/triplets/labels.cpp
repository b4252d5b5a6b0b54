#include "triplets/labels.h"

#include <algorithm>

namespace fusedloss::triplets {

Labels::Labels(const at::Tensor& labels) {
  const at::Tensor all = labels.to(at::kLong).contiguous();
  const int64_t* const label = all.const_data_ptr<int64_t>();
  const int64_t count = all.numel();
  std::vector<std::pair<int64_t, int32_t>> sorted(count);
  for (int64_t n = 0; n < count; ++n) sorted[n] = {label[n], int32_t(n)};
  std::sort(sorted.begin(), sorted.end());
  group_.resize(count);
  members_.resize(count);
  for (int64_t k = 0; k < count; ++k) {
    if (k == 0 || sorted[k].first != sorted[k - 1].first) first_.push_back(k);
    members_[k] = sorted[k].second;
    group_[members_[k]] = int32_t(first_.size()) - 1;
  }
  first_.push_back(count);
  for (int32_t n = 0; n < count; ++n)
    if (has_triplets(group_[n])) anchors_.push_back(n);
}

Groups Labels::groups(Mining mining) const {
  Groups all{group_.data(), members_.data(), first_.data(), anchors_.data(), int64_t(anchors_.size()), 0, 0};
  for (size_t g = 0; g + 1 < first_.size(); ++g) {
    if (!has_triplets(int64_t(g))) continue;
    const int64_t positives = size_of(int64_t(g)) - 1, negatives = int64_t(group_.size()) - size_of(int64_t(g));
    const int64_t pairs = mining == Mining::batch_hard  ? 2
                          : mining == Mining::semi_hard ? positives + std::min(positives, negatives)
                                                        : positives + negatives;
    all.most_positives = std::max(all.most_positives, positives);
    all.most_pairs = std::max(all.most_pairs, pairs);
  }
  return all;
}

double Labels::terms(Mining mining) const {
  if (mining == Mining::batch_hard) return double(anchors_.size());
  double sum = 0;
  for (const int32_t anchor : anchors_) {
    const int64_t size = size_of(group_[anchor]);
    sum += double(size - 1) * (mining == Mining::all ? double(int64_t(group_.size()) - size) : 1.0);
  }
  return sum;
}

}  // namespace fusedloss::triplets
