#include "torch/device.h"

#include <algorithm>

#include "torch/views.h"

namespace fusedloss {

#ifdef FUSEDLOSS_CUDA
int blocks_for(int64_t threads, int together, const char* name) {
  int most = 1;
  check_device_error(blocks_of_one_wave(together, most), name);
  return int(std::clamp<int64_t>((threads + kDeviceThreads - 1) / kDeviceThreads, 1, most));
}

Numbers numbers_of(const at::Tensor& tensor) {
  View view;
  if (tensor.defined()) point(view, tensor);
  return numbers_at(view);
}

void rescale_on_device(const at::Tensor& tensor, const at::Tensor& factor) {
  constexpr int kTogether = 6;  // what its registers allow everywhere
  const OnDevice device(tensor);
  View data, by;
  point(data, tensor);
  point(by, factor);
  const int blocks = blocks_for(tensor.numel(), kTogether, "fusedloss");
  check_device_error(launch_rescale(numbers_at(data), tensor.numel(), numbers_at(by), blocks, device.stream()),
                     "fusedloss");
}
#else
void rescale_on_device(const at::Tensor&, const at::Tensor&) {}
#endif

}  // namespace fusedloss
