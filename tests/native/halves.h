// 16-bit floats by their bits, to nearest, ties to even; a NaN becomes the one that a GPU makes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace prnn::test {

inline float from_float16(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const float magnitude = exponent == 31  ? (fraction ? __builtin_nanf("") : __builtin_inff())
                          : exponent == 0 ? __builtin_ldexpf(float(fraction), -24)
                                          : __builtin_ldexpf(float(1024 + fraction), exponent - 25);
  return bits >> 15 ? -magnitude : magnitude;
}

inline uint16_t to_float16(float x) {
  if (x != x) return 0x7FFF;
  const uint16_t sign = __builtin_signbit(x) ? 0x8000 : 0;
  const float magnitude = __builtin_fabsf(x);
  if (magnitude >= 65520.0f) return sign | 0x7C00;
  const int exponent = magnitude > 0 ? std::max(__builtin_ilogbf(magnitude), -14) : -14;
  // In units of the last place; a carry goes into the exponent by itself.
  const int units = int(__builtin_rintf(__builtin_ldexpf(magnitude, 10 - exponent)));
  return sign | uint16_t(((exponent + 14) << 10) + units);
}

inline float from_bfloat16(uint16_t half) {
  const uint32_t bits = uint32_t(half) << 16;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

inline uint16_t to_bfloat16(float x) {
  if (x != x) return 0x7FFF;
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return uint16_t((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

}  // namespace prnn::test
