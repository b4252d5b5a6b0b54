// Rows in memory to registers across them, and back: register c of a tile holds number c of as many rows as it has
// lanes.
#pragma once
#include <utility>

#include "core/lanes.h"

namespace fusedloss::inline FUSEDLOSS_SET {

// Of two registers, `apart` rows from each other, each keeps half of its lanes and takes half of the other's.
template <int apart, class V, int... lane>
FUSEDLOSS_INLINE void exchange(V& a, V& b, std::integer_sequence<int, lane...>) {
  const V first(__builtin_shufflevector(a.raw, b.raw, (lane & apart ? lane - apart + V::size : lane)...));
  b = V(__builtin_shufflevector(a.raw, b.raw, (lane & apart ? lane + V::size : lane + apart)...));
  a = first;
}
template <int apart, class V>
FUSEDLOSS_INLINE void exchange_all(V (&x)[V::size]) {
  if constexpr (apart < V::size)
#pragma GCC unroll 16
    for (int i = 0; i < V::size; ++i)
      if (!(i & apart)) exchange<apart>(x[i], x[i + apart], std::make_integer_sequence<int, V::size>());
}
template <class V>
FUSEDLOSS_INLINE void transpose(V (&x)[V::size]) {
  exchange_all<8>(x);
  exchange_all<4>(x);
  exchange_all<2>(x);
  exchange_all<1>(x);
}

// Calls use(first) for squares that make up `columns` columns, at least a register's lanes; the last two may overlap.
template <class V, class Use>
FUSEDLOSS_INLINE void each_square(int64_t columns, Use use) {
  for (int64_t first = 0; first < columns; first += V::size)
    use(first + V::size <= columns ? first : columns - V::size);
}

// From as many rows as a register has lanes, `stride` apart in memory, to a tile. (Both ways the memory after that is
// asked for: the processor does not see by itself where so many rows go on.)
template <class V>
[[gnu::noinline]] void load_across(const typename V::Scalar* rows, int64_t stride, int64_t columns,
                                   typename V::Scalar* tile) {
  each_square<V>(columns, [&](int64_t first) {
    V x[V::size];
#pragma GCC unroll 16
    for (int i = 0; i < V::size; ++i) {
      x[i] = V::load(rows + i * stride + first);
      __builtin_prefetch(rows + (V::size + i) * stride + first);
    }
    transpose(x);
#pragma GCC unroll 16
    for (int i = 0; i < V::size; ++i) x[i].store(tile + (first + i) * V::size);
  });
}

// And from the tile to the rows, of which nothing else is written.
template <class V>
[[gnu::noinline]] void store_across(const typename V::Scalar* tile, typename V::Scalar* rows, int64_t stride,
                                    int64_t columns) {
  each_square<V>(columns, [&](int64_t first) {
    V x[V::size];
#pragma GCC unroll 16
    for (int i = 0; i < V::size; ++i) x[i] = V::load(tile + (first + i) * V::size);
    transpose(x);
#pragma GCC unroll 16
    for (int i = 0; i < V::size; ++i) {
      x[i].store(rows + i * stride + first);
      __builtin_prefetch(rows + (V::size + i) * stride + first, /*write=*/1);
    }
  });
}

}  // namespace fusedloss::inline FUSEDLOSS_SET
