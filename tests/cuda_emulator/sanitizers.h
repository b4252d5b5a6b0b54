// Entry points of the sanitizers' run time, null in builds without it. Weak, so that the emulator is compiled once,
// without sanitizers, for kernels with any of them or none.
#pragma once
#include <cstddef>

extern "C" {
[[gnu::weak]] void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t size);
[[gnu::weak]] void __sanitizer_finish_switch_fiber(void* fake_stack, const void** old_bottom, size_t* old_size);
[[gnu::weak]] void __asan_poison_memory_region(const volatile void* begin, size_t size);
[[gnu::weak]] void __asan_unpoison_memory_region(const volatile void* begin, size_t size);
[[gnu::weak]] void* __tsan_get_current_fiber();
[[gnu::weak]] void* __tsan_create_fiber(unsigned flags);
[[gnu::weak]] void __tsan_destroy_fiber(void* fiber);
[[gnu::weak]] void __tsan_switch_to_fiber(void* fiber, unsigned flags);
[[gnu::weak]] void __tsan_acquire(void* tag);
[[gnu::weak]] void __tsan_release(void* tag);
}

namespace fusedloss::emulator {

inline bool under_thread_sanitizer() { return __tsan_create_fiber; }

inline void acquire(void* tag) {
  if (__tsan_acquire) __tsan_acquire(tag);
}
inline void release(void* tag) {
  if (__tsan_release) __tsan_release(tag);
}

}  // namespace fusedloss::emulator
