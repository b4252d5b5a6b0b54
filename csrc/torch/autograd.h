// The autograd key of the ops of every family: nodes that record, and the formulas of forward-mode derivatives.
//
// A family F has five ops that are closed under differentiation (torch/ops.h), which these templates
// call through the dispatcher. It says
//
//   F::Loss, F::Arguments, F::kOperands
//   Arguments: operands, reduction, dtype, parameters if there are any, and tensors(), pointers to all that a node
//   has to save
//   call_value(loss, arguments) and the other four
//   F::second_along(loss, tangents, moving, arguments): v . (H moving), for a tangent of a jvp
//   F::kKeepsUnreduced: whether the gradient of an unreduced loss is made in the forward pass too; if so,
//   F::scaled_unreduced(loss, gradient, grad_output, arguments, in_place) multiplies it by what comes in
//
// The nodes derive from torch's Node directly, as those of built-in ops do. torch::autograd::Function would refuse
// to run under torch.func and forward-mode AD, and costs more for every call.
#pragma once
#include <ATen/TensorOperators.h>
#include <ATen/TensorSubclassLikeUtils.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mul.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/basic_ops.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/csrc/autograd/saved_variable.h>

#include <string>

#include "core/loss.h"
#include "torch/device.h"
#include "torch/family.h"

namespace fusedloss::differentiable {

using torch::autograd::Node;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

using family::Mask;
using family::Results;
using family::Tensors;

inline bool is_plain(const at::Tensor& t) {
  return !at::isTensorSubclassLike(t) && !c10::impl::dispatch_mode_enabled();
}

template <size_t n>
bool any(const std::array<bool, n>& mask) {
  for (const bool wanted : mask)
    if (wanted) return true;
  return false;
}
template <size_t n>
std::array<bool, n> defined(const std::array<at::Tensor, n>& tensors) {
  std::array<bool, n> mask;
  for (size_t k = 0; k < n; ++k) mask[k] = tensors[k].defined();
  return mask;
}
template <size_t n>
bool any_defined(const std::array<at::Tensor, n>& tensors) {
  return any(defined(tensors));
}
template <size_t n>
std::array<bool, n> requiring_grad(const std::array<at::Tensor, n>& tensors) {
  std::array<bool, n> mask;
  for (size_t k = 0; k < n; ++k) mask[k] = tensors[k].defined() && tensors[k].requires_grad();
  return mask;
}
inline bool requires_grad(const at::Tensor& tensor) { return torch::autograd::compute_requires_grad(tensor); }
template <size_t n>
bool requires_grad(const std::array<at::Tensor, n>& tensors) {
  return std::apply([](const auto&... t) { return torch::autograd::compute_requires_grad(t...); }, tensors);
}

inline at::Tensor tangent_of(const at::Tensor& t) { return t.defined() ? t._fw_grad(/*level=*/0) : at::Tensor(); }
inline at::Tensor primal_of(const at::Tensor& t) { return t.defined() ? t._fw_primal(/*level=*/0) : t; }
template <size_t n>
std::array<at::Tensor, n> tangents_of(const std::array<at::Tensor, n>& tensors) {
  return std::apply([](const auto&... t) { return std::array<at::Tensor, n>{tangent_of(t)...}; }, tensors);
}
template <size_t n>
std::array<at::Tensor, n> primals_of(const std::array<at::Tensor, n>& tensors) {
  return std::apply([](const auto&... t) { return std::array<at::Tensor, n>{primal_of(t)...}; }, tensors);
}
// The arguments without the tangents of their operands, for use in formulas of tangents.
template <class Arguments>
Arguments at_primals(Arguments a) {
  a.operands = primals_of(a.operands);
  return a;
}

template <size_t n>
std::array<SavedVariable, n> save(const std::array<at::Tensor, n>& tensors) {
  return std::apply([](const auto&... t) { return std::array<SavedVariable, n>{SavedVariable(t, false)...}; }, tensors);
}
template <size_t n>
std::array<at::Tensor, n> unpack(const std::array<SavedVariable, n>& saved) {
  return std::apply([](const auto&... s) { return std::array<at::Tensor, n>{s.unpack()...}; }, saved);
}
template <size_t n>
void release(std::array<SavedVariable, n>& saved) {
  for (SavedVariable& variable : saved) variable.reset_data();
}

// The arguments of a call as a node keeps them.
template <class Arguments>
class SavedArguments {
 public:
  explicit SavedArguments(const Arguments& a) : rest_(a) {
    for (at::Tensor* tensor : rest_.tensors()) {
      saved_.emplace_back(*tensor, /*is_output=*/false);
      tensor->reset();
    }
    if constexpr (requires { a.parameters; }) {
      parameters_.assign(a.parameters.begin(), a.parameters.end());
      rest_.parameters = parameters_;
    }
  }
  SavedArguments(const SavedArguments&) = delete;  // rest_ points into it
  // Fails, as torch does, where a tensor was changed in place or the graph was already released.
  Arguments unpack() const {
    Arguments a = rest_;
    size_t next = 0;
    for (at::Tensor* tensor : a.tensors()) *tensor = saved_[next++].unpack();
    return a;
  }
  void release() {
    for (SavedVariable& saved : saved_) saved.reset_data();
  }

