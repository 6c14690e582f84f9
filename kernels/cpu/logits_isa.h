// The sampler's passes over a vocabulary. Included by isa_*.cc only.
#pragma once

#include "kernels/cpu/isa_kernels.h"
#include "kernels/cpu/vec.h"
#include "kernels/noise.h"

namespace paceline::kernels::PACELINE_ISA_NAMESPACE {

PACELINE_INLINE F32 Clean(F32 x) { return ReplaceNan(MinOf(Set(__FLT_MAX__), x), Set(-kInfinity)); }

// Lanes from n on are -infinity.
PACELINE_INLINE F32 LoadLogits(const float* p, int64_t n) {
  if (n >= kLanes) return Load(p);
  return KeepLanes(LoadN(p, n), 0, n, Set(-kInfinity));
}

float CleanLogits(const float* x, float* y, int64_t count) {
  F32 greatest = Set(-kInfinity);
  for (int64_t i = 0; i < count; i += kLanes) {
    const F32 v = Clean(LoadLogits(x + i, count - i));
    StoreN(y + i, v, count - i);
    greatest = MaxOf(greatest, v);
  }
  return ReduceMax(greatest);
}

void ScaleLogits(const float* x, float* y, int64_t count, float greatest, float temperature) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const F32 v = Div(Sub(LoadN(x + i, count - i), Set(greatest)), Set(temperature));
    StoreN(y + i, v, count - i);
  }
}

void Exponential(const float* x, float* y, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes) {
    StoreN(y + i, Exp(LoadN(x + i, count - i)), count - i);
  }
}

double SumExp(const float* x, int64_t count, float greatest) {
  double total = 0;
  for (int64_t i = 0; i < count; i += 4 * kLanes) {
    F32 sum = Set(0.0f);
    for (int64_t j = i; j < Min(i + 4 * kLanes, count); j += kLanes) {
      sum = Add(sum, Exp(Sub(LoadLogits(x + j, count - j), Set(greatest))));
    }
    total += static_cast<double>(ReduceAdd(sum));
  }
  return total;
}

int64_t Argmax(const float* x, int64_t count) {
  F32 greatest = Set(-kInfinity);
  for (int64_t i = 0; i < count; i += kLanes) {
    greatest = MaxOf(ReplaceNan(LoadLogits(x + i, count - i), Set(-kInfinity)), greatest);
  }
  const float best = ReduceMax(greatest);
  if (best == -kInfinity) return -1;
  int64_t i = 0;
  while (x[i] != best) ++i;
  return i;
}

int64_t FindGreater(const float* x, int64_t begin, int64_t count, float limit) {
  for (int64_t i = begin; i < count; i += kLanes) {
    const uint32_t mask = GreaterMask(LoadLogits(x + i, count - i), Set(limit));
    if (mask != 0) return i + __builtin_ctz(mask);
  }
  return count;
}

#if PACELINE_ISA == 0

void AddNoise(const float* x, float* y, int64_t count, uint64_t seed, uint32_t sample,
              uint32_t position) {
  for (int64_t i = 0; i < count; i += 4) {
    const PhiloxBlock words = NoiseWords(seed, sample, position, static_cast<uint32_t>(i / 4));
    for (int64_t j = 0; j < Min(4, count - i); ++j) {
      y[i + j] = x[i + j] + GumbelFromWord(words.word[j]);
    }
  }
}

#else

