// Element types that kernels read and write, without torch.
#pragma once
#include <cstdint>

namespace fusedloss {

enum class DType { float64, float32, float16, bfloat16, int64, int32, int16, int8, uint8, boolean };

inline int64_t size_of(DType dtype) {
  switch (dtype) {
    case DType::float64:
    case DType::int64: return 8;
    case DType::float32:
    case DType::int32: return 4;
    case DType::float16:
    case DType::bfloat16:
    case DType::int16: return 2;
    default: return 1;
  }
}

}  // namespace fusedloss
