// The CPU's passes over the rows of a tile.
#pragma once
#include <cmath>

#include "core/registers.h"
#include "core/scaled.h"
#include "pairs/kernel.h"
#include "pairs/logits.h"
#include "pairs/losses/sigmoid.h"
#include "pairs/losses/softmax.h"

namespace fusedloss::pairs::inline FUSEDLOSS_SET {

template <class V>
double total_of(LongSum<V>& sum) {
  return double(sum.value());
}

// A row of a tile, and what its passes share.
template <class T, bool moving>
class Row {
 public:
  using V = Lanes<T>;

  Row(const Tile& tile, int64_t row)
      : tile_(tile),
        logits_(tile.logits),
        number_(tile.first + row),
        products_(static_cast<T*>(tile.products) + row * tile.pitch),
        moving_(moving ? static_cast<T*>(tile.moving) + row * tile.pitch : nullptr),
        weight_(of_row(tile.weights, T(1))) {}

 protected:
  T of_row(const void* array, T otherwise) const { return array ? static_cast<const T*>(array)[number_] : otherwise; }

  // Calls use(k, count) for registers of the columns from `begin` to `end`.
  template <class Use>
  FUSEDLOSS_INLINE void each(int64_t begin, int64_t end, Use use) const {
    each_register<T>(end - begin, [&](int64_t k, int64_t count) { use(begin + k, count); });
  }
  FUSEDLOSS_INLINE V product(int64_t k, int64_t count) const { return load_some(products_ + k, count, T(0)); }
  FUSEDLOSS_INLINE V product_dot(int64_t k, int64_t count) const {
    return moving ? load_some(moving_ + k, count, T(0)) : V(0);
  }

  // Takes the derivative of the loss by logits, and the derivative of that along the tangents.
  FUSEDLOSS_INLINE void differentiate(int64_t k, int64_t count, V slope, V slope_dot) {
    const V x = product(k, count);
    V by_scale = slope * x, by_bias = slope;
    if constexpr (moving) {
      by_scale = slope_dot * x + slope * product_dot(k, count);
      by_bias = slope_dot;
      store_some(logits_.by_product_along(slope, slope_dot), moving_ + k, count);
    }
    store_some(logits_.by_product(slope), products_ + k, count);
    by_scale_.add(counted(by_scale, k, count));
    by_bias_.add(counted(by_bias, k, count));
  }
  // The same for one product, which was (x, x_dot). If it is a column, sums leave that out before: with the others' its
  // part would cancel.
  void differentiate_one(T* product, T* product_dot, T x, T x_dot, T slope, T slope_dot) {
    *product = logits_.scale.raw[0] * slope;
    if (moving) *product_dot = logits_.scale_dot.raw[0] * slope + logits_.scale.raw[0] * slope_dot;
    more_by_scale_ +=
        moving ? double(slope_dot) * double(x) + double(slope) * double(x_dot) : double(slope) * double(x);
    more_by_bias_ += double(moving ? slope_dot : slope);
  }
  void take_alone(int64_t column) { alone_ = column; }
  static typename V::Mask lane(int64_t number) { return first_lanes<V>(number + 1) & !first_lanes<V>(number); }
  void write_slopes() {
    if (tile_.scale_slopes) tile_.scale_slopes[number_] = total_of(by_scale_) + more_by_scale_;
    if (tile_.bias_slopes) tile_.bias_slopes[number_] = total_of(by_bias_) + more_by_bias_;
  }

  const Tile& tile_;
  const Logits<V> logits_;
  const int64_t number_;
  T* const products_;
  T* const moving_;
  const T weight_;

 private:
  FUSEDLOSS_INLINE V counted(V x, int64_t k, int64_t count) const {
    if (seldom(count < V::size)) x = select(first_lanes<V>(count), x, V(0));
    if (seldom(k <= alone_ && alone_ < k + count)) x = select(lane(alone_ - k), V(0), x);
    return x;
  }

  LongSum<V> by_scale_, by_bias_;
  double more_by_scale_ = 0, more_by_bias_ = 0;
  int64_t alone_ = -1;  // the column that is taken on its own
};

// ---- a softmax --------------------------------------------------------------------------------------------------

template <class T, bool moving>
class SoftmaxRow : Row<T, moving> {
  using Base = Row<T, moving>;
  using V = Lanes<T>;
  using Base::logits_, Base::number_, Base::tile_, Base::weight_;