// The same operations as kernels/noise.h, lane by lane: products and sums stay apart (this source
// is compiled with -ffp-contract=off), divisions are IEEE.
#if PACELINE_ISA == 2
using NoiseF = __m512;
using NoiseI = __m512i;
inline constexpr int kNoiseLanes = 16;
#define PACELINE_OP(name) _mm512_##name
#define PACELINE_SI(name) _mm512_##name##_epi32
PACELINE_INLINE NoiseI Xor(NoiseI a, NoiseI b) { return _mm512_xor_si512(a, b); }
PACELINE_INLINE NoiseF AsFloat(NoiseI a) { return _mm512_castsi512_ps(a); }
PACELINE_INLINE NoiseI AsInt(NoiseF a) { return _mm512_castps_si512(a); }
PACELINE_INLINE NoiseF Pick(NoiseI negative, NoiseF a, NoiseF b) {  // a where the sign bit is set
  return _mm512_mask_blend_ps(_mm512_movepi32_mask(negative), b, a);
}
PACELINE_INLINE NoiseI TakeOdd(NoiseI even, NoiseI odd) {
  return _mm512_mask_blend_epi32(0xaaaa, even, odd);
}
#else
using NoiseF = __m256;
using NoiseI = __m256i;
inline constexpr int kNoiseLanes = 8;
#define PACELINE_OP(name) _mm256_##name
#define PACELINE_SI(name) _mm256_##name##_epi32
PACELINE_INLINE NoiseI Xor(NoiseI a, NoiseI b) { return _mm256_xor_si256(a, b); }
PACELINE_INLINE NoiseF AsFloat(NoiseI a) { return _mm256_castsi256_ps(a); }
PACELINE_INLINE NoiseI AsInt(NoiseF a) { return _mm256_castps_si256(a); }
PACELINE_INLINE NoiseF Pick(NoiseI negative, NoiseF a, NoiseF b) {
  return _mm256_blendv_ps(b, a, AsFloat(negative));
}
PACELINE_INLINE NoiseI TakeOdd(NoiseI even, NoiseI odd) {
  return _mm256_blend_epi32(even, odd, 0xaa);
}
#endif

PACELINE_INLINE NoiseI SetI(uint32_t x) { return PACELINE_SI(set1)(static_cast<int32_t>(x)); }
PACELINE_INLINE NoiseF SetF(float x) { return PACELINE_OP(set1_ps)(x); }
PACELINE_INLINE NoiseF AddF(NoiseF a, NoiseF b) { return PACELINE_OP(add_ps)(a, b); }
PACELINE_INLINE NoiseF MulF(NoiseF a, NoiseF b) { return PACELINE_OP(mul_ps)(a, b); }
PACELINE_INLINE NoiseF DivF(NoiseF a, NoiseF b) { return PACELINE_OP(div_ps)(a, b); }

// Low and high words of the 32 x 32 bit products.
PACELINE_INLINE void MulWide(NoiseI a, uint32_t m, NoiseI* low, NoiseI* high) {
  const NoiseI factor = SetI(m);
  const NoiseI even = PACELINE_OP(mul_epu32)(a, factor);
  const NoiseI odd = PACELINE_OP(mul_epu32)(PACELINE_OP(srli_epi64)(a, 32), factor);
  *low = TakeOdd(even, PACELINE_OP(slli_epi64)(odd, 32));
  *high = TakeOdd(PACELINE_OP(srli_epi64)(even, 32), odd);
}

PACELINE_INLINE NoiseF TwiceAtanhV(NoiseF s) {
  const NoiseF s2 = MulF(s, s);
  NoiseF poly = SetF(kAtanhCoefficients[kNumAtanhCoefficients - 1]);
#pragma GCC unroll 8
  for (int i = kNumAtanhCoefficients - 2; i >= 0; --i) {
    poly = AddF(MulF(poly, s2), SetF(kAtanhCoefficients[i]));
  }
  const NoiseF twice = AddF(s, s);
  return AddF(twice, MulF(twice, MulF(s2, poly)));
}

struct Reduced {
  NoiseF mantissa, exponent;
};
PACELINE_INLINE Reduced ReduceForLog(NoiseF x) {
  const NoiseI bits = AsInt(x);
  const NoiseI exponent = PACELINE_SI(srai)(PACELINE_SI(sub)(bits, SetI(kSqrtHalfBits)), 23);
  return {AsFloat(PACELINE_SI(sub)(bits, PACELINE_SI(slli)(exponent, 23))),
          PACELINE_OP(cvtepi32_ps)(exponent)};
}
PACELINE_INLINE NoiseF PlusExponent(NoiseF k, NoiseF log_m) {
  return AddF(MulF(k, SetF(kLn2High)), AddF(MulF(k, SetF(kLn2Low)), log_m));
}
PACELINE_INLINE NoiseF Negate(NoiseF x) { return AsFloat(Xor(AsInt(x), SetI(0x80000000u))); }

