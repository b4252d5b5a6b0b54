// Lanes<T>: a register of T, the type on which the formulas run on the CPU.
//
// Built on the vector extension of GCC and Clang, so that one source gives SSE2, AVX2, AVX-512 or NEON, whatever the
// file is compiled for (core/instruction_set.h).
#pragma once
#include <cstdint>
#include <cstring>

#include "core/constant.h"

namespace fusedloss::inline FUSEDLOSS_SET {

// Tell the compiler which way has no jumps: in a loop over registers those may cost more than the arithmetic.
FUSEDLOSS_INLINE bool usual(bool condition) { return __builtin_expect(condition, true); }
FUSEDLOSS_INLINE bool seldom(bool condition) { return __builtin_expect(condition, false); }

template <class T>
struct BitsOf;
template <>
struct BitsOf<float> {
  using type = int32_t;
};
template <>
struct BitsOf<double> {
  using type = int64_t;
};

template <class T, int Bytes = FUSEDLOSS_REGISTER_BYTES>
struct Lanes {
  using Scalar = T;
  using Raw [[gnu::vector_size(Bytes)]] = T;
  using Bits [[gnu::vector_size(Bytes)]] = typename BitsOf<T>::type;
  static constexpr int size = Bytes / sizeof(T);

  // All bits of a lane are set where the comparison holds.
  struct Mask {
    Bits bits;
    friend Mask operator&(Mask a, Mask b) { return {a.bits & b.bits}; }
    friend Mask operator|(Mask a, Mask b) { return {a.bits | b.bits}; }
    friend Mask operator!(Mask a) { return {~a.bits}; }
    friend bool any(Mask mask) {
      typename BitsOf<T>::type found = 0;
      for (int lane = 0; lane < size; ++lane) found |= mask.bits[lane];
      return found != 0;
    }
  };

  Raw raw;

  Lanes() = default;
  Lanes(Raw raw) : raw(raw) {}
  // Implicit, so that a formula can be written with plain constants. (0 + -0.0 would lose the sign.)
  Lanes(double value) : raw(T(value) - Raw{}) {}
  Lanes(Constant value) : Lanes(double(T(value))) {}

  static Lanes load(const T* source) {
    Raw raw;
    std::memcpy(&raw, source, sizeof raw);
    return raw;
  }
  void store(T* destination) const { std::memcpy(destination, &raw, sizeof raw); }

  friend Lanes operator+(Lanes a, Lanes b) { return Lanes(a.raw + b.raw); }
  friend Lanes operator-(Lanes a, Lanes b) { return Lanes(a.raw - b.raw); }
  friend Lanes operator*(Lanes a, Lanes b) { return Lanes(a.raw * b.raw); }
  friend Lanes operator/(Lanes a, Lanes b) { return Lanes(a.raw / b.raw); }
  friend Lanes operator-(Lanes a) { return Lanes(-a.raw); }
  friend Mask operator<(Lanes a, Lanes b) { return {a.raw < b.raw}; }
  friend Mask operator<=(Lanes a, Lanes b) { return {a.raw <= b.raw}; }
  friend Mask operator>(Lanes a, Lanes b) { return {a.raw > b.raw}; }
  friend Mask operator>=(Lanes a, Lanes b) { return {a.raw >= b.raw}; }
  friend Mask operator==(Lanes a, Lanes b) { return {a.raw == b.raw}; }
  friend Lanes select(Mask mask, Lanes a, Lanes b) { return Lanes(mask.bits ? a.raw : b.raw); }

  Bits bits() const {
    Bits bits;
    std::memcpy(&bits, &raw, sizeof bits);
    return bits;
  }
  static Lanes from_bits(Bits bits) {
    Raw raw;
    std::memcpy(&raw, &bits, sizeof raw);
    return raw;
  }
};

}  // namespace fusedloss::inline FUSEDLOSS_SET
