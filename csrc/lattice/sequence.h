// One sample's two dynamic programs: forward through its frames, then backward, which gives the posterior of each frame
// and with it the frame's gradient.
//
// The backward program needs what the forward one had at the same frame. That is kept for a stretch of frames only, and
// beyond it for where a stretch begins: of a long sequence stretches are computed again, which takes less time than to
// write and read what does not fit into the caches, and memory that grows with the root of the number of frames.
#pragma once
#include <cmath>
#include <limits>

#include "lattice/frames.h"
#include "lattice/softmax.h"
#include "lattice/states.h"

namespace fusedloss::lattice::inline FUSEDLOSS_SET {

// How many frames of a sequence with so many places make a stretch. What is kept shall fit into a cache, and not be
// larger than the input is.
template <class T>
int64_t stretch_for(const Pass& pass, int64_t frames, int64_t width, int parts) {
  const int64_t input = pass.count * pass.frames * pass.classes * int64_t(sizeof(T));
  const int64_t most = std::clamp<int64_t>(input, 64 * 1024, 1536 * 1024);
  const int64_t frame = 3 * parts * width * int64_t(sizeof(T));  // two states and an emission
  if (frames * frame <= most) return std::max<int64_t>(frames, 1);
  return std::max<int64_t>({most / frame / 2, int64_t(std::sqrt(double(frames))), 16});
}

template <class T, bool moving>
class Sequences {
 public:
  Sequences(const Pass& pass, Workspace& workspace)
      : pass_(pass),
        room_(pass),
        input_(pass.input, pass.classes, workspace),
        tangent_(pass.tangent, pass.classes, workspace),
        gradient_(pass.gradient, pass.classes, workspace),
        now_(padded_row(workspace)),
        then_(padded_row(workspace)),
        kept_(workspace.take<T>(Row::numbers_for(room_.kept))),
        starts_(workspace.take<T>(Row::numbers_for(room_.starts))),
        emissions_(workspace.take<T>(kParts<T, moving> * room_.emitted)),
        weights_(workspace.take<T>(Row::numbers_for(room_.width))),
        skips_(workspace.take<T>(room_.width + 2 * kLanes) + kLanes),
        gathered_(workspace.take<T>(2 * (room_.width + kLanes))),
        slopes_(workspace.take<T>(moving ? room_.width + kLanes : 0)),
        shares_(workspace.take<T>(moving ? pass.classes : 0)),
        sums_(workspace.take<Softmax<T>>(room_.frames)),
        classes_(workspace.take<int32_t>(room_.width)) {}

  // The sample's loss, or its derivative.
  double run(int64_t n) {
    const Sample& sample = pass_.samples[n];
    for (auto* frames : {&input_, &tangent_, &gradient_}) frames->go_to(n);
    frames_ = sample.frames;
    slope_ = 0;
    if (gradient_.given()) gradient_.fill(frames_, pass_.frames, 0);
    poisoned_ = false;
    possible_ = take_labels(sample);
    if (!possible_) return finish(-INFINITY, 0);
    const double logarithm = forward();
    if (gradient_.given()) possible_ ? backward(T(sample.factor)) : look_at_all();
    return finish(logarithm, pass_.from_logits ? log_of_sums() : 0);
  }

 private:
  using V = Lanes<T>;
  using Number = Scaled<V, moving>;
  using Row = StateRow<T, moving>;
  static constexpr int64_t kLanes = V::size, kShiftEvery = 64;

  // ---- memory ----

  static int64_t width_for(int64_t labels) { return (labels + kLanes) / kLanes * kLanes; }

  // What the longest samples need, in places or frames.
  struct Room {
    int64_t width = 0, frames = 0, kept = 0, emitted = 0, starts = 0;

