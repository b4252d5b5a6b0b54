// The pointwise ops at the autograd key: torch/autograd.h, and weights that need a derivative themselves.
#include "torch/autograd.h"

#include <ATen/ops/div.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/zeros_like.h>

#include "pointwise/op.h"

namespace fusedloss::pointwise::autograd {
namespace {

struct Family {
  using Loss = pointwise::Loss;
  using Arguments = pointwise::Arguments;
  static constexpr int kOperands = kMaxOperands;

  // To read the operands again takes no longer than to read a gradient.
  static constexpr bool kKeepsUnreduced = false;

  // On operands expanded to the shape of the loss, so that no sum comes in between.
  static at::Tensor second_along(const Loss& loss, Tensors tangents, const Tensors& moving, Arguments a,
                                 const at::Tensor& result) {
    const c10::SymDimVector shape = checked_shape(*loss.about, a);
    for (int k = 0; k < kOperands; ++k) {
      if (!a.operands[k].defined()) continue;
      a.operands[k] = a.operands[k].expand_symint(shape);
      if (tangents[k].defined()) tangents[k] = tangents[k].expand_symint(shape);
    }
    const Tensors second = call_hvp(loss, at::ones_like(result), moving, differentiable::defined(tangents), a);
    at::Tensor product = at::zeros_like(result);
    for (int k = 0; k < kOperands; ++k)
      if (tangents[k].defined()) {
        const at::Tensor term = second[k] * tangents[k];
        product = product + (a.reduction == Reduction::none ? term : term.sum());
      }
    return product;
  }
};

// ---- a weight that needs a derivative itself --------------------------------------------------------------------
//
// It multiplies the unreduced loss, or the gradient that comes in to it, by torch's own ops. That is rare, and then
// every order of derivative of the weight comes from torch.

bool active(const at::Tensor& weight) {
  return weight.defined() && (differentiable::requires_grad(weight) || differentiable::tangent_of(weight).defined());
}

Arguments unweighted(Arguments a) {
  a.weight = at::Tensor();
  a.reduction = Reduction::none;
  return a;
}

// By what the reduction divides a sum over the elements.
at::Tensor divided(const Loss& loss, const Arguments& a, c10::SymIntArrayRef shape, const at::Tensor& sum) {
  const auto count = [&](size_t dims) {
    c10::SymInt product = 1;
    for (size_t d = 0; d < dims; ++d) product *= shape[d];
    return at::Scalar(product);
  };
  switch (a.reduction) {
    case Reduction::mean:
      return loss.about->weighted_mean ? sum / a.weight.expand_symint(shape).sum() : sum / count(shape.size());
    case Reduction::batchmean: return a.operands[0].dim() == 0 ? sum : sum / at::Scalar(a.operands[0].sym_size(0));
    case Reduction::rowmean: return sum / count(shape.size() - 1);
    default: return sum;
  }
}

// Half types are computed in float32 here too, and rounded once.
at::ScalarType widened(at::ScalarType dtype) { return dtype == at::kDouble ? at::kDouble : at::kFloat; }
at::Tensor widened(const at::Tensor& t) { return t.to(widened(t.scalar_type())); }

// The weighted and reduced result, from the unreduced one that `compute` makes without the weight.
template <class Compute>
at::Tensor weighted_result(const Loss& loss, const Arguments& a, Compute compute) {
  const c10::SymDimVector shape = checked_shape(*loss.about, a);
  const auto dtype = a.dtype.value_or(promoted_type(*loss.about, a));
  Arguments plain = unweighted(a);
  plain.dtype = widened(dtype);
  const at::Tensor weighted = at::mul(compute(plain), a.weight);
  return (a.reduction == Reduction::none ? weighted : divided(loss, a, shape, weighted.sum())).to(dtype);
}

// The incoming gradient of the unreduced loss without the weight.
at::Tensor weighted_gradient(const Loss& loss, const Arguments& a, const at::Tensor& grad_output) {
  const c10::SymDimVector shape = checked_shape(*loss.about, a);
  return at::mul(widened(grad_output), divided(loss, a, shape, widened(a.weight))).expand_symint(shape);
}

}  // namespace

at::Tensor value(const Loss& loss, const Arguments& a) {
  if (!active(a.weight)) return differentiable::value<Family>(loss, a);
  return weighted_result(loss, a, [&](const Arguments& plain) { return call_value(loss, plain); });
}

Results backward(const Loss& loss, const at::Tensor& grad_output, Mask mask, const Arguments& a) {
  if (!active(a.weight)) return differentiable::backward<Family>(loss, grad_output, mask, a);
  const at::Tensor gradient = weighted_gradient(loss, a, grad_output);
  return differentiable::given_or_empty(call_backward(loss, gradient, mask, unweighted(a)), grad_output);
}

at::Tensor jvp(const Loss& loss, const Tensors& tangents, const Arguments& a) {
  if (!active(a.weight)) return differentiable::jvp<Family>(loss, tangents, a);
  return weighted_result(loss, a, [&](const Arguments& plain) { return call_jvp(loss, tangents, plain); });
}

Results hvp(const Loss& loss, const at::Tensor& grad_output, const Tensors& tangents, Mask mask, const Arguments& a) {
  if (!active(a.weight)) return differentiable::hvp<Family>(loss, grad_output, tangents, mask, a);
  const at::Tensor gradient = weighted_gradient(loss, a, grad_output);
  return differentiable::given_or_empty(call_hvp(loss, gradient, tangents, mask, unweighted(a)), grad_output);
}

}  // namespace fusedloss::pointwise::autograd
