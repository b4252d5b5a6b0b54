// The ops of mined triplets at the autograd key: torch/autograd.h as it is.
#include "torch/autograd.h"

#include <ATen/ops/eye.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros_like.h>

#include "triplets/op.h"

namespace fusedloss::triplets::autograd {
namespace {

struct Family {
  using Loss = triplets::Loss;
  using Arguments = triplets::Arguments;
  static constexpr int kOperands = 1;
  // An anchor's value changes with other vectors, so that gradients of all values cannot be scaled one by one.
  static constexpr bool kKeepsUnreduced = false;

  // For the same reason the values' second derivatives are as many passes as there are values.
  static at::Tensor second_along(const Loss& loss, const Tensors& tangents, const Tensors& moving, const Arguments& a,
                                 const at::Tensor& result) {
    const auto along = [&](const at::Tensor& grad_output) {
      return (call_hvp(loss, grad_output, moving, {true}, a)[0] * tangents[0]).sum();
    };
    if (a.reduction != Reduction::none) return along(at::ones_like(result));
    std::vector<at::Tensor> all;
    const at::Tensor each = at::eye(result.size(0), result.options());
    for (int64_t n = 0; n < result.size(0); ++n) all.push_back(along(each.select(0, n)));
    return all.empty() ? at::zeros_like(result) : at::stack(all);
  }
};

}  // namespace

FUSEDLOSS_AUTOGRAD(Family)

}  // namespace fusedloss::triplets::autograd
