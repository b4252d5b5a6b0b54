// Work that threads take one piece after another until none is left: those whose pieces take less time take more.
#pragma once
#include <atomic>
#include <cstdint>

namespace fusedloss {

class Queue {
 public:
  explicit Queue(int64_t count) : count_(count) {}
  bool take(int64_t& piece) { return (piece = next_++) < count_; }

 private:
  std::atomic<int64_t> next_ = 0;
  const int64_t count_;
};

}  // namespace fusedloss
