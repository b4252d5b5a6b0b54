// The CUDA kernels of losses over a lattice, in the order in which they run:
//
//   emit       a warp a frame: its softmax, and the probabilities of the sample's labels and of the blank
//   sweep      two blocks a sample: one goes forward through the frames, one backward, until they meet in the middle
//   join       a block a sample: its value, from where they met
//   sweep      both go on to the ends, over what the other has left: the product of the two programs at every frame
//   write_gradients   a warp a frame: the posterior of its labels, from those products, and the gradient
//
// A sequence takes as many steps after each other as it has frames, and half of them for the value alone. All sums have
// a fixed order.
#pragma once
#include "core/numbers.cuh"
#include "core/single.h"
#include "core/sum.h"
#include "core/warp.cuh"
#include "lattice/device.h"
#include "lattice/losses/ctc_loss.h"

namespace fusedloss::lattice::inline FUSEDLOSS_SET {

// ---- numbers in memory --------------------------------------------------------------------------------------------

template <bool moving>
inline constexpr int kParts = moving ? 3 : 2;

template <class T, bool moving>
__device__ __forceinline__ Scaled<Single<T>, moving> nothing() {
  return Scaled<Single<T>, moving>::of(Single<T>(1), Single<T>(kNothing));
}

// Numbers of `places` places, each part behind the one before.
template <class T, bool moving>
struct DeviceRow {
  using V = Single<T>;
  using Number = Scaled<V, moving>;
  T* data;
  int64_t places;

  __device__ __forceinline__ Number load(int64_t k) const {
    Number x = Number::of(V::of(data[k]), V::of(data[places + k]));
    if constexpr (moving) x.slope = V::of(data[2 * places + k]);
    return x;
  }
  __device__ __forceinline__ void store(int64_t k, const Number& x) const {
    data[k] = x.mantissa.raw;
    data[places + k] = x.exponent.raw;
    if constexpr (moving) data[2 * places + k] = x.slope.raw;
  }
};

// Both states of every place.
template <class T, bool moving>
struct DeviceStates {
  using Row = DeviceRow<T, moving>;
  using States = CtcLoss::States<typename Row::Number>;
  Row blank, label;

  __device__ __forceinline__ static int64_t numbers_for(int64_t places) { return 2 * kParts<moving> * places; }
  __device__ __forceinline__ DeviceStates(T* data, int64_t places)
      : blank{data, places}, label{data + kParts<moving> * places, places} {}
  __device__ __forceinline__ States load(int64_t k) const { return {blank.load(k), label.load(k)}; }
  __device__ __forceinline__ void store(int64_t k, const States& states) const {
    blank.store(k, states.blank);
    label.store(k, states.label);
  }
};

template <class T>
struct DeviceSoftmax {
  T top, sum, mean, base;
};

template <class T>
__device__ __forceinline__ DeviceSoftmax<T>& softmax_at(const DevicePass& pass, int64_t sample, int64_t frame) {
  return static_cast<DeviceSoftmax<T>*>(pass.softmaxes)[sample * pass.frames + frame];
}
template <class T, bool moving>
__device__ __forceinline__ DeviceRow<T, moving> emissions_at(const DevicePass& pass, int64_t sample, int64_t frame) {
  const int64_t numbers = kParts<moving> * pass.places;
  return {static_cast<T*>(pass.emissions) + (sample * pass.frames + frame) * numbers, pass.places};
}
template <class T, bool moving>
__device__ __forceinline__ DeviceStates<T, moving> states_at(const DevicePass& pass, void* memory, int64_t row) {
  return {static_cast<T*>(memory) + row * DeviceStates<T, moving>::numbers_for(pass.places), pass.places};
}

__device__ __forceinline__ int64_t offset_of(const DeviceFrames& frames, int64_t sample, int64_t frame) {
  return sample * frames.sample + frame * frames.frame;
}

// The class of a label, or of the blank behind the labels.
__device__ __forceinline__ int32_t class_of(const DevicePass& pass, const DeviceSample& sample, int64_t k) {
  return k < sample.labels ? pass.labels[sample.first + k].index : pass.blank;
}

// ---- over a warp or a block ---------------------------------------------------------------------------------------

using fusedloss::sum_of_warp;
template <class T, bool moving>
__device__ __forceinline__ Scaled<Single<T>, moving> sum_of_warp(Scaled<Single<T>, moving> x) {
  using V = Single<T>;
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
    auto other = Scaled<V, moving>::of(V::of(__shfl_xor_sync(kFullWarp, x.mantissa.raw, lanes)),
                                       V::of(__shfl_xor_sync(kFullWarp, x.exponent.raw, lanes)));
    if constexpr (moving) other.slope = V::of(__shfl_xor_sync(kFullWarp, x.slope.raw, lanes));
    x = normalised(sum(x, other));
  }
  return x;
}

