// Which vectors belong together because they have the same label.
#pragma once
#include <ATen/core/Tensor.h>

namespace fusedloss::pairs {

struct Belonging {
  // As a tile has them: on the CPU small numbers in the place of labels, which float holds exactly.
  at::Tensor labels, shares;
  // How many rows have others that belong to them; on a device, where the host does not know it, a double, at least 1,
  // and a bool.
  int64_t count = 0;
  at::Tensor count_on_device, nothing_counts;

  Belonging(const at::Tensor& given, at::ScalarType compute, bool on_gpu);

 private:
  void number(at::ScalarType compute);
  void compare(at::ScalarType compute);
};

}  // namespace fusedloss::pairs
