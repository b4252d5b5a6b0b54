// Registers the five ops of every loss over rows, and calls them through the dispatcher.
#include "rows/op.h"

#include "torch/checks.h"
#include "torch/ops.h"

namespace fusedloss::rows {
namespace {

struct Family {
  using Loss = rows::Loss;
  using Arguments = rows::Arguments;
  using Gradients = rows::Gradients;
  static constexpr int kOperands = kMaxOperands;
  static const auto& losses() { return rows::losses(); }

  using Rest = std::tuple<const at::Tensor&, const at::Tensor&, const OptionalTensor&, const OptionalTensor&,
                          c10::ArrayRef<double>, int64_t, int64_t, int64_t>;
  static Arguments collect(const at::Tensor& input, const at::Tensor& target, const OptionalTensor& weight,
                           const OptionalTensor& sample_weight, c10::ArrayRef<double> parameters, int64_t axis,
                           int64_t ignore_index, int64_t reduction, std::optional<at::ScalarType> dtype = {}) {
    check_reduction(reduction);
    return {{input, target},
            weight.value_or(at::Tensor()),
            sample_weight.value_or(at::Tensor()),
            parameters,
            axis,
            ignore_index,
            static_cast<Reduction>(reduction),
            dtype};
  }
  static auto spread(const Arguments& a) {
    return std::tuple_cat(std::tie(a.operands[0], a.operands[1]),
                          std::tuple(ops::optional(a.weight), ops::optional(a.sample_weight), a.parameters, a.axis,
                                     a.ignore_index, int64_t(a.reduction)));
  }
  static std::string schema(const Description& about) {
    return std::string("Tensor ") + about.operands[0] + ", Tensor " + about.operands[1] +
           ", Tensor? weight, Tensor? sample_weight, float[] parameters, int axis, int ignore_index, int reduction";
  }
};

}  // namespace

FUSEDLOSS_OPS(Family)

}  // namespace fusedloss::rows