// In thread 0.
template <class T, bool moving>
__device__ __forceinline__ Scaled<Single<T>, moving> sum_of_block(Scaled<Single<T>, moving> x) {
  constexpr int kWarps = kDeviceThreads / kWarp;
  FUSEDLOSS_SHARED(T, of_warps, kParts<moving> * kWarps);
  const DeviceRow<T, moving> row{of_warps, kWarps};
  x = sum_of_warp(x);
  if (threadIdx.x % kWarp == 0) row.store(threadIdx.x / kWarp, x);
  __syncthreads();
  if (threadIdx.x == 0)
    for (int warp = 1; warp < kWarps; ++warp) x = normalised(sum(x, row.load(warp)));
  return x;
}

// ---- emit ---------------------------------------------------------------------------------------------------------

// Calls use(sample, frame) for the frames of all samples, a warp each.
template <class Use>
__device__ __forceinline__ void each_frame(const DevicePass& pass, Use use) {
  constexpr int kWarps = kDeviceThreads / kWarp;
  const int64_t count = pass.count * pass.frames;
  for (int64_t i = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp; i < count; i += int64_t(gridDim.x) * kWarps)
    use(i / pass.frames, i % pass.frames);
}

// exp(x - top), or exp(x) of what is a logarithm of a probability already.
template <class T>
__device__ __forceinline__ T share_of(const DevicePass& pass, T x, T top) {
  return exp(Single<T>::of(pass.from_logits ? x - top : x)).raw;
}

template <class T, bool moving>
__device__ __forceinline__ DeviceSoftmax<T> softmax_of(const DevicePass& pass, int64_t input, int64_t tangent) {
  DeviceSoftmax<T> softmax{0, 1, 0, 0};
  if (!pass.from_logits && !moving) return softmax;
  if (pass.from_logits) {
    T top = -T(INFINITY), sum = 0;
    for (int64_t c = lane_of_warp(); c < pass.classes; c += kWarp) {
      const T x = read<T>(pass.input, input + c * pass.input.step);
      top = x > top ? x : top;
    }
    softmax.top = largest_of_warp(top);
    for (int64_t c = lane_of_warp(); c < pass.classes; c += kWarp)
      sum += share_of(pass, read<T>(pass.input, input + c * pass.input.step), softmax.top);
    softmax.sum = sum_of_warp(sum);
  }
  if constexpr (moving) {
    T weighted = 0;
    for (int64_t c = lane_of_warp(); c < pass.classes; c += kWarp)
      weighted += share_of(pass, read<T>(pass.input, input + c * pass.input.step), softmax.top) *
                  read<T>(pass.tangent, tangent + c * pass.tangent.step);
    softmax.mean = sum_of_warp(weighted) / softmax.sum;
  }
  return softmax;
}

