#include "lattice/labels.h"

#include "core/convert.h"
#include "torch/checks.h"
#include "torch/views.h"

namespace fusedloss::lattice {
namespace {

// The numbers of a tensor on the CPU.
class Integers {
 public:
  explicit Integers(const at::Tensor& tensor) : tensor_(tensor.is_cpu() ? tensor : tensor.cpu()) {
    point(view_, tensor_);
  }
  // Calls use(from, stride) with the memory of the last axis, at this index of the axis before, if there is one.
  template <class Use>
  void row(int64_t index, Use use) const {
    const int64_t offset = tensor_.dim() > 1 ? index * tensor_.stride(0) : 0;
    const int64_t stride = tensor_.dim() > 0 ? tensor_.stride(-1) : 0;
    visit(view_.dtype, [&](auto type) { use(static_cast<const decltype(type)*>(view_.data) + offset, stride); });
  }
  std::vector<int64_t> all() const {
    std::vector<int64_t> numbers(tensor_.numel());
    row(0, [&](const auto* from, int64_t stride) {
      for (size_t n = 0; n < numbers.size(); ++n) numbers[n] = convert<int64_t>(from[int64_t(n) * stride]);
    });
    return numbers;
  }

 private:
  const at::Tensor tensor_;
  View view_;
};

std::vector<int64_t> lengths(const char* loss, const char* name, const at::Tensor& tensor, int64_t most,
                             const char* of) {
  const std::vector<int64_t> all = Integers(tensor).all();
  for (size_t n = 0; n < all.size(); ++n)
    TORCH_CHECK_INDEX(0 <= all[n] && all[n] <= most, loss, ": every one of ", name, " must be from 0 to ", most, ", ",
                      of, "; got ", all[n], " for sample ", n);
  return all;
}

}  // namespace

Labels::Labels(const char* loss, const Arguments& a) {
  const at::Tensor &input = a.operands[0], &targets = a.targets;
  const bool padded = targets.dim() == 2;
  const auto frames = lengths(loss, "input_lengths", a.input_lengths, input.size(0), "the frames of log_probs");
  const auto counts =
      lengths(loss, "target_lengths", a.target_lengths, targets.size(-1),
              padded || input.dim() == 2 ? "the size of the last axis of targets" : "the number of targets");
  int64_t first = 0;
  for (size_t n = 0; n < frames.size(); ++n) {
    samples.push_back({frames[n], counts[n], first, 1});
    first += counts[n];
  }
  TORCH_CHECK_VALUE(padded || input.dim() == 2 || first == targets.size(0), loss,
                    ": target_lengths must add up to the number of targets, ", targets.size(0), ", got ", first);
  labels.resize(first);
  const Integers numbers(targets);
  const int64_t classes = input.size(-1);
  TORCH_CHECK_NOT_IMPLEMENTED(classes < int64_t(1) << 31, loss, ": more than 2^31 - 1 classes");
  for (size_t n = 0; n < samples.size(); ++n)
    numbers.row(int64_t(n), [&](const auto* from, int64_t stride) {
      const Sample& sample = samples[n];
      if (!padded) from += sample.first * stride;
      for (int64_t k = 0; k < sample.labels; ++k) {
        const int64_t label = convert<int64_t>(from[k * stride]);
        TORCH_CHECK_INDEX(0 <= label && label < classes && label != a.blank, loss,
                          ": every one of targets must be the index of a class, from 0 to ", classes - 1,
                          ", and not the blank, ", a.blank, "; got ", label, " at position ", k, " of sample ", n);
        labels[sample.first + k] = int32_t(label);
      }
    });
}

}  // namespace fusedloss::lattice
