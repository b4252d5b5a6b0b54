// Registers the five ops of mined triplets, and calls them through the dispatcher.
#include "triplets/op.h"

#include "torch/checks.h"
#include "torch/ops.h"
#include "torch/processor.h"

namespace fusedloss::triplets {
namespace {

constexpr Description kAbout{.name = "triplet_mining_loss"};

struct Family {
  using Loss = triplets::Loss;
  using Arguments = triplets::Arguments;
  using Gradients = triplets::Gradients;
  static constexpr int kOperands = 1;
  static const auto& losses() { return triplets::losses(); }

  using Rest = std::tuple<const at::Tensor&, const at::Tensor&, double, int64_t, bool, bool, int64_t>;
  static Arguments collect(const at::Tensor& embeddings, const at::Tensor& labels, double margin, int64_t mining,
                           bool squared, bool normalize, int64_t reduction, std::optional<at::ScalarType> dtype = {}) {
    check_reduction(reduction);
    return {{embeddings}, labels, margin, mining, squared, normalize, static_cast<Reduction>(reduction), dtype};
  }
  static auto spread(const Arguments& a) {
    return std::tuple_cat(std::tie(a.operands[0], a.labels, a.margin, a.mining, a.squared, a.normalize),
                          std::tuple(int64_t(a.reduction)));
  }
  static std::string schema(const Description&) {
    return "Tensor embeddings, Tensor labels, float margin, int mining, bool squared, bool normalize, int reduction";
  }
};

}  // namespace

const std::array<Loss, 1>& losses() {
  static const std::array<Loss, 1> all{{{&kAbout}}};
  return all;
}

extern const Engine engine_DEFAULT, engine_AVX2, engine_AVX512;
const Engine& engine() { return FUSEDLOSS_CHOOSE(engine); }

FUSEDLOSS_OPS(Family)

}  // namespace fusedloss::triplets
