// What tests say to the emulator and read from it; kernels do not include this.
#pragma once
#include <cstddef>
#include <cstdint>
#include <stdexcept>

namespace fusedloss::emulator {

// A kernel did what a GPU would punish with a hang, a fault or a wrong number. Thrown out of launch().
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The order in which threads and blocks run: 0 ascending, 1 descending, from 2 on shuffled with this seed.
void set_order(int order);

// Since the program's start.
struct Statistics {
  int64_t launches = 0;
  int64_t blocks = 0;
  int64_t barriers = 0;
  int64_t warp_operations = 0;
  size_t shared_bytes = 0;  // the largest of any block
};
Statistics statistics();

}  // namespace fusedloss::emulator
