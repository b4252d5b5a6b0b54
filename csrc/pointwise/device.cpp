// The CUDA side of the pointwise ops that needs torch: streams, scratch memory, errors.
#ifdef FUSEDLOSS_CUDA
#include "pointwise/device_pass.h"

#ifndef FUSEDLOSS_EMULATED
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#endif
#include <ATen/ops/empty.h>

#include <algorithm>

namespace fusedloss::pointwise {
namespace {

void check(int error, const char* name) { TORCH_CHECK(error == 0, name, ": CUDA: ", describe_device_error(error)); }

// Makes the tensor's device the current one while it lives, and knows the stream that torch uses there.
#ifdef FUSEDLOSS_EMULATED
struct OnDevice {
  explicit OnDevice(const at::Tensor&) {}
  void* stream() const { return nullptr; }
};
#else
class OnDevice {
 public:
  explicit OnDevice(const at::Tensor& tensor) : guard_(tensor.device()) {}
  void* stream() const {
    const at::Device device = guard_.current_device();
    return c10::impl::VirtualGuardImpl(device.type()).getStream(device).native_handle();
  }

 private:
  c10::DeviceGuard guard_;
};
#endif

int blocks_for(int64_t count, const char* name) {
  int most = 1;
  check(blocks_of_one_wave(most), name);
  const int64_t needed = (count + kDeviceThreads - 1) / kDeviceThreads;
  return int(std::clamp<int64_t>(needed, 1, most));
}

// Kernels walk along all views alike, also those of tensors that are not given: their strides must be numbers.
void clear_absent(DevicePass& pass) {
  const auto clear = [&](View& view) {
    if (!view.data) std::fill_n(view.strides, pass.dims, 0);
  };
  for (int k = 0; k < kMaxOperands; ++k) {
    clear(pass.operands[k]);
    clear(pass.tangents[k]);
    clear(pass.gradients[k]);
  }
  clear(pass.weight);
  clear(pass.grad_output);
  clear(pass.value);
}

}  // namespace

void run_on_device(const Loss& loss, DevicePass& pass, Mode mode, int operands, bool wide, const at::Tensor& like) {
  const char* name = loss.about->name;
  if (pass.count == 0 && !pass.sum.data) return;
  clear_absent(pass);
  const OnDevice device(like);
  const DeviceLaunch how{mode, operands, wide, blocks_for(pass.count, name), device.stream()};
  at::Tensor partials;
  if (pass.sum.data) {
    partials = at::empty({how.blocks}, like.options().dtype(at::kDouble));
    pass.partials = partials.mutable_data_ptr<double>();
  }
  check(loss.device(pass, how), name);
  if (pass.sum.data) check(launch_finish(pass, how.blocks, how.stream), name);
}

void rescale_on_device(const at::Tensor& tensor, const at::Tensor& factor) {
  const OnDevice device(tensor);
  View data, by;
  point(data, tensor);
  point(by, factor);
  check(launch_rescale(data, tensor.numel(), by, blocks_for(tensor.numel(), "fusedloss"), device.stream()),
        "fusedloss");
}

}  // namespace fusedloss::pointwise
#endif
