// bfloat16, one number at a time, for code that is no kernel.
#pragma once

#include <cstdint>
#include <cstring>

namespace prnn::cpu {

inline float from_bfloat16(uint16_t half) {
  const uint32_t bits = uint32_t{half} << 16;
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

// Round to nearest, ties to even; a NaN stays a quiet NaN.
inline uint16_t bfloat16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  if (x != x) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

}  // namespace prnn::cpu
