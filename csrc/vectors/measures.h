// How a distance between two vectors comes from sums over their components, with its derivatives.
//
// A norm of r = a - b + eps is found from the sum of slope(r) r: of r^2, |r|, |r|^p; or of |r| over the components
// where it is largest. Its derivative by a component of a is factor * slope(r), by one of b minus that. A cosine is
// found from a.b, |a|^2 and |b|^2; its derivative by a is cross * b + of_first * a.
#pragma once
#include <cmath>

#include "core/roots.h"
#include "vectors/kernel.h"

namespace fusedloss::vectors::inline FUSEDLOSS_SET {

// A distance between two vectors and what its derivatives are made of.
template <class V>
struct Measured {
  V value, factor;
};
template <class V>
struct MeasuredCosine {
  V value, cross, of_first, of_second;
};

template <class V>
FUSEDLOSS_INLINE V inverse_or_0(V x) {
  return select(x == V(0), V(0), V(1) / x);
}

// The values of dual numbers without their derivatives; other numbers as they are.
template <class V>
FUSEDLOSS_INLINE V value_only(V x) {
  return x;
}
template <class V>
FUSEDLOSS_INLINE V value_only(Dual<V> x) {
  return x.value;
}

struct Squares {
  static constexpr bool kOfLargest = false, kOfProducts = false;
  bool squared;  // whether the distance is the square of the norm
  explicit Squares(const Settings& settings) : squared(settings.distance == Distance::squared_euclidean) {}

  template <class V>
  FUSEDLOSS_INLINE V slope(V r) const {
    return r;
  }
  template <class V>
  FUSEDLOSS_INLINE Measured<V> measured(V sum) const {
    if (squared) return {sum, 2};
    const V norm = sqrt(sum);
    return {norm, inverse_or_0(norm)};
  }
};

struct Magnitudes {
  static constexpr bool kOfLargest = false, kOfProducts = false;
  explicit Magnitudes(const Settings&) {}

  template <class V>
  FUSEDLOSS_INLINE V slope(V r) const {
    return sign(r);
  }
  template <class V>
  FUSEDLOSS_INLINE Measured<V> measured(V sum) const {
    return {sum, 1};
  }
};

// The components where |r| is largest share the derivative.
struct Largest {
  static constexpr bool kOfLargest = true, kOfProducts = false;
  explicit Largest(const Settings&) {}

  // 1 where |r| is the largest, or NaN; else 0.
  template <class V, class W>
  FUSEDLOSS_INLINE V is_largest(V r, W largest) const {
    return select(abs(value_only(r)) < largest, V(0), V(1));
  }
  template <class V, class W>
  FUSEDLOSS_INLINE V slope(V r, W largest) const {
    return select(abs(value_only(r)) < largest, V(0), sign(r));
  }
  template <class V>
  FUSEDLOSS_INLINE Measured<V> measured(V sum, V count) const {
    // (Of vectors without components there is none.)
    return {select(count == V(0), V(0), sum / count), inverse_or_0(count)};
  }
};

struct Powers {
  static constexpr bool kOfLargest = false, kOfProducts = false;
  Constant of_slope, root, beyond_root;  // 1 / p in two parts: the power of a large sum has few digits of one
  explicit Powers(const Settings& settings)
      : of_slope(settings.p - 1),
        root(1 / settings.p),
        beyond_root(std::fma(-(1 / settings.p), settings.p, 1.0) / settings.p) {}

  template <class V>
  FUSEDLOSS_INLINE V slope(V r) const {
    const V size = abs(r);
    const V slope = select(size == V(0), V(0), power(size, of_slope));
    return select(r < V(0), -slope, slope);
  }
  template <class V>
  FUSEDLOSS_INLINE Measured<V> measured(V sum) const {
    const V rough = power(sum, root);
    const V norm = select(sum > V(0), rough + rough * (V(beyond_root) * log(sum)), rough);
    return {norm, select(sum == V(0), V(0), norm / sum)};
  }
};

// Of cosine_embedding_loss, where the cosine itself is what a loss takes; or of torch's cosine_similarity, and 1 -
// that.
template <bool of_embeddings>
struct Cosine {
  static constexpr bool kOfLargest = false, kOfProducts = true;
  explicit Cosine(const Settings&) {}

  template <class V>
  FUSEDLOSS_INLINE MeasuredCosine<V> measured(V product, V first_square, V second_square) const {
    const Length<V> first(first_square), second(second_square);
    // (One quotient: of parallel vectors the cosine is then 1, and not nearly so.)
    const V lengths = first.length * second.length;
    const V cross = V(1) / lengths, cosine = product / lengths;
    const V of_first = -cosine * first.inverse_square, of_second = -cosine * second.inverse_square;
    if constexpr (of_embeddings)
      return {cosine, cross, of_first, of_second};
    else
      return {V(1) - cosine, -cross, -of_first, -of_second};
  }

 private:
  template <class V>
  struct Length {
    V length;
    V inverse_square;  // 0 where the length is a constant
    FUSEDLOSS_INLINE explicit Length(V square) {
      if constexpr (of_embeddings) square = square + V(1e-12);
      length = sqrt(square);
      inverse_square = V(1) / square;
      if constexpr (of_embeddings) return;
      const auto constant = length <= V(1e-8);
      length = select(constant, V(1e-8), length);
      inverse_square = select(constant, V(0), inverse_square);
    }
  };
};

}  // namespace fusedloss::vectors::inline FUSEDLOSS_SET
