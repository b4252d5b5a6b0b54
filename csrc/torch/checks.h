// Checks of arguments that the families share. Each message names the argument, the value and what was expected.
#pragma once
#include <ATen/core/Tensor.h>
#include <c10/core/SymIntArrayRef.h>
#include <c10/util/DimVector.h>
#include <c10/util/Exception.h>

#include <cmath>

#include "core/loss.h"
#include "torch/device.h"

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
    case Domain::one_or_two: return "1 or 2";
    case Domain::distance: return "0, 1 or 2";
    default: return "a number";
  }
}

inline bool contains(Domain domain, double x) { return !std::isnan(x) && !interval_of(domain).excludes(x); }

inline void check_parameter(const char* loss, const Parameter& parameter, double value) {
  TORCH_CHECK_VALUE(contains(parameter.domain, value), loss, ": ", parameter.name, " must be ",
                    describe(parameter.domain), ", got ", value);
}

inline void check_parameters(const char* loss, const Parameter (&all)[kMaxParameters], c10::ArrayRef<double> given) {
  size_t expected = 0;
  while (expected < kMaxParameters && all[expected].name) ++expected;
  TORCH_CHECK_VALUE(given.size() == expected, loss, ": expected ", expected, " parameters, got ", given.size());
  for (size_t k = 0; k < expected; ++k) check_parameter(loss, all[k], given[k]);
}

inline void check_reduction(int64_t reduction) {
  TORCH_CHECK_VALUE(0 <= reduction && reduction <= int64_t(Reduction::mean_nonzero),
                    "fusedloss: reduction must be a number from 0 to 6, got ", reduction);
}

// The type of a result, if it is asked for.
inline void check_result_type(const char* loss, std::optional<at::ScalarType> dtype) {
  if (!dtype) return;
  const auto t = *dtype;
  TORCH_CHECK_TYPE(t == at::kDouble || t == at::kFloat || t == at::kHalf || t == at::kBFloat16, loss,
                   ": dtype must be float64, float32, float16 or bfloat16, got ", t);
}

inline void check_has_kernels(const char* loss, const char* name, const at::Tensor& tensor) {
  const at::Device device = tensor.device();
  TORCH_CHECK_NOT_IMPLEMENTED(
      device.is_cpu() || device.is_meta() || (kHasDevice && device.is_cuda()), loss, ": ", name,
      " is on a device of type ", device.type(), ", for which this build of fusedloss has no kernels (it has: cpu",
      kHasDevice ? ", cuda" : "", "). Move the tensors to the CPU, or rebuild fusedloss with support for the device.");
}

inline void check_device(const char* loss, const char* name, const at::Tensor& t, const char* first_name,
                         const at::Tensor& first) {
  TORCH_CHECK_VALUE(!t.defined() || t.device() == first.device(), loss, ": ", name, " is on ", t.device(), ", but ",
                    first_name, " is on ", first.device(), "; expected one device");
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

// One integer for each vector of a matrix.
inline void check_labels(const char* loss, const at::Tensor& labels, const char* vectors_name,
                         const at::Tensor& vectors) {
  check_real(loss, "labels", labels);
  check_device(loss, "labels", labels, vectors_name, vectors);
  TORCH_CHECK_TYPE(c10::isIntegralType(labels.scalar_type(), /*includeBool=*/false), loss,
                   ": labels must be of an integer type, got ", labels.scalar_type());
  TORCH_CHECK_VALUE(labels.dim() == 1 && labels.sym_size(0) == vectors.sym_size(0), loss,
                    ": labels must have one number for each of the ", vectors.sym_size(0), " ", vectors_name,
                    ", got shape ", labels.sym_sizes());
}

// Broadcasts `shape` with that of the tensor `name`.
inline void broadcast(c10::SymDimVector& shape, const char* loss, const char* name, const at::Tensor& t,
                      const char* first_name) {
  const auto sizes = t.sym_sizes();
  if (sizes.size() > shape.size()) shape.insert(shape.begin(), sizes.size() - shape.size(), c10::SymInt(1));
  for (size_t d = 0; d < sizes.size(); ++d) {
    c10::SymInt& wide = shape[shape.size() - sizes.size() + d];
    if (sizes[d] == 1 || sizes[d] == wide) continue;
    TORCH_CHECK_VALUE(wide == 1, loss, ": ", name, " of shape ", sizes, " does not broadcast with ", first_name,
                      ", whose shape is ", c10::SymIntArrayRef(shape));
    wide = sizes[d];
  }
}

// A factor or a setting for the elements must not make more of them.
inline void check_fits(const char* loss, const char* name, const at::Tensor& t, const c10::SymDimVector& shape,
                       const char* first_name) {
  if (!t.defined() || t.sym_sizes() == c10::SymIntArrayRef(shape)) return;
  c10::SymDimVector together = shape;
  broadcast(together, loss, name, t, first_name);
  TORCH_CHECK_VALUE(c10::SymIntArrayRef(together) == c10::SymIntArrayRef(shape), loss, ": ", name,
                    " must broadcast to the shape of the loss, ", c10::SymIntArrayRef(shape), ", got ", t.sym_sizes());
}

// The index of an element of a contiguous tensor of these sizes.
inline at::DimVector index_of(int64_t element, at::IntArrayRef sizes) {
  at::DimVector index(sizes.size());
  for (int64_t d = int64_t(sizes.size()) - 1; d >= 0; element /= sizes[d--]) index[d] = element % sizes[d];
  return index;
}

}  // namespace fusedloss