    explicit Room(const Pass& pass) {
      for (int64_t n = 0; n < pass.count; ++n) {
        const Sample& sample = pass.samples[n];
        const int64_t its_width = width_for(sample.labels);
        const int64_t stretch = stretch_for<T>(pass, sample.frames, its_width, kParts<T, moving>);
        width = std::max(width, its_width);
        frames = std::max(frames, sample.frames);
        if (pass.gradient.data) kept = std::max(kept, stretch * its_width);
        emitted = std::max(emitted, stretch * (its_width + kLanes));
        if (sample.frames > stretch) starts = std::max(starts, ((sample.frames + stretch - 1) / stretch) * its_width);
      }
    }
  };
  // With a register on each side, which those at the ends look at.
  Row padded_row(Workspace& workspace) const {
    const int64_t stride = room_.width + 2 * kLanes;
    return Row::at(workspace.take<T>(Row::numbers_for(stride)) + kLanes, stride);
  }
  void clear(const Row& row) const {
    for (const auto& part : {row.blank, row.label}) part.clear(-kLanes, width_ + kLanes);
  }
  Row kept(int64_t slot) const { return Row::at(kept_ + slot * Row::numbers_for(width_), width_); }
  Row start_of(int64_t stretch) const { return Row::at(starts_ + stretch * Row::numbers_for(width_), width_); }
  Row weights() const { return Row::at(weights_, width_); }
  // Of the labels; and behind them, at the place width_, that of the blank in all lanes.
  ScaledRow<T, moving> emission(int64_t slot) const {
    const int64_t stride = width_ + kLanes;
    return {emissions_ + slot * kParts<T, moving> * stride, stride};
  }
  void copy(const Row& from, const Row& to) const {
    for (int64_t k = 0; k < width_; k += kLanes) to.store(k, from.load(k));
  }

  // ---- a sample ----

  // Returns whether it can have an alignment.
  bool take_labels(const Sample& sample) {
    labels_ = sample.labels;
    width_ = width_for(labels_);
    stretch_ = stretch_for<T>(pass_, frames_, width_, kParts<T, moving>);
    const int32_t* const labels = pass_.labels + sample.first;
    std::copy_n(labels, labels_, classes_);
    for (T* row : {gathered_, gathered_ + width_ + kLanes})
      std::fill(row + labels_, row + width_, -MathConstants<T>::kInfinity);
    if (moving) std::fill(slopes_ + labels_, slopes_ + width_, T(0));
    std::fill(skips_ - kLanes, skips_ + width_ + kLanes, T(kNothing));
    for (int64_t k = 1; k < labels_; ++k)
      if (labels[k] != labels[k - 1]) skips_[k] = 0;
    return CtcLoss::fits(labels, labels_, frames_);
  }

  double finish(double logarithm, double log_of_sums) {
    const double value = moving ? 0 - slope_ : log_of_sums - logarithm;
    const bool is_nan = poisoned_ || std::isnan(log_of_sums) || std::isnan(value);
    if (possible_ && !is_nan) return value;
    if (gradient_.given()) gradient_.fill(0, frames_, is_nan ? std::numeric_limits<T>::quiet_NaN() : T(0));
    return is_nan ? NAN : moving ? 0 : INFINITY;
  }
  // Of what the softmax of all frames divides by.
  double log_of_sums() const {
    double total = 0, product = 1;
    for (int64_t t = 0; t < frames_; ++t) {
      total += sums_[t].top;
      product *= sums_[t].sum;  // up to the number of classes
      if (t % 16 == 15 || t + 1 == frames_) {
        total += std::log(product);
        product = 1;
      }
    }
    return total;
  }

  // ---- a frame's classes ----

  // Their softmax, if the whole frame has to be read before its gradient is made.
  void look_at(int64_t frame) {
    if (!moving && (gradient_.given() || !pass_.from_logits)) return;
    const T* const x = input_.read(frame);
    T* const shares = moving ? shares_ : nullptr;
    Softmax<T>& softmax = sums_[frame] = shares_of(x, shares);
    if (moving) softmax.mean = mean_along(shares, tangent_.read(frame), pass_.classes, softmax.sum);
  }
  // Where no gradient is made, for a NaN among the classes that no alignment has.
  void look_at_all() {
    if (pass_.from_logits && !moving)
      for (int64_t t = 0; t < frames_; ++t) sums_[t] = shares_of(input_.read(t), nullptr);
  }
  Softmax<T> shares_of(const T* x, T* shares) const {
    return pass_.from_logits ? softmax_of(x, pass_.classes, shares) : exponentials_of(x, pass_.classes, shares);
  }