PACELINE_INLINE NoiseF GumbelV(NoiseI b) {
  const NoiseI high = b;  // sign bit: b >= 2^31
  const NoiseI count = Xor(b, PACELINE_SI(srai)(b, 31));
  const NoiseF x =
      MulF(AddF(PACELINE_OP(cvtepi32_ps)(count), SetF(0.5f)), SetF(2.3283064365386963e-10f));
  // -log1p(-x) and log(x) share one division and one polynomial.
  const Reduced part = ReduceForLog(x);
  const NoiseF numerator = Pick(high, AddF(part.mantissa, SetF(-1.0f)), x);
  const NoiseF denominator =
      Pick(high, AddF(part.mantissa, SetF(1.0f)), AddF(SetF(2.0f), Negate(x)));
  const NoiseF atanh2 = TwiceAtanhV(DivF(numerator, denominator));
  const NoiseF e = Pick(high, Negate(PlusExponent(part.exponent, atanh2)), atanh2);
  const Reduced outer = ReduceForLog(e);
  const NoiseF log_m =
      TwiceAtanhV(DivF(AddF(outer.mantissa, SetF(-1.0f)), AddF(outer.mantissa, SetF(1.0f))));
  return Negate(PlusExponent(outer.exponent, log_m));
}

// Noise of the 4 * kNoiseLanes tokens from 4 * group on.
PACELINE_INLINE void NoiseBlock(uint64_t seed, uint32_t sample, uint32_t position, uint32_t group,
                                float* out) {
  // Lane 4 L + j draws group + 4 j + L (AVX2: 2 j + L): a 4 x 4 transpose inside 128-bit lanes then
  // leaves 16 (8) consecutive tokens in each vector.
#if PACELINE_ISA == 2
  const NoiseI lanes = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
#else
  const NoiseI lanes = _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7);
#endif
  NoiseI c0 = SetI(position), c1 = SetI(sample), c3 = SetI(0);
  NoiseI c2 = PACELINE_SI(add)(SetI(group), lanes);
  uint32_t k0 = static_cast<uint32_t>(seed);
  uint32_t k1 = static_cast<uint32_t>(seed >> 32);
#pragma GCC unroll 10
  for (int round = 0; round < kPhiloxRounds; ++round) {
    NoiseI low0, high0, low1, high1;
    MulWide(c0, kPhiloxMul0, &low0, &high0);
    MulWide(c2, kPhiloxMul1, &low1, &high1);
    c0 = Xor(Xor(high1, c1), SetI(k0));
    c2 = Xor(Xor(high0, c3), SetI(k1));
    c1 = low1;
    c3 = low0;
    k0 += kPhiloxWeyl0;
    k1 += kPhiloxWeyl1;
  }
  const NoiseI ab_low = PACELINE_SI(unpacklo)(c0, c1), ab_high = PACELINE_SI(unpackhi)(c0, c1);
  const NoiseI cd_low = PACELINE_SI(unpacklo)(c2, c3), cd_high = PACELINE_SI(unpackhi)(c2, c3);
  PACELINE_OP(storeu_ps)(out, GumbelV(PACELINE_OP(unpacklo_epi64)(ab_low, cd_low)));
  PACELINE_OP(storeu_ps)(out + kNoiseLanes, GumbelV(PACELINE_OP(unpackhi_epi64)(ab_low, cd_low)));
  PACELINE_OP(storeu_ps)
  (out + 2 * kNoiseLanes, GumbelV(PACELINE_OP(unpacklo_epi64)(ab_high, cd_high)));
  PACELINE_OP(storeu_ps)
  (out + 3 * kNoiseLanes, GumbelV(PACELINE_OP(unpackhi_epi64)(ab_high, cd_high)));
}

#undef PACELINE_OP
#undef PACELINE_SI

void AddNoise(const float* x, float* y, int64_t count, uint64_t seed, uint32_t sample,
              uint32_t position) {
  constexpr int64_t kBlock = 4 * kNoiseLanes;
  for (int64_t i = 0; i < count; i += kBlock) {
    float noise[kBlock];
    NoiseBlock(seed, sample, position, static_cast<uint32_t>(i / 4), noise);
    for (int64_t j = 0; j < kBlock && i + j < count; j += kLanes) {
      const int64_t left = count - i - j;
      StoreN(y + i + j, Add(LoadN(x + i + j, left), Load(noise + j)), left);
    }
  }
}

#endif

}  // namespace paceline::kernels::PACELINE_ISA_NAMESPACE
