// The CUDA side of mined triplets that needs torch: memory to work in, streams, errors.
#include "triplets/device.h"

#include <bit>

#include "triplets/device_pass.h"
#include "triplets/formula.h"

namespace fusedloss::triplets {

#ifdef FUSEDLOSS_CUDA
namespace {

// So many numbers has a tile at most, and so many times the anchors that the device runs at once: more are of no use.
constexpr int64_t kNumbersOfATile = 1 << 21, kWaves = 16;

// How many anchors a block has: whole tiles of threads, so many that a vector's distances are measured together.
int64_t anchors_of_a_block(int64_t count, const char* name) {
  const int64_t at_once = blocks_for(count * kDeviceThreads, kDeviceBlocks, name);
  return std::max<int64_t>(std::min(kNumbersOfATile / count, kWaves * at_once) / kTile, 1) * kTile;
}

DeviceVectors vectors_of(const VectorView& view) {
  DeviceVectors vectors{};
  static_cast<Numbers&>(vectors) = {view.data, view.dtype};
  vectors.vector = view.vector;
  vectors.step = view.step;
  return vectors;
}

void take_memory(DevicePass& pass, DeviceMemory& memory, bool wide, bool moving, Mining mining) {
  const int64_t number = wide ? sizeof(double) : sizeof(float), all = pass.count * pass.size;
  pass.vectors = memory.of(all, number);
  if (moving) pass.moved = memory.of(all, number);
  if (pass.normalize) pass.norms = memory.of(pass.count, wide ? sizeof(Norm<double>) : sizeof(Norm<float>));
  for (double** results : {&pass.sums, &pass.terms, &pass.above})
    *results = static_cast<double*>(memory.of(pass.count, sizeof(double)));
  if (pass.gradient.data) pass.slopes = static_cast<double*>(memory.of(all, sizeof(double)));
  if (pass.gradient.data && moving && pass.normalize)
    pass.still_slopes = static_cast<double*>(memory.of(all, sizeof(double)));
  const int64_t tile = pass.block * pass.count;
  pass.distances = memory.of(tile, number);
  pass.weights = memory.of(tile, number);
  if (moving) pass.turns = memory.of(tile, number);
  if (mining == Mining::batch_hard) return;
  pass.sorted_row = int64_t(std::bit_ceil(uint64_t(pass.count)));
  pass.sorted = memory.of(pass.block * pass.sorted_row, number);
  pass.order = static_cast<uint32_t*>(memory.of(pass.block * pass.sorted_row, sizeof(uint32_t)));
  if (mining == Mining::all) pass.before = static_cast<double*>(memory.of(tile, sizeof(double)));
}

}  // namespace

void run_on_device(const DeviceCall& call, const Pass& given, const at::Tensor& like) {
  TORCH_CHECK_NOT_IMPLEMENTED(given.count < int64_t(1) << kClassShift, call.name, ": more than 2^30 - 1 embeddings");
  if (given.count == 0) {
    if (call.value.defined()) call.value.fill_(0);
    return;
  }
  const OnDevice device(like);
  DeviceMemory memory(like);
  const at::Tensor labels = call.labels.to(at::kLong).contiguous();
  DevicePass pass{};
  pass.count = given.count;
  pass.size = given.size;
  pass.labels = labels.const_data_ptr<int64_t>();
  pass.squared = given.squared;
  pass.normalize = given.normalize;
  pass.margin = given.margin;
  pass.input = vectors_of(given.input);
  pass.tangent = vectors_of(given.tangent);
  pass.gradient = vectors_of(given.gradient);
  pass.incoming = numbers_of(call.incoming);
  pass.reduces = call.reduction != Reduction::none;
  pass.incoming_step = call.incoming.defined() && call.incoming.dim() > 0 ? call.incoming.stride(0) : 0;
  if (!pass.reduces) pass.values = numbers_of(call.value);
  pass.block = std::min(pass.count, anchors_of_a_block(pass.count, call.name));
  take_memory(pass, memory, call.wide, given.moving, given.mining);

  const auto check = [&](int error) { check_device_error(error, call.name); };
  const DeviceLaunch how{call.wide, given.mining, blocks_for(pass.count * 32, kDeviceBlocks, call.name),
                         device.stream()};
  check(launch_read(pass, how));
  for (const int64_t block = pass.block; pass.first < pass.count; pass.first += block) {
    pass.block = std::min(block, pass.count - pass.first);
    check(launch_block(pass, how));
  }
  const auto total = [&](const double* of) {
    double* const sum = static_cast<double*>(memory.of(1, sizeof(double)));
    check(launch_finish(of, int(pass.count), {sum, DType::float64}, 1, nullptr, /*never_zero=*/true, device.stream()));
    return sum;
  };
  pass.exists = total(pass.terms);
  if (call.reduction == Reduction::mean) pass.divisor = pass.exists;
  if (call.reduction == Reduction::mean_nonzero) pass.divisor = total(pass.above);
  if (pass.gradient.data) check(launch_write(pass, how));
  if (!pass.reduces || !call.value.defined()) return;
  check(launch_finish(pass.sums, int(pass.count), numbers_of(call.value), 1, pass.divisor, /*never_zero=*/false,
                      device.stream()));
}
#endif

}  // namespace fusedloss::triplets
