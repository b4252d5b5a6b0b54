// The pointwise ops at the autograd key, and their registration.
//
// The nodes derive from torch's Node directly, as those of built-in ops do. torch::autograd::Function would refuse
// to run under torch.func and forward-mode AD, and costs more for every call.
#include <ATen/TensorOperators.h>
#include <ATen/TensorSubclassLikeUtils.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/add.h>
#include <ATen/ops/div.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/basic_ops.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/csrc/autograd/saved_variable.h>

#include "pointwise/device_pass.h"
#include "pointwise/op.h"

namespace fusedloss::pointwise::autograd {
namespace {

using torch::autograd::Node;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

// The arguments of a call as a node keeps them.
class SavedArguments {
 public:
  explicit SavedArguments(const Arguments& a)
      : parameters_(a.parameters.begin(), a.parameters.end()), reduction_(a.reduction), dtype_(a.dtype) {
    for (int k = 0; k < kMaxOperands; ++k) operands_[k] = SavedVariable(a.operands[k], /*is_output=*/false);
    weight_ = SavedVariable(a.weight, /*is_output=*/false);
  }
  // Fails, as torch does, where a tensor was changed in place or the graph was already released.
  Arguments unpack() const {
    Arguments a{{}, weight_.unpack(), parameters_, reduction_, dtype_};
    for (int k = 0; k < kMaxOperands; ++k) a.operands[k] = operands_[k].unpack();
    return a;
  }
  void release() {
    for (SavedVariable& operand : operands_) operand.reset_data();
    weight_.reset_data();
  }

 private:
  std::array<SavedVariable, kMaxOperands> operands_;
  SavedVariable weight_;
  c10::SmallVector<double, kMaxParameters> parameters_;
  Reduction reduction_;
  std::optional<at::ScalarType> dtype_;
};

using SavedTensors = std::array<SavedVariable, kMaxOperands>;
SavedTensors save(const Tensors& tensors) {
  SavedTensors saved;
  for (int k = 0; k < kMaxOperands; ++k) saved[k] = SavedVariable(tensors[k], /*is_output=*/false);
  return saved;
}
Tensors unpack(const SavedTensors& saved) {
  Tensors tensors;
  for (int k = 0; k < kMaxOperands; ++k) tensors[k] = saved[k].unpack();
  return tensors;
}

// What the nodes of the three differentiable ops share.
class LossNode : public Node {
 public:
  LossNode(const Loss& loss, const Arguments& arguments, const char* suffix)
      : loss_(loss), arguments_(arguments), suffix_(suffix) {}
  std::string name() const override { return std::string(loss_.about->name) + suffix_; }
  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    arguments_.release();
    release_more();
  }

 protected:
  virtual void release_more() {}
  // Which of the operands, whose edges start at `first`, need their gradient now.
  Mask needed(size_t first) const {
    Mask mask;
    for (int k = 0; k < kMaxOperands; ++k) mask[k] = task_should_compute_output(first + k);
    return mask;
  }

  const Loss& loss_;
  SavedArguments arguments_;

 private:
  const char* suffix_;
};

bool any(const Mask& mask) { return mask[0] || mask[1] || mask[2]; }

bool any_defined(const Tensors& tensors) {
  return tensors[0].defined() || tensors[1].defined() || tensors[2].defined();
}

bool is_plain(const at::Tensor& t) { return !at::isTensorSubclassLike(t) && !c10::impl::dispatch_mode_enabled(); }

// The number in a gradient may be looked at where that neither waits for a device nor ends a trace.
bool readable(const at::Tensor& grad) { return grad.is_cpu() && !on_device(grad) && is_plain(grad); }

// ---- NAME -----------------------------------------------------------------------------------------------------

class ValueBackward final : public LossNode {
 public:
  ValueBackward(const Loss& loss, const Arguments& a) : LossNode(loss, a, "_backward") {}

  // Keeps the gradients that the forward pass made for an incoming gradient of 1.
  void keep(const Tensors& gradients) {
    gradients_ = save(gradients);
    for (int k = 0; k < kMaxOperands; ++k) kept_[k] = gradients[k].defined();
  }

  variable_list apply(variable_list&& grads) override {
    std::lock_guard<std::mutex> lock(mutex_);
    variable_list results(kMaxOperands);
    const Mask mask = needed(0);
    if (!grads[0].defined() || !any(mask)) return results;
    const Arguments a = arguments_.unpack();
    Mask missing = mask;
    if (!at::GradMode::is_enabled())
      for (int k = 0; k < kMaxOperands; ++k)
        if (mask[k] && kept_[k]) {
          results[k] = scaled(k, grads[0]);
          missing[k] = !results[k].defined();
        }
    if (!any(missing)) return results;
    Tensors computed = call_backward(loss_, grads[0], missing, a);
    for (int k = 0; k < kMaxOperands; ++k)
      if (missing[k]) results[k] = std::move(computed[k]);
    return results;
  }