// The probabilities of the labels and of the blank, as shares of the largest of them, the base; it is NaN if one of
// them is, or is infinite.
template <class T, bool moving>
__device__ __forceinline__ void emit_frame(const DevicePass& pass, int64_t n, int64_t frame) {
  using V = Single<T>;
  const DeviceSample& sample = pass.samples[n];
  const int64_t input = offset_of(pass.input, n, frame), tangent = offset_of(pass.tangent, n, frame);
  DeviceSoftmax<T> softmax = softmax_of<T, moving>(pass, input, tangent);
  const auto x = [&](int64_t k) { return read<T>(pass.input, input + class_of(pass, sample, k) * pass.input.step); };
  T base = MathConstants<T>::kLowest, bad = 0;
  for (int64_t k = lane_of_warp(); k <= sample.labels; k += kWarp) {
    base = x(k) > base ? x(k) : base;
    if (!(x(k) < T(INFINITY))) bad = 1;
  }
  base = largest_of_warp(base);
  softmax.base = largest_of_warp(bad) > 0 ? T(NAN) : base;
  const auto row = emissions_at<T, moving>(pass, n, frame);
  for (int64_t k = lane_of_warp(); k <= sample.labels; k += kWarp) {
    auto emission = scaled_exp<moving>(V::of(x(k) - base));
    if constexpr (moving)
      emission.slope =
          V::of(read<T>(pass.tangent, tangent + class_of(pass, sample, k) * pass.tangent.step) - softmax.mean);
    row.store(k, emission);
  }
  if (lane_of_warp() == 0) softmax_at<T>(pass, n, frame) = softmax;
}

template <class T, bool moving>
__global__ void __launch_bounds__(kDeviceThreads, kDeviceBlocks) emit(const __grid_constant__ DevicePass pass) {
  each_frame(pass, [&](int64_t n, int64_t frame) {
    if (frame < pass.samples[n].frames && pass.samples[n].fits) emit_frame<T, moving>(pass, n, frame);
  });
}

// ---- sweep --------------------------------------------------------------------------------------------------------

// Where the two programs of a sample meet: the first frame that belongs to the one that goes backward.
__device__ __forceinline__ int64_t middle_of(const DeviceSample& sample) { return (sample.frames + 1) / 2; }

__device__ __forceinline__ double may_skip(const DevicePass& pass, const DeviceSample& sample, int64_t k) {
  const DeviceLabel* const labels = pass.labels + sample.first;
  return k > 0 && k < sample.labels && labels[k].index != labels[k - 1].index ? 0 : kNothing;
}

// One of the two programs of a sample, which a block runs.
template <class T, bool moving>
class Program {
  using V = Single<T>;
  using Rows = DeviceStates<T, moving>;
  using States = typename Rows::States;

 public:
  __device__ __forceinline__ Program(const DevicePass& pass, int64_t sample, bool backward, T* memory)
      : pass_(pass),
        sample_(pass.samples[sample]),
        n_(sample),
        backward_(backward),
        now_(memory, pass.places),
        next_(memory + Rows::numbers_for(pass.places), pass.places) {}

  // Up to where the programs meet, or on from there.
  __device__ __forceinline__ void run(bool second) {
    const int64_t middle = middle_of(sample_), last = sample_.frames - 1;
    const Rows edge = states_at<T, moving>(pass_, pass_.edges, 2 * n_ + backward_);
    each_place([&](int64_t k) { now_.store(k, second ? edge.load(k) : start_at(k)); });
    __syncthreads();
    double shifted = 0;
    if (backward_)
      for (int64_t t = second ? middle - 1 : last, end = second ? 0 : middle; t >= end; --t) step(t, second, shifted);
    else
      for (int64_t t = second ? middle : 0, end = second ? last : middle - 1; t <= end; ++t) step(t, second, shifted);
    if (second) return;
    each_place([&](int64_t k) { edge.store(k, now_.load(k)); });
    if (threadIdx.x == 0) pass_.shifts[2 * n_ + backward_] = shifted;
  }

 private:
  template <class Use>
  __device__ __forceinline__ void each_place(Use use) const {
    for (int64_t k = threadIdx.x; k <= sample_.labels; k += kDeviceThreads) use(k);
  }

  // Before the first frame all alignments are at the first blank, behind the last frame at the last one.
  __device__ __forceinline__ States start_at(int64_t k) const {
    States states{nothing<T, moving>(), nothing<T, moving>()};
    if (k == (backward_ ? sample_.labels : 0)) states.blank.exponent = V(0);
    return states;
  }

