// Registers the rows' ops: for each loss of losses.def the five schemas of op.h, and what they do at each key.
#include "rows/op.h"

#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include "torch/checks.h"

namespace fusedloss::rows {
namespace {

// ---- schemas --------------------------------------------------------------------------------------------------

void define(torch::Library& library, const Description& about) {
  const std::string name = about.name;
  const std::string arguments = std::string("Tensor ") + about.operands[0] + ", Tensor " + about.operands[1] +
                                ", Tensor? weight, Tensor? sample_weight, float[] parameters, int axis, "
                                "int ignore_index, int reduction";
  const std::string tangents = "Tensor? tangent0, Tensor? tangent1, ";
  const auto add = [&](const std::string& schema) { library.def(schema.c_str(), {at::Tag::pt2_compliant_tag}); };
  add(name + "(" + arguments + ", ScalarType? dtype=None) -> Tensor");
  add(name + "_value_and_gradient(bool[2] mask, " + arguments + ", ScalarType? dtype=None) -> (Tensor, Tensor[])");
  add(name + "_backward(Tensor grad_output, bool[2] mask, " + arguments + ") -> (Tensor, Tensor)");
  add(name + "_jvp(" + tangents + arguments + ", ScalarType? dtype=None) -> Tensor");
  add(name + "_hvp(Tensor grad_output, " + tangents + "bool[2] mask, " + arguments + ") -> (Tensor, Tensor)");
}

// ---- from an op's C++ signature to a function of (loss, ..., arguments) ------------------------------------------

using Optional = const OptionalTensor&;
using Tensor = const at::Tensor&;
// The signature of an op that returns R, takes First, and then what all ops end with; values have a dtype too.
template <class R, class... First>
using Op = R(First..., Tensor, Tensor, Optional, Optional, c10::ArrayRef<double>, int64_t, int64_t, int64_t);
template <class R, class... First>
using OpWithType = R(First..., Tensor, Tensor, Optional, Optional, c10::ArrayRef<double>, int64_t, int64_t, int64_t,
                     std::optional<at::ScalarType>);

Arguments collect(Tensor input, Tensor target, Optional weight, Optional sample_weight,
                  c10::ArrayRef<double> parameters, int64_t axis, int64_t ignore_index, int64_t reduction,
                  std::optional<at::ScalarType> dtype = {}) {
  check_reduction(reduction);
  return {{input, target},
          weight.value_or(at::Tensor()),
          sample_weight.value_or(at::Tensor()),
          parameters,
          axis,
          ignore_index,
          static_cast<Reduction>(reduction),
          dtype};
}
Tensors collect(Optional a, Optional b) { return {a.value_or(at::Tensor()), b.value_or(at::Tensor())}; }

// An op's signature, the name that it adds to the loss's, and how it calls a function of (loss, ..., arguments).
struct ValueOp {
  using Signature = OpWithType<at::Tensor>;
  static constexpr const char* suffix = "";
  template <class... Rest>
  static auto call(auto function, const Loss& loss, const Rest&... rest) {
    return function(loss, collect(rest...));
  }
};
struct ValueAndGradientOp {
  using Signature = OpWithType<std::tuple<at::Tensor, std::vector<at::Tensor>>, Mask>;
  static constexpr const char* suffix = "_value_and_gradient";
  template <class... Rest>
  static auto call(auto function, const Loss& loss, Mask mask, const Rest&... rest) {
    return function(loss, mask, collect(rest...));
  }
};
struct BackwardOp {
  using Signature = Op<Pair, Tensor, Mask>;
  static constexpr const char* suffix = "_backward";
  template <class... Rest>
  static auto call(auto function, const Loss& loss, Tensor grad_output, Mask mask, const Rest&... rest) {
    return function(loss, grad_output, mask, collect(rest...));
  }
};
struct JvpOp {
  using Signature = OpWithType<at::Tensor, Optional, Optional>;
  static constexpr const char* suffix = "_jvp";
  template <class... Rest>
  static auto call(auto function, const Loss& loss, Optional u, Optional v, const Rest&... rest) {
    return function(loss, collect(u, v), collect(rest...));
  }
};
struct HvpOp {
  using Signature = Op<Pair, Tensor, Optional, Optional, Mask>;
  static constexpr const char* suffix = "_hvp";
  template <class... Rest>
  static auto call(auto function, const Loss& loss, Tensor grad_output, Optional u, Optional v, Mask mask,
                   const Rest&... rest) {
    return function(loss, grad_output, collect(u, v), mask, collect(rest...));
  }
};

template <class Op, int loss, auto function, class Signature = typename Op::Signature>
struct Adapt;
template <class Op, int loss, auto function, class R, class... A>
struct Adapt<Op, loss, function, R(A...)> {
  static R call(A... a) { return Op::call(function, losses()[loss], a...); }
};

// Under autocast half inputs are read as they are and only the result is wider: no copy is made.
at::Tensor autocast_value(const Loss& loss, const Arguments& arguments) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  Arguments a = arguments;
  if (!a.dtype && c10::isReducedFloatingType(a.operands[0].scalar_type())) a.dtype = at::kFloat;
  return call_value(loss, a);
}

// ---- registration ---------------------------------------------------------------------------------------------

template <class Op, int loss, auto function>
void implement(torch::Library& library) {
  library.impl((std::string(losses()[loss].about->name) + Op::suffix).c_str(), Adapt<Op, loss, function>::call);
}

template <class Visit>
void for_each_loss(Visit visit) {
  [&]<int... loss>(std::integer_sequence<int, loss...>) {
    (visit(std::integral_constant<int, loss>{}), ...);
  }(std::make_integer_sequence<int, kLosses>{});
}

// ---- calls through the dispatcher ---------------------------------------------------------------------------------

// The handle of a loss's op, looked up at the first call.
template <class Op>
const auto& handle(const Loss& loss) {
  using Handle = c10::TypedOperatorHandle<typename Op::Signature>;
  static const std::vector<Handle> handles = [] {
    std::vector<Handle> found;
    for (const Loss& each : losses())
      found.push_back(c10::Dispatcher::singleton()
                          .findSchemaOrThrow((std::string("fusedloss::") + each.about->name + Op::suffix).c_str(), "")
                          .template typed<typename Op::Signature>());
    return found;
  }();
  return handles[&loss - losses().data()];
}

OptionalTensor optional(const at::Tensor& tensor) {
  return tensor.defined() ? OptionalTensor(tensor) : OptionalTensor();
}

// Calls the op with `first`, and then what all ops end with.
template <class Op, class... First>
auto call(const Loss& loss, const Arguments& a, const First&... first) {
  return handle<Op>(loss).call(first..., a.operands[0], a.operands[1], optional(a.weight), optional(a.sample_weight),
                               a.parameters, a.axis, a.ignore_index, int64_t(a.reduction));
}
template <class Op, class... First>
auto call_with_type(const Loss& loss, const Arguments& a, const First&... first) {
  return handle<Op>(loss).call(first..., a.operands[0], a.operands[1], optional(a.weight), optional(a.sample_weight),
                               a.parameters, a.axis, a.ignore_index, int64_t(a.reduction), a.dtype);
}

Tensors masked(Pair given, const Mask& mask) {
  return {mask[0] ? std::get<0>(std::move(given)) : at::Tensor(),
          mask[1] ? std::get<1>(std::move(given)) : at::Tensor()};
}

}  // namespace

