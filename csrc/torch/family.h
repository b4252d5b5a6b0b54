// How the templates for all families call the types of a family F, whose ops have F::kOperands operands.
#pragma once
#include <ATen/core/Tensor.h>

#include <array>
#include <tuple>
#include <vector>

namespace fusedloss::family {

template <class F>
using Mask = std::array<bool, F::kOperands>;
template <class F>
using Tensors = std::array<at::Tensor, F::kOperands>;
// What the ops _backward and _hvp return: a gradient for each operand, empty where the mask does not ask for it. Not a
// list: torch's older vmap, which is_grads_batched uses, takes apart only results of a fixed number.
template <class F>
using Results = decltype(std::tuple_cat(Tensors<F>()));

}  // namespace fusedloss::family

// Stands once in the namespace of a family, after Loss, Tensors (of kOperands or kMaxOperands), Mask and Arguments:
// declares what is done with its five ops (torch/ops.h).
#define FUSEDLOSS_DECLARE_OPS                                                                                    \
  using Results = decltype(std::tuple_cat(Tensors()));                                                           \
  /* Calls through the dispatcher. Gradients that the mask does not ask for are not defined here. */             \
  struct Gradients {                                                                                             \
    at::Tensor value;                                                                                            \
    Tensors of;                                                                                                  \
  };                                                                                                             \
  at::Tensor call_value(const Loss& loss, const Arguments& arguments);                                           \
  Gradients call_value_and_gradient(const Loss& loss, Mask mask, const Arguments& arguments);                    \
  Tensors call_backward(const Loss& loss, const at::Tensor& grad_output, Mask mask, const Arguments& arguments); \
  at::Tensor call_jvp(const Loss& loss, const Tensors& tangents, const Arguments& arguments);                    \
  Tensors call_hvp(const Loss& loss, const at::Tensor& grad_output, const Tensors& tangents, Mask mask,          \
                   const Arguments& arguments);                                                                  \
  /* What the ops do below autograd, on every device: check, allocate, compute. */                               \
  namespace kernels {                                                                                            \
  at::Tensor value(const Loss& loss, const Arguments& arguments);                                                \
  std::tuple<at::Tensor, std::vector<at::Tensor>> value_and_gradient(const Loss& loss, Mask mask,                \
                                                                     const Arguments& arguments);                \
  Results backward(const Loss& loss, const at::Tensor& grad_output, Mask mask, const Arguments& arguments);      \
  at::Tensor jvp(const Loss& loss, const Tensors& tangents, const Arguments& arguments);                         \
  Results hvp(const Loss& loss, const at::Tensor& grad_output, const Tensors& tangents, Mask mask,               \
              const Arguments& arguments);                                                                       \
  }                                                                                                              \
  /* What they do at the autograd key: record, and call the ones below. */                                       \
  namespace autograd {                                                                                           \
  at::Tensor value(const Loss& loss, const Arguments& arguments);                                                \
  Results backward(const Loss& loss, const at::Tensor& grad_output, Mask mask, const Arguments& arguments);      \
  at::Tensor jvp(const Loss& loss, const Tensors& tangents, const Arguments& arguments);                         \
  Results hvp(const Loss& loss, const at::Tensor& grad_output, const Tensors& tangents, Mask mask,               \
              const Arguments& arguments);                                                                       \
  }
