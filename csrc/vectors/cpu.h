// The CPU's way through rows of vectors: registers of components, in place where they lie one after another.
#pragma once
#include <algorithm>
#include <vector>

#include "core/lane_roots.h"
#include "core/runs.h"
#include "core/some_lanes.h"
#include "core/stream.h"
#include "core/sum.h"
#include "vectors/row.h"

namespace fusedloss::vectors::inline FUSEDLOSS_SET {

inline constexpr int kRowsTogether = 64;

// Where a register is in a vector.
template <class T>
struct Place {
  int64_t first;
  int64_t count;  // lanes that are components; all but at a vector's end
};

template <class T, class OfRow, bool moving, int vectors>
struct Access {
  using Register = Lanes<T>;
  using Many = std::conditional_t<moving, Dual<Register>, Register>;
  // The numbers of a row stand in all lanes: of the shortest registers, whose roots and quotients take least.
  using Short = Lanes<OfRow, 16>;
  using One = std::conditional_t<moving, Dual<Short>, Short>;
  static constexpr int kLanes = Register::size;

  int64_t length;
  const T *at[vectors], *tangent[vectors];
  T* gradient[vectors];
  bool streams[vectors];

  FUSEDLOSS_INLINE Many load(int k, Place<T> place) const {
    if constexpr (moving)
      return {some(at[k], place), tangent[k] ? some(tangent[k], place) : Register(0)};
    else
      return some(at[k], place);
  }
  FUSEDLOSS_INLINE bool wants(int k) const { return gradient[k]; }
  FUSEDLOSS_INLINE void store(int k, Place<T> place, Many x) const {
    const Register components = written(x);
    T* const to = gradient[k] + place.first;
    if (place.count < kLanes) return store_first(components, to, place.count);
    streams[k] ? stream(components, to) : components.store(to);
  }

  template <class Use>
  FUSEDLOSS_INLINE void each_place(const Use& use) const {
    int64_t first = 0;
    for (; first + kLanes <= length; first += kLanes) use(Place<T>{first, kLanes});
    if (first < length) use(Place<T>{first, length - first});
  }

  // Plain for some registers, and compensated beyond.
  template <int count, class Use>
  FUSEDLOSS_INLINE Few<One, count> sums(const Use& use) const {
    constexpr int64_t kTogether = 8 * kLanes;
    Many plain[count];
    add_up(0, std::min(kTogether, length), use, plain);
    if (seldom(length > kTogether)) add_more<count>(use, plain);
    Few<One, count> all;
    for (int i = 0; i < count; ++i) all.of[i] = across(plain[i]);
    return all;
  }

  // (Of values only, also where numbers are dual.)
  template <int count, class Use>
  FUSEDLOSS_INLINE Few<One, count> largest(const Use& use) const {
    Register found[count];
    for (int i = 0; i < count; ++i) found[i] = 0;
    each_place([&](Place<T> place) {
      Register parts[count];
      use(place, parts);
      for (int i = 0; i < count; ++i) {
        const Register part = place.count < kLanes ? select(first_lanes<Register>(place.count), parts[i], 0) : parts[i];
        found[i] = larger(found[i], part);
      }
    });
    Few<One, count> all;
    for (int i = 0; i < count; ++i) all.of[i] = double(across_lanes(found[i], larger).raw[0]);
    return all;
  }

  FUSEDLOSS_INLINE static Many spread(One x) {
    if constexpr (moving)
      return {double(x.value.raw[0]), double(x.dot.raw[0])};
    else
      return double(x.raw[0]);
  }
  FUSEDLOSS_INLINE static bool is_zero(One x) {
    if constexpr (moving)
      return x.value.raw[0] == 0 && x.dot.raw[0] == 0;
    else
      return x.raw[0] == 0;
  }

  FUSEDLOSS_INLINE static Register written(Register x) { return x; }
  FUSEDLOSS_INLINE static Register written(Dual<Register> x) { return x.dot; }
  FUSEDLOSS_INLINE static T number(Short x) { return x.raw[0]; }
  FUSEDLOSS_INLINE static T number(Dual<Short> x) { return x.dot.raw[0]; }
  FUSEDLOSS_INLINE static One of_row(T value, T dot) {
    if constexpr (moving)
      return {double(value), double(dot)};
    else
      return double(value);
  }

 private:
  FUSEDLOSS_INLINE static Register some(const T* from, Place<T> place) {
    return place.count < kLanes ? load_first<Register>(from + place.first, place.count)
                                : Register::load(from + place.first);
  }
  FUSEDLOSS_INLINE static Register larger(Register a, Register b) { return select(b > a, b, a); }
  FUSEDLOSS_INLINE static Short total(Register x) {
    return double(across_lanes(x, [](Register a, Register b) { return a + b; }).raw[0]);
  }
  FUSEDLOSS_INLINE static One across(Many x) {
    if constexpr (moving)
      return {total(x.value), total(x.dot)};
    else
      return total(x);
  }
  FUSEDLOSS_INLINE static Many first_of(Many x, int64_t count) {
    return select(first_lanes<Register>(count), x, Many(0));
  }

