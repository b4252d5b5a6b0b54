// Which vectors belong together because they have the same label.
#pragma once
#include <ATen/core/Tensor.h>

namespace fusedloss::pairs {

struct Belonging {
  // As a tile has them: on the CPU small numbers in the place of labels, which float holds exactly.
  at::Tensor labels, shares;
  at::Tensor anchors;  // how many rows have others that belong to them, as a double; 1 if none

  Belonging(const at::Tensor& given, at::ScalarType compute, bool on_gpu);

 private:
  void number(at::ScalarType compute);
  void count_on_device(at::ScalarType compute);
};

}  // namespace fusedloss::pairs