  // The probabilities of the labels and of the blank, as shares of the largest of them: what that is raises all
  // alignments alike. Returns its logarithm.
  double emit(int64_t frame, int64_t slot, typename V::Mask& bad) {
    const ScaledRow<T, moving> row = emission(slot);
    const T* const x = gathered_at(frame);
    V top = MathConstants<T>::kLowest;
    for (int64_t k = 0; k < row.stride; k += kLanes) {
      const V here = V::load(x + k);
      bad = bad | !(here < V(MathConstants<T>::kInfinity));
      top = larger_of(here, top);
    }
    top = across_lanes(top, [](V a, V b) { return larger_of(a, b); });
    for (int64_t k = 0; k < row.stride; k += kLanes) row.store(k, scaled_exp<moving>(V::load(x + k) - top));
    if constexpr (moving) {
      // From the mean: with what all classes have in common, sums over the frames would lose digits.
      gather(tangent_, frame, slopes_);
      for (int64_t k = 0; k < row.stride; k += kLanes)
        (V::load(slopes_ + k) - V(sums_[frame].mean)).store(row.data + 2 * row.stride + k);
    }
    return double(top.raw[0]);
  }
  T* gathered_at(int64_t frame) const { return gathered_ + frame % 2 * (width_ + kLanes); }
  // What stands at the labels and, in all lanes behind them, at the blank. Places without a label stay as they are.
  void gather(const Frames<T>& frames, int64_t frame, T* to) const {
    frames.gather(frame, classes_, labels_, to);
    T blank;
    frames.gather(frame, &pass_.blank, 1, &blank);
    V(double(blank)).store(to + width_);
  }

  // ---- forward ----

  int64_t end_of(int64_t begin) const { return std::min(begin + stretch_, frames_); }

  // Returns the logarithm of what all alignments come to.
  double forward() {
    clear(now_);
    now_.blank.set(0, 1, 0);  // before the first frame all alignments are at the first blank
    double raised = 0, shifted = 0;
    for (int64_t begin = 0; begin < frames_; begin += stretch_) {
      if (frames_ > stretch_) copy(now_, start_of(begin / stretch_));
      go_through(begin, raised, shifted, /*again=*/false);
    }
    auto all = now_.blank.everywhere(labels_);
    if (labels_ > 0) all = sum(all, now_.label.everywhere(labels_ - 1));
    const double exponent = shifted + double(all.exponent.raw[0]);
    possible_ = exponent > kLowestExponent;
    if constexpr (moving) slope_ = all.slope.raw[0];
    return std::log(double(all.mantissa.raw[0])) + exponent * 0.69314718055994530942 + raised;
  }

  // The frames of the stretch that begins here; `again` if their softmax is known.
  void go_through(int64_t begin, double& raised, double& shifted, bool again) {
    auto bad = V(0) < V(0);
    gather(input_, begin, gathered_at(begin));
    for (int64_t t = begin; t < end_of(begin); ++t) {
      // A frame ahead: a register that is loaded where numbers were just stored one by one has to wait for them.
      if (t + 1 < end_of(begin)) gather(input_, t + 1, gathered_at(t + 1));
      if (!again) look_at(t);
      raised += emit(t, t - begin, bad);
      advance(t - begin);
      if (t % kShiftEvery == kShiftEvery - 1) shifted += double(now_.shift(width_));
    }
    poisoned_ |= any(bad);
  }

  // Downwards in place: a place looks at itself and at the one before it.
  void advance(int64_t slot) {
    const auto emission = this->emission(slot);
    const Number of_blank = emission.load(width_);
    const bool keeps = gradient_.given();
    const Row kept = keeps ? this->kept(slot) : now_;
    for (int64_t k = width_ - kLanes; k >= 0; k -= kLanes) {
      auto next = CtcLoss::before(now_.load(k), now_.label.load(k - 1), V::load(skips_ + k));
      next.blank = normalised(next.blank * of_blank);
      next.label = normalised(next.label * emission.load(k));
      now_.store(k, next);
      if (keeps) kept.store(k, next);
    }
  }

  // ---- backward ----

  void backward(T factor) {
    clear(then_);
    then_.blank.set(labels_, 1, 0);  // behind the last frame all are at the last blank
    const int64_t last = (frames_ - 1) / stretch_ * stretch_;
    for (int64_t begin = last; begin >= 0; begin -= stretch_) {
      if (begin != last) {
        double ignored = 0;
        copy(start_of(begin / stretch_), now_);
        go_through(begin, ignored, ignored, /*again=*/true);
      }
      for (int64_t t = end_of(begin) - 1; t >= begin; --t) {
        const V top = retreat(t - begin);
        if (t % kShiftEvery == 0) then_.shift(width_);
        write_gradient(t, top, factor);
      }
    }
  }

