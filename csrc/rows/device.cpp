// The CUDA side of the rows' ops that needs torch: streams, scratch memory, errors.
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <vector>

#include "rows/device_pass.h"

namespace fusedloss::rows {

#ifdef FUSEDLOSS_CUDA
namespace {

// ---- labels that are no class -------------------------------------------------------------------------------------

// For each device the memory in which kernels put the first one. It is never freed: when the program ends, CUDA may be
// gone before it.
struct Offenders {
  std::mutex mutex;
  std::map<at::Device, at::Tensor, bool (*)(at::Device, at::Device)> of{
      [](at::Device a, at::Device b) { return std::pair(a.type(), a.index()) < std::pair(b.type(), b.index()); }};
};
Offenders& offenders() {
  static auto& all = *new Offenders;
  return all;
}

Offender* offender_on(const at::Tensor& like) {
  const std::lock_guard<std::mutex> lock(offenders().mutex);
  at::Tensor& memory = offenders().of[like.device()];
  if (!memory.defined()) memory = at::zeros({int64_t(sizeof(Offender))}, like.options().dtype(at::kByte));
  return static_cast<Offender*>(memory.mutable_data_ptr());
}

// ---- parts of a pass ----------------------------------------------------------------------------------------------

// All views of a pass, each with that of the part.
template <class Pass, class Visit>
void for_each_view(Pass& pass, DeviceRows& rows, Visit visit) {
  const auto visit_classes = [&](auto& view, RowClassView& small) {
    small.step = view.data ? view.step : 0;
    visit(view, small);
  };
  for (int k = 0; k < kMaxOperands; ++k) {
    visit_classes(pass.operands[k], rows.operands[k]);
    visit_classes(pass.tangents[k], rows.tangents[k]);
    visit_classes(pass.gradients[k], rows.gradients[k]);
  }
  visit(pass.labels, rows.labels);
  visit(pass.row_weight, rows.row_weight);
  visit(pass.grad_output, rows.grad_output);
  visit(pass.value, rows.value);
}

// A row is a thread's where its classes do not lie one after another, or are so few that more threads would have
// nothing to do. A block of threads waits for the slowest of them several times in a row, a warp does not.
int thread_bits_for(const Pass& pass) {
  constexpr int64_t kFew = 32, kMany = 1024;
  if (pass.operands[0].step != 1 || pass.classes <= kFew) return 0;
  return pass.classes <= kMany ? 5 : 8;
}

DeviceRows rows_of(const Loss& loss, const DevicePass& pass, bool wide, const at::Tensor& like) {
  TORCH_CHECK_NOT_IMPLEMENTED(pass.dims <= kDeviceDims, loss.about->name, ": tensors whose rows take more than ",
                              kDeviceDims, " strides to walk are not supported on this device; make them contiguous");
  TORCH_CHECK_NOT_IMPLEMENTED(pass.classes < int64_t(1) << 31, loss.about->name, ": more than 2^31 - 1 classes");
  DeviceRows rows{};
  rows.dims = pass.dims;
  rows.classes = int(pass.classes);
  for_each_view(pass, rows, [&](const View& view, RowView& small) {
    static_cast<Numbers&>(small) = numbers_at(view);
    if (view.data) std::copy_n(view.strides, pass.dims, small.strides);
  });
  rows.weight = {const_cast<void*>(pass.weight), wide ? DType::float64 : DType::float32};
  rows.ignored = pass.ignored;
  rows.scale = pass.scale;
  rows.factor = numbers_at(pass.factor);
  rows.divisor = pass.divisor;
  if (pass.labels.data) rows.offender = offender_on(like);
  rows.first_label = static_cast<const int64_t*>(pass.labels.data);
  rows.parameters = pass.parameters;
  return rows;
}

// Calls use(rows) for parts of at most kMostRows; nearly always there is one.
template <class Use>
void for_each_part(const DevicePass& pass, const DeviceRows& whole, Use use) {
  int64_t count = 1;
  for (int d = 0; d < pass.dims; ++d) count *= pass.sizes[d];
  DeviceRows rows = whole;
  if (count <= kMostRows) {
    rows.count = uint32_t(count);
    std::copy_n(pass.sizes, pass.dims, rows.sizes);
    return use(rows);
  }
  const int d = int(std::max_element(pass.sizes, pass.sizes + pass.dims) - pass.sizes);
  DevicePass half = pass;
  half.sizes[d] = pass.sizes[d] / 2;
  for_each_part(half, rows, use);
  for_each_view(pass, rows, [&](const View& view, RowView& small) {
    if (view.data) small.data = static_cast<char*>(small.data) + half.sizes[d] * small.strides[d] * size_of(view.dtype);
  });
  half.sizes[d] = pass.sizes[d] - half.sizes[d];
  for_each_part(half, rows, use);
}

// ---- launching ----------------------------------------------------------------------------------------------------

// Calls launch(rows, how) for the parts of a pass, with room for their partial sums if it `sums`; returns those.
template <class Launch>
at::Tensor launch_parts(const Loss& loss, const DevicePass& pass, const DeviceRows& whole, DeviceLaunch how, bool sums,
                        const at::Tensor& like, Launch launch) {
  how.blocks = blocks_for(pass.count << whole.thread_bits, device_blocks(how.wide, how.moving, loss.about->heavy),
                          loss.about->name);
  std::vector<DeviceRows> parts;
  if (pass.count > 0) for_each_part(pass, whole, [&](const DeviceRows& rows) { parts.push_back(rows); });
  at::Tensor partials;
  if (sums) partials = at::empty({int64_t(parts.size()) * how.blocks}, like.options().dtype(at::kDouble));
  double* next = sums ? partials.mutable_data_ptr<double>() : nullptr;
  for (DeviceRows& rows : parts) {
    rows.partials = next;
    check_device_error(launch(rows, how), loss.about->name);
    if (next) next += how.blocks;
  }
  return partials;
}

}  // namespace

void run_on_device(const Loss& loss, const DevicePass& pass, bool dense, bool wide, const at::Tensor& like) {
  if (pass.count == 0 && !pass.sum.data) return;
  const char* name = loss.about->name;
  const OnDevice device(like);
  DeviceRows rows = rows_of(loss, pass, wide, like);
  rows.thread_bits = thread_bits_for(pass);
  const DeviceLaunch how{dense, pass.moving, wide, 0, device.stream()};
  const at::Tensor partials = launch_parts(loss, pass, rows, how, pass.sum.data, like, loss.device);
  if (!pass.sum.data) return;
  check_device_error(launch_finish(partials.const_data_ptr<double>(), int(partials.numel()), numbers_at(pass.sum),
                                   pass.denominator, pass.divisor, /*never_zero=*/false, how.stream),
                     name);
}

at::Tensor count_on_device(const Loss& loss, const DevicePass& pass, bool weighted, bool never_zero, bool wide,
                           const at::Tensor& like) {
  const char* name = loss.about->name;
  const OnDevice device(like);
  const DeviceRows rows = rows_of(loss, pass, wide, like);
  const DeviceLaunch how{false, false, wide, 0, device.stream()};
  const at::Tensor partials = launch_parts(
      loss, pass, rows, how, /*sums=*/true, like,
      [&](const DeviceRows& part, const DeviceLaunch& launch) { return launch_count(part, weighted, launch); });
  at::Tensor count = at::empty({}, like.options().dtype(at::kDouble));
  check_device_error(launch_finish(partials.const_data_ptr<double>(), int(partials.numel()),
                                   {count.mutable_data_ptr(), DType::float64}, 1, nullptr, never_zero, how.stream),
                     name);
  return count;
}

void check_targets() {
  const std::lock_guard<std::mutex> lock(offenders().mutex);
  for (auto& [device, memory] : offenders().of) {
    const at::Tensor seen = memory.to(at::kCPU, memory.scalar_type(), /*non_blocking=*/false, /*copy=*/true);
    const Offender& offender = *static_cast<const Offender*>(seen.const_data_ptr());
    if (!offender.found) continue;
    memory.zero_();
    TORCH_CHECK_INDEX(false, "fusedloss: a target on ", device, " was not the index of a class, from 0 to ",
                      offender.classes - 1, ", or ignore_index; got ", offender.label, " at row ", offender.row,
                      " (counted through all axes but that of the classes). Its loss and gradient are NaN.");
  }
}
#else
void check_targets() {}
#endif

}  // namespace fusedloss::rows