 private:
  Arguments rest_;
  c10::SmallVector<double, kMaxParameters> parameters_;
  c10::SmallVector<SavedVariable, 4> saved_;
};

// What the nodes of the three differentiable ops share.
template <class F>
class LossNode : public Node {
 public:
  LossNode(const typename F::Loss& loss, const typename F::Arguments& arguments, const char* suffix)
      : loss_(loss), arguments_(arguments), suffix_(suffix) {}
  std::string name() const override { return std::string(loss_.about->name) + suffix_; }
  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    arguments_.release();
    release_more();
  }

 protected:
  static constexpr int kOperands = F::kOperands;
  virtual void release_more() {}
  // Which of the operands, whose edges start at `first`, need their gradient now.
  Mask<F> needed(size_t first) const {
    Mask<F> mask;
    for (int k = 0; k < kOperands; ++k) mask[k] = task_should_compute_output(first + k);
    return mask;
  }

  const typename F::Loss& loss_;
  SavedArguments<typename F::Arguments> arguments_;

 private:
  const char* suffix_;
};

// ---- NAME -----------------------------------------------------------------------------------------------------

template <class F>
class ValueBackward final : public LossNode<F> {
  using Base = LossNode<F>;
  using Base::kOperands;

 public:
  ValueBackward(const typename F::Loss& loss, const typename F::Arguments& a) : Base(loss, a, "_backward") {}

  // Keeps the gradients that the forward pass made for an incoming gradient of 1.
  void keep(const Tensors<F>& gradients) {
    gradients_ = save(gradients);
    kept_ = defined(gradients);
  }

  variable_list apply(variable_list&& grads) override {
    std::lock_guard<std::mutex> lock(this->mutex_);
    variable_list results(kOperands);
    const Mask<F> mask = this->needed(0);
    if (!grads[0].defined() || !any(mask)) return results;
    const auto a = this->arguments_.unpack();
    Mask<F> missing = mask;
    if (!at::GradMode::is_enabled())
      for (int k = 0; k < kOperands; ++k)
        if (mask[k] && kept_[k]) {
          results[k] = scaled(k, grads[0], a);
          missing[k] = !results[k].defined();
        }
    if (!any(missing)) return results;
    Tensors<F> computed = call_backward(this->loss_, grads[0], missing, a);
    for (int k = 0; k < kOperands; ++k)
      if (missing[k]) results[k] = std::move(computed[k]);
    return results;
  }

 private:
  // The number in a gradient may be looked at where that neither waits for a device nor ends a trace.
  static bool readable(const at::Tensor& grad) { return grad.is_cpu() && !on_device(grad) && is_plain(grad); }

  // item() without the dispatcher, for what backward() starts with.
  static double number_in(const at::Tensor& grad) {
    const bool as_it_lies = grad.scalar_type() == at::kFloat && !grad.is_neg() && !grad._is_zerotensor();
    return as_it_lies ? *grad.const_data_ptr<float>() : grad.item().toDouble();
  }

