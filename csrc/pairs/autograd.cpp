// The ops of losses over pairs at the autograd key: torch/autograd.h as it is.
#include "torch/autograd.h"

#include <ATen/ops/ones_like.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/zeros_like.h>

#include "pairs/op.h"

namespace fusedloss::pairs::autograd {
namespace {

struct Family {
  using Loss = pairs::Loss;
  using Arguments = pairs::Arguments;
  static constexpr int kOperands = pairs::kOperands;

  // A row's derivatives by the vectors that it meets are summed with those of other rows: they cannot be scaled after.
  static constexpr bool kKeepsUnreduced = false;

  static at::Tensor second_along(const Loss& loss, const Tensors& tangents, const Tensors& moving, const Arguments& a,
                                 const at::Tensor& result) {
    const auto along = [&](const at::Tensor& grad_output) {
      const Tensors second = call_hvp(loss, grad_output, moving, differentiable::defined(tangents), a);
      at::Tensor product;
      for (int k = 0; k < kOperands; ++k)
        if (tangents[k].defined()) {
          const at::Tensor term = (second[k] * tangents[k]).sum();
          product = product.defined() ? product + term : term;
        }
      return product;
    };
    if (a.reduction != Reduction::none) return along(at::ones_like(result));
    // Every row's loss on its own: all of them move with all vectors.
    std::vector<at::Tensor> rows;
    for (int64_t row = 0; row < result.size(0); ++row) {
      const at::Tensor one = at::zeros_like(result);
      one.select(0, row).fill_(1);
      rows.push_back(along(one));
    }
    return rows.empty() ? at::zeros_like(result) : at::stack(rows);
  }
};

}  // namespace

FUSEDLOSS_AUTOGRAD(Family)

}  // namespace fusedloss::pairs::autograd
