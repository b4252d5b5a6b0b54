// Parts of a register: its first lanes to and from memory, and all its lanes as one.
#pragma once
#ifdef __SSE2__
#include <immintrin.h>
#endif

#include <utility>

#include "core/lanes.h"

namespace fusedloss::inline FUSEDLOSS_SET {

template <class T, int bytes>
typename Lanes<T, bytes>::Bits each_lane_number() {
  typename Lanes<T, bytes>::Bits number;
  for (int lane = 0; lane < Lanes<T, bytes>::size; ++lane) number[lane] = lane;
  return number;
}
// Holds in the first `count` lanes.
template <class V>
typename V::Mask first_lanes(int64_t count) {
  return {each_lane_number<typename V::Scalar, sizeof(V)>() < typename BitsOf<typename V::Scalar>::type(count)};
}

// The first `count` lanes from memory, of which no more is read; the others are 0.
template <class V>
FUSEDLOSS_INLINE V load_first(const typename V::Scalar* from, int64_t count) {
#ifdef __AVX512F__
  if constexpr (sizeof(V) == 64) {
    if constexpr (V::size == 16)
      return V(_mm512_maskz_loadu_ps(__mmask16((1u << count) - 1), from));
    else
      return V(_mm512_maskz_loadu_pd(__mmask8((1u << count) - 1), from));
  }
#endif
#ifdef __AVX2__
  if constexpr (sizeof(V) == 32) {
    const auto wanted = (__m256i)first_lanes<V>(count).bits;
    if constexpr (V::size == 8)
      return V(_mm256_maskload_ps(from, wanted));
    else
      return V(_mm256_maskload_pd(from, wanted));
  }
#endif
  V some = 0;
  std::memcpy(&some.raw, from, count * sizeof(typename V::Scalar));
  return some;
}

// The first `count` lanes to memory, of which no more is written.
template <class V>
FUSEDLOSS_INLINE void store_first(V x, typename V::Scalar* to, int64_t count) {
#ifdef __AVX512F__
  if constexpr (sizeof(V) == 64) {
    if constexpr (V::size == 16)
      return _mm512_mask_storeu_ps(to, __mmask16((1u << count) - 1), x.raw);
    else
      return _mm512_mask_storeu_pd(to, __mmask8((1u << count) - 1), x.raw);
  }
#endif
  std::memcpy(to, &x.raw, count * sizeof(typename V::Scalar));
}

// All lanes combined by a function of two, each pair of halves in turn; the result is in every lane.
template <class T, int bytes, class Combine>
FUSEDLOSS_INLINE Lanes<T, bytes> across_lanes(Lanes<T, bytes> x, Combine combine) {
  const auto with_lanes_apart = [&]<int... lane>(auto apart, std::integer_sequence<int, lane...>) {
    x = combine(x, Lanes<T, bytes>(__builtin_shufflevector(x.raw, x.raw, (lane ^ apart())...)));
  };
  const auto all = std::make_integer_sequence<int, Lanes<T, bytes>::size>();
  if constexpr (all.size() > 8) with_lanes_apart(std::integral_constant<int, 8>(), all);
  if constexpr (all.size() > 4) with_lanes_apart(std::integral_constant<int, 4>(), all);
  if constexpr (all.size() > 2) with_lanes_apart(std::integral_constant<int, 2>(), all);
  with_lanes_apart(std::integral_constant<int, 1>(), all);
  return double(x.raw[0]);  // the same in every lane also where the order of two matters
}

}  // namespace fusedloss::inline FUSEDLOSS_SET
