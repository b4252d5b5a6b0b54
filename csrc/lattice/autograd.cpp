// The ops of losses over a lattice at the autograd key: torch/autograd.h as it is.
#include "torch/autograd.h"

#include <ATen/ops/ones_like.h>
#include <ATen/ops/sum.h>

#include "lattice/op.h"

namespace fusedloss::lattice::autograd {
namespace {

struct Family {
  using Loss = lattice::Loss;
  using Arguments = lattice::Arguments;
  static constexpr int kOperands = 1;

  // Else both dynamic programs would run twice.
  static constexpr bool kKeepsUnreduced = true;
  static at::Tensor scaled_unreduced(const Loss& loss, const at::Tensor& gradient, const at::Tensor& grad_output,
                                     const Arguments& a, bool in_place) {
    return kernels::scaled_samples(loss, gradient, grad_output, a, in_place);
  }

  static at::Tensor second_along(const Loss& loss, const Tensors& tangents, const Tensors& moving, const Arguments& a,
                                 const at::Tensor& result) {
    const at::Tensor second = call_hvp(loss, at::ones_like(result), moving, {true}, a)[0] * tangents[0];
    return a.reduction == Reduction::none && second.dim() == 3 ? second.sum(at::IntArrayRef{0, 2}) : second.sum();
  }
};

}  // namespace

FUSEDLOSS_AUTOGRAD(Family)

}  // namespace fusedloss::lattice::autograd
