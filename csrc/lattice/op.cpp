// Registers the five ops of every loss over a lattice, and calls them through the dispatcher.
#include "lattice/op.h"

#include "lattice/losses/ctc_loss.h"
#include "torch/checks.h"
#include "torch/ops.h"
#include "torch/processor.h"

namespace fusedloss::lattice {
namespace {

struct Family {
  using Loss = lattice::Loss;
  using Arguments = lattice::Arguments;
  using Gradients = lattice::Gradients;
  static constexpr int kOperands = 1;
  static const auto& losses() { return lattice::losses(); }

  using Rest = std::tuple<const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, int64_t, bool,
                          bool, int64_t>;
  static Arguments collect(const at::Tensor& log_probs, const at::Tensor& targets, const at::Tensor& input_lengths,
                           const at::Tensor& target_lengths, int64_t blank, bool zero_infinity, bool from_logits,
                           int64_t reduction, std::optional<at::ScalarType> dtype = {}) {
    check_reduction(reduction);
    return {{log_probs}, targets,       input_lengths, target_lengths,
            blank,       zero_infinity, from_logits,   static_cast<Reduction>(reduction),
            dtype};
  }
  static auto spread(const Arguments& a) {
    return std::tuple_cat(
        std::tie(a.operands[0], a.targets, a.input_lengths, a.target_lengths, a.blank, a.zero_infinity, a.from_logits),
        std::tuple(int64_t(a.reduction)));
  }
  static std::string schema(const Description&) {
    return "Tensor log_probs, Tensor targets, Tensor input_lengths, Tensor target_lengths, int blank, "
           "bool zero_infinity, bool from_logits, int reduction";
  }
};

}  // namespace

const std::array<Loss, 1>& losses() {
  static const std::array<Loss, 1> all{{{&CtcLoss::about}}};
  return all;
}

extern const Engine engine_DEFAULT, engine_AVX2, engine_AVX512;
const Engine& engine() { return FUSEDLOSS_CHOOSE(engine); }

FUSEDLOSS_OPS(Family)

}  // namespace fusedloss::lattice
