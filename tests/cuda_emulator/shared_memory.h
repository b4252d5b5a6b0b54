// The shared memory of one block: NaN until written, with red zones around each variable.
#pragma once
#include <cstddef>
#include <cstdint>
#include <source_location>

namespace fusedloss::emulator {

class SharedMemory {
 public:
  static constexpr size_t kLimit = 48 << 10;  // what a kernel has without asking for more
  static constexpr int kMaxVariables = 32;
  static constexpr int kTags = 4096;

  struct Variable {
    const void* key;
    const char* name;
    std::source_location where;
    size_t begin, end;  // within the memory
  };

  SharedMemory() = default;
  SharedMemory(const SharedMemory&) = delete;
  ~SharedMemory();

  void start_block();

  // The block's variable known by `key`, made at its first use; null if it exceeds the limits.
  void* variable(const void* key, const char* name, size_t bytes, std::source_location where);
  size_t bytes() const { return bytes_; }

  // A variable before or behind which was written, or null.
  const Variable* overrun() const;

  // Addresses for ThreadSanitizer's acquire and release.
  void* tag(int index) { return &memory_->tags[index]; }

 private:
  static constexpr size_t kRedZone = 256;
  static constexpr size_t kAlignment = 16;
  static constexpr size_t kCapacity = kLimit + kRedZone + kMaxVariables * (kRedZone + kAlignment);

  struct Memory {
    uint64_t tags[kTags];
    alignas(kAlignment) unsigned char bytes[kCapacity];
  };
  void allocate();

  Memory* memory_ = nullptr;
  size_t used_ = 0;   // of the capacity, red zones included
  size_t bytes_ = 0;  // of the limit
  // Plain arrays: variables are made within fibres, where a container's allocation would show in ThreadSanitizer.
  Variable variables_[kMaxVariables];
  int count_ = 0;
};

}  // namespace fusedloss::emulator
