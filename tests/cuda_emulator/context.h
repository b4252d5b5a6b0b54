// A place to go on from: a stack and the registers, without the sanitizers' share of a switch (fiber.h).
#pragma once
#include <cstddef>

// The portable way makes a system call each time.
#if !defined(__x86_64__) || !defined(__ELF__)
#define FUSEDLOSS_UCONTEXT
#endif

#ifdef FUSEDLOSS_UCONTEXT
#include <ucontext.h>
#endif

namespace fusedloss::emulator {

class Context {
 public:
  // The first switch to it calls `entry`, which must not return.
  void prepare(void* stack, size_t size, void (*entry)());
  // Saves in `from`, which may be empty; returns when something switches back to that.
  static void switch_between(Context& from, Context& to);

 private:
#ifdef FUSEDLOSS_UCONTEXT
  ucontext_t registers_;
#else
  void* stack_pointer_ = nullptr;
#endif
};

}  // namespace fusedloss::emulator
