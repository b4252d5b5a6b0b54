// Writes past the caches, of results so large that nothing of them would be left there when they are read.
#pragma once
#ifdef __SSE2__
#include <immintrin.h>
#endif

#include <algorithm>
#include <cstring>

#include "core/lanes.h"

namespace fusedloss::inline FUSEDLOSS_SET {

// Results of this many bytes and more are written so.
inline constexpr int64_t kStreamedBytes = int64_t(16) << 20;

#ifdef __SSE2__
inline constexpr bool kStreams = true;

// To an address that is aligned to a register.
template <class T, int bytes>
FUSEDLOSS_INLINE void stream(Lanes<T, bytes> x, T* to) {
#ifdef __AVX512F__
  if constexpr (bytes == 64) return _mm512_stream_si512(reinterpret_cast<__m512i*>(to), (__m512i)x.raw);
#endif
#ifdef __AVX__
  if constexpr (bytes == 32) return _mm256_stream_si256(reinterpret_cast<__m256i*>(to), (__m256i)x.raw);
#endif
  if constexpr (bytes == 16) _mm_stream_si128(reinterpret_cast<__m128i*>(to), (__m128i)x.raw);
}
// Before other threads read what was streamed.
inline void finish_streams() { _mm_sfence(); }
#else
inline constexpr bool kStreams = false;
template <class T, int bytes>
FUSEDLOSS_INLINE void stream(Lanes<T, bytes> x, T* to) {
  x.store(to);
}
inline void finish_streams() {}
#endif

// Sets memory to 0; past the caches, if that is said.
inline void clear_memory(void* memory, int64_t bytes, bool streams) {
  using V = Lanes<float>;
  auto* const to = static_cast<char*>(memory);
  int64_t i = 0;
  if (kStreams && streams) {
    i = std::min(bytes, int64_t(-reinterpret_cast<uintptr_t>(to) % sizeof(V)));
    std::memset(to, 0, i);
    for (; i + int64_t(sizeof(V)) <= bytes; i += sizeof(V)) stream(V(0), reinterpret_cast<float*>(to + i));
  }
  std::memset(to + i, 0, bytes - i);
}

// Memory, to an address that is aligned to a register.
inline void stream_memory(const void* from, void* to, int64_t bytes) {
  using V = Lanes<float>;
  const auto* source = static_cast<const char*>(from);
  auto* destination = static_cast<char*>(to);
  int64_t i = 0;
  for (; i + int64_t(sizeof(V)) <= bytes; i += sizeof(V)) {
    V x;
    std::memcpy(&x.raw, source + i, sizeof x.raw);
    stream(x, reinterpret_cast<float*>(destination + i));
  }
  std::memcpy(destination + i, source + i, bytes - i);
}

}  // namespace fusedloss::inline FUSEDLOSS_SET
