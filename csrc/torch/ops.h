// The five ops of every loss f of a family, which are closed under differentiation:
//
//   NAME                      reduce f(x)
//   NAME_value_and_gradient   the same, and in the same pass df/dx for an incoming gradient of 1
//   NAME_backward             g df/dx
//   NAME_jvp                  reduce sum_k df/dx_k v_k, the derivative along v
//   NAME_hvp                  g d/dx (sum_k df/dx_k v_k), the second derivative along v
//
// x are the operands, v their tangents, g the gradient of the result. Gradients have the shapes of the operands. Here
// is what turns the signature of an op into a call of a function of (loss, ..., arguments), and back. A family F says
//
//   F::Loss, F::losses(), F::kOperands
//   F::Gradients                 a value, and `of` each operand its gradient
//   F::Arguments                 what all five ops end with, as one; values have the type of the result too
//   F::Rest                      a tuple of the C++ types of these, without that type
//   F::collect(rest..., dtype)   Arguments from those
//   F::spread(arguments)         and those from Arguments, which stay where they are
//   F::schema(about)             and what the dispatcher calls them
#pragma once
#include <ATen/autocast_mode.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <string>
#include <utility>
#include <vector>

#include "torch/family.h"

namespace fusedloss::ops {

using OptionalTensor = std::optional<at::Tensor>;
using ResultType = std::optional<at::ScalarType>;
using ValueAndGradients = std::tuple<at::Tensor, std::vector<at::Tensor>>;

using family::Mask;
using family::Results;
using family::Tensors;

inline OptionalTensor optional(const at::Tensor& tensor) {
  return tensor.defined() ? OptionalTensor(tensor) : OptionalTensor();
}

// ---- signatures -----------------------------------------------------------------------------------------------

template <class... Tuples>
using Joined = decltype(std::tuple_cat(std::declval<Tuples>()...));
template <class F>
using Tangents = Joined<std::array<OptionalTensor, F::kOperands>>;

template <class R, class Tuple>
struct SignatureOf;
template <class R, class... A>
struct SignatureOf<R, std::tuple<A...>> {
  using type = R(A...);
};
template <class R, class... Tuples>
using Signature = typename SignatureOf<R, Joined<Tuples...>>::type;

// The arguments of a call from place `from` on.
template <class F, size_t from, class All>
auto arguments(const All& all) {
  return [&]<size_t... i>(std::index_sequence<i...>) {
    return F::collect(std::get<from + i>(all)...);
  }(std::make_index_sequence<std::tuple_size_v<All> - from>());
}
template <class F, size_t from, class All>
Tensors<F> tangents(const All& all) {
  return [&]<size_t... i>(std::index_sequence<i...>) {
    return Tensors<F>{std::get<from + i>(all).value_or(at::Tensor())...};
  }(std::make_index_sequence<F::kOperands>());
}

// Each op: its signature, what its name adds to the loss's, its schema around `rest`, and how its arguments by position
// become those of a function.
template <class F>
struct Value {
  using Type = Signature<at::Tensor, typename F::Rest, std::tuple<ResultType>>;
  static constexpr const char *suffix = "", *first = "", *last = ", ScalarType? dtype=None) -> Tensor";
  static auto call(auto function, const typename F::Loss& loss, const auto& all) {
    return function(loss, arguments<F, 0>(all));
  }
};
template <class F>
struct ValueAndGradient {
  using Type = Signature<ValueAndGradients, std::tuple<Mask<F>>, typename F::Rest, std::tuple<ResultType>>;
  static constexpr const char *suffix = "_value_and_gradient", *first = "MASK, ",
                              *last = ", ScalarType? dtype=None) -> (Tensor, Tensor[])";
  static auto call(auto function, const typename F::Loss& loss, const auto& all) {
    return function(loss, std::get<0>(all), arguments<F, 1>(all));
  }
};
template <class F>
struct Backward {
  using Type = Signature<Results<F>, std::tuple<const at::Tensor&, Mask<F>>, typename F::Rest>;
  static constexpr const char *suffix = "_backward", *first = "Tensor grad_output, MASK, ", *last = ") -> RESULTS";
  static auto call(auto function, const typename F::Loss& loss, const auto& all) {
    return function(loss, std::get<0>(all), std::get<1>(all), arguments<F, 2>(all));
  }
};
template <class F>
struct Jvp {
  using Type = Signature<at::Tensor, Tangents<F>, typename F::Rest, std::tuple<ResultType>>;
  static constexpr const char *suffix = "_jvp", *first = "TANGENTS, ", *last = Value<F>::last;
  static auto call(auto function, const typename F::Loss& loss, const auto& all) {
    return function(loss, tangents<F, 0>(all), arguments<F, F::kOperands>(all));
  }
};
template <class F>
struct Hvp {
  using Type = Signature<Results<F>, std::tuple<const at::Tensor&>, Tangents<F>, std::tuple<Mask<F>>, typename F::Rest>;
  static constexpr const char *suffix = "_hvp", *first = "Tensor grad_output, TANGENTS, MASK, ",
                              *last = Backward<F>::last;
  static auto call(auto function, const typename F::Loss& loss, const auto& all) {
    return function(loss, std::get<0>(all), tangents<F, 1>(all), std::get<F::kOperands + 1>(all),
                    arguments<F, F::kOperands + 2>(all));
  }
};

// ---- registration ---------------------------------------------------------------------------------------------

inline std::string replaced(std::string text, const std::string& word, const std::string& by) {
  const size_t at = text.find(word);
  return at == std::string::npos ? text : text.replace(at, word.size(), by);
}

template <class F, class Op>
void define_op(torch::Library& library, const typename F::Loss& loss) {
  std::string schema = std::string(loss.about->name) + Op::suffix + "(" + Op::first + F::schema(*loss.about) + Op::last;
  std::string tangents, results;
  for (int k = 0; k < F::kOperands; ++k) {
    tangents += (k ? ", Tensor? tangent" : "Tensor? tangent") + std::to_string(k);
    results += k ? ", Tensor" : "Tensor";
  }
  schema = replaced(schema, "MASK", "bool[" + std::to_string(F::kOperands) + "] mask");
  schema = replaced(replaced(schema, "TANGENTS", tangents), "RESULTS", "(" + results + ")");
  library.def(schema.c_str(), {at::Tag::pt2_compliant_tag});
}

template <class F>
void define(torch::Library& library) {
  for (const typename F::Loss& loss : F::losses()) {
    define_op<F, Value<F>>(library, loss);
    define_op<F, ValueAndGradient<F>>(library, loss);
    define_op<F, Backward<F>>(library, loss);
    define_op<F, Jvp<F>>(library, loss);
    define_op<F, Hvp<F>>(library, loss);
  }
}

template <class F, class Op, auto function, class Type = typename Op::Type>
struct Adapt;
template <class F, class Op, auto function, class R, class... A>
struct Adapt<F, Op, function, R(A...)> {
  const typename F::Loss* loss;
  R operator()(A... a) const { return Op::call(function, *loss, std::forward_as_tuple(a...)); }
};

// Lets an op of all losses call the function.
template <class F, class Op, auto function>
void implement(torch::Library& library) {
  for (const typename F::Loss& loss : F::losses())
    library.impl((std::string(loss.about->name) + Op::suffix).c_str(), Adapt<F, Op, function>{&loss});
}

// ---- calls through the dispatcher -----------------------------------------------------------------------------

// The handle of a loss's op, looked up at the first call.
template <class F, class Op>
const auto& handle(const typename F::Loss& loss) {
  using Handle = c10::TypedOperatorHandle<typename Op::Type>;
  static const std::vector<Handle> handles = [] {
    std::vector<Handle> found;
    for (const typename F::Loss& each : F::losses())
      found.push_back(c10::Dispatcher::singleton()
                          .findSchemaOrThrow((std::string("fusedloss::") + each.about->name + Op::suffix).c_str(), "")
                          .template typed<typename Op::Type>());
    return found;
  }();
  return handles[&loss - F::losses().data()];
}

template <class F, class Op, class... Tuples>
auto call(const typename F::Loss& loss, Tuples&&... given) {
  return std::apply([&](const auto&... a) { return handle<F, Op>(loss).call(a...); },
                    std::tuple_cat(std::forward<Tuples>(given)...));
}

template <class F>
auto optionals(const Tensors<F>& tensors) {
  return std::apply([](const auto&... t) { return std::tuple(optional(t)...); }, tensors);
}
template <class F>
Tensors<F> masked(Results<F> given, const Mask<F>& mask) {
  auto all = std::apply([](auto&... t) { return Tensors<F>{std::move(t)...}; }, given);
  for (int k = 0; k < F::kOperands; ++k)
    if (!mask[k]) all[k].reset();
  return all;
}

template <class F>
at::Tensor call_value(const typename F::Loss& loss, const typename F::Arguments& a) {
  return call<F, Value<F>>(loss, F::spread(a), std::tie(a.dtype));
}

// Gradients that the mask does not ask for are not defined here and below.
template <class F>
typename F::Gradients call_value_and_gradient(const typename F::Loss& loss, const Mask<F>& mask,
                                              const typename F::Arguments& a) {
  auto [value, made] = call<F, ValueAndGradient<F>>(loss, std::tie(mask), F::spread(a), std::tie(a.dtype));
  typename F::Gradients result{std::move(value), {}};
  for (int k = 0, next = 0; k < F::kOperands; ++k)
    if (mask[k]) result.of[k] = std::move(made[next++]);
  return result;
}

template <class F>
Tensors<F> call_backward(const typename F::Loss& loss, const at::Tensor& grad_output, const Mask<F>& mask,
                         const typename F::Arguments& a) {
  return masked<F>(call<F, Backward<F>>(loss, std::tie(grad_output, mask), F::spread(a)), mask);
}

template <class F>
at::Tensor call_jvp(const typename F::Loss& loss, const Tensors<F>& along, const typename F::Arguments& a) {
  return call<F, Jvp<F>>(loss, optionals<F>(along), F::spread(a), std::tie(a.dtype));
}

template <class F>
Tensors<F> call_hvp(const typename F::Loss& loss, const at::Tensor& grad_output, const Tensors<F>& along,
                    const Mask<F>& mask, const typename F::Arguments& a) {
  return masked<F>(call<F, Hvp<F>>(loss, std::tie(grad_output), optionals<F>(along), std::tie(mask), F::spread(a)),
                   mask);
}

// Under autocast half inputs are read as they are and only the result is wider: no copy is made.
template <class F>
at::Tensor autocast_value(const typename F::Loss& loss, const typename F::Arguments& arguments) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  typename F::Arguments a = arguments;
  if (!a.dtype && c10::isReducedFloatingType(a.operands[0].scalar_type())) a.dtype = at::kFloat;
  return call_value<F>(loss, a);
}

