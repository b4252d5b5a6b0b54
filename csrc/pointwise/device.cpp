// The CUDA side of the pointwise ops that needs torch: streams, scratch memory, errors.
#ifdef FUSEDLOSS_CUDA
#include "pointwise/device_pass.h"
#include "pointwise/pieces.h"

#ifndef FUSEDLOSS_EMULATED
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#endif
#include <ATen/ops/empty.h>
#include <c10/util/SmallVector.h>

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

int blocks_for(int64_t count, int together, const char* name) {
  int most = 1;
  check(blocks_of_one_wave(together, most), name);
  const int64_t needed = (count + kDeviceThreads - 1) / kDeviceThreads;
  return int(std::clamp<int64_t>(needed, 1, most));
}

}  // namespace

void run_on_device(const Loss& loss, DevicePass& pass, Mode mode, int operands, bool wide, const at::Tensor& like) {
  const char* name = loss.about->name;
  if (pass.count == 0 && !pass.sum.data) return;
  if (mode == Mode::value_and_gradient && pass.value.data) {
    // Nobody trains like that: no kernel writes both.
    run_on_device(loss, pass, Mode::value, operands, wide, like);
    return run_on_device(loss, pass, Mode::gradient, operands, wide, like);
  }
  const OnDevice device(like);
  const int blocks = blocks_for(pass.count, device_blocks(wide, mode), name);
  const DeviceLaunch how{mode, operands, wide, blocks, device.stream()};
  c10::SmallVector<Piece, 1> pieces;
  for_each_piece(pass, [&](const Piece& piece) { pieces.push_back(piece); });
  at::Tensor partials;
  double* next = nullptr;
  if (pass.sum.data) {
    partials = at::empty({int64_t(pieces.size()) * how.blocks}, like.options().dtype(at::kDouble));
    next = partials.mutable_data_ptr<double>();
  }
  for (Piece& piece : pieces) {
    piece.partials = next;
    check(loss.device(piece, how), name);
    if (next) next += how.blocks;
  }
  if (pass.sum.data)
    check(launch_finish(pass, partials.const_data_ptr<double>(), int(partials.numel()), how.stream), name);
}

void rescale_on_device(const at::Tensor& tensor, const at::Tensor& factor) {
  const OnDevice device(tensor);
  View data, by;
  point(data, tensor);
  point(by, factor);
  const int blocks = blocks_for(tensor.numel(), device_blocks(false, Mode::value), "fusedloss");
  check(launch_rescale(data, tensor.numel(), by, blocks, device.stream()), "fusedloss");
}

}  // namespace fusedloss::pointwise
#endif
