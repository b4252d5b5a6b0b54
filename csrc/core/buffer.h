// Memory for numbers that kernels work on, in whole lines of a cache: a register that lies in two of them takes twice
// the time.
#pragma once
#include <cstdint>
#include <vector>

#include "core/instruction_set.h"

namespace fusedloss::inline FUSEDLOSS_SET {

template <class T>
class Buffer {
 public:
  // That of at least `count`; the first call decides.
  T* of(int64_t count) {
    if (lines_.empty()) lines_.resize((count + kOfLine - 1) / kOfLine);
    return data();
  }
  T* data() { return lines_.empty() ? nullptr : lines_[0].numbers; }

 private:
  static constexpr int64_t kOfLine = 64 / sizeof(T);
  struct alignas(64) Line {
    T numbers[kOfLine];
  };
  std::vector<Line> lines_;
};

}  // namespace fusedloss::inline FUSEDLOSS_SET
