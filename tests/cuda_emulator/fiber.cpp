#include "fiber.h"

#include <sys/mman.h>

#include <cstdlib>
#include <new>

#include "sanitizers.h"

namespace fusedloss::emulator {
namespace {

constexpr size_t kStackBytes = 256 << 10;  // reserved, not committed; reports of sanitizers need room too
constexpr size_t kGuardBytes = 64 << 10;   // a page on every machine
constexpr unsigned kNoHappensBefore = 1;   // a switch by itself orders nothing: on a GPU there is none

Fiber* running = nullptr;

// Where to return to, and what the sanitizers know of it.
struct Scheduler {
  const void* bottom = nullptr;
  size_t size = 0;
  void* fake_stack = nullptr;
  void* tsan_fiber = nullptr;
  Context context;
} scheduler;

}  // namespace

Fiber::~Fiber() { discard(); }

void Fiber::allocate() {
  void* pages = mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (pages == MAP_FAILED) throw std::bad_alloc();
  mprotect(pages, kGuardBytes, PROT_NONE);
  stack_ = static_cast<char*>(pages) + kGuardBytes;
  if (__tsan_create_fiber) tsan_fiber_ = __tsan_create_fiber(0);
}

void Fiber::discard() {
  if (!stack_) return;
  if (__tsan_destroy_fiber) __tsan_destroy_fiber(tsan_fiber_);
  if (__asan_unpoison_memory_region) __asan_unpoison_memory_region(stack_, kStackBytes);
  munmap(stack_ - kGuardBytes, kGuardBytes + kStackBytes);
  stack_ = nullptr;
}

void Fiber::prepare(void (*entry)()) {
  // What the sanitizers know of frames that never returned must not be taken for the new ones'.
  if (unfinished_) discard();
  if (!stack_) allocate();
  unfinished_ = true;
  entry_ = entry;
  fake_stack_ = nullptr;
  context_.prepare(stack_, kStackBytes, &Fiber::enter);
}

void Fiber::enter() {
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(nullptr, &scheduler.bottom, &scheduler.size);
  running->entry_();
  std::abort();
}

void Fiber::resume() {
  running = this;
  if (__tsan_get_current_fiber) scheduler.tsan_fiber = __tsan_get_current_fiber();
  if (__sanitizer_start_switch_fiber) __sanitizer_start_switch_fiber(&scheduler.fake_stack, stack_, kStackBytes);
  if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(tsan_fiber_, kNoHappensBefore);
  Context::switch_between(scheduler.context, context_);
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(scheduler.fake_stack, nullptr, nullptr);
}

void Fiber::switch_to_scheduler(bool last) {
  if (__sanitizer_start_switch_fiber)
    __sanitizer_start_switch_fiber(last ? nullptr : &fake_stack_, scheduler.bottom, scheduler.size);
  if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(scheduler.tsan_fiber, kNoHappensBefore);
  Context::switch_between(context_, scheduler.context);
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(fake_stack_, &scheduler.bottom, &scheduler.size);
}

void Fiber::suspend() { switch_to_scheduler(false); }

void Fiber::finish() {
  unfinished_ = false;
  switch_to_scheduler(true);
  std::abort();
}

}  // namespace fusedloss::emulator