at::Tensor call_value(const Loss& loss, const Arguments& a) { return call_with_type<ValueOp>(loss, a); }

Gradients call_value_and_gradient(const Loss& loss, Mask mask, const Arguments& a) {
  auto [value, made] = call_with_type<ValueAndGradientOp>(loss, a, mask);
  Gradients result{std::move(value), {}};
  for (size_t k = 0, next = 0; k < mask.size(); ++k)
    if (mask[k]) result.of[k] = std::move(made[next++]);
  return result;
}

Tensors call_backward(const Loss& loss, const at::Tensor& grad_output, Mask mask, const Arguments& a) {
  return masked(call<BackwardOp>(loss, a, grad_output, mask), mask);
}

at::Tensor call_jvp(const Loss& loss, const Tensors& tangents, const Arguments& a) {
  return call_with_type<JvpOp>(loss, a, optional(tangents[0]), optional(tangents[1]));
}

Tensors call_hvp(const Loss& loss, const at::Tensor& grad_output, const Tensors& tangents, Mask mask,
                 const Arguments& a) {
  return masked(call<HvpOp>(loss, a, grad_output, optional(tangents[0]), optional(tangents[1]), mask), mask);
}

TORCH_LIBRARY_FRAGMENT(fusedloss, library) {
  for (const Loss& loss : losses()) define(library, *loss.about);
}

namespace {
void implement_kernels(torch::Library& library) {
  for_each_loss([&](auto loss) {
    implement<ValueOp, loss, kernels::value>(library);
    implement<ValueAndGradientOp, loss, kernels::value_and_gradient>(library);
    implement<BackwardOp, loss, kernels::backward>(library);
    implement<JvpOp, loss, kernels::jvp>(library);
    implement<HvpOp, loss, kernels::hvp>(library);
  });
}
void implement_autocast(torch::Library& library) {
  for_each_loss([&](auto loss) { implement<ValueOp, loss, autocast_value>(library); });
}
}  // namespace

// One implementation for all devices; it refuses those without kernels in words.
TORCH_LIBRARY_IMPL(fusedloss, CompositeExplicitAutograd, library) { implement_kernels(library); }
TORCH_LIBRARY_IMPL(fusedloss, Meta, library) { implement_kernels(library); }
TORCH_LIBRARY_IMPL(fusedloss, Autograd, library) {
  for_each_loss([&](auto loss) {
    implement<ValueOp, loss, autograd::value>(library);
    implement<BackwardOp, loss, autograd::backward>(library);
    implement<JvpOp, loss, autograd::jvp>(library);
    implement<HvpOp, loss, autograd::hvp>(library);
  });
}
TORCH_LIBRARY_IMPL(fusedloss, AutocastCPU, library) { implement_autocast(library); }
TORCH_LIBRARY_IMPL(fusedloss, AutocastCUDA, library) { implement_autocast(library); }

}  // namespace fusedloss::rows