  // The gradient that the forward pass made, times the incoming one; or none, where it must be made anew: a half type
  // may have lost in range what the incoming gradient would have brought back (loss scaling).
  at::Tensor scaled(int k, const at::Tensor& grad, [[maybe_unused]] const typename F::Arguments& a) {
    at::Tensor gradient = gradients_[k].unpack();
    // A graph that is not kept gives its gradient away: torch then takes it as .grad without copying.
    const bool own = !torch::autograd::get_current_graph_task_keep_graph();
    if (own) gradients_[k].reset_data();
    const bool half = c10::isReducedFloatingType(gradient.scalar_type());
    if constexpr (F::kKeepsUnreduced)
      if (a.reduction == Reduction::none)
        return half || !readable(grad) ? at::Tensor() : F::scaled_unreduced(this->loss_, gradient, grad, a, own);
    if (!readable(grad)) return half ? at::Tensor() : scaled_unseen(gradient, grad, own);
    const double factor = number_in(grad);
    if (factor == 1) return own ? gradient : gradient.clone();
    if (half) return {};
    return own ? gradient.mul_(factor) : at::mul(gradient, factor);
  }
  // Times a number that the host does not see.
  static at::Tensor scaled_unseen(const at::Tensor& gradient, const at::Tensor& grad, bool own) {
    if (!own || !on_device(gradient) || !is_plain(gradient) || !is_plain(grad) || !grad.is_floating_point())
      return at::mul(gradient, grad).to(gradient.scalar_type());
    rescale_on_device(gradient, grad);
    return gradient;
  }
  void release_more() override { release(gradients_); }

  std::array<SavedVariable, F::kOperands> gradients_;
  Mask<F> kept_{};
};

// ---- NAME_backward --------------------------------------------------------------------------------------------

template <class F>
class BackwardBackward final : public LossNode<F> {
  using Base = LossNode<F>;
  using Base::kOperands;

 public:
  BackwardBackward(const typename F::Loss& loss, const at::Tensor& grad_output, Mask<F> mask,
                   const typename F::Arguments& a)
      : Base(loss, a, "_double_backward"), grad_output_(grad_output, false), mask_(mask) {}

  variable_list apply(variable_list&& grads) override {
    std::lock_guard<std::mutex> lock(this->mutex_);
    variable_list results(1 + kOperands);
    Tensors<F> tangents;
    for (int k = 0; k < kOperands; ++k)
      if (mask_[k]) tangents[k] = grads[k];
    if (!any_defined(tangents)) return results;
    auto a = this->arguments_.unpack();
    const at::Tensor grad_output = grad_output_.unpack();
    const Mask<F> mask = this->needed(1);
    if (any(mask)) {
      Tensors<F> second = call_hvp(this->loss_, grad_output, tangents, mask, a);
      std::move(second.begin(), second.end(), results.begin() + 1);
    }
    a.dtype = grad_output.scalar_type();
    if (this->task_should_compute_output(0)) results[0] = call_jvp(this->loss_, tangents, a);
    return results;
  }

 private:
  void release_more() override { grad_output_.reset_data(); }
  SavedVariable grad_output_;
  Mask<F> mask_;
};

// ---- NAME_jvp -------------------------------------------------------------------------------------------------

template <class F>
class JvpBackward final : public LossNode<F> {
  using Base = LossNode<F>;
  using Base::kOperands;

 public:
  JvpBackward(const typename F::Loss& loss, const Tensors<F>& tangents, const typename F::Arguments& a)
      : Base(loss, a, "_jvp_backward"), tangents_(save(tangents)) {}

  variable_list apply(variable_list&& grads) override {
    std::lock_guard<std::mutex> lock(this->mutex_);
    variable_list results(2 * kOperands);
    if (!grads[0].defined()) return results;
    const auto a = this->arguments_.unpack();
    const Mask<F> of_tangents = this->needed(0), of_operands = this->needed(kOperands);
    if (any(of_tangents)) {
      Tensors<F> first = call_backward(this->loss_, grads[0], of_tangents, a);
      std::move(first.begin(), first.end(), results.begin());
    }
    if (any(of_operands)) {
      Tensors<F> second = call_hvp(this->loss_, grads[0], unpack(tangents_), of_operands, a);
      std::move(second.begin(), second.end(), results.begin() + kOperands);
    }
    return results;
  }