 public:
  SoftmaxRow(const Tile& tile, int64_t row)
      : Base(tile, row), labels_(static_cast<const T*>(tile.labels)), share_(this->of_row(tile.shares, T(1))) {
    if (tile.own) own_ = static_cast<T*>(tile.own) + number_;
    if (tile.own && moving) own_moving_ = static_cast<T*>(tile.own_moving) + number_;
  }

  void run() {
    if (labels_ && share_ == T(0)) return leave_out();
    find_positive();
    find_top();
    find_sums();
    if (tile_.values) write_value();
    if (tile_.differentiates) differentiate_all();
  }

 private:
  // All columns but the row's own.
  template <class Use>
  FUSEDLOSS_INLINE void each_other(Use use) const {
    this->each(0, labels_ ? number_ : tile_.columns, use);
    if (labels_) this->each(number_ + 1, tile_.columns, use);
  }
  FUSEDLOSS_INLINE typename V::Mask belongs(int64_t k, int64_t count) const {
    return load_some(labels_ + k, count, T(-1)) == V(labels_[number_]);
  }

  void leave_out() {
    if (tile_.values) tile_.values[number_] = 0;
    if (!tile_.differentiates) return;
    std::fill_n(this->products_, tile_.columns, T(0));
    if (moving) std::fill_n(this->moving_, tile_.columns, T(0));
    this->write_slopes();
  }

  // The product that belongs to the row, if it is one and not many.
  void find_positive() {
    if (labels_) return;
    if (!own_) this->take_alone(tile_.offset + number_);
    positive_ = own_ ? own_ : this->products_ + tile_.offset + number_;
    if (moving) positive_moving_ = own_ ? own_moving_ : this->moving_ + tile_.offset + number_;
    x_ = *positive_;
    if (moving) x_dot_ = *positive_moving_;
    z_ = logits_.at(V(x_)).raw[0];
    z_dot_ = logits_.along(V(x_), V(x_dot_)).raw[0];
  }
  void find_top() {
    constexpr T kLeast = -MathConstants<T>::kInfinity;
    V top = own_ ? V(z_) : V(kLeast);
    each_other([&](int64_t k, int64_t count) {
      const V logit = logits_.at(this->product(k, count));
      top = larger_of(usual(count == V::size) ? logit : select(first_lanes<V>(count), logit, V(kLeast)), top);
    });
    top_ = across_lanes(top, [](V a, V b) { return larger_of(a, b); }).raw[0];
  }
  void find_sums() {
    LongSum<V> sum, weighted, belonging, belonging_dot;
    each_other([&](int64_t k, int64_t count) {
      const V x = this->product(k, count), logit = logits_.at(x);
      V share = SoftmaxOver<V>::exponential(logit, V(top_));
      if (seldom(count < V::size)) share = select(first_lanes<V>(count), share, V(0));
      sum.add(share);
      const V dot = moving ? logits_.along(x, this->product_dot(k, count)) : V(0);
      if constexpr (moving) weighted.add(share * dot);
      if (!labels_) return;
      const auto here = belongs(k, count);
      belonging.add(select(here, logit, V(0)));
      if constexpr (moving) belonging_dot.add(select(here, dot, V(0)));
    });
    sum_ = sum.value();
    mean_ = weighted.value();
    if (labels_) {
      z_ = belonging.value() * share_;
      z_dot_ = belonging_dot.value() * share_;
    }
    if (own_) add_own();
    mean_ /= sum_;
  }
  void add_own() {
    const T share = SoftmaxOver<V>::exponential(V(z_), V(top_)).raw[0];
    sum_ += share;
    mean_ += share * z_dot_;
  }

  bool has_columns() const { return tile_.column_tops != nullptr; }
  T of_column(const void* array) const { return static_cast<const T*>(array)[number_]; }
  void write_value() {
    double value = moving ? double(mean_) - double(z_dot_) : std::log(double(sum_)) + (double(top_) - double(z_));
    if (has_columns()) {
      const double of_column_itself =
          moving ? double(of_column(tile_.column_means)) - double(z_dot_)
                 : tile_.column_logs[number_] + (double(of_column(tile_.column_tops)) - double(z_));
      value = (value + of_column_itself) / 2;
    }
    tile_.values[number_] = value;
  }

