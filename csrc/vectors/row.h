// What a pass does with a row: two walks over the components of its vectors, the first for the sums that distances are
// made of, the second for gradients. Written once, for registers on the CPU and for the threads of a GPU.
//
// An access A to a row has the types A::Many (of components: a register, or one) and A::One (of the row), both of which
// may be dual numbers, and
//   load(k, place)           components of vector k
//   sums<n>(use)             calls use(place, parts) at every place, where `parts` are n numbers A::Many that are to be
//                            filled with what the sums grow by; returns the n sums
//   largest<n>(use)          the same for the largest of numbers of at least 0, which are no dual ones
//   each_place(use)          calls use(place)
//   wants(k), store(k, place, components)   whether the gradient of vector k is asked for, and where it goes
//   spread(one)              a number of the row as A::Many
//   is_zero(one)
//
// With `normalize` a vector x stands for u = x / n, n = max(|x|, 1e-12). A derivative g by u is one by x of
// (g - (g.u) u) / n, and g.u comes from sums too. (It is a quotient in both walks, and not a product, which may be
// fused with what is added to it: the largest difference must be found again to the bit.)
#pragma once
#include "vectors/formula.h"
#include "vectors/measures.h"

namespace fusedloss::vectors::inline FUSEDLOSS_SET {

// What an access returns.
template <class S, int count>
struct Few {
  S of[count];
};

template <class Loss, class Measure, class Access>
class Row {
  using V = typename Access::Many;
  using S = typename Access::One;
  static constexpr int kPairs = Loss::kPairs, kVectors = vectors_of(kPairs);

 public:
  FUSEDLOSS_INLINE Row(const Loss& loss, const Measure& measure, const Settings& settings, const Access& access)
      : loss_(loss), measure_(measure), access_(access), eps_(settings.eps), normalize_(settings.normalize) {}

  // The loss and its derivatives by distances and target.
  FUSEDLOSS_INLINE Slopes<S> measure(S target) {
    if (normalize_) find_lengths();
    S distances[kPairs];
    if constexpr (Measure::kOfProducts)
      measure_products(distances);
    else
      measure_differences(distances);
    return loss_(distances, target);
  }

  // Writes the gradients of the vectors for this one of the loss.
  FUSEDLOSS_INLINE void put_gradients(const Slopes<S>& slopes, S incoming) {
    bool moves = false;
    for (int pair = 0; pair < kPairs; ++pair) {
      const S slope = slopes.by_distance[pair];
      moves_[pair] = !access_.is_zero(slope);
      moves |= moves_[pair];
      slope_[pair] = moves_[pair] ? incoming * slope : S(0);
    }
    if (!moves) return clear_gradients();
    if constexpr (Measure::kOfProducts)
      put_by_products();
    else
      put_by_differences();
  }

  FUSEDLOSS_INLINE void clear_gradients() const {
    access_.each_place([&](auto place) {
      for (int k = 0; k < kVectors; ++k)
        if (access_.wants(k)) access_.store(k, place, V(0));
    });
  }

 private:
  // ---- vectors ----

  FUSEDLOSS_INLINE void find_lengths() {
    const auto squares = access_.template sums<kVectors>([&](auto place, auto& parts) {
      for (int k = 0; k < kVectors; ++k) {
        const V x = access_.load(k, place);
        parts[k] = x * x;
      }
    });
    for (int k = 0; k < kVectors; ++k) {
      const S length = sqrt(squares.of[k]);
      const auto constant = length <= S(1e-12);
      length_[k] = select(constant, S(1e-12), length);
      turns_[k] = select(constant, S(0), S(1));
    }
  }

  struct Vectors {
    V of[kVectors];
  };
  template <class Place>
  FUSEDLOSS_INLINE Vectors load(Place place) const {
    Vectors x;
    for (int k = 0; k < kVectors; ++k) {
      x.of[k] = access_.load(k, place);
      if (normalize_) x.of[k] = x.of[k] / access_.spread(length_[k]);
    }
    return x;
  }
  // By components of u, to the gradients of the given vectors; along[k] is what a slope has along vector k.
  template <class Place>
  FUSEDLOSS_INLINE void store(Place place, const Vectors& x, V (&by)[kVectors], const S (&along)[kVectors]) const {
    for (int k = 0; k < kVectors; ++k) {
      if (!access_.wants(k)) continue;
      if (normalize_) by[k] = (by[k] - access_.spread(along[k]) * x.of[k]) / access_.spread(length_[k]);
      access_.store(k, place, by[k]);
    }
  }

  // ---- distances from differences ----

  FUSEDLOSS_INLINE V difference(const Vectors& x, int pair) const {
    return x.of[first_of(pair)] - x.of[second_of(pair)] + V(eps_);
  }
  FUSEDLOSS_INLINE V element(V r, int pair) const {
    if constexpr (Measure::kOfLargest)
      return measure_.slope(r, spread_largest(pair));
    else
      return measure_.slope(r);
  }

