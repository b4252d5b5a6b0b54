// How the templates for all families call the types of a family F, whose ops have F::kOperands operands.
#pragma once
#include <ATen/core/Tensor.h>

#include <array>
#include <tuple>

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
