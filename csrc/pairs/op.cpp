// Registers the five ops of every loss over pairs, and calls them through the dispatcher.
#include "pairs/op.h"

#include "torch/checks.h"
#include "torch/ops.h"
#include "torch/processor.h"

namespace fusedloss::pairs {
namespace {

struct Family {
  using Loss = pairs::Loss;
  using Arguments = pairs::Arguments;
  using Gradients = pairs::Gradients;
  static constexpr int kOperands = pairs::kOperands;
  static const auto& losses() { return pairs::losses(); }

  using OptionalTensor = ops::OptionalTensor;
  using Rest = std::tuple<const at::Tensor&, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
                          const OptionalTensor&, const OptionalTensor&, c10::ArrayRef<double>, std::optional<int64_t>,
                          bool, bool, int64_t>;
  static Arguments collect(const at::Tensor& first, const OptionalTensor& second, const OptionalTensor& positive,
                           const OptionalTensor& scale, const OptionalTensor& bias, const OptionalTensor& labels,
                           c10::ArrayRef<double> parameters, std::optional<int64_t> offset, bool symmetric,
                           bool normalize, int64_t reduction, std::optional<at::ScalarType> dtype = {}) {
    check_reduction(reduction);
    const auto given = [](const OptionalTensor& tensor) { return tensor.value_or(at::Tensor()); };
    return {{first, given(second), given(positive), given(scale), given(bias)},
            given(labels),
            parameters,
            offset,
            symmetric,
            normalize,
            static_cast<Reduction>(reduction),
            dtype};
  }
  static auto spread(const Arguments& a) {
    return std::tuple_cat(
        std::tie(a.operands[kFirst]),
        std::tuple(ops::optional(a.operands[kSecond]), ops::optional(a.operands[kPositive]),
                   ops::optional(a.operands[kScale]), ops::optional(a.operands[kBias]), ops::optional(a.labels),
                   a.parameters, a.offset, a.symmetric, a.normalize, int64_t(a.reduction)));
  }
  static std::string schema(const Description&) {
    return "Tensor first, Tensor? second, Tensor? positive, Tensor? scale, Tensor? bias, Tensor? labels, "
           "float[] parameters, int? offset, bool symmetric, bool normalize, int reduction";
  }
};

constexpr Description kInfoNce{
    "info_nce_loss", {"query", "key", "positive", "scale", "bias"}, Kind::softmax, /*by_label=*/false};
constexpr Description kClip{
    "clip_loss", {"image", "text", "positive", "logit_scale", "bias"}, Kind::softmax, /*by_label=*/false};
constexpr Description kSiglip{
    "siglip_loss", {"image", "text", "positive", "logit_scale", "logit_bias"}, Kind::sigmoid, /*by_label=*/false};
constexpr Description kSupervisedContrastive{"supervised_contrastive_loss",
                                             {"embeddings", "second", "positive", "scale", "bias"},
                                             Kind::softmax,
                                             /*by_label=*/true};

}  // namespace

const std::array<Loss, 4>& losses() {
  static const std::array<Loss, 4> all{{{&kInfoNce}, {&kClip}, {&kSiglip}, {&kSupervisedContrastive}}};
  return all;
}

extern const Engine engine_DEFAULT, engine_AVX2, engine_AVX512;
const Engine& engine() { return FUSEDLOSS_CHOOSE(engine); }

FUSEDLOSS_OPS(Family)

}  // namespace fusedloss::pairs