  template <int count, class Use>
  FUSEDLOSS_INLINE void add_up(int64_t begin, int64_t end, const Use& use, Many (&all)[count]) const {
    for (int i = 0; i < count; ++i) all[i] = 0;
    for (; begin + kLanes <= end; begin += kLanes) {
      Many parts[count];
      use(Place<T>{begin, kLanes}, parts);
      for (int i = 0; i < count; ++i) all[i] = all[i] + parts[i];
    }
    if (begin == end) return;
    Many parts[count];
    use(Place<T>{begin, end - begin}, parts);
    for (int i = 0; i < count; ++i) all[i] = all[i] + first_of(parts[i], end - begin);
  }
  template <int count, class Use>
  [[gnu::noinline]] void add_more(const Use& use, Many (&all)[count]) const {
    constexpr int64_t kTogether = 8 * kLanes;
    Sum<Many> sums[count];
    for (int i = 0; i < count; ++i) sums[i].total = all[i];
    for (int64_t begin = kTogether; begin < length; begin += kTogether) {
      Many parts[count];
      add_up(begin, std::min(begin + kTogether, length), use, parts);
      for (int i = 0; i < count; ++i) sums[i].add(parts[i]);
    }
    for (int i = 0; i < count; ++i) all[i] = sum_of(sums[i]);
  }
  // An infinite total has lost nothing that is known: inf - inf.
  FUSEDLOSS_INLINE static Many sum_of(const Sum<Many>& sum) {
    return select(sum.lost == sum.lost, sum.total + sum.lost, sum.total);
  }
};

// The vectors of some rows: where they lie, or a buffer for one at a time where they do not lie as they are wanted.
template <class T>
class Stream {
 public:
  Stream(const VectorView& view, int64_t length, int64_t rows) : view_(view), length_(length) {
    if (given() && !in_place()) buffer_.resize(length);
    streams_ = kStreams && given() && in_place() && rows * length * int64_t(sizeof(T)) >= kStreamedBytes;
  }

  bool given() const { return view_.data; }
  void go_to(const Pass& pass, const Part& part) {
    if (!given()) return;
    for_each_run(pass, view_, part, [&](const Run& run) {
      for (int64_t i = 0; i < run.length; ++i) offsets_[run.at + i] = run.offset + i * run.stride;
    });
  }
  FUSEDLOSS_INLINE const T* read(int64_t row) {
    if (!given()) return nullptr;
    if (usual(in_place())) return place(row);
    return gathered(row);
  }
  FUSEDLOSS_INLINE T* target(int64_t row) {
    if (!given()) return nullptr;
    return usual(in_place()) ? place(row) : buffer_.data();
  }
  FUSEDLOSS_INLINE void write(int64_t row) {
    if (given() && seldom(!in_place())) scatter(row);
  }
  // Whether it is to be written past the caches. (A line of a cache that two rows share is slow to stream.)
  FUSEDLOSS_INLINE bool streams(const T* to) const {
    return streams_ && (reinterpret_cast<uintptr_t>(to) | uintptr_t(length_ * sizeof(T))) % 64 == 0;
  }

 private:
  bool in_place() const { return view_.dtype == kNative<T> && view_.step == 1; }
  T* place(int64_t row) const { return static_cast<T*>(view_.data) + offsets_[row]; }
  Run run_of(int64_t row) const { return {offsets_[row], view_.step, 0, 1, length_}; }
  [[gnu::noinline]] const T* gathered(int64_t row) {
    visit_floating(view_.dtype, [&](auto element) {
      load_run(static_cast<const decltype(element)*>(view_.data), buffer_.data(), run_of(row));
    });
    return buffer_.data();
  }
  [[gnu::noinline]] void scatter(int64_t row) {
    visit_floating(view_.dtype, [&](auto element) {
      store_run(buffer_.data(), static_cast<decltype(element)*>(view_.data), run_of(row));
    });
  }

  const VectorView& view_;
  const int64_t length_;
  bool streams_;
  std::vector<T> buffer_;
  int64_t offsets_[kRowsTogether];
};

// What is known of some rows beside their vectors.
template <class T>
struct RowNumbers {
  T weight[kRowsTogether], weight_tangent[kRowsTogether], target[kRowsTogether], target_tangent[kRowsTogether];
  T grad_output[kRowsTogether];
  T value[kRowsTogether], by_target[kRowsTogether], by_weight[kRowsTogether];

