// Square roots and powers of registers.
#pragma once
#include <cmath>
#include <type_traits>
#include <utility>

#include "core/math.h"

namespace fusedloss::inline FUSEDLOSS_SET {

template <class T, int B>
FUSEDLOSS_INLINE Lanes<T, B> sqrt(Lanes<T, B> x) {
  Lanes<T, B> root;
  for (int lane = 0; lane < Lanes<T, B>::size; ++lane) {
    if constexpr (std::is_same_v<T, float>)
      root.raw[lane] = __builtin_sqrtf(x.raw[lane]);
    else
      root.raw[lane] = __builtin_sqrt(x.raw[lane]);
  }
  return root;
}

// x^exponent for x >= 0. Of floats by way of doubles: the logarithm must have more digits than the result.
template <int B>
FUSEDLOSS_INLINE Lanes<float, B> power(Lanes<float, B> x, Constant exponent) {
  using Wide = Lanes<double, B>;
  using Half [[gnu::vector_size(B / 2)]] = float;
  const auto part = [&]<int first, int... lane>(std::integer_sequence<int, lane...>) {
    const Half half = __builtin_shufflevector(x.raw, x.raw, (first + lane)...);
    const Wide wide(__builtin_convertvector(half, typename Wide::Raw));
    return __builtin_convertvector(exp(Wide(exponent) * log(wide)).raw, Half);
  };
  constexpr auto all = std::make_integer_sequence<int, Wide::size>();
  const Half low = part.template operator()<0>(all), high = part.template operator()<Wide::size>(all);
  return [&]<int... lane>(std::integer_sequence<int, lane...>) {
    return Lanes<float, B>(__builtin_shufflevector(low, high, lane...));
  }(std::make_integer_sequence<int, Lanes<float, B>::size>());
}
template <int B>
FUSEDLOSS_INLINE Lanes<double, B> power(Lanes<double, B> x, Constant exponent) {
  for (int lane = 0; lane < Lanes<double, B>::size; ++lane) x.raw[lane] = std::pow(x.raw[lane], double(exponent));
  return x;
}

}  // namespace fusedloss::inline FUSEDLOSS_SET
