// What the five ops of a family do below autograd, in terms of one call that is put together:
//
//   Call(loss, arguments)          checks the arguments
//   take_grad_output(tensor), take_tangents(tensors)   checks what else comes in
//   make_value(), make_gradients(mask)   allocates what is asked for
//   run()                          computes it
//   value(), gradients(), results()   what was asked for; for every operand a gradient, or an empty one
#pragma once
#include "torch/family.h"

// Stands once in the namespace `kernels` of a family, after Call.
#define FUSEDLOSS_KERNELS(Call)                                                                      \
  at::Tensor value(const Loss& loss, const Arguments& a) {                                           \
    Call call(loss, a);                                                                              \
    call.make_value();                                                                               \
    call.run();                                                                                      \
    return call.value();                                                                             \
  }                                                                                                  \
  std::tuple<at::Tensor, std::vector<at::Tensor>> value_and_gradient(const Loss& loss, Mask mask,    \
                                                                     const Arguments& a) {           \
    Call call(loss, a);                                                                              \
    call.make_value();                                                                               \
    call.make_gradients(mask);                                                                       \
    call.run();                                                                                      \
    return {call.value(), call.gradients()};                                                         \
  }                                                                                                  \
  Results backward(const Loss& loss, const at::Tensor& grad_output, Mask mask, const Arguments& a) { \
    Call call(loss, a);                                                                              \
    call.take_grad_output(grad_output);                                                              \
    call.make_gradients(mask);                                                                       \
    call.run();                                                                                      \
    return call.results();                                                                           \
  }                                                                                                  \
  at::Tensor jvp(const Loss& loss, const Tensors& tangents, const Arguments& a) {                    \
    Call call(loss, a);                                                                              \
    call.take_tangents(tangents);                                                                    \
    call.make_value();                                                                               \
    call.run();                                                                                      \
    return call.value();                                                                             \
  }                                                                                                  \
  Results hvp(const Loss& loss, const at::Tensor& grad_output, const Tensors& tangents, Mask mask,   \
              const Arguments& a) {                                                                  \
    Call call(loss, a);                                                                              \
    call.take_grad_output(grad_output);                                                              \
    call.take_tangents(tangents);                                                                    \
    call.make_gradients(mask);                                                                       \
    call.run();                                                                                      \
    return call.results();                                                                           \
  }
