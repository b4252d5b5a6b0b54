#include "pairs/belonging.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/where.h>

#include <algorithm>
#include <unordered_map>
#include <vector>

namespace fusedloss::pairs {
namespace {

constexpr int64_t kMost = 1 << 24;  // whole numbers that float holds

template <class T>
void copy(const std::vector<double>& from, const at::Tensor& to) {
  std::copy(from.begin(), from.end(), to.mutable_data_ptr<T>());
}
at::Tensor tensor_of(const std::vector<double>& numbers, at::ScalarType type) {
  const at::Tensor result = at::empty({int64_t(numbers.size())}, type);
  type == at::kDouble ? copy<double>(numbers, result) : copy<float>(numbers, result);
  return result;
}

}  // namespace

Belonging::Belonging(const at::Tensor& given, at::ScalarType compute, bool on_gpu)
    : labels(given.to(at::kLong).contiguous()) {
  on_gpu ? compare(compute) : number(compute);
}

void Belonging::number(at::ScalarType compute) {
  const int64_t rows = labels.numel();
  const int64_t* const given = labels.const_data_ptr<int64_t>();
  std::unordered_map<int64_t, int64_t> numbers, sizes;
  for (int64_t k = 0; k < rows; ++k) {
    numbers.try_emplace(given[k], int64_t(numbers.size()));
    ++sizes[given[k]];
  }
  TORCH_CHECK_VALUE(compute == at::kDouble || int64_t(numbers.size()) <= kMost,
                    "fusedloss: labels must be of at most 2^24 kinds, got ", numbers.size());
  std::vector<double> all(rows), parts(rows);
  for (int64_t k = 0; k < rows; ++k) {
    const int64_t others = sizes[given[k]] - 1;
    all[k] = double(numbers[given[k]]);
    parts[k] = others > 0 ? 1 / double(others) : 0;
    count += others > 0;
  }
  labels = tensor_of(all, compute);
  shares = tensor_of(parts, compute);
}

// By torch's own functions, some rows at a time: the host need not know what they give.
void Belonging::compare(at::ScalarType compute) {
  constexpr int64_t kRows = 256;
  const at::Tensor others = at::empty_like(labels);
  for (int64_t begin = 0; begin < labels.numel(); begin += kRows) {
    const at::Tensor some = labels.narrow(0, begin, std::min(kRows, labels.numel() - begin));
    others.narrow(0, begin, some.numel()).copy_(some.unsqueeze(1).eq(labels).sum(1) - 1);
  }
  const at::Tensor wide = others.to(at::kDouble);
  shares = at::where(wide.gt(0), wide.reciprocal(), 0.0).to(compute);
  const at::Tensor found = wide.gt(0).sum();
  nothing_counts = found.eq(0);
  count_on_device = found.to(at::kDouble).clamp_min(1);
}

}  // namespace fusedloss::pairs