 private:
  void release_more() override { release(tangents_); }
  std::array<SavedVariable, F::kOperands> tangents_;
};

// ---- the ops ----------------------------------------------------------------------------------------------------

// The edges to the tensors and to the elements of arrays of them, in order.
template <class... Parts>
torch::autograd::edge_list edges_to(const Parts&... parts) {
  const auto all_of = [](const auto& part) {
    if constexpr (std::is_same_v<std::decay_t<decltype(part)>, at::Tensor>)
      return std::tie(part);
    else
      return std::apply([](const auto&... t) { return std::tie(t...); }, part);
  };
  return std::apply([](const auto&... t) { return torch::autograd::collect_next_edges(t...); },
                    std::tuple_cat(all_of(parts)...));
}

// Makes the node the history of all results: output k of the node's op is the gradient of operand k.
template <size_t n>
void record(std::array<at::Tensor, n>& results, const c10::intrusive_ptr<Node>& node) {
  for (at::Tensor& result : results) {
    if (result.defined())
      torch::autograd::set_history(result, node);
    else
      node->add_input_metadata(Node::undefined_input());
  }
}

// Results that were not asked for are empty tensors: torch's ops cannot return undefined ones.
template <size_t n>
auto given_or_empty(std::array<at::Tensor, n> results, const at::Tensor& like) {
  for (at::Tensor& result : results)
    if (!result.defined()) result = at::empty({0}, like.options());
  return std::tuple_cat(std::move(results));
}

template <class F>
at::Tensor value(const typename F::Loss& loss, const typename F::Arguments& a) {
  c10::intrusive_ptr<ValueBackward<F>> node;
  if (requires_grad(a.operands)) {
    node = c10::make_intrusive<ValueBackward<F>>(loss, a);
    node->set_next_edges(edges_to(a.operands));
  }
  at::Tensor result;
  {
    const at::Tensor& input = a.operands[0];
    const bool unseen = at::isTensorSubclassLike(input) || on_device(input);
    const bool half = c10::isReducedFloatingType(input.scalar_type());
    // In a trace and on a device a half gradient could not be used: its incoming one is not known to be 1.
    const bool keeps = a.reduction == Reduction::none ? F::kKeepsUnreduced && !unseen && !half : !(half && unseen);
    at::AutoDispatchBelowADInplaceOrView below;
    if (node && keeps) {
      auto made = call_value_and_gradient(loss, requiring_grad(a.operands), a);
      result = std::move(made.value);
      node->keep(made.of);
    } else {
      result = call_value(loss, a);
    }
  }
  if (node) torch::autograd::set_history(result, node);
  const Tensors<F> tangents = tangents_of(a.operands);
  if (any_defined(tangents)) {
    auto primals = at_primals(a);
    primals.dtype = result.scalar_type();
    result._set_fw_grad(call_jvp(loss, tangents, primals), /*level=*/0, /*is_inplace_op=*/false);
  }
  return result;
}

template <class F>
Results<F> backward(const typename F::Loss& loss, const at::Tensor& grad_output, Mask<F> mask,
                    const typename F::Arguments& a) {
  c10::intrusive_ptr<BackwardBackward<F>> node;
  if (requires_grad(a.operands) || requires_grad(grad_output)) {
    node = c10::make_intrusive<BackwardBackward<F>>(loss, grad_output, mask, a);
    node->set_next_edges(edges_to(grad_output, a.operands));
  }
  Tensors<F> results;
  {
    at::AutoDispatchBelowADInplaceOrView below;
    results = call_backward(loss, grad_output, mask, a);
  }
  const at::Tensor moving_grad = tangent_of(grad_output);
  const Tensors<F> tangents = tangents_of(a.operands);
  if (node) record(results, node);
  if (!moving_grad.defined() && !any_defined(tangents)) return given_or_empty(results, grad_output);

  const auto primals = at_primals(a);
  const at::Tensor grad = primal_of(grad_output);
  Tensors<F> by_grad, by_operands;
  if (moving_grad.defined()) by_grad = call_backward(loss, moving_grad, mask, primals);
  if (any_defined(tangents)) by_operands = call_hvp(loss, grad, tangents, mask, primals);
  for (int k = 0; k < F::kOperands; ++k) {
    if (!results[k].defined()) continue;
    const at::Tensor &one = by_grad[k], &two = by_operands[k];
    results[k]._set_fw_grad(one.defined() && two.defined() ? one + two : one.defined() ? one : two, 0, false);
  }
  return given_or_empty(results, grad_output);
}