  // Upwards in place. What alignments through a state come to goes to weights_; returns their largest exponent.
  V retreat(int64_t slot) {
    const auto emission = this->emission(slot);
    const Number of_blank = emission.load(width_);
    const Row kept = this->kept(slot), weights = this->weights();
    V top = kNothing;
    for (int64_t k = 0; k < width_; k += kLanes) {
      const auto after = CtcLoss::after(then_.load(k), then_.load(k + 1), V::load(skips_ + k + 1));
      const auto before = kept.load(k);
      const Number blank = before.blank * after.blank, label = before.label * after.label;
      top = larger_of(top, larger_of(blank.exponent, label.exponent));
      weights.store(k, {blank, label});
      then_.store(k, {normalised(after.blank * of_blank), normalised(after.label * emission.load(k))});
    }
    return across_lanes(top, [](V a, V b) { return larger_of(a, b); });
  }

  // The posterior of the labels, whose sum with that of the blank is 1; and in moving passes how it moves.
  void write_gradient(int64_t frame, V top, T factor) {
    T* const gradient = gradient_.target(frame);
    const Softmax<T> softmax = shares_of(input_.read(frame), gradient);
    if constexpr (moving)
      move_along(gradient, tangent_.read(frame), pass_.classes, pass_.from_logits ? sums_[frame].mean : T(0),
                 factor / softmax.sum);
    else {
      sums_[frame] = softmax;
      if (pass_.from_logits || factor != 1) multiply(gradient, pass_.classes, factor / softmax.sum);
    }
    T blank = 0;
    const T* const posterior = find_posterior(top, factor, blank);
    for (int64_t k = 0; k < labels_; ++k) gradient[classes_[k]] -= posterior[k];
    gradient[pass_.blank] -= blank;
    gradient_.write(frame);
  }

  // Times the factor; of the labels in memory that is returned, of all blanks together in `blank`.
  const T* find_posterior(V top, T factor, T& blank_of_all) {
    const Row weights = this->weights();
    const auto add = [](V a, V b) { return a + b; };
    V all = 0, slopes = 0, blanks = 0;
    for (int64_t k = 0; k < width_; k += kLanes) {
      const auto states = weights.load(k);
      const V blank = scaled_down_gradually(states.blank.mantissa, states.blank.exponent - top);
      const V label = scaled_down_gradually(states.label.mantissa, states.label.exponent - top);
      blanks = blanks + blank;
      all = all + (blank + label);
      label.store(weights.label.data + k);
      if constexpr (moving) {
        blank.store(weights.blank.data + k);
        slopes = slopes + (blank * states.blank.slope + label * states.label.slope);
      }
    }
    all = across_lanes(all, add);
    const V scale = V(factor) / all;
    if constexpr (moving) blanks = move_posterior(across_lanes(slopes, add) / all);
    for (int64_t k = 0; k < width_; k += kLanes)
      (V::load(weights.label.data + k) * scale).store(weights.label.data + k);
    blank_of_all = (across_lanes(blanks, add) * scale).raw[0];
    return weights.label.data;
  }
  // A share grows by how much its slope is above the mean of all.
  V move_posterior(V mean) {
    const Row weights = this->weights();
    V blanks = 0;
    for (int64_t k = 0; k < width_; k += kLanes) {
      const auto states = weights.load(k);
      blanks = blanks + states.blank.mantissa * (states.blank.slope - mean);
      (states.label.mantissa * (states.label.slope - mean)).store(weights.label.data + k);
    }
    return blanks;
  }

  const Pass& pass_;
  const Room room_;
  Frames<T> input_, tangent_, gradient_;
  const Row now_, then_;  // where the two programs are
  T *const kept_, *const starts_, *const emissions_, *const weights_;
  T* const skips_;  // for every place 0, or kNothing where the blank before its label must not be left out
  T *const gathered_, *const slopes_, *const shares_;
  Softmax<T>* const sums_;  // of every frame
  int32_t* const classes_;  // of the labels

  int64_t frames_ = 0, labels_ = 0, width_ = 0, stretch_ = 0;
  bool possible_ = false;  // whether there is an alignment
  bool poisoned_ = false;  // whether NaN or infinity stands where a label or the blank does
  double slope_ = 0;       // of the logarithm of what all alignments come to, along the tangent
};

}  // namespace fusedloss::lattice::inline FUSEDLOSS_SET
