// Checks of arguments that the families share. Each message names the argument, the value and what was expected.
#pragma once
#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <cmath>

#include "core/loss.h"

namespace fusedloss {

inline const char* describe(Domain domain) {
  switch (domain) {
    case Domain::positive: return "a number above 0";
    case Domain::nonnegative: return "a number of at least 0";
    case Domain::unit: return "a number from 0 to 1";
    case Domain::open_unit: return "a number between 0 and 1, both excluded";
    case Domain::at_most_one: return "a number of at most 1";
    case Domain::flag: return "0 or 1";
    case Domain::signs: return "-1 or 1";
    default: return "a number";
  }
}

inline bool contains(Domain domain, double x) { return !std::isnan(x) && !interval_of(domain).excludes(x); }

inline void check_parameter(const char* loss, const Parameter& parameter, double value) {
  TORCH_CHECK_VALUE(contains(parameter.domain, value), loss, ": ", parameter.name, " must be ",
                    describe(parameter.domain), ", got ", value);
}

inline void check_real(const char* loss, const char* name, const at::Tensor& tensor) {
  TORCH_CHECK_TYPE(tensor.defined(), loss, ": ", name, " must be a tensor, got None");
  const auto dtype = tensor.scalar_type();
  const bool known = dtype == at::kDouble || dtype == at::kFloat || dtype == at::kHalf || dtype == at::kBFloat16 ||
                     c10::isIntegralType(dtype, /*includeBool=*/true);
  TORCH_CHECK_TYPE(known && dtype != at::kUInt16 && dtype != at::kUInt32 && dtype != at::kUInt64, loss, ": ", name,
                   " must be a real tensor of float64, float32, float16, bfloat16 or integers, got ", dtype);
  TORCH_CHECK_TYPE(tensor.layout() == at::kStrided, loss, ": ", name, " must be a dense tensor, got ", tensor.layout());
}

}  // namespace fusedloss
