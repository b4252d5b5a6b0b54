// The rows' ops at the autograd key: torch/autograd.h, and weights that need a derivative themselves.
#include "torch/autograd.h"

#include <ATen/core/Reduction.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/binary_cross_entropy_with_logits.h>
#include <ATen/ops/mean.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>

#include "rows/op.h"

namespace fusedloss::rows::autograd {
namespace {

struct Family {
  using Loss = rows::Loss;
  using Arguments = rows::Arguments;
  static constexpr int kOperands = kMaxOperands;

  // Else the stages of every row would be computed twice.
  static constexpr bool kKeepsUnreduced = true;
  static at::Tensor scaled_unreduced(const Loss& loss, const at::Tensor& gradient, const at::Tensor& grad_output,
                                     const Arguments& a, bool in_place) {
    return kernels::scaled_rows(loss, gradient, grad_output, a, in_place);
  }

  static at::Tensor second_along(const Loss& loss, const Tensors& tangents, const Tensors& moving, const Arguments& a,
                                 const at::Tensor& result) {
    const Tensors second = call_hvp(loss, at::ones_like(result), moving, differentiable::defined(tangents), a);
    at::Tensor product = at::zeros_like(result);
    for (int k = 0; k < kOperands; ++k)
      if (tangents[k].defined()) {
        const at::Tensor term = second[k] * tangents[k];
        product = product + (a.reduction == Reduction::none ? term.sum(a.axis) : term.sum());
      }
    return product;
  }
};

// ---- a backward pass in place ------------------------------------------------------------------------------------

// The gradient of the input takes the input's own memory. Whoever saved the input sees by its version that it changed,
// this node included: there is no second pass through it.
class InPlaceBackward final : public differentiable::LossNode<Family> {
 public:
  InPlaceBackward(const Loss& loss, const Arguments& a) : LossNode(loss, a, "_in_place_backward") {}

  torch::autograd::variable_list apply(torch::autograd::variable_list&& grads) override {
    std::lock_guard<std::mutex> lock(mutex_);
    torch::autograd::variable_list results(kOperands);
    TORCH_CHECK_NOT_IMPLEMENTED(!at::GradMode::is_enabled(), name(), ": inplace_backward has no second derivative");
    const Mask mask = needed(0);
    if (!grads[0].defined() || !differentiable::any(mask)) return results;
    const Arguments a = arguments_.unpack();
    if (mask[1]) results[1] = call_backward(loss_, grads[0], {false, true}, a)[1];
    if (mask[0]) {
      results[0] = a.operands[0].detach();
      kernels::backward_into(loss_, grads[0], a, results[0]);
      results[0].unsafeGetTensorImpl()->bump_version();
    }
    return results;
  }
};

// ---- weights that need a derivative themselves --------------------------------------------------------------------
//
// They multiply the unreduced loss, or the mass of its target, by torch's own ops. That is rare, and then every order
// of their derivatives comes from torch.

bool active(const at::Tensor& weight) {
  return weight.defined() && (differentiable::requires_grad(weight) || differentiable::tangent_of(weight).defined());
}
bool active(const Arguments& a) { return active(a.weight) || active(a.sample_weight); }

class Weighted {
 public:
  Weighted(const Loss& loss, const Arguments& a) : loss_(loss), a_(a), known_(check(*loss.about, a)) {
    compute_ = known_.compute;
    if (!known_.dense) {
      in_mean_ = counts_ = a.operands[1].ne(a.ignore_index);
      labels_ = at::where(counts_, a.operands[1], 0).to(at::kLong);
    }
    if (!a.sample_weight.defined()) return;
    const at::Tensor present = a.sample_weight.ne(0);
    counts_ = counts_.defined() ? counts_.logical_and(present) : present;
    if (loss.about->weighted_mean) in_mean_ = counts_;
  }