  explicit RowNumbers(const Pass& pass) : pass_(pass) {
    std::fill_n(weight, kRowsTogether, T(1));
    std::fill_n(grad_output, kRowsTogether, T(1));
    for (T* zeros : {weight_tangent, target, target_tangent}) std::fill_n(zeros, kRowsTogether, T(0));
  }
  void take(const Part& part) {
    const auto read = [&](const View& view, T* to) {
      if (view.data) load_part(pass_, view, part, to);
    };
    read(pass_.weight.at, weight);
    read(pass_.weight.tangent, weight_tangent);
    read(pass_.target.at, target);
    read(pass_.target.tangent, target_tangent);
    read(pass_.grad_output, grad_output);
  }
  void put(const Part& part) const {
    const auto write = [&](const View& view, const T* from) {
      if (view.data) store_part(pass_, view, part, from);
    };
    write(pass_.value, value);
    write(pass_.target.gradient, by_target);
    write(pass_.weight.gradient, by_weight);
  }

 private:
  const Pass& pass_;
};

template <class Loss, class Measure, class T, bool moving>
class Walk {
  static constexpr int kVectors = vectors_of(Loss::kPairs);
  // Numbers of rows have all digits, so that components of a row do not share an error; but a cosine is a quotient of
  // rounded sums, and only as rounded as they are it is 1 of parallel vectors.
  using OfRow = std::conditional_t<Measure::kOfProducts, T, double>;
  using Access = vectors::Access<T, OfRow, moving, kVectors>;

 public:
  Walk(const Pass& pass, const Loss& loss, const Measure& measure)
      : pass_(pass), loss_(loss), measure_(measure), numbers_(pass) {
    for (auto* streams : {&at_, &tangents_, &gradients_}) streams->reserve(kVectors);
    for (int k = 0; k < kVectors; ++k) {
      const Operand& operand = pass.vectors[k];
      at_.emplace_back(operand.at, pass.length, pass.count);
      tangents_.emplace_back(operand.tangent, pass.length, pass.count);
      gradients_.emplace_back(operand.gradient, pass.length, pass.count);
      has_gradients_ |= operand.gradient.data != nullptr;
    }
    access_.length = pass.length;
  }

  void run(int64_t begin, int64_t end, double* sums) {
    const int64_t in_block = pass_.rows_in_block();
    for (int64_t block = begin; block < end; ++block)
      sums[block] = run_rows(block * in_block, std::min((block + 1) * in_block, pass_.count));
    finish_streams();
  }

 private:
  double run_rows(int64_t begin, int64_t end) {
    Sum<double> sum;
    Part part;
    for (; begin < end; begin += kRowsTogether) {
      find_stretch(pass_, begin, std::min<int64_t>(kRowsTogether, end - begin), part);
      for (auto* streams : {&at_, &tangents_, &gradients_})
        for (auto& stream : *streams) stream.go_to(pass_, part);
      numbers_.take(part);
      for (int64_t row = 0; row < part.count; ++row) {
        run_row(row);
        sum.add(double(numbers_.value[row]));
      }
      numbers_.put(part);
    }
    return value_of(sum);
  }

  void run_row(int64_t row) {
    for (int k = 0; k < kVectors; ++k) {
      access_.at[k] = at_[k].read(row);
      if constexpr (moving) access_.tangent[k] = tangents_[k].read(row);
      access_.gradient[k] = gradients_[k].target(row);
      access_.streams[k] = gradients_[k].streams(access_.gradient[k]);
    }
    Row<Loss, Measure, Access> computed(loss_, measure_, pass_.settings, access_);
    if (numbers_.weight[row] == 0)
      leave_out(row, computed);
    else
      compute(row, computed);
    if (has_gradients_)
      for (int k = 0; k < kVectors; ++k) gradients_[k].write(row);
  }
  template <class Computed>
  void leave_out(int64_t row, Computed& computed) {
    numbers_.value[row] = numbers_.by_target[row] = numbers_.by_weight[row] = 0;
    if (has_gradients_) computed.clear_gradients();
  }
  template <class Computed>
  void compute(int64_t row, Computed& computed) {
    using One = typename Access::One;
    const One target = Access::of_row(numbers_.target[row], numbers_.target_tangent[row]);
    const One weight = Access::of_row(numbers_.weight[row], numbers_.weight_tangent[row]);
    const One incoming = double(T(pass_.scale) * numbers_.grad_output[row]);
    const Slopes<One> slopes = computed.measure(target);
    numbers_.value[row] = Access::number(weight * slopes.value);
    numbers_.by_target[row] = Access::number(incoming * weight * slopes.by_target);
    numbers_.by_weight[row] = Access::number(incoming * slopes.value);
    if (has_gradients_) computed.put_gradients(slopes, incoming * weight);
  }

  const Pass& pass_;
  const Loss& loss_;
  const Measure& measure_;
  RowNumbers<T> numbers_;
  std::vector<Stream<T>> at_, tangents_, gradients_;
  bool has_gradients_ = false;
  Access access_{};
};

}  // namespace fusedloss::vectors::inline FUSEDLOSS_SET
