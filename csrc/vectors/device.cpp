// The CUDA side of the ops of losses of vectors that needs torch: streams, scratch memory, errors.
#include <ATen/ops/empty.h>

#include <algorithm>

#include "vectors/device_pass.h"

namespace fusedloss::vectors {

#ifdef FUSEDLOSS_CUDA
namespace {

// A block of threads for a row waits for the slowest of them several times; a warp does not.
int thread_bits_for(const Pass& pass) {
  constexpr int64_t kMany = 4096;
  return pass.length <= kMany ? 5 : 8;
}

void describe(const Pass& pass, const View& view, RowView& small) {
  static_cast<Numbers&>(small) = numbers_at(view);
  if (view.data) std::copy_n(view.strides, pass.dims, small.strides);
}
void describe(const Pass& pass, const VectorView& view, DeviceVectors& small) {
  describe(pass, view, static_cast<RowView&>(small));
  small.step = view.step;
}
template <class Small>
void describe(const Pass& pass, const Operand& operand, DeviceOperand<Small>& small) {
  describe(pass, operand.at, small.at);
  describe(pass, operand.tangent, small.tangent);
  describe(pass, operand.gradient, small.gradient);
}

DeviceRows rows_of(const Loss& loss, const DevicePass& pass) {
  TORCH_CHECK_NOT_IMPLEMENTED(pass.dims <= kDeviceDims, loss.about->name, ": tensors whose rows take more than ",
                              kDeviceDims, " strides to walk are not supported on this device; make them contiguous");
  DeviceRows rows{};
  rows.count = pass.count;
  rows.length = pass.length;
  rows.dims = pass.dims;
  std::copy_n(pass.sizes, pass.dims, rows.sizes);
  for (int k = 0; k < kMaxVectors; ++k) {
    describe(pass, pass.vectors[k], rows.vectors[k]);
    rows.has_gradients |= pass.vectors[k].gradient.data != nullptr;
  }
  describe(pass, pass.target, rows.target);
  describe(pass, pass.weight, rows.weight);
  describe(pass, pass.grad_output, rows.grad_output);
  describe(pass, pass.value, rows.value);
  rows.scale = pass.scale;
  rows.factor = numbers_at(pass.factor);
  rows.thread_bits = thread_bits_for(pass);
  rows.settings = pass.settings;
  return rows;
}

// Whether 16 bytes of vectors and gradients can be moved at a time.
bool can_be_packed(const Loss& loss, const DevicePass& pass, bool wide) {
  const DType dtype = pass.vectors[0].at.dtype;
  const int64_t size = 16 / size_of(dtype);
  if (pass.moving || wide != (dtype == DType::float64) || pass.length % size != 0) return false;
  const auto fits = [&](const VectorView& view) {
    bool aligned = view.dtype == dtype && view.step == 1 && reinterpret_cast<uintptr_t>(view.data) % 16 == 0;
    for (int d = 0; d < pass.dims; ++d) aligned &= view.strides[d] % size == 0;
    return !view.data || aligned;
  };
  bool all = true;
  for (int k = 0; k < loss.about->vectors(); ++k) all &= fits(pass.vectors[k].at) && fits(pass.vectors[k].gradient);
  return all;
}

}  // namespace

void run_on_device(const Loss& loss, const DevicePass& pass, bool wide, const at::Tensor& like) {
  if (pass.count == 0 && !pass.sum.data) return;
  const char* name = loss.about->name;
  const OnDevice device(like);
  DeviceRows rows = rows_of(loss, pass);
  DeviceLaunch how{loss.about->formula, wide, pass.moving, can_be_packed(loss, pass, wide), 0, device.stream()};
  // As many as could run at once if registers were no limit: most kernels need fewer than they may have.
  constexpr int kTogether = 2048 / kDeviceThreads;
  how.blocks = blocks_for(pass.count << rows.thread_bits, kTogether, name);
  at::Tensor partials;
  if (pass.sum.data) {
    partials = at::empty({how.blocks}, like.options().dtype(at::kDouble));
    rows.partials = partials.mutable_data_ptr<double>();
  }
  check_device_error(launch_rows(rows, how), name);
  if (pass.sum.data)
    check_device_error(launch_finish(rows.partials, how.blocks, numbers_at(pass.sum), pass.denominator, pass.divisor,
                                     /*never_zero=*/false, how.stream),
                       name);
}
#endif

}  // namespace fusedloss::vectors