  at::Tensor value() const {
    if (by_class()) return reduced(mean_of_classes()).to(known_.dtype);
    c10::SmallVector<double, kMaxParameters> parameters;
    at::Tensor rows = call_value(loss_, plain(parameters));
    const at::Tensor factor = of_rows();
    return reduced(factor.defined() ? rows * factor : rows).to(known_.dtype);
  }

  // The gradients, as torch's ops of the weights.
  Tensors backward(const at::Tensor& grad_output, const Mask& mask) const {
    if (by_class()) return backward_of_classes(grad_output, mask);
    c10::SmallVector<double, kMaxParameters> parameters;
    const Arguments a = plain(parameters);
    at::SymDimVector shape(known_.rows.begin(), known_.rows.end());
    at::Tensor grad = grad_output.to(compute_);
    if (a_.reduction != Reduction::none && a_.reduction != Reduction::sum) grad = divided(grad);
    const at::Tensor factor = of_rows();
    if (factor.defined()) grad = grad * factor;
    Tensors results = call_backward(loss_, grad.expand_symint(shape), mask, a);
    if (results[1].defined() && a_.weight.defined() && loss_.about->weighs_mass)
      results[1] = results[1] * (a_.weight.to(compute_).view_symint(along_classes()) * (1 - a_.parameters[0]));
    return results;
  }

 private:
  // Of the class that is the row's label.
  at::Tensor of_label() const { return a_.weight.to(compute_).take(labels_); }

  // The arguments without the weights; what they leave out stays out.
  Arguments plain(c10::SmallVector<double, kMaxParameters>& parameters) const {
    Arguments plain = a_;
    parameters.assign(a_.parameters.begin(), a_.parameters.end());
    plain.reduction = Reduction::none;
    plain.dtype = compute_;
    plain.weight = at::Tensor();
    plain.sample_weight = counts_.defined() ? counts_.to(compute_) : at::Tensor();
    if (a_.weight.defined() && loss_.about->weighs_mass) {
      plain.operands[1] = mass();
      parameters[0] = 0;  // the smoothing is in the mass
    }
    plain.parameters = parameters;
    return plain;
  }
  // What multiplies the rows, if anything does.
  at::Tensor of_rows() const {
    const bool by_label = a_.weight.defined() && !loss_.about->weighs_mass;
    if (by_label && a_.sample_weight.defined()) return of_label() * a_.sample_weight;
    return by_label ? of_label() : a_.sample_weight;
  }
  at::SymDimVector along_classes() const {
    at::SymDimVector along(a_.operands[0].dim(), c10::SymInt(1));
    along[known_.axis] = known_.classes;
    return along;
  }

  // multilabel_soft_margin_loss: the mean over the classes of their own, weighted losses.
  bool by_class() const { return a_.weight.defined() && !takes_labels(loss_.about->targets); }
  at::Tensor mean_of_classes() const {
    const at::Tensor each = at::binary_cross_entropy_with_logits(
        a_.operands[0].to(compute_), a_.operands[1].to(compute_), {}, {}, at::Reduction::None);
    return (each * a_.weight.to(compute_).view_symint(along_classes())).mean(known_.axis);
  }

  // The weighted and smoothed target.
  at::Tensor mass() const {
    const double smoothing = a_.parameters[0];
    const at::SymDimVector along = along_classes();
    at::Tensor target = a_.operands[1];
    if (!known_.dense) {
      const auto classes = at::arange(known_.classes, labels_.options()).view_symint(along);
      target = labels_.unsqueeze(known_.axis).eq(classes).to(compute_);
    }
    const at::Tensor smoothed =
        smoothing == 0
            ? target
            : target * (1 - smoothing) + at::Scalar(c10::SymFloat(smoothing) / c10::SymFloat(known_.classes));
    return smoothed * a_.weight.to(compute_).view_symint(along);
  }

