// Memory that a kernel works in, given by the host, which counts and frees it as it does tensors.
#pragma once
#include <cstdint>

#include "core/instruction_set.h"

namespace fusedloss::inline FUSEDLOSS_SET {

// Hands it out piece by piece, in whole lines of a cache: a register that lies in two of them takes twice the time.
// Without memory it counts how much is asked for; pieces must then not be touched.
class Workspace {
 public:
  explicit Workspace(void* memory = nullptr) : start_(reinterpret_cast<uintptr_t>(memory)) {}

  template <class T>
  T* take(int64_t count) {
    const uintptr_t piece = start_ + uintptr_t(bytes_);
    bytes_ += (count * int64_t(sizeof(T)) + kLine - 1) / kLine * kLine;
    return reinterpret_cast<T*>(piece);
  }
  int64_t bytes() const { return bytes_; }

 private:
  static constexpr int64_t kLine = 64;
  const uintptr_t start_;
  int64_t bytes_ = 0;
};

}  // namespace fusedloss::inline FUSEDLOSS_SET