template <class F>
at::Tensor jvp(const typename F::Loss& loss, const Tensors<F>& tangents, const typename F::Arguments& a) {
  c10::intrusive_ptr<JvpBackward<F>> node;
  if (requires_grad(a.operands) || requires_grad(tangents)) {
    node = c10::make_intrusive<JvpBackward<F>>(loss, tangents, a);
    node->set_next_edges(edges_to(tangents, a.operands));
  }
  at::Tensor result;
  {
    at::AutoDispatchBelowADInplaceOrView below;
    result = call_jvp(loss, tangents, a);
  }
  if (node) torch::autograd::set_history(result, node);
  const Tensors<F> moving_tangents = tangents_of(tangents), moving = tangents_of(a.operands);
  if (!any_defined(moving_tangents) && !any_defined(moving)) return result;

  auto primals = at_primals(a);
  primals.dtype = result.scalar_type();
  at::Tensor change;
  if (any_defined(moving_tangents)) change = call_jvp(loss, moving_tangents, primals);
  if (any_defined(moving)) {
    const at::Tensor second = F::second_along(loss, primals_of(tangents), moving, primals, result);
    change = change.defined() ? change + second : second;
  }
  result._set_fw_grad(change.to(result.scalar_type()), 0, false);
  return result;
}

template <class F>
Results<F> hvp(const typename F::Loss& loss, const at::Tensor& grad_output, const Tensors<F>& tangents, Mask<F> mask,
               const typename F::Arguments& a) {
  TORCH_CHECK_NOT_IMPLEMENTED(!any_defined(tangents_of(a.operands)) && !any_defined(tangents_of(tangents)) &&
                                  !tangent_of(grad_output).defined(),
                              "fusedloss: the third derivative of ", loss.about->name, " is not implemented");
  Tensors<F> results;
  {
    at::AutoDispatchBelowADInplaceOrView below;
    results = call_hvp(loss, grad_output, tangents, mask, a);
  }
  if (requires_grad(a.operands) || requires_grad(tangents) || requires_grad(grad_output)) {
    const auto node = c10::make_intrusive<torch::autograd::NotImplemented>(
        std::string("fusedloss: the third derivative of ") + loss.about->name);
    node->set_next_edges(edges_to(grad_output, tangents, a.operands));
    record(results, node);
  }
  return given_or_empty(results, grad_output);
}

// ---- a family's own -------------------------------------------------------------------------------------------

// Stands once in the namespace `autograd` of a family F that has nothing else to say of it, after F.
#define FUSEDLOSS_AUTOGRAD(F)                                                                          \
  at::Tensor value(const Loss& loss, const Arguments& a) { return differentiable::value<F>(loss, a); } \
  Results backward(const Loss& loss, const at::Tensor& grad_output, Mask mask, const Arguments& a) {   \
    return differentiable::backward<F>(loss, grad_output, mask, a);                                    \
  }                                                                                                    \
  at::Tensor jvp(const Loss& loss, const Tensors& tangents, const Arguments& a) {                      \
    return differentiable::jvp<F>(loss, tangents, a);                                                  \
  }                                                                                                    \
  Results hvp(const Loss& loss, const at::Tensor& grad_output, const Tensors& tangents, Mask mask,     \
              const Arguments& a) {                                                                    \
    return differentiable::hvp<F>(loss, grad_output, tangents, mask, a);                               \
  }

}  // namespace fusedloss::differentiable