  Tensors backward_of_classes(const at::Tensor& grad_output, const Mask& mask) const {
    at::Tensor grad = grad_output.to(compute_);
    if (a_.reduction != Reduction::none && a_.reduction != Reduction::sum) grad = divided(grad);
    if (a_.sample_weight.defined()) grad = grad * a_.sample_weight;
    at::SymDimVector shape(known_.rows.begin(), known_.rows.end());
    const at::Tensor each = grad.expand_symint(shape).unsqueeze(known_.axis) *
                            (a_.weight.to(compute_).view_symint(along_classes()) / at::Scalar(known_.classes));
    const at::Tensor x = a_.operands[0].to(compute_), target = a_.operands[1].to(compute_);
    Tensors results;
    if (mask[0]) results[0] = (each * (x.sigmoid() - target)).to(a_.operands[0].scalar_type());
    if (mask[1]) results[1] = (-each * x).to(a_.operands[1].scalar_type());
    return results;
  }

  at::Tensor reduced(const at::Tensor& rows) const {
    if (a_.reduction == Reduction::none) return rows;
    return a_.reduction == Reduction::sum ? rows.sum() : divided(rows.sum());
  }
  // By what the mean divides a sum over the rows.
  at::Tensor divided(const at::Tensor& sum) const {
    at::Tensor each = at::ones_symint(known_.rows, a_.operands[0].options().dtype(compute_));
    if (loss_.about->weighted_mean) {
      if (a_.weight.defined() && !known_.dense) each = each * of_label();
      if (a_.sample_weight.defined()) each = each * a_.sample_weight;
    }
    if (in_mean_.defined()) each = at::where(in_mean_, each, 0);
    const at::Tensor total = each.sum();
    return a_.reduction == Reduction::mean_or_zero ? at::where(total.eq(0), 0, sum / total) : sum / total;
  }

  const Loss& loss_;
  const Arguments& a_;
  const Checked known_;
  at::ScalarType compute_;
  at::Tensor labels_;  // 0 for rows that do not count
  at::Tensor counts_, in_mean_;
};

void refuse_active(const Loss& loss, const Arguments& a) {
  TORCH_CHECK_NOT_IMPLEMENTED(!active(a), "fusedloss: ", loss.about->name,
                              ": the derivatives of this op do not reach a weight; call the loss itself");
}

}  // namespace

at::Tensor value(const Loss& loss, const Arguments& a) {
  if (active(a)) return Weighted(loss, a).value();
  return differentiable::value<Family>(loss, a);
}

at::Tensor value_with_in_place_backward(const Loss& loss, const Arguments& a) {
  const at::Tensor& input = a.operands[0];
  if (active(a) || !differentiable::requires_grad(input) || !differentiable::is_plain(input) ||
      differentiable::any_defined(differentiable::tangents_of(a.operands)))
    return call_value(loss, a);
  TORCH_CHECK_VALUE(input.is_non_overlapping_and_dense(), loss.about->name,
                    ": inplace_backward needs an input that fills its memory without gaps, got strides ",
                    input.strides(), " for shape ", input.sizes());
  const auto node = c10::make_intrusive<InPlaceBackward>(loss, a);
  node->set_next_edges(differentiable::edges_to(a.operands));
  at::Tensor result;
  {
    at::AutoDispatchBelowADInplaceOrView below;
    result = call_value(loss, a);
  }
  torch::autograd::set_history(result, node);
  return result;
}

Results backward(const Loss& loss, const at::Tensor& grad_output, Mask mask, const Arguments& a) {
  if (active(a)) return differentiable::given_or_empty(Weighted(loss, a).backward(grad_output, mask), grad_output);
  return differentiable::backward<Family>(loss, grad_output, mask, a);
}

at::Tensor jvp(const Loss& loss, const Tensors& tangents, const Arguments& a) {
  refuse_active(loss, a);
  return differentiable::jvp<Family>(loss, tangents, a);
}

Results hvp(const Loss& loss, const at::Tensor& grad_output, const Tensors& tangents, Mask mask, const Arguments& a) {
  refuse_active(loss, a);
  return differentiable::hvp<Family>(loss, grad_output, tangents, mask, a);
}

}  // namespace fusedloss::rows::autograd
