// Registers the five ops of every pointwise loss, and calls them through the dispatcher.
#include "pointwise/op.h"

#include "torch/checks.h"
#include "torch/ops.h"

namespace fusedloss::pointwise {
namespace {

struct Family {
  using Loss = pointwise::Loss;
  using Arguments = pointwise::Arguments;
  using Gradients = pointwise::Gradients;
  static constexpr int kOperands = kMaxOperands;
  static const auto& losses() { return pointwise::losses(); }

  using Rest = std::tuple<const at::Tensor&, const at::Tensor&, const OptionalTensor&, const OptionalTensor&,
                          c10::ArrayRef<double>, int64_t>;
  static Arguments collect(const at::Tensor& input, const at::Tensor& target, const OptionalTensor& extra,
                           const OptionalTensor& weight, c10::ArrayRef<double> parameters, int64_t reduction,
                           std::optional<at::ScalarType> dtype = {}) {
    check_reduction(reduction);
    return {{input, target, extra.value_or(at::Tensor())},
            weight.value_or(at::Tensor()),
            parameters,
            static_cast<Reduction>(reduction),
            dtype};
  }
  static auto spread(const Arguments& a) {
    return std::tuple_cat(
        std::tie(a.operands[0], a.operands[1]),
        std::tuple(ops::optional(a.operands[2]), ops::optional(a.weight), a.parameters, int64_t(a.reduction)));
  }
  static std::string schema(const Description& about) {
    const char* third = about.operands[2] ? about.operands[2] : "extra";
    return std::string("Tensor ") + about.operands[0] + ", Tensor " + about.operands[1] + ", Tensor? " + third +
           ", Tensor? weight, float[] parameters, int reduction";
  }
};

}  // namespace

FUSEDLOSS_OPS(Family)

}  // namespace fusedloss::pointwise
