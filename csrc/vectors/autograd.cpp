// The ops of losses of vectors at the autograd key: torch/autograd.h as it is.
#include "torch/autograd.h"

#include <ATen/ops/ones_like.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/zeros_like.h>

#include "vectors/op.h"

namespace fusedloss::vectors::autograd {
namespace {

struct Family {
  using Loss = vectors::Loss;
  using Arguments = vectors::Arguments;
  static constexpr int kOperands = kMaxOperands;

  // To read the vectors again takes no longer than to read their gradients and write them.
  static constexpr bool kKeepsUnreduced = false;

  // On operands expanded to the shape of the rows, so that no sum over rows comes in between.
  static at::Tensor second_along(const Loss& loss, Tensors tangents, const Tensors& moving, Arguments a,
                                 const at::Tensor& result) {
    const Checked known = check(*loss.about, a);
    for (int k = 0; k < kOperands; ++k) {
      if (!a.operands[k].defined()) continue;
      const c10::SymDimVector shape = known.shape_of(*loss.about, k);
      a.operands[k] = a.operands[k].expand_symint(shape);
      if (tangents[k].defined()) tangents[k] = tangents[k].expand_symint(shape);
    }
    const Tensors second = call_hvp(loss, at::ones_like(result), moving, differentiable::defined(tangents), a);
    at::Tensor product = at::zeros_like(result);
    for (int k = 0; k < kOperands; ++k)
      if (tangents[k].defined()) {
        const at::Tensor term = second[k] * tangents[k];
        const bool rows = a.reduction == Reduction::none;
        product = product + (!rows ? term.sum() : k < loss.about->vectors() ? term.sum(-1) : term);
      }
    return product;
  }
};

}  // namespace

FUSEDLOSS_AUTOGRAD(Family)

}  // namespace fusedloss::vectors::autograd
