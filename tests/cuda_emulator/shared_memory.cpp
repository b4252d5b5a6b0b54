#include "shared_memory.h"

#include <sys/mman.h>

#include <new>

#include "sanitizers.h"

namespace fusedloss::emulator {
namespace {

constexpr unsigned char kPoison = 0xff;  // NaN as any floating-point type

}  // namespace

SharedMemory::~SharedMemory() {
  if (memory_) munmap(memory_, sizeof(Memory));
}

void SharedMemory::allocate() {
  void* pages = mmap(nullptr, sizeof(Memory), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (pages == MAP_FAILED) throw std::bad_alloc();
  memory_ = static_cast<Memory*>(pages);
  used_ = kCapacity;
}

void SharedMemory::start_block() {
  if (!memory_) allocate();
  if (__asan_unpoison_memory_region) __asan_unpoison_memory_region(memory_->bytes, kCapacity);
  // Not memset, which ThreadSanitizer would notice: the poison is there by itself, nobody has written it.
  volatile unsigned char* bytes = memory_->bytes;
  for (size_t i = 0; i < used_; ++i) bytes[i] = kPoison;
  if (__asan_poison_memory_region) __asan_poison_memory_region(memory_->bytes, kCapacity);
  used_ = kRedZone;
  bytes_ = 0;
  count_ = 0;
}

void* SharedMemory::variable(const void* key, const char* name, size_t bytes, std::source_location where) {
  for (int i = 0; i < count_; ++i)
    if (variables_[i].key == key) return memory_->bytes + variables_[i].begin;
  if (count_ == kMaxVariables || bytes > kLimit - bytes_) return nullptr;
  const size_t begin = used_;
  variables_[count_++] = {key, name, where, begin, begin + bytes};
  bytes_ += bytes;
  used_ = (begin + bytes + kRedZone + kAlignment - 1) / kAlignment * kAlignment;
  if (__asan_unpoison_memory_region) __asan_unpoison_memory_region(memory_->bytes + begin, bytes);
  return memory_->bytes + begin;
}

const SharedMemory::Variable* SharedMemory::overrun() const {
  const auto written = [&](size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i)
      if (memory_->bytes[i] != kPoison) return true;
    return false;
  };
  for (int i = 0; i < count_; ++i) {
    const size_t before = i == 0 ? 0 : variables_[i - 1].end;
    const size_t after = i + 1 < count_ ? variables_[i + 1].begin : used_;
    if (written(before, variables_[i].begin) || written(variables_[i].end, after)) return &variables_[i];
  }
  return nullptr;
}

}  // namespace fusedloss::emulator