  // From the row of one frame to that of the next in this direction.
  __device__ __forceinline__ void step(int64_t t, bool second, double& shifted) {
    constexpr int64_t kShiftEvery = 64;
    const auto emission = emissions_at<T, moving>(pass_, n_, t);
    const auto of_blank = emission.load(sample_.labels);
    each_place([&](int64_t k) {
      const States sums = backward_ ? after(k) : before(k);
      States with_emission{normalised(sums.blank * of_blank), nothing<T, moving>()};
      if (k < sample_.labels) with_emission.label = normalised(sums.label * emission.load(k));
      next_.store(k, with_emission);
      if (pass_.states) leave(t, k, backward_ ? sums : with_emission, second);
    });
    __syncthreads();
    const Rows row = now_;
    now_ = next_;
    next_ = row;
    if (t % kShiftEvery == 0) shifted += shift();
  }
  __device__ __forceinline__ States before(int64_t k) const {
    const auto label_before = k > 0 ? now_.label.load(k - 1) : nothing<T, moving>();
    return CtcLoss::before(now_.load(k), label_before, V(may_skip(pass_, sample_, k)));
  }
  __device__ __forceinline__ States after(int64_t k) const {
    States next{nothing<T, moving>(), nothing<T, moving>()};
    if (k < sample_.labels) next = now_.load(k + 1);
    return CtcLoss::after(now_.load(k), next, V(may_skip(pass_, sample_, k + 1)));
  }
  // For the other program; or, where that has been, what alignments through the state come to.
  __device__ __forceinline__ void leave(int64_t t, int64_t k, const States& sums, bool second) const {
    const Rows row = states_at<T, moving>(pass_, pass_.states, n_ * pass_.frames + t);
    if (!second) return row.store(k, sums);
    const States others = row.load(k);
    row.store(k, {others.blank * sums.blank, others.label * sums.label});
  }
  // Takes the largest exponent from all, which else would grow until they are no longer exact.
  __device__ __forceinline__ double shift() {
    T top = T(kNothing);
    each_place([&](int64_t k) {
      const States states = now_.load(k);
      top = larger_of(V::of(top), larger_of(states.blank.exponent, states.label.exponent)).raw;
    });
    top = largest_of_block(top);
    each_place([&](int64_t k) {
      States states = now_.load(k);
      states.blank.exponent = states.blank.exponent - V::of(top);
      states.label.exponent = states.label.exponent - V::of(top);
      now_.store(k, states);
    });
    __syncthreads();
    return double(top);
  }

  const DevicePass& pass_;
  const DeviceSample& sample_;
  const int64_t n_;
  const bool backward_;
  Rows now_, next_;
};

template <class T, bool moving>
__global__ void __launch_bounds__(kDeviceThreads, kDeviceBlocks)
    sweep(const __grid_constant__ DevicePass pass, bool second) {
  constexpr int kRow = 2 * kParts<moving> * kSharedPlaces;
  FUSEDLOSS_SHARED(T, shared_rows, 2 * kRow);
  const int64_t n = blockIdx.x / 2;
  T* rows = shared_rows;
  if (pass.places > kSharedPlaces)
    rows = static_cast<T*>(pass.rows) + 2 * blockIdx.x * DeviceStates<T, moving>::numbers_for(pass.places);
  const bool runs = pass.samples[n].fits && (!second || pass.fates[n] == Fate::counts);
  if (runs) Program<T, moving>(pass, n, blockIdx.x % 2, rows).run(second);  // the same for all threads of the block
}

// ---- join ---------------------------------------------------------------------------------------------------------

// What all alignments come to: through the states of the last frame that belongs to the forward program.
template <class T, bool moving>
__device__ __forceinline__ Scaled<Single<T>, moving> sum_of_alignments(const DevicePass& pass, int64_t n) {
  using V = Single<T>;
  const DeviceSample& sample = pass.samples[n];
  const auto forward = states_at<T, moving>(pass, pass.edges, 2 * n);
  const auto backward = states_at<T, moving>(pass, pass.edges, 2 * n + 1);
  auto total = nothing<T, moving>();
  for (int64_t k = threadIdx.x; sample.fits && k <= sample.labels; k += kDeviceThreads) {
    typename DeviceStates<T, moving>::States next{nothing<T, moving>(), nothing<T, moving>()};
    if (k < sample.labels) next = backward.load(k + 1);
    const auto after = CtcLoss::after(backward.load(k), next, V(may_skip(pass, sample, k + 1)));
    const auto before = forward.load(k);
    total = normalised(sum(total, before.blank * after.blank, before.label * after.label));
  }
  return sum_of_block(total);
}

