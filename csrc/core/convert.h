// Conversions between element types, written so that compilers vectorise loops over them.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "core/dtype.h"
#include "core/instruction_set.h"

namespace fusedloss::inline FUSEDLOSS_SET {

// Half types as their bits; arithmetic is done in float.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

template <class To, class From>
FUSEDLOSS_INLINE To bit_copy(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

FUSEDLOSS_INLINE float to_float(BFloat16 x) { return bit_copy<float>(uint32_t(x.bits) << 16); }

// Normal numbers by moving the fields, subnormal ones as the integer they are times 2^-24.
FUSEDLOSS_INLINE float to_float(Float16 x) {
  const uint32_t magnitude = x.bits & 0x7fffu;
  const uint32_t sign = uint32_t(x.bits & 0x8000u) << 16;
  const uint32_t moved = (magnitude << 13) + (magnitude >= 0x7c00u ? 0x70000000u : 0x38000000u);
  const uint32_t subnormal = bit_copy<uint32_t>(float(int32_t(magnitude)) * 0x1p-24f);
  return bit_copy<float>((magnitude < 0x0400u ? subnormal : moved) | sign);
}

// To nearest, ties to even; NaN stays NaN.
FUSEDLOSS_INLINE BFloat16 to_bfloat16(float x) {
  const uint32_t bits = bit_copy<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1)) >> 16;
  return {uint16_t((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded)};
}

// To nearest, ties to even. Below 2^-14, adding 0.5 puts the last bit of the result where float rounds.
FUSEDLOSS_INLINE Float16 to_float16(float x) {
  const uint32_t bits = bit_copy<uint32_t>(x);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1)) >> 13;
  const uint32_t subnormal = bit_copy<uint32_t>(bit_copy<float>(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  const uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
  return {uint16_t((magnitude >= 0x477ff000u ? special : finite) | sign)};
}

template <class To, class From>
FUSEDLOSS_INLINE To convert(From x) {
  if constexpr (std::is_same_v<From, BFloat16> || std::is_same_v<From, Float16>)
    return To(to_float(x));
  else if constexpr (std::is_same_v<To, BFloat16>)
    return to_bfloat16(float(x));
  else if constexpr (std::is_same_v<To, Float16>)
    return to_float16(float(x));
  else
    return To(x);
}

// Calls visitor with a value of the C++ type that dtype stands for.
template <class Visitor>
FUSEDLOSS_INLINE void visit_floating(DType dtype, const Visitor& visitor) {
  switch (dtype) {
    case DType::float64: return visitor(double{});
    case DType::float32: return visitor(float{});
    case DType::float16: return visitor(Float16{});
    default: return visitor(BFloat16{});
  }
}
template <class Visitor>
FUSEDLOSS_INLINE void visit(DType dtype, const Visitor& visitor) {
  switch (dtype) {
    case DType::int64: return visitor(int64_t{});
    case DType::int32: return visitor(int32_t{});
    case DType::int16: return visitor(int16_t{});
    case DType::int8: return visitor(int8_t{});
    case DType::uint8: return visitor(uint8_t{});
    case DType::boolean: return visitor(bool{});
    default: return visit_floating(dtype, visitor);
  }
}

}  // namespace fusedloss::inline FUSEDLOSS_SET
