// The CUDA side of the lattice's ops that needs torch: memory to work in, streams, errors.
#include "lattice/device.h"

#include <unordered_map>

#include "lattice/device_pass.h"
#include "lattice/losses/ctc_loss.h"

namespace fusedloss::lattice {

#ifdef FUSEDLOSS_CUDA
namespace {

// Finds for every label where the same comes again.
std::vector<DeviceLabel> linked(const Pass& pass, const Labels& given) {
  std::vector<DeviceLabel> all(given.labels.size());
  for (const Sample& sample : given.samples) {
    std::unordered_map<int32_t, int32_t> next;
    DeviceLabel* const labels = all.data() + sample.first;
    for (int32_t k = int32_t(sample.labels) - 1; k >= 0; --k) {
      const int32_t index = pass.labels[sample.first + k];
      const auto [found, is_last] = next.try_emplace(index, -1);
      labels[k] = {index, found->second, true};
      if (!is_last) labels[found->second].leads = false;
      found->second = k;
    }
  }
  return all;
}

std::vector<DeviceSample> described(const Pass& pass) {
  std::vector<DeviceSample> all;
  for (int64_t n = 0; n < pass.count; ++n) {
    const Sample& sample = pass.samples[n];
    const bool fits = CtcLoss::fits(pass.labels + sample.first, sample.labels, sample.frames);
    all.push_back({sample.frames, sample.labels, sample.first, sample.factor, fits});
  }
  return all;
}

DeviceFrames frames_of(const FrameView& view) {
  DeviceFrames frames{};
  static_cast<Numbers&>(frames) = {view.data, view.dtype};
  frames.frame = view.frame;
  frames.sample = view.sample;
  frames.step = view.step;
  return frames;
}

void take_memory(DevicePass& pass, DeviceMemory& memory, bool wide, bool moving) {
  const int64_t number = wide ? sizeof(double) : sizeof(float), parts = moving ? 3 : 2;
  const int64_t row = 2 * parts * pass.places, frames = pass.count * pass.frames;
  pass.softmaxes = memory.of(frames * 4, number);
  pass.emissions = memory.of(frames * parts * pass.places, number);
  if (pass.gradient.data) pass.states = memory.of(frames * row, number);
  pass.edges = memory.of(2 * pass.count * row, number);
  if (pass.places > kSharedPlaces) pass.rows = memory.of(4 * pass.count * row, number);
  pass.shifts = static_cast<double*>(memory.of(2 * pass.count, sizeof(double)));
  pass.fates = static_cast<Fate*>(memory.of(pass.count, sizeof(Fate)));
}

}  // namespace

void run_on_device(const DeviceCall& call, const Pass& given, const Labels& labels, const at::Tensor& like) {
  if (given.count == 0) return;
  const OnDevice device(like);
  DeviceMemory memory(like);
  std::vector<DeviceSample> samples = described(given);
  std::vector<DeviceLabel> linked_labels = linked(given, labels);
  DevicePass pass{};
  pass.frames = given.frames;
  pass.count = given.count;
  pass.classes = given.classes;
  for (const DeviceSample& sample : samples) pass.places = std::max(pass.places, sample.labels + 1);
  pass.samples = memory.with(samples);
  pass.labels = memory.with(linked_labels);
  pass.blank = given.blank;
  pass.from_logits = given.from_logits;
  pass.zero_infinity = call.zero_infinity;
  pass.input = frames_of(given.input);
  pass.tangent = frames_of(given.tangent);
  pass.gradient = frames_of(given.gradient);
  pass.incoming = numbers_of(call.incoming);
  pass.incoming_step = call.incoming.defined() && call.incoming.dim() > 0 ? call.incoming.stride(0) : 0;
  pass.values = numbers_of(call.values);
  if (call.sum.defined()) pass.weighted = static_cast<double*>(memory.of(pass.count, sizeof(double)));
  take_memory(pass, memory, call.wide, given.moving);
  const int blocks = blocks_for(pass.count * pass.frames * 32, kDeviceBlocks, call.name);
  check_device_error(launch_pass(pass, {call.wide, given.moving, blocks, device.stream()}), call.name);
  if (!call.sum.defined()) return;
  check_device_error(launch_finish(pass.weighted, int(pass.count), numbers_of(call.sum), 1, nullptr,
                                   /*never_zero=*/false, device.stream()),
                     call.name);
}
#endif

}  // namespace fusedloss::lattice