// ---- a family's own -------------------------------------------------------------------------------------------

// Stands once in the namespace of a family F, after it: registers its ops, whose functions are in the namespaces
// `kernels` and `autograd` there, and defines the functions there that call them. One implementation serves all
// devices; it refuses those without kernels in words.
#define FUSEDLOSS_OPS(F)                                                                                  \
  at::Tensor call_value(const Loss& loss, const Arguments& a) { return ops::call_value<F>(loss, a); }     \
  Gradients call_value_and_gradient(const Loss& loss, Mask mask, const Arguments& a) {                    \
    return ops::call_value_and_gradient<F>(loss, mask, a);                                                \
  }                                                                                                       \
  Tensors call_backward(const Loss& loss, const at::Tensor& grad_output, Mask mask, const Arguments& a) { \
    return ops::call_backward<F>(loss, grad_output, mask, a);                                             \
  }                                                                                                       \
  at::Tensor call_jvp(const Loss& loss, const Tensors& tangents, const Arguments& a) {                    \
    return ops::call_jvp<F>(loss, tangents, a);                                                           \
  }                                                                                                       \
  Tensors call_hvp(const Loss& loss, const at::Tensor& grad_output, const Tensors& tangents, Mask mask,   \
                   const Arguments& a) {                                                                  \
    return ops::call_hvp<F>(loss, grad_output, tangents, mask, a);                                        \
  }                                                                                                       \
  static void implement_kernels(torch::Library& library) {                                                \
    ops::implement<F, ops::Value<F>, kernels::value>(library);                                            \
    ops::implement<F, ops::ValueAndGradient<F>, kernels::value_and_gradient>(library);                    \
    ops::implement<F, ops::Backward<F>, kernels::backward>(library);                                      \
    ops::implement<F, ops::Jvp<F>, kernels::jvp>(library);                                                \
    ops::implement<F, ops::Hvp<F>, kernels::hvp>(library);                                                \
  }                                                                                                       \
  static void implement_autocast(torch::Library& library) {                                               \
    ops::implement<F, ops::Value<F>, ops::autocast_value<F>>(library);                                    \
  }                                                                                                       \
  TORCH_LIBRARY_FRAGMENT(fusedloss, library) { ops::define<F>(library); }                                 \
  TORCH_LIBRARY_IMPL(fusedloss, CompositeExplicitAutograd, library) { implement_kernels(library); }       \
  TORCH_LIBRARY_IMPL(fusedloss, Meta, library) { implement_kernels(library); }                            \
  TORCH_LIBRARY_IMPL(fusedloss, Autograd, library) {                                                      \
    ops::implement<F, ops::Value<F>, autograd::value>(library);                                           \
    ops::implement<F, ops::Backward<F>, autograd::backward>(library);                                     \
    ops::implement<F, ops::Jvp<F>, autograd::jvp>(library);                                               \
    ops::implement<F, ops::Hvp<F>, autograd::hvp>(library);                                               \
  }                                                                                                       \
  TORCH_LIBRARY_IMPL(fusedloss, AutocastCPU, library) { implement_autocast(library); }                    \
  TORCH_LIBRARY_IMPL(fusedloss, AutocastCUDA, library) { implement_autocast(library); }

}  // namespace fusedloss::ops
