// Registers the five ops of every loss of vectors, and calls them through the dispatcher.
#include "vectors/op.h"

#include "torch/checks.h"
#include "torch/ops.h"
#include "torch/processor.h"
#include "vectors/losses.h"

namespace fusedloss::vectors {
namespace {

struct Family {
  using Loss = vectors::Loss;
  using Arguments = vectors::Arguments;
  using Gradients = vectors::Gradients;
  static constexpr int kOperands = kMaxOperands;
  static const auto& losses() { return vectors::losses(); }

  using Rest = std::tuple<const at::Tensor&, const at::Tensor&, const at::Tensor&, const OptionalTensor&,
                          c10::ArrayRef<double>, bool, int64_t>;
  static Arguments collect(const at::Tensor& first, const at::Tensor& second, const at::Tensor& third,
                           const OptionalTensor& weight, c10::ArrayRef<double> parameters, bool normalize,
                           int64_t reduction, std::optional<at::ScalarType> dtype = {}) {
    check_reduction(reduction);
    return {{first, second, third, weight.value_or(at::Tensor())},
            parameters,
            normalize,
            static_cast<Reduction>(reduction),
            dtype};
  }
  static auto spread(const Arguments& a) {
    return std::tuple_cat(
        std::tie(a.operands[0], a.operands[1], a.operands[2]),
        std::tuple(ops::optional(a.operands[kWeight]), a.parameters, a.normalize, int64_t(a.reduction)));
  }
  static std::string schema(const Description& about) {
    return std::string("Tensor ") + about.operands[0] + ", Tensor " + about.operands[1] + ", Tensor " +
           about.operands[2] + ", Tensor? weight, float[] parameters, bool normalize, int reduction";
  }
};

}  // namespace

const std::array<Loss, 4>& losses() {
  static const std::array<Loss, 4> all{{{&ContrastiveLoss::about},
                                        {&CosineEmbeddingLoss::about},
                                        {&TripletMarginLoss::about},
                                        {&TripletMarginWithDistanceLoss::about}}};
  return all;
}

extern const Engine engine_DEFAULT, engine_AVX2, engine_AVX512;
const Engine& engine() { return FUSEDLOSS_CHOOSE(engine); }

FUSEDLOSS_OPS(Family)

}  // namespace fusedloss::vectors
