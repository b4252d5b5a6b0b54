// How kernels see tensors: an extent that they walk, and a view of each tensor along it.
#pragma once
#include "core/dtype.h"

namespace fusedloss {

inline constexpr int kMaxDims = 64;

struct Extent {
  int64_t count = 0;
  int dims = 0;
  int64_t sizes[kMaxDims];  // the last dimension runs fastest
  // A dimension along which some tensor lies in memory while the others lie along the last, or -1. Read along the last,
  // every element would cost that tensor a cache line; so both are walked in small steps.
  int across = -1;
};

struct View {
  void* data = nullptr;  // absent if null
  DType dtype = DType::float32;
  bool dense = false;     // element i stands at data[i]
  bool constant = false;  // every element is data[0]
  int64_t strides[kMaxDims];
};

}  // namespace fusedloss
