// The Gumbel noise of the one rule for tokens: G(seed, sample, position, token). Built from IEEE
// adds, multiplies and divides alone, never contracted, so that host, every vector path and device
// give the same bits.
//
// From word b: E = -log1p(-(b + .5) 2^-32) for b < 2^31, else -log((2^32 - b - .5) 2^-32);
// G = -log E. With x = (min(b, ~b) + .5) 2^-32 in (0, 1/2] this is -log1p(-x) or -log(x): full
// resolution at both ends. All logarithms are 2 atanh(s), log(n / d) with s = (n - d) / (n + d).
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/philox.h"

namespace paceline::kernels {

#ifdef __CUDA_ARCH__
PACELINE_HOST_DEVICE inline float MulRn(float a, float b) { return __fmul_rn(a, b); }
PACELINE_HOST_DEVICE inline float AddRn(float a, float b) { return __fadd_rn(a, b); }
PACELINE_HOST_DEVICE inline float DivRn(float a, float b) { return __fdiv_rn(a, b); }
#else  // host code is compiled with -ffp-contract=off
PACELINE_HOST_DEVICE inline float MulRn(float a, float b) { return a * b; }
PACELINE_HOST_DEVICE inline float AddRn(float a, float b) { return a + b; }
PACELINE_HOST_DEVICE inline float DivRn(float a, float b) { return a / b; }
#endif

// atanh(s) / s - 1 = s^2 (1/3 + s^2 / 5 + ...), as a polynomial in s^2 for |s| <= 1/3.
inline constexpr float kAtanhCoefficients[] = {0.333333333f, 0.2f,         0.142857143f,
                                               0.111111111f, 0.090909091f, 0.076923077f,
                                               0.066666667f, 0.058823529f};
inline constexpr int kNumAtanhCoefficients = 8;
inline constexpr float kLn2High = 0.693145752f;  // 16 bits: k * kLn2High is exact
inline constexpr float kLn2Low = 1.42860677e-6f;
inline constexpr uint32_t kSqrtHalfBits = 0x3f3504f3u;

PACELINE_HOST_DEVICE inline float TwiceAtanh(float s) {
  // Device code cannot name an array of the host, but its values.
  constexpr float kCoefficients[] = {
      kAtanhCoefficients[0], kAtanhCoefficients[1], kAtanhCoefficients[2], kAtanhCoefficients[3],
      kAtanhCoefficients[4], kAtanhCoefficients[5], kAtanhCoefficients[6], kAtanhCoefficients[7]};
  const float s2 = MulRn(s, s);
  float poly = kCoefficients[kNumAtanhCoefficients - 1];
  for (int i = kNumAtanhCoefficients - 2; i >= 0; --i) {
    poly = AddRn(MulRn(poly, s2), kCoefficients[i]);
  }
  const float twice = AddRn(s, s);
  return AddRn(twice, MulRn(twice, MulRn(s2, poly)));
}

// x: positive, finite, normal.
PACELINE_HOST_DEVICE inline float NoiseLog(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof(bits));
  const int32_t shifted = static_cast<int32_t>(bits - kSqrtHalfBits);
  const int32_t exponent = shifted >> 23;
  bits -= static_cast<uint32_t>(exponent) << 23;  // mantissa in [sqrt(1/2), sqrt(2))
  float m;
  memcpy(&m, &bits, sizeof(m));
  const float k = static_cast<float>(exponent);
  const float log_m = TwiceAtanh(DivRn(AddRn(m, -1.0f), AddRn(m, 1.0f)));
  return AddRn(MulRn(k, kLn2High), AddRn(MulRn(k, kLn2Low), log_m));
}

PACELINE_HOST_DEVICE inline float GumbelFromWord(uint32_t b) {
  const bool low = b < 0x80000000u;
  const float count = static_cast<float>(low ? b : ~b);
  const float x = MulRn(AddRn(count, 0.5f), 2.3283064365386963e-10f);  // 2^-32
  const float e = low ? TwiceAtanh(DivRn(x, AddRn(2.0f, -x))) : -NoiseLog(x);
  return -NoiseLog(e);
}

// Four noises at once: those of tokens 4 * group .. 4 * group + 3.
PACELINE_HOST_DEVICE inline PhiloxBlock NoiseWords(uint64_t seed, uint32_t sample,
                                                   uint32_t position, uint32_t group) {
  return Philox4x32(PhiloxBlock{{position, sample, group, 0u}}, seed);
}

PACELINE_HOST_DEVICE inline float GumbelNoise(uint64_t seed, uint32_t sample, uint32_t position,
                                              uint32_t token) {
  return GumbelFromWord(NoiseWords(seed, sample, position, token / 4).word[token % 4]);
}

}  // namespace paceline::kernels
