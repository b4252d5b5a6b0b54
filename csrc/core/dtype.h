// Element types that kernels read and write, without torch.
#pragma once
#include <cstdint>

namespace fusedloss {

enum class DType { float64, float32, float16, bfloat16, int64, int32, int16, int8, uint8, boolean };

}  // namespace fusedloss