  // Of the column of every lane.
  FUSEDLOSS_INLINE SoftmaxOver<V> columns(int64_t k, int64_t count) const {
    const auto load = [&](const void* array) { return load_some(static_cast<const T*>(array) + k, count, T(0)); };
    return {load(tile_.column_tops), load(tile_.column_inverses), moving ? load(tile_.column_means) : V(0)};
  }
  void differentiate_all() {
    const SoftmaxOver<V> row{V(top_), V(T(1) / sum_), V(mean_)};
    each_other([&](int64_t k, int64_t count) {
      const V x = this->product(k, count), logit = logits_.at(x);
      const V dot = moving ? logits_.along(x, this->product_dot(k, count)) : V(0);
      const V share = row.share(logit);
      V slope = V(weight_) * share, slope_dot = V(weight_) * row.share_dot(share, dot);
      if (has_columns()) {
        const SoftmaxOver<V> column = columns(k, count);
        const V weight = load_some(static_cast<const T*>(tile_.weights) + k, count, T(0));
        const V of_column = column.share(logit);
        slope = slope + weight * of_column;
        slope_dot = slope_dot + weight * column.share_dot(of_column, dot);
      }
      if (labels_) slope = slope - select(belongs(k, count), V(weight_ * share_), V(0));
      this->differentiate(k, count, slope, slope_dot);
    });
    if (labels_) {
      this->products_[number_] = 0;
      if (moving) this->moving_[number_] = 0;
    } else {
      differentiate_positive(row);
    }
    this->write_slopes();
  }
  // share - 1 is exact where the share is near 1.
  void differentiate_positive(const SoftmaxOver<V>& row) {
    T slope = 0, slope_dot = 0;
    const auto add = [&](const SoftmaxOver<V>& over) {
      const V share = over.share(V(z_));
      slope += weight_ * (share.raw[0] - T(1));
      slope_dot += weight_ * over.share_dot(share, V(z_dot_)).raw[0];
    };
    add(row);
    if (has_columns())
      add({V(of_column(tile_.column_tops)), V(of_column(tile_.column_inverses)),
           V(moving ? of_column(tile_.column_means) : T(0))});
    this->differentiate_one(positive_, positive_moving_, x_, x_dot_, slope, slope_dot);
  }

  const T* const labels_;
  const T share_;
  T *own_ = nullptr, *own_moving_ = nullptr, *positive_ = nullptr, *positive_moving_ = nullptr;
  T x_ = 0, x_dot_ = 0;  // the product that belongs to the row
  T z_ = 0, z_dot_ = 0;  // its logit, or the mean of those that do
  T top_ = 0, sum_ = 0, mean_ = 0;
};

// ---- yes or no --------------------------------------------------------------------------------------------------

template <class T, bool moving>
class SigmoidRow : Row<T, moving> {
  using Base = Row<T, moving>;
  using V = Lanes<T>;
  using Base::logits_, Base::number_, Base::tile_, Base::weight_;

 public:
  SigmoidRow(const Tile& tile, int64_t row) : Base(tile, row) {}

  void run() {
    LongSum<V> value;
    const int64_t positive = tile_.offset + number_;
    this->each(0, tile_.columns, [&](int64_t k, int64_t count) {
      const V x = this->product(k, count);
      typename V::Mask belongs = V(0) < V(0);
      if (seldom(k <= positive && positive < k + count)) belongs = this->lane(positive - k);
      const SigmoidPair<V> pair(logits_.at(x), belongs);
      const V dot = moving ? logits_.along(x, this->product_dot(k, count)) : V(0);
      const V here = moving ? pair.slope * dot : pair.value;
      value.add(usual(count == V::size) ? here : select(first_lanes<V>(count), here, V(0)));
      if (tile_.differentiates)
        this->differentiate(k, count, V(weight_) * pair.slope, V(weight_) * pair.curvature * dot);
    });
    if (tile_.values) tile_.values[number_] = total_of(value);
    if (tile_.differentiates) this->write_slopes();
  }
};

}  // namespace fusedloss::pairs::inline FUSEDLOSS_SET
