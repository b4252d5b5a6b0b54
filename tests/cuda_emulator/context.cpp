#include "context.h"

#ifdef FUSEDLOSS_UCONTEXT

namespace fusedloss::emulator {

void Context::prepare(void* stack, size_t size, void (*entry)()) {
  getcontext(&registers_);
  registers_.uc_stack = {};
  registers_.uc_stack.ss_sp = stack;
  registers_.uc_stack.ss_size = size;
  registers_.uc_link = nullptr;
  makecontext(&registers_, entry, 0);
}

void Context::switch_between(Context& from, Context& to) { swapcontext(&from.registers_, &to.registers_); }

}  // namespace fusedloss::emulator

#else

// Keeps the registers that a called function must keep; all others are the compiler's to save.
extern "C" void fusedloss_emulator_switch(void** save_stack_pointer, void* load_stack_pointer);
asm(R"(.text
.globl fusedloss_emulator_switch
.hidden fusedloss_emulator_switch
.type fusedloss_emulator_switch,@function
fusedloss_emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size fusedloss_emulator_switch,.-fusedloss_emulator_switch
)");

namespace fusedloss::emulator {

void Context::prepare(void* stack, size_t size, void (*entry)()) {
  void** top = reinterpret_cast<void**>(static_cast<char*>(stack) + size);
  *--top = nullptr;  // what `entry` finds as its return address; it also aligns the stack as after a call
  *--top = reinterpret_cast<void*>(entry);
  for (int saved_register = 0; saved_register < 6; ++saved_register) *--top = nullptr;
  stack_pointer_ = top;
}

void Context::switch_between(Context& from, Context& to) {
  fusedloss_emulator_switch(&from.stack_pointer_, to.stack_pointer_);
}

}  // namespace fusedloss::emulator

#endif
