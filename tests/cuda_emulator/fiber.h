// A function that can be left in the middle and gone on with: a stack of its own, and a switch between that and the
// scheduler's. Sanitizers are told of each switch. All fibres run on the OS thread that calls resume().
#pragma once
#include "context.h"

namespace fusedloss::emulator {

class Fiber {
 public:
  Fiber() = default;
  Fiber(const Fiber&) = delete;
  ~Fiber();

  // Called by the scheduler.
  void prepare(void (*entry)());  // the next resume() calls `entry`, which must end with finish()
  void resume();                  // returns when the fibre suspends or finishes

  // Called by the fibre itself.
  void suspend();
  [[noreturn]] void finish();

 private:
  static void enter();
  void allocate();
  void discard();
  void switch_to_scheduler(bool last);

  char* stack_ = nullptr;
  bool unfinished_ = false;
  void (*entry_)() = nullptr;
  void* fake_stack_ = nullptr;  // AddressSanitizer's
  void* tsan_fiber_ = nullptr;
  Context context_;
};

}  // namespace fusedloss::emulator
