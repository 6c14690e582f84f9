// bfloat16: the upper half of a float. Storage type of weights, activations and KV.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/host_device.h"

namespace paceline::kernels {

struct Bf16 {
  uint16_t bits;
};
static_assert(sizeof(Bf16) == 2);

// Always inlined: a copy compiled for a larger instruction set must never serve a smaller one.
[[gnu::always_inline]] PACELINE_HOST_DEVICE inline float ToFloat(Bf16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float f;
  memcpy(&f, &bits, sizeof(f));
  return f;
}

// Rounds to nearest, ties to even. NaN stays NaN.
[[gnu::always_inline]] PACELINE_HOST_DEVICE inline Bf16 ToBf16(float f) {
  uint32_t bits;
  memcpy(&bits, &f, sizeof(bits));
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((bits >> 16) | 0x40u)};
  bits += 0x7fffu + ((bits >> 16) & 1u);
  return {static_cast<uint16_t>(bits >> 16)};
}

}  // namespace paceline::kernels
