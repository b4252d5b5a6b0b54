// Registers the pointwise ops: for each loss of losses.def the five schemas of op.h, and what they do at each key.
#include "pointwise/op.h"

#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include "torch/checks.h"

namespace fusedloss::pointwise {
namespace {

// ---- schemas --------------------------------------------------------------------------------------------------

std::string operands_schema(const Description& about) {
  const char* third = about.operands[2] ? about.operands[2] : "extra";
  return std::string("Tensor ") + about.operands[0] + ", Tensor " + about.operands[1] + ", Tensor? " + third +
         ", Tensor? weight, float[] parameters, int reduction";
}

void define(torch::Library& library, const Description& about) {
  const std::string name = about.name, operands = operands_schema(about);
  const std::string tangents = "Tensor? tangent0, Tensor? tangent1, Tensor? tangent2, ";
  const auto add = [&](const std::string& schema) { library.def(schema.c_str(), {at::Tag::pt2_compliant_tag}); };
  add(name + "(" + operands + ", ScalarType? dtype=None) -> Tensor");
  add(name + "_value_and_gradient(bool[3] mask, " + operands + ", ScalarType? dtype=None) -> (Tensor, Tensor[])");
  add(name + "_backward(Tensor grad_output, bool[3] mask, " + operands + ") -> (Tensor, Tensor, Tensor)");
  add(name + "_jvp(" + tangents + operands + ", ScalarType? dtype=None) -> Tensor");
  add(name + "_hvp(Tensor grad_output, " + tangents + "bool[3] mask, " + operands + ") -> (Tensor, Tensor, Tensor)");
}

// ---- from an op's C++ signature to a function of (loss, ..., arguments) ------------------------------------------

Arguments collect(const at::Tensor& input, const at::Tensor& target, const OptionalTensor& extra,
                  const OptionalTensor& weight, c10::ArrayRef<double> parameters, int64_t reduction,
                  std::optional<at::ScalarType> dtype = {}) {
  check_reduction(reduction);
  return {{input, target, extra.value_or(at::Tensor())},
          weight.value_or(at::Tensor()),
          parameters,
          static_cast<Reduction>(reduction),
          dtype};
}

Tensors collect(const OptionalTensor& a, const OptionalTensor& b, const OptionalTensor& c) {
  return {a.value_or(at::Tensor()), b.value_or(at::Tensor()), c.value_or(at::Tensor())};
}

template <int loss, auto function>
struct Adapt {
  static at::Tensor value(const at::Tensor& input, const at::Tensor& target, const OptionalTensor& extra,
                          const OptionalTensor& weight, c10::ArrayRef<double> parameters, int64_t reduction,
                          std::optional<at::ScalarType> dtype) {
    return function(losses()[loss], collect(input, target, extra, weight, parameters, reduction, dtype));
  }
  static std::tuple<at::Tensor, std::vector<at::Tensor>> value_and_gradient(
      Mask mask, const at::Tensor& input, const at::Tensor& target, const OptionalTensor& extra,
      const OptionalTensor& weight, c10::ArrayRef<double> parameters, int64_t reduction,
      std::optional<at::ScalarType> dtype) {
    return function(losses()[loss], mask, collect(input, target, extra, weight, parameters, reduction, dtype));
  }
  static Triple backward(const at::Tensor& grad_output, Mask mask, const at::Tensor& input, const at::Tensor& target,
                         const OptionalTensor& extra, const OptionalTensor& weight, c10::ArrayRef<double> parameters,
                         int64_t reduction) {
    return function(losses()[loss], grad_output, mask, collect(input, target, extra, weight, parameters, reduction));
  }
  static at::Tensor jvp(const OptionalTensor& tangent0, const OptionalTensor& tangent1, const OptionalTensor& tangent2,
                        const at::Tensor& input, const at::Tensor& target, const OptionalTensor& extra,
                        const OptionalTensor& weight, c10::ArrayRef<double> parameters, int64_t reduction,
                        std::optional<at::ScalarType> dtype) {
    return function(losses()[loss], collect(tangent0, tangent1, tangent2),
                    collect(input, target, extra, weight, parameters, reduction, dtype));
  }
  static Triple hvp(const at::Tensor& grad_output, const OptionalTensor& tangent0, const OptionalTensor& tangent1,
                    const OptionalTensor& tangent2, Mask mask, const at::Tensor& input, const at::Tensor& target,
                    const OptionalTensor& extra, const OptionalTensor& weight, c10::ArrayRef<double> parameters,
                    int64_t reduction) {
    return function(losses()[loss], grad_output, collect(tangent0, tangent1, tangent2), mask,
                    collect(input, target, extra, weight, parameters, reduction));
  }
};

// Under autocast half inputs are read as they are and only the result is wider: no copy is made.
at::Tensor autocast_value(const Loss& loss, const Arguments& arguments) {
  c10::impl::ExcludeDispatchKeyGuard once(c10::autocast_dispatch_keyset);
  Arguments a = arguments;
  const auto dtype = a.operands[0].scalar_type();
  if (!a.dtype && (dtype == at::kHalf || dtype == at::kBFloat16)) a.dtype = at::kFloat;
  return call_value(loss, a);
}

// ---- registration ---------------------------------------------------------------------------------------------

template <int loss>
void implement(torch::Library& library) {
  const std::string name = losses()[loss].about->name;
  library.impl(name.c_str(), Adapt<loss, kernels::value>::value);
  library.impl((name + "_value_and_gradient").c_str(), Adapt<loss, kernels::value_and_gradient>::value_and_gradient);
  library.impl((name + "_backward").c_str(), Adapt<loss, kernels::backward>::backward);
  library.impl((name + "_jvp").c_str(), Adapt<loss, kernels::jvp>::jvp);
  library.impl((name + "_hvp").c_str(), Adapt<loss, kernels::hvp>::hvp);
}

template <int loss>
void implement_autograd(torch::Library& library) {
  const std::string name = losses()[loss].about->name;
  library.impl(name.c_str(), Adapt<loss, autograd::value>::value);
  library.impl((name + "_backward").c_str(), Adapt<loss, autograd::backward>::backward);
  library.impl((name + "_jvp").c_str(), Adapt<loss, autograd::jvp>::jvp);
  library.impl((name + "_hvp").c_str(), Adapt<loss, autograd::hvp>::hvp);
}

template <int loss>
void implement_autocast(torch::Library& library) {
  library.impl(losses()[loss].about->name, Adapt<loss, autocast_value>::value);
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
const c10::TypedOperatorHandle<Op>& handle(const Loss& loss, const char* suffix) {
  static const std::vector<c10::TypedOperatorHandle<Op>> handles = [suffix] {
    std::vector<c10::TypedOperatorHandle<Op>> found;
    for (const Loss& each : losses())
      found.push_back(c10::Dispatcher::singleton()
                          .findSchemaOrThrow((std::string("fusedloss::") + each.about->name + suffix).c_str(), "")
                          .template typed<Op>());
    return found;
  }();
  return handles[&loss - losses().data()];
}

OptionalTensor optional(const at::Tensor& tensor) {
  return tensor.defined() ? OptionalTensor(tensor) : OptionalTensor();
}

Tensors spread(std::vector<at::Tensor> given, const Mask& mask) {
  Tensors result;
  for (int k = 0, next = 0; k < kMaxOperands; ++k)
    if (mask[k]) result[k] = std::move(given[next++]);
  return result;
}
Tensors spread(Triple given, const Mask& mask) {
  Tensors result{std::get<0>(std::move(given)), std::get<1>(std::move(given)), std::get<2>(std::move(given))};
  for (int k = 0; k < kMaxOperands; ++k)
    if (!mask[k]) result[k].reset();
  return result;
}

}  // namespace

at::Tensor call_value(const Loss& loss, const Arguments& a) {
  return handle<ValueOp>(loss, "").call(a.operands[0], a.operands[1], optional(a.operands[2]), optional(a.weight),
                                        a.parameters, int64_t(a.reduction), a.dtype);
}

Gradients call_value_and_gradient(const Loss& loss, Mask mask, const Arguments& a) {
  auto [value, gradients] = handle<ValueAndGradientOp>(loss, "_value_and_gradient")
                                .call(mask, a.operands[0], a.operands[1], optional(a.operands[2]), optional(a.weight),
                                      a.parameters, int64_t(a.reduction), a.dtype);
  return {std::move(value), spread(std::move(gradients), mask)};
}

Tensors call_backward(const Loss& loss, const at::Tensor& grad_output, Mask mask, const Arguments& a) {
  return spread(handle<BackwardOp>(loss, "_backward")
                    .call(grad_output, mask, a.operands[0], a.operands[1], optional(a.operands[2]), optional(a.weight),
                          a.parameters, int64_t(a.reduction)),
                mask);
}

at::Tensor call_jvp(const Loss& loss, const Tensors& tangents, const Arguments& a) {
  return handle<JvpOp>(loss, "_jvp")
      .call(optional(tangents[0]), optional(tangents[1]), optional(tangents[2]), a.operands[0], a.operands[1],
            optional(a.operands[2]), optional(a.weight), a.parameters, int64_t(a.reduction), a.dtype);
}

Tensors call_hvp(const Loss& loss, const at::Tensor& grad_output, const Tensors& tangents, Mask mask,
                 const Arguments& a) {
  return spread(
      handle<HvpOp>(loss, "_hvp")
          .call(grad_output, optional(tangents[0]), optional(tangents[1]), optional(tangents[2]), mask, a.operands[0],
                a.operands[1], optional(a.operands[2]), optional(a.weight), a.parameters, int64_t(a.reduction)),
      mask);
}

TORCH_LIBRARY(fusedloss, library) {
  for (const Loss& loss : losses()) define(library, *loss.about);
}
// One implementation for all devices; it refuses those without kernels in words.
TORCH_LIBRARY_IMPL(fusedloss, CompositeExplicitAutograd, library) {
  for_each_loss([&](auto loss) { implement<loss>(library); });
}
TORCH_LIBRARY_IMPL(fusedloss, Meta, library) {
  for_each_loss([&](auto loss) { implement<loss>(library); });
}
TORCH_LIBRARY_IMPL(fusedloss, Autograd, library) {
  for_each_loss([&](auto loss) { implement_autograd<loss>(library); });
}
TORCH_LIBRARY_IMPL(fusedloss, AutocastCPU, library) {
  for_each_loss([&](auto loss) { implement_autocast<loss>(library); });
}
TORCH_LIBRARY_IMPL(fusedloss, AutocastCUDA, library) {
  for_each_loss([&](auto loss) { implement_autocast<loss>(library); });
}

}  // namespace fusedloss::pointwise