 private:
  // The gradient that the forward pass made, times the incoming one; or none, where it must be made anew: a half type
  // may have lost in range what the incoming gradient would have brought back (loss scaling).
  at::Tensor scaled(int k, const at::Tensor& grad) {
    at::Tensor gradient = gradients_[k].unpack();
    // A graph that is not kept gives its gradient away: torch then takes it as .grad without copying.
    const bool own = !torch::autograd::get_current_graph_task_keep_graph();
    if (own) gradients_[k].reset_data();
    const bool half = c10::isReducedFloatingType(gradient.scalar_type());
    if (!readable(grad)) return half ? at::Tensor() : scaled_unseen(gradient, grad, own);
    const double factor = grad.item().toDouble();
    if (factor == 1) return own ? gradient : gradient.clone();
    if (half) return {};
    return own ? gradient.mul_(factor) : at::mul(gradient, factor);
  }
  // Times a number that the host does not see.
  static at::Tensor scaled_unseen(const at::Tensor& gradient, const at::Tensor& grad, bool own) {
    if (!own || !on_device(gradient) || !is_plain(gradient) || !is_plain(grad) || !grad.is_floating_point())
      return at::mul(gradient, grad).to(gradient.scalar_type());
    if constexpr (kHasDevice) rescale_on_device(gradient, grad);
    return gradient;
  }
  void release_more() override {
    for (SavedVariable& gradient : gradients_) gradient.reset_data();
  }

  SavedTensors gradients_;
  Mask kept_{};
};

// ---- NAME_backward --------------------------------------------------------------------------------------------

class BackwardBackward final : public LossNode {
 public:
  BackwardBackward(const Loss& loss, const at::Tensor& grad_output, Mask mask, const Arguments& a)
      : LossNode(loss, a, "_double_backward"), grad_output_(grad_output, false), mask_(mask) {}

  variable_list apply(variable_list&& grads) override {
    std::lock_guard<std::mutex> lock(mutex_);
    variable_list results(1 + kMaxOperands);
    Tensors tangents;
    for (int k = 0; k < kMaxOperands; ++k)
      if (mask_[k]) tangents[k] = grads[k];
    if (!any_defined(tangents)) return results;
    Arguments a = arguments_.unpack();
    const at::Tensor grad_output = grad_output_.unpack();
    const Mask mask = needed(1);
    if (any(mask)) {
      Tensors second = call_hvp(loss_, grad_output, tangents, mask, a);
      std::move(second.begin(), second.end(), results.begin() + 1);
    }
    a.dtype = grad_output.scalar_type();
    if (task_should_compute_output(0)) results[0] = call_jvp(loss_, tangents, a);
    return results;
  }

 private:
  void release_more() override { grad_output_.reset_data(); }
  SavedVariable grad_output_;
  Mask mask_;
};

// ---- NAME_jvp -------------------------------------------------------------------------------------------------

class JvpBackward final : public LossNode {
 public:
  JvpBackward(const Loss& loss, const Tensors& tangents, const Arguments& a)
      : LossNode(loss, a, "_jvp_backward"), tangents_(save(tangents)) {}

  variable_list apply(variable_list&& grads) override {
    std::lock_guard<std::mutex> lock(mutex_);
    variable_list results(2 * kMaxOperands);
    if (!grads[0].defined()) return results;
    const Arguments a = arguments_.unpack();
    const Mask of_tangents = needed(0), of_operands = needed(kMaxOperands);
    if (any(of_tangents)) {
      Tensors first = call_backward(loss_, grads[0], of_tangents, a);
      std::move(first.begin(), first.end(), results.begin());
    }
    if (any(of_operands)) {
      Tensors second = call_hvp(loss_, grads[0], unpack(tangents_), of_operands, a);
      std::move(second.begin(), second.end(), results.begin() + kMaxOperands);
    }
    return results;
  }