// Of the bases of all frames, less the logarithms of what their softmax divides by.
template <class T>
__device__ __forceinline__ double log_of_frames(const DevicePass& pass, int64_t n) {
  Sum<double> sum;
  const int64_t frames = pass.samples[n].fits ? pass.samples[n].frames : 0;
  for (int64_t t = threadIdx.x; t < frames; t += kDeviceThreads) {
    const DeviceSoftmax<T>& softmax = softmax_at<T>(pass, n, t);
    sum.add(double(softmax.base) - double(softmax.top));
    sum.add(-std::log(double(softmax.sum)));
  }
  return fusedloss::sum_of_block<kDeviceThreads>(value_of(sum));
}

template <class T, bool moving>
__global__ void __launch_bounds__(kDeviceThreads, kDeviceBlocks) join(const __grid_constant__ DevicePass pass) {
  const int64_t n = blockIdx.x;
  const auto total = sum_of_alignments<T, moving>(pass, n);
  const double of_frames = log_of_frames<T>(pass, n);
  if (threadIdx.x != 0) return;
  const double exponent = double(total.exponent.raw) + pass.shifts[2 * n] + pass.shifts[2 * n + 1];
  const double logarithm = std::log(double(total.mantissa.raw)) + exponent * 0.69314718055994530942 + of_frames;
  double value = 0 - logarithm;  // no negative 0
  if constexpr (moving) value = 0 - double(total.slope.raw);
  Fate fate = Fate::counts;
  if (!pass.samples[n].fits || exponent < kLowestExponent) {
    fate = Fate::has_no_alignment;
    value = moving || pass.zero_infinity ? 0 : double(INFINITY);
  }
  if (of_frames != of_frames || value != value) {
    fate = Fate::is_nan;
    value = double(NAN);
  }
  pass.fates[n] = fate;
  if (pass.values.data) write(pass.values, n, value);
  if (pass.weighted) pass.weighted[n] = value * pass.samples[n].weight;
}

// ---- the gradient -------------------------------------------------------------------------------------------------

template <class T>
__device__ __forceinline__ void fill_frame(const DevicePass& pass, int64_t gradient, T value) {
  for (int64_t c = lane_of_warp(); c < pass.classes; c += kWarp)
    write(pass.gradient, gradient + c * pass.gradient.step, value);
}

// The gradient of a frame, a warp's.
template <class T, bool moving>
class FrameGradient {
  using V = Single<T>;

 public:
  __device__ __forceinline__ FrameGradient(const DevicePass& pass, int64_t n, int64_t frame)
      : pass_(pass),
        sample_(pass.samples[n]),
        softmax_(softmax_at<T>(pass, n, frame)),
        products_(states_at<T, moving>(pass, pass.states, n * pass.frames + frame)),
        input_(offset_of(pass.input, n, frame)),
        tangent_(offset_of(pass.tangent, n, frame)),
        gradient_(offset_of(pass.gradient, n, frame)),
        factor_(T(sample_.weight * (pass.incoming.data ? read<double>(pass.incoming, n * pass.incoming_step) : 1))) {}

  __device__ __forceinline__ void write() {
    find_posterior();
    for (int64_t c = lane_of_warp(); c < pass_.classes; c += kWarp) put(c, T(0));
    __syncwarp();
    const DeviceLabel* const labels = pass_.labels + sample_.first;
    for (int64_t k = lane_of_warp(); k < sample_.labels; k += kWarp) {
      if (!labels[k].leads) continue;
      T posterior = 0;
      for (int64_t same = k; same >= 0; same = labels[same].next) posterior += products_.label.data[same];
      put(labels[k].index, posterior);
    }
    if (lane_of_warp() == 0) put(pass_.blank, of_blank_);
  }

 private:
  __device__ __forceinline__ void put(int64_t c, T posterior) const {
    const T x = read<T>(pass_.input, input_ + c * pass_.input.step);
    T share = share_of(pass_, x, softmax_.top) / softmax_.sum * factor_;
    if constexpr (moving)
      share *= read<T>(pass_.tangent, tangent_ + c * pass_.tangent.step) - (pass_.from_logits ? softmax_.mean : T(0));
    fusedloss::write(pass_.gradient, gradient_ + c * pass_.gradient.step, share - posterior);
  }

