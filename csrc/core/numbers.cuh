// Numbers in device memory, of any floating type.
#pragma once
#include "core/cuda.h"
#include "core/device.h"

namespace fusedloss::inline FUSEDLOSS_SET {

// Offsets have 32 or 64 bits: where the former do, the latter would take registers.
template <class T, class Offset>
__device__ __forceinline__ T read(const Numbers& from, Offset offset) {
  switch (from.dtype) {
    case DType::float64: return T(static_cast<const double*>(from.data)[offset]);
    case DType::float32: return T(static_cast<const float*>(from.data)[offset]);
    case DType::float16: return converted<T>(static_cast<const Float16*>(from.data)[offset]);
    default: return converted<T>(static_cast<const BFloat16*>(from.data)[offset]);
  }
}

template <class T, class Offset>
__device__ __forceinline__ void write(const Numbers& to, Offset offset, T x) {
  switch (to.dtype) {
    case DType::float64: static_cast<double*>(to.data)[offset] = double(x); return;
    case DType::float32: static_cast<float*>(to.data)[offset] = float(x); return;
    case DType::float16: static_cast<Float16*>(to.data)[offset] = converted<Float16>(x); return;
    default: static_cast<BFloat16*>(to.data)[offset] = converted<BFloat16>(x); return;
  }
}

}  // namespace fusedloss::inline FUSEDLOSS_SET