  FUSEDLOSS_INLINE void measure_differences(S (&distances)[kPairs]) {
    if constexpr (Measure::kOfLargest)
      largest_ = access_.template largest<kPairs>([&](auto place, auto& parts) {
        const Vectors x = load(place);
        for (int pair = 0; pair < kPairs; ++pair) parts[pair] = abs(value_only(difference(x, pair)));
      });
    // Of every pair: what the distance is made of; what an element has along both vectors, or how many are the largest.
    constexpr int kOfPair = Measure::kOfLargest ? 4 : 3;
    const auto sums = access_.template sums<kOfPair * kPairs>([&](auto place, auto& parts) {
      const Vectors x = load(place);
      for (int pair = 0; pair < kPairs; ++pair) {
        V* const of_pair = parts + kOfPair * pair;
        const V r = difference(x, pair), slope = element(r, pair);
        of_pair[0] = product(slope, r);
        of_pair[1] = normalize_ ? product(slope, x.of[first_of(pair)]) : V(0);
        of_pair[2] = normalize_ ? product(slope, x.of[second_of(pair)]) : V(0);
        if constexpr (Measure::kOfLargest) of_pair[3] = measure_.is_largest(r, spread_largest(pair));
      }
    });
    for (int pair = 0; pair < kPairs; ++pair) {
      const S* const of_pair = sums.of + kOfPair * pair;
      along_first_[pair] = of_pair[1];
      along_second_[pair] = of_pair[2];
      Measured<S> found;
      if constexpr (Measure::kOfLargest)
        found = measure_.measured(of_pair[0], of_pair[3]);
      else
        found = measure_.measured(of_pair[0]);
      distances[pair] = found.value;
      factor_[pair] = found.factor;
    }
  }
  FUSEDLOSS_INLINE auto spread_largest(int pair) const { return value_only(access_.spread(largest_.of[pair])); }
  // Of a slope of 0 nothing, whatever the other is.
  FUSEDLOSS_INLINE static V product(V slope, V x) {
    if constexpr (Measure::kOfLargest) return select(slope == V(0), V(0), slope * x);
    return slope * x;
  }

  FUSEDLOSS_INLINE void put_by_differences() const {
    S along[kVectors];
    for (int k = 0; k < kVectors; ++k) along[k] = S(0);
    for (int pair = 0; pair < kPairs; ++pair) {
      if (!moves_[pair]) continue;
      const int first = first_of(pair), second = second_of(pair);
      along[first] = along[first] + slope_[pair] * (factor_[pair] * along_first_[pair]);
      along[second] = along[second] - slope_[pair] * (factor_[pair] * along_second_[pair]);
    }
    for (int k = 0; k < kVectors; ++k) along[k] = turns_[k] * along[k];
    access_.each_place([&](auto place) {
      const Vectors x = load(place);
      V by[kVectors];
      for (int k = 0; k < kVectors; ++k) by[k] = V(0);
      for (int pair = 0; pair < kPairs; ++pair) {
        if (!moves_[pair]) continue;
        // (The distance's own slope first: it is never far from 1, where its factors may be.)
        const V of_distance = access_.spread(factor_[pair]) * element(difference(x, pair), pair);
        const V part = access_.spread(slope_[pair]) * of_distance;
        const int first = first_of(pair), second = second_of(pair);
        by[first] = by[first] + part;
        by[second] = by[second] - part;
      }
      store(place, x, by, along);
    });
  }

  // ---- distances from products ----

  FUSEDLOSS_INLINE void measure_products(S (&distances)[kPairs]) {
    const auto sums = access_.template sums<kVectors + kPairs>([&](auto place, auto& parts) {
      const Vectors x = load(place);
      for (int k = 0; k < kVectors; ++k) parts[k] = x.of[k] * x.of[k];
      for (int pair = 0; pair < kPairs; ++pair) parts[kVectors + pair] = x.of[first_of(pair)] * x.of[second_of(pair)];
    });
    for (int k = 0; k < kVectors; ++k) square_[k] = sums.of[k];
    for (int pair = 0; pair < kPairs; ++pair) {
      product_[pair] = sums.of[kVectors + pair];
      const int first = first_of(pair), second = second_of(pair);
      cosine_[pair] = measure_.measured(product_[pair], square_[first], square_[second]);
      distances[pair] = cosine_[pair].value;
    }
  }

  FUSEDLOSS_INLINE void put_by_products() const {
    S own[kVectors], cross[kPairs], along[kVectors];
    for (int k = 0; k < kVectors; ++k) own[k] = S(0);
    for (int pair = 0; pair < kPairs; ++pair) {
      cross[pair] = S(0);
      if (!moves_[pair]) continue;
      const int first = first_of(pair), second = second_of(pair);
      cross[pair] = slope_[pair] * cosine_[pair].cross;
      own[first] = own[first] + slope_[pair] * cosine_[pair].of_first;
      own[second] = own[second] + slope_[pair] * cosine_[pair].of_second;
    }
    for (int k = 0; k < kVectors; ++k) along[k] = own[k] * square_[k];
    for (int pair = 0; pair < kPairs; ++pair) {
      const int first = first_of(pair), second = second_of(pair);
      along[first] = along[first] + cross[pair] * product_[pair];
      along[second] = along[second] + cross[pair] * product_[pair];
    }
    for (int k = 0; k < kVectors; ++k) along[k] = turns_[k] * along[k];
    access_.each_place([&](auto place) {
      const Vectors x = load(place);
      V by[kVectors];
      for (int k = 0; k < kVectors; ++k) by[k] = access_.spread(own[k]) * x.of[k];
      for (int pair = 0; pair < kPairs; ++pair) {
        const int first = first_of(pair), second = second_of(pair);
        by[first] = by[first] + access_.spread(cross[pair]) * x.of[second];
        by[second] = by[second] + access_.spread(cross[pair]) * x.of[first];
      }
      store(place, x, by, along);
    });
  }

  const Loss& loss_;
  const Measure& measure_;
  const Access& access_;
  const Constant eps_;
  const bool normalize_;
  S length_[kVectors], turns_[kVectors];  // with `normalize`; and 0 where the length is a constant
  S slope_[kPairs];
  bool moves_[kPairs];
  // Of differences.
  S factor_[kPairs], along_first_[kPairs], along_second_[kPairs];
  Few<S, kPairs> largest_;
  // Of products.
  S square_[kVectors], product_[kPairs];
  MeasuredCosine<S> cosine_[kPairs];
};

}  // namespace fusedloss::vectors::inline FUSEDLOSS_SET
