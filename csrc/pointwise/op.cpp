// Registers the five ops of every pointwise loss, and calls them through the dispatcher.
#include "pointwise/op.h"

#include "torch/checks.h"
#include "torch/ops.h"

namespace fusedloss::pointwise {
namespace {

struct Family {
  using Loss = pointwise::Loss;
  using Arguments = pointwise::Arguments;
  using Gradients = pointwise::Gradients;
  static constexpr int kLosses = pointwise::kLosses, kOperands = kMaxOperands;
  static const auto& losses() { return pointwise::losses(); }

  using Rest = std::tuple<const at::Tensor&, const at::Tensor&, const OptionalTensor&, const OptionalTensor&,
                          c10::ArrayRef<double>, int64_t>;
  static Arguments collect(const at::Tensor& input, const at::Tensor& target, const OptionalTensor& extra,
                           const OptionalTensor& weight, c10::ArrayRef<double> parameters, int64_t reduction,
                           std::optional<at::ScalarType> dtype = {}) {
    check_reduction(reduction);
    return {{input, target, extra.value_or(at::Tensor())},
            weight.value_or(at::Tensor()),
            parameters,
            static_cast<Reduction>(reduction),
            dtype};
  }
  static auto spread(const Arguments& a) {
    return std::tuple(a.operands[0], a.operands[1], ops::optional(a.operands[2]), ops::optional(a.weight), a.parameters,
                      int64_t(a.reduction));
  }
  static std::string schema(const Description& about) {
    const char* third = about.operands[2] ? about.operands[2] : "extra";
    return std::string("Tensor ") + about.operands[0] + ", Tensor " + about.operands[1] + ", Tensor? " + third +
           ", Tensor? weight, float[] parameters, int reduction";
  }
};

}  // namespace

at::Tensor call_value(const Loss& loss, const Arguments& a) { return ops::call_value<Family>(loss, a); }
Gradients call_value_and_gradient(const Loss& loss, Mask mask, const Arguments& a) {
  return ops::call_value_and_gradient<Family>(loss, mask, a);
}
Tensors call_backward(const Loss& loss, const at::Tensor& grad_output, Mask mask, const Arguments& a) {
  return ops::call_backward<Family>(loss, grad_output, mask, a);
}
at::Tensor call_jvp(const Loss& loss, const Tensors& tangents, const Arguments& a) {
  return ops::call_jvp<Family>(loss, tangents, a);
}
Tensors call_hvp(const Loss& loss, const at::Tensor& grad_output, const Tensors& tangents, Mask mask,
                 const Arguments& a) {
  return ops::call_hvp<Family>(loss, grad_output, tangents, mask, a);
}

namespace {
void implement_kernels(torch::Library& library) {
  ops::implement<Family, ops::Value<Family>, kernels::value>(library);
  ops::implement<Family, ops::ValueAndGradient<Family>, kernels::value_and_gradient>(library);
  ops::implement<Family, ops::Backward<Family>, kernels::backward>(library);
  ops::implement<Family, ops::Jvp<Family>, kernels::jvp>(library);
  ops::implement<Family, ops::Hvp<Family>, kernels::hvp>(library);
}
void implement_autocast(torch::Library& library) {
  ops::implement<Family, ops::Value<Family>, ops::autocast_value<Family>>(library);
}
}  // namespace

TORCH_LIBRARY(fusedloss, library) { ops::define<Family>(library); }
// One implementation for all devices; it refuses those without kernels in words.
TORCH_LIBRARY_IMPL(fusedloss, CompositeExplicitAutograd, library) { implement_kernels(library); }
TORCH_LIBRARY_IMPL(fusedloss, Meta, library) { implement_kernels(library); }
TORCH_LIBRARY_IMPL(fusedloss, Autograd, library) {
  ops::implement<Family, ops::Value<Family>, autograd::value>(library);
  ops::implement<Family, ops::Backward<Family>, autograd::backward>(library);
  ops::implement<Family, ops::Jvp<Family>, autograd::jvp>(library);
  ops::implement<Family, ops::Hvp<Family>, autograd::hvp>(library);
}
TORCH_LIBRARY_IMPL(fusedloss, AutocastCPU, library) { implement_autocast(library); }
TORCH_LIBRARY_IMPL(fusedloss, AutocastCUDA, library) { implement_autocast(library); }

}  // namespace fusedloss::pointwise