  // Of every label, times the factor, in the place of its product's mantissa; of all blanks together in of_blank_. In
  // moving passes it is how they move: a share grows by how much its slope is above the mean of all.
  __device__ __forceinline__ void find_posterior() {
    T top = T(kNothing);
    each([&](int64_t, const auto& blank, const auto& label) {
      top = larger_of(V::of(top), larger_of(blank.exponent, label.exponent)).raw;
    });
    top = largest_of_warp(top);
    const auto share = [&](const auto& product) {
      return scaled_down_gradually(product.mantissa, product.exponent - V::of(top)).raw;
    };
    T all = 0, slopes = 0, blanks = 0;
    each([&](int64_t, const auto& blank, const auto& label) {
      all += share(blank) + share(label);
      if constexpr (moving) slopes += share(blank) * blank.slope.raw + share(label) * label.slope.raw;
    });
    all = sum_of_warp(all);
    const T scale = factor_ / all, mean = moving ? sum_of_warp(slopes) / all : 0;
    each([&](int64_t k, const auto& blank, const auto& label) {
      blanks += moved(share(blank), blank, mean);
      products_.label.data[k] = moved(share(label), label, mean) * scale;
    });
    of_blank_ = sum_of_warp(blanks) * scale;
  }
  template <class Number>
  __device__ __forceinline__ static T moved(T share, [[maybe_unused]] const Number& product, [[maybe_unused]] T mean) {
    if constexpr (moving)
      return share * (product.slope.raw - mean);
    else
      return share;
  }
  template <class Use>
  __device__ __forceinline__ void each(Use use) const {
    for (int64_t k = lane_of_warp(); k <= sample_.labels; k += kWarp)
      use(k, products_.blank.load(k), products_.label.load(k));
  }

  const DevicePass& pass_;
  const DeviceSample& sample_;
  const DeviceSoftmax<T> softmax_;
  const DeviceStates<T, moving> products_;
  const int64_t input_, tangent_, gradient_;
  const T factor_;
  T of_blank_ = 0;
};

template <class T, bool moving>
__global__ void __launch_bounds__(kDeviceThreads, kDeviceBlocks)
    write_gradients(const __grid_constant__ DevicePass pass) {
  each_frame(pass, [&](int64_t n, int64_t frame) {
    const Fate fate = frame < pass.samples[n].frames ? pass.fates[n] : Fate::has_no_alignment;
    const int64_t gradient = offset_of(pass.gradient, n, frame);
    if (fate == Fate::counts)
      FrameGradient<T, moving>(pass, n, frame).write();
    else
      fill_frame(pass, gradient, fate == Fate::is_nan ? T(NAN) : T(0));
  });
}

// ---- launching ----------------------------------------------------------------------------------------------------

template <class T, bool moving>
int launch_all(const DevicePass& pass, const DeviceLaunch& how) {
  const auto stream = static_cast<cudaStream_t>(how.stream);
  const dim3 threads(kDeviceThreads), frames(how.blocks), samples(unsigned(pass.count)), programs(2 * samples.x);
  cudaError_t error = launch(emit<T, moving>, frames, threads, stream, pass);
  if (error == cudaSuccess) error = launch(sweep<T, moving>, programs, threads, stream, pass, false);
  if (error == cudaSuccess) error = launch(join<T, moving>, samples, threads, stream, pass);
  if (!pass.gradient.data) return error;
  if (error == cudaSuccess) error = launch(sweep<T, moving>, programs, threads, stream, pass, true);
  if (error == cudaSuccess) error = launch(write_gradients<T, moving>, frames, threads, stream, pass);
  return error;
}

}  // namespace fusedloss::lattice::inline FUSEDLOSS_SET

namespace fusedloss::lattice {

int launch_pass(const DevicePass& pass, const DeviceLaunch& how) {
  if (how.wide) return how.moving ? launch_all<double, true>(pass, how) : launch_all<double, false>(pass, how);
  return how.moving ? launch_all<float, true>(pass, how) : launch_all<float, false>(pass, how);
}

}  // namespace fusedloss::lattice