 private:
  void release_more() override {
    for (SavedVariable& tangent : tangents_) tangent.reset_data();
  }
  SavedTensors tangents_;
};

// ---- recording ------------------------------------------------------------------------------------------------

bool requires_grad(const Tensors& t) { return torch::autograd::compute_requires_grad(t[0], t[1], t[2]); }

at::Tensor tangent_of(const at::Tensor& t) { return t.defined() ? t._fw_grad(/*level=*/0) : at::Tensor(); }

Tensors tangents_of(const Tensors& tensors) {
  return {tangent_of(tensors[0]), tangent_of(tensors[1]), tangent_of(tensors[2])};
}

at::Tensor primal_of(const at::Tensor& t) { return t.defined() ? t._fw_primal(/*level=*/0) : t; }

// The arguments without their tangents, for use in formulas of tangents.
Arguments primals_of(Arguments a) {
  for (at::Tensor& operand : a.operands) operand = primal_of(operand);
  return a;
}

Mask defined(const Tensors& tensors) { return {tensors[0].defined(), tensors[1].defined(), tensors[2].defined()}; }

Mask requiring_grad(const Tensors& tensors) {
  Mask mask;
  for (int k = 0; k < kMaxOperands; ++k) mask[k] = tensors[k].defined() && tensors[k].requires_grad();
  return mask;
}

// ---- a weight that needs a derivative itself --------------------------------------------------------------------
//
// It multiplies the unreduced loss, or the gradient that comes in to it, by torch's own ops. That is rare, and then
// every order of derivative of the weight comes from torch.

bool active(const at::Tensor& weight) {
  return weight.defined() && (torch::autograd::compute_requires_grad(weight) || tangent_of(weight).defined());
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

// Makes the node the history of all results: output k of the node's op is the gradient of operand k.
void record(Tensors& results, const c10::intrusive_ptr<Node>& node) {
  for (at::Tensor& result : results) {
    if (result.defined())
      torch::autograd::set_history(result, node);
    else
      node->add_input_metadata(Node::undefined_input());
  }
}

Triple triple_of(const Tensors& results, const at::Tensor& like) {
  const auto given = [&](const at::Tensor& result) {
    return result.defined() ? result : at::empty({0}, like.options());
  };
  return {given(results[0]), given(results[1]), given(results[2])};
}

}  // namespace

at::Tensor value(const Loss& loss, const Arguments& a) {
  if (active(a.weight))
    return weighted_result(loss, a, [&](const Arguments& plain) { return call_value(loss, plain); });

  c10::intrusive_ptr<ValueBackward> node;
  if (requires_grad(a.operands)) {
    node = c10::make_intrusive<ValueBackward>(loss, a);
    node->set_next_edges(torch::autograd::collect_next_edges(a.operands[0], a.operands[1], a.operands[2]));
  }
  at::Tensor result;
  {
    // In a trace and on a device a half gradient could not be used: its incoming one is not known to be 1.
    const at::Tensor& input = a.operands[0];
    const bool unseen = at::isTensorSubclassLike(input) || on_device(input);
    const bool keeps = a.reduction != Reduction::none && !(c10::isReducedFloatingType(input.scalar_type()) && unseen);
    at::AutoDispatchBelowADInplaceOrView below;
    if (node && keeps) {
      Gradients made = call_value_and_gradient(loss, requiring_grad(a.operands), a);
      result = std::move(made.value);
      node->keep(made.of);
    } else {
      result = call_value(loss, a);
    }
  }
  if (node) torch::autograd::set_history(result, node);
  const Tensors tangents = tangents_of(a.operands);
  if (any_defined(tangents)) {
    Arguments at_primals = primals_of(a);
    at_primals.dtype = result.scalar_type();
    result._set_fw_grad(call_jvp(loss, tangents, at_primals), /*level=*/0, /*is_inplace_op=*/false);
  }
  return result;
}

Triple backward(const Loss& loss, const at::Tensor& grad_output, Mask mask, const Arguments& a) {
  if (active(a.weight))
    return triple_of(call_backward(loss, weighted_gradient(loss, a, grad_output), mask, unweighted(a)), grad_output);

  c10::intrusive_ptr<BackwardBackward> node;
  if (requires_grad(a.operands) || torch::autograd::compute_requires_grad(grad_output)) {
    node = c10::make_intrusive<BackwardBackward>(loss, grad_output, mask, a);
    node->set_next_edges(torch::autograd::collect_next_edges(grad_output, a.operands[0], a.operands[1], a.operands[2]));
  }
  Tensors results;
  {
    at::AutoDispatchBelowADInplaceOrView below;
    results = call_backward(loss, grad_output, mask, a);
  }
  const at::Tensor moving_grad = tangent_of(grad_output);
  const Tensors tangents = tangents_of(a.operands);
  if (node) record(results, node);
  if (!moving_grad.defined() && !any_defined(tangents)) return triple_of(results, grad_output);

  const Arguments at_primals = primals_of(a);
  const at::Tensor grad = primal_of(grad_output);
  Tensors by_grad, by_operands;
  if (moving_grad.defined()) by_grad = call_backward(loss, moving_grad, mask, at_primals);
  if (any_defined(tangents)) by_operands = call_hvp(loss, grad, tangents, mask, at_primals);
  for (int k = 0; k < kMaxOperands; ++k) {
    if (!results[k].defined()) continue;
    const at::Tensor &one = by_grad[k], &two = by_operands[k];
    results[k]._set_fw_grad(one.defined() && two.defined() ? one + two : one.defined() ? one : two, 0, false);
  }
  return triple_of(results, grad_output);
}

at::Tensor jvp(const Loss& loss, const Tensors& tangents, const Arguments& a) {
  if (active(a.weight))
    return weighted_result(loss, a, [&](const Arguments& plain) { return call_jvp(loss, tangents, plain); });

  c10::intrusive_ptr<JvpBackward> node;
  if (requires_grad(a.operands) || requires_grad(tangents)) {
    node = c10::make_intrusive<JvpBackward>(loss, tangents, a);
    node->set_next_edges(torch::autograd::collect_next_edges(tangents[0], tangents[1], tangents[2], a.operands[0],
                                                             a.operands[1], a.operands[2]));
  }
  at::Tensor result;
  {
    at::AutoDispatchBelowADInplaceOrView below;
    result = call_jvp(loss, tangents, a);
  }
  if (node) torch::autograd::set_history(result, node);
  const Tensors moving_tangents = tangents_of(tangents), moving = tangents_of(a.operands);
  if (!any_defined(moving_tangents) && !any_defined(moving)) return result;

  Arguments at_primals = primals_of(a);
  at_primals.dtype = result.scalar_type();
  Tensors directions;
  for (int k = 0; k < kMaxOperands; ++k) directions[k] = primal_of(tangents[k]);
  at::Tensor change;
  if (any_defined(moving_tangents)) change = call_jvp(loss, moving_tangents, at_primals);
  if (any_defined(moving)) {
    // v . (H moving), on operands expanded to the shape of the loss so that no sum comes in between.
    const c10::SymDimVector shape = checked_shape(*loss.about, at_primals);
    Arguments expanded = at_primals;
    for (int k = 0; k < kMaxOperands; ++k) {
      if (!expanded.operands[k].defined()) continue;
      expanded.operands[k] = expanded.operands[k].expand_symint(shape);
      if (directions[k].defined()) directions[k] = directions[k].expand_symint(shape);
    }
    const Tensors second = call_hvp(loss, at::ones_like(result), moving, defined(directions), expanded);
    at::Tensor product = at::zeros_like(result);
    for (int k = 0; k < kMaxOperands; ++k)
      if (directions[k].defined()) {
        const at::Tensor term = second[k] * directions[k];
        product = product + (a.reduction == Reduction::none ? term : term.sum());
      }
    change = change.defined() ? change + product : product;
  }
  result._set_fw_grad(change.to(result.scalar_type()), 0, false);
  return result;
}

Triple hvp(const Loss& loss, const at::Tensor& grad_output, const Tensors& tangents, Mask mask, const Arguments& a) {
  if (active(a.weight)) {
    const at::Tensor gradient = weighted_gradient(loss, a, grad_output);
    return triple_of(call_hvp(loss, gradient, tangents, mask, unweighted(a)), grad_output);
  }

  TORCH_CHECK_NOT_IMPLEMENTED(!any_defined(tangents_of(a.operands)) && !any_defined(tangents_of(tangents)) &&
                                  !tangent_of(grad_output).defined(),
                              "fusedloss: the third derivative of ", loss.about->name, " is not implemented");
  Tensors results;
  {
    at::AutoDispatchBelowADInplaceOrView below;
    results = call_hvp(loss, grad_output, tangents, mask, a);
  }
  if (requires_grad(a.operands) || requires_grad(tangents) || torch::autograd::compute_requires_grad(grad_output)) {
    const auto node = c10::make_intrusive<torch::autograd::NotImplemented>(
        std::string("fusedloss: the third derivative of ") + loss.about->name);
    node->set_next_edges(torch::autograd::collect_next_edges(grad_output, tangents[0], tangents[1], tangents[2],
                                                             a.operands[0], a.operands[1], a.operands[2]));
    record(results, node);
  }
  return triple_of(results, grad_output);
}

}  // namespace fusedloss::pointwise::autograd
