// Sixteen floats, in the instruction set that the including source is compiled for. Kernels are
// written once against this; isa_portable.cc, isa_avx2.cc and isa_avx512.cc each compile them.
//
// Everything lies in a namespace of its own per ISA and uses no template or inline function of the
// standard library: the linker must never pick a copy made for a larger instruction set.
#pragma once

#if !defined(PACELINE_ISA)
#error "include from isa_*.cc only"
#elif PACELINE_ISA == 0
#define PACELINE_ISA_NAMESPACE isa_portable
#elif PACELINE_ISA == 1
#define PACELINE_ISA_NAMESPACE isa_avx2
#else
#define PACELINE_ISA_NAMESPACE isa_avx512
#endif

#if PACELINE_ISA > 0
#include <immintrin.h>
#endif

#include <stdint.h>
#include <string.h>

#include "kernels/cpu/bf16.h"

#define PACELINE_INLINE inline __attribute__((always_inline))

namespace paceline::kernels::PACELINE_ISA_NAMESPACE {

inline constexpr int kLanes = 16;
inline constexpr float kInfinity = __builtin_inff();

PACELINE_INLINE int64_t Min(int64_t a, int64_t b) { return a < b ? a : b; }
PACELINE_INLINE int64_t Max(int64_t a, int64_t b) { return a > b ? a : b; }

// PairVec: 16 pairs of bf16, consecutive in k. Dot adds, per lane, both products of two pairs.
#if PACELINE_ISA == 2

using F32 = __m512;
using I32 = __m512i;
using PairVec = __m512i;

PACELINE_INLINE F32 Set(float x) { return _mm512_set1_ps(x); }
PACELINE_INLINE F32 Load(const float* p) { return _mm512_loadu_ps(p); }
PACELINE_INLINE void Store(float* p, F32 v) { _mm512_storeu_ps(p, v); }
PACELINE_INLINE __mmask16 FirstLanes(int64_t n) {
  return n >= 16 ? static_cast<__mmask16>(0xffff) : static_cast<__mmask16>((1u << n) - 1);
}
PACELINE_INLINE F32 LoadN(const float* p, int64_t n) {
  return _mm512_maskz_loadu_ps(FirstLanes(n), p);
}
PACELINE_INLINE void StoreN(float* p, F32 v, int64_t n) {
  _mm512_mask_storeu_ps(p, FirstLanes(n), v);
}
PACELINE_INLINE F32 WidenBf16(__m256i b) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(b), 16));
}
PACELINE_INLINE F32 LoadBf16(const Bf16* p) {
  return WidenBf16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
PACELINE_INLINE F32 LoadBf16N(const Bf16* p, int64_t n) {
  return WidenBf16(_mm256_maskz_loadu_epi16(FirstLanes(n), p));
}
PACELINE_INLINE void StoreBf16N(Bf16* p, F32 v, int64_t n) {
  _mm256_mask_storeu_epi16(p, FirstLanes(n), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v)));
}
PACELINE_INLINE void StoreBf16(Bf16* p, F32 v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v)));
}
PACELINE_INLINE F32 Add(F32 a, F32 b) { return _mm512_add_ps(a, b); }
PACELINE_INLINE F32 Sub(F32 a, F32 b) { return _mm512_sub_ps(a, b); }
PACELINE_INLINE F32 Mul(F32 a, F32 b) { return _mm512_mul_ps(a, b); }
PACELINE_INLINE F32 Div(F32 a, F32 b) { return _mm512_div_ps(a, b); }
PACELINE_INLINE F32 MaxOf(F32 a, F32 b) { return _mm512_max_ps(a, b); }  // b where either is NaN
PACELINE_INLINE F32 MinOf(F32 a, F32 b) { return _mm512_min_ps(a, b); }
PACELINE_INLINE F32 MulAdd(F32 a, F32 b, F32 c) { return _mm512_fmadd_ps(a, b, c); }
PACELINE_INLINE F32 Round(F32 a) {
  return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
// a * 2^n for integral n in [-126, 127].
PACELINE_INLINE F32 ScaleByPower(F32 a, F32 n) {
  const __m512i e =
      _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23);
  return _mm512_mul_ps(a, _mm512_castsi512_ps(e));
}
// a where x < y, else b.
PACELINE_INLINE F32 SelectLess(F32 x, F32 y, F32 a, F32 b) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, y, _CMP_LT_OQ), b, a);
}
PACELINE_INLINE F32 ReplaceNan(F32 x, F32 by) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), x, by);
}
// Bit i: a[i] > b[i].
PACELINE_INLINE uint32_t GreaterMask(F32 a, F32 b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
// x in lanes [begin, end), else y.
PACELINE_INLINE F32 KeepLanes(F32 x, int64_t begin, int64_t end, F32 y) {
  const __mmask16 keep = FirstLanes(end < 0 ? 0 : end) & ~FirstLanes(begin < 0 ? 0 : begin);
  return _mm512_mask_blend_ps(keep, y, x);
}
PACELINE_INLINE PairVec LoadPairs(const Bf16* p) { return _mm512_loadu_si512(p); }
PACELINE_INLINE PairVec SetPair(const Bf16* p) {
  int32_t bits;
  memcpy(&bits, p, sizeof(bits));
  return _mm512_set1_epi32(bits);
}
PACELINE_INLINE PairVec SetHalfPair(const Bf16* p) { return _mm512_set1_epi32(p->bits); }
PACELINE_INLINE F32 Dot(F32 acc, PairVec a, PairVec b) {
  return _mm512_dpbf16_ps(acc, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
}
PACELINE_INLINE void Prefetch(const void* p) {
  _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0);
}

#elif PACELINE_ISA == 1

struct F32 {
  __m256 lo, hi;
};
struct PairVec {  // widened: first and second element of each pair
  F32 first, second;
};

PACELINE_INLINE F32 Set(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
PACELINE_INLINE F32 Load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
PACELINE_INLINE void Store(float* p, F32 v) {
  _mm256_storeu_ps(p, v.lo);
  _mm256_storeu_ps(p + 8, v.hi);
}
PACELINE_INLINE __m256 WidenBf16(__m128i b) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(b), 16));
}
PACELINE_INLINE F32 LoadBf16(const Bf16* p) {
  return {WidenBf16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
          WidenBf16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
}
PACELINE_INLINE F32 Add(F32 a, F32 b) {
  return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
}
PACELINE_INLINE F32 Sub(F32 a, F32 b) {
  return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)};
}
PACELINE_INLINE F32 Mul(F32 a, F32 b) {
  return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
}
PACELINE_INLINE F32 Div(F32 a, F32 b) {
  return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)};
}
PACELINE_INLINE F32 MaxOf(F32 a, F32 b) {
  return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)};
}
PACELINE_INLINE F32 MinOf(F32 a, F32 b) {
  return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)};
}
PACELINE_INLINE F32 MulAdd(F32 a, F32 b, F32 c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
PACELINE_INLINE F32 Round(F32 a) {
  constexpr int kMode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(a.lo, kMode), _mm256_round_ps(a.hi, kMode)};
}
PACELINE_INLINE __m256 PowerOfTwo(__m256 n) {
  return _mm256_castsi256_ps(
      _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
PACELINE_INLINE F32 ScaleByPower(F32 a, F32 n) {
  return {_mm256_mul_ps(a.lo, PowerOfTwo(n.lo)), _mm256_mul_ps(a.hi, PowerOfTwo(n.hi))};
}
PACELINE_INLINE F32 SelectLess(F32 x, F32 y, F32 a, F32 b) {
  return {_mm256_blendv_ps(b.lo, a.lo, _mm256_cmp_ps(x.lo, y.lo, _CMP_LT_OQ)),
          _mm256_blendv_ps(b.hi, a.hi, _mm256_cmp_ps(x.hi, y.hi, _CMP_LT_OQ))};
}
PACELINE_INLINE F32 ReplaceNan(F32 x, F32 by) {
  return {_mm256_blendv_ps(x.lo, by.lo, _mm256_cmp_ps(x.lo, x.lo, _CMP_UNORD_Q)),
          _mm256_blendv_ps(x.hi, by.hi, _mm256_cmp_ps(x.hi, x.hi, _CMP_UNORD_Q))};
}
PACELINE_INLINE uint32_t GreaterMask(F32 a, F32 b) {
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a.lo, b.lo, _CMP_GT_OQ))) |
         static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a.hi, b.hi, _CMP_GT_OQ))) << 8;
}
PACELINE_INLINE PairVec Split(__m256i lo, __m256i hi) {
  const __m256i mask = _mm256_set1_epi32(static_cast<int32_t>(0xffff0000u));
  return {{_mm256_castsi256_ps(_mm256_slli_epi32(lo, 16)),
           _mm256_castsi256_ps(_mm256_slli_epi32(hi, 16))},
          {_mm256_castsi256_ps(_mm256_and_si256(lo, mask)),
           _mm256_castsi256_ps(_mm256_and_si256(hi, mask))}};
}
PACELINE_INLINE PairVec LoadPairs(const Bf16* p) {
  return Split(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
               _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 16)));
}
PACELINE_INLINE PairVec SetPair(const Bf16* p) { return {Set(ToFloat(p[0])), Set(ToFloat(p[1]))}; }
PACELINE_INLINE PairVec SetHalfPair(const Bf16* p) { return {Set(ToFloat(p[0])), Set(0.0f)}; }
PACELINE_INLINE F32 Dot(F32 acc, PairVec a, PairVec b) {
  return MulAdd(a.second, b.second, MulAdd(a.first, b.first, acc));
}
PACELINE_INLINE void Prefetch(const void* p) {
  _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0);
}

#else

struct F32 {
  float v[kLanes];
};
struct PairVec {
  F32 first, second;
};

template <typename Fn>
PACELINE_INLINE F32 Lanes(Fn fn) {
  F32 r;
  for (int i = 0; i < kLanes; ++i) r.v[i] = fn(i);
  return r;
}
PACELINE_INLINE F32 Set(float x) {
  return Lanes([&](int) { return x; });
}
PACELINE_INLINE F32 Load(const float* p) {
  return Lanes([&](int i) { return p[i]; });
}
PACELINE_INLINE void Store(float* p, F32 v) { memcpy(p, v.v, sizeof(v.v)); }
PACELINE_INLINE F32 LoadBf16(const Bf16* p) {
  return Lanes([&](int i) { return ToFloat(p[i]); });
}
PACELINE_INLINE F32 Add(F32 a, F32 b) {
  return Lanes([&](int i) { return a.v[i] + b.v[i]; });
}
PACELINE_INLINE F32 Sub(F32 a, F32 b) {
  return Lanes([&](int i) { return a.v[i] - b.v[i]; });
}
PACELINE_INLINE F32 Mul(F32 a, F32 b) {
  return Lanes([&](int i) { return a.v[i] * b.v[i]; });
}
PACELINE_INLINE F32 Div(F32 a, F32 b) {
  return Lanes([&](int i) { return a.v[i] / b.v[i]; });
}
PACELINE_INLINE F32 MaxOf(F32 a, F32 b) {
  return Lanes([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
PACELINE_INLINE F32 MinOf(F32 a, F32 b) {
  return Lanes([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
PACELINE_INLINE F32 MulAdd(F32 a, F32 b, F32 c) {
  return Lanes([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
}
PACELINE_INLINE F32 Round(F32 a) {  // |a| < 2^22: the magic number rounds to nearest even
  return Lanes([&](int i) {
    const volatile float shifted = a.v[i] + 12582912.0f;
    return shifted - 12582912.0f;
  });
}
PACELINE_INLINE F32 ScaleByPower(F32 a, F32 n) {
  return Lanes([&](int i) {
    const uint32_t bits = static_cast<uint32_t>(static_cast<int32_t>(n.v[i]) + 127) << 23;
    float power;
    memcpy(&power, &bits, sizeof(power));
    return a.v[i] * power;
  });
}
PACELINE_INLINE F32 SelectLess(F32 x, F32 y, F32 a, F32 b) {
  return Lanes([&](int i) { return x.v[i] < y.v[i] ? a.v[i] : b.v[i]; });
}
PACELINE_INLINE F32 ReplaceNan(F32 x, F32 by) {
  return Lanes([&](int i) { return x.v[i] == x.v[i] ? x.v[i] : by.v[i]; });
}
PACELINE_INLINE uint32_t GreaterMask(F32 a, F32 b) {
  uint32_t mask = 0;
  for (int i = 0; i < kLanes; ++i) mask |= (a.v[i] > b.v[i] ? 1u : 0u) << i;
  return mask;
}
PACELINE_INLINE PairVec LoadPairs(const Bf16* p) {
  return {Lanes([&](int i) { return ToFloat(p[2 * i]); }),
          Lanes([&](int i) { return ToFloat(p[2 * i + 1]); })};
}
PACELINE_INLINE PairVec SetPair(const Bf16* p) { return {Set(ToFloat(p[0])), Set(ToFloat(p[1]))}; }
PACELINE_INLINE PairVec SetHalfPair(const Bf16* p) { return {Set(ToFloat(p[0])), Set(0.0f)}; }
PACELINE_INLINE F32 Dot(F32 acc, PairVec a, PairVec b) {
  return MulAdd(a.second, b.second, MulAdd(a.first, b.first, acc));
}
PACELINE_INLINE void Prefetch(const void*) {}

#endif

#if PACELINE_ISA != 2
PACELINE_INLINE F32 LoadN(const float* p, int64_t n) {
  if (n >= kLanes) return Load(p);
  float buffer[kLanes] = {};
  for (int64_t i = 0; i < n; ++i) buffer[i] = p[i];
  return Load(buffer);
}
PACELINE_INLINE void StoreN(float* p, F32 v, int64_t n) {
  float buffer[kLanes];
  Store(buffer, v);
  for (int64_t i = 0; i < Min(n, kLanes); ++i) p[i] = buffer[i];
}
PACELINE_INLINE F32 LoadBf16N(const Bf16* p, int64_t n) {
  if (n >= kLanes) return LoadBf16(p);
  Bf16 buffer[kLanes] = {};
  for (int64_t i = 0; i < n; ++i) buffer[i] = p[i];
  return LoadBf16(buffer);
}
PACELINE_INLINE void StoreBf16N(Bf16* p, F32 v, int64_t n) {
  float buffer[kLanes];
  Store(buffer, v);
  for (int64_t i = 0; i < Min(n, kLanes); ++i) p[i] = ToBf16(buffer[i]);
}
PACELINE_INLINE void StoreBf16(Bf16* p, F32 v) { StoreBf16N(p, v, kLanes); }
PACELINE_INLINE F32 KeepLanes(F32 x, int64_t begin, int64_t end, F32 y) {
  float a[kLanes], b[kLanes];
  Store(a, x);
  Store(b, y);
  for (int64_t i = 0; i < kLanes; ++i) a[i] = i >= begin && i < end ? a[i] : b[i];
  return Load(a);
}
#endif

// Always the same tree, so a sum's bits depend on its terms alone.
PACELINE_INLINE float ReduceAdd(F32 v) {
  float a[kLanes];
  Store(a, v);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) a[i] += a[i + width];
  }
  return a[0];
}
PACELINE_INLINE float ReduceMax(F32 v) {
  float a[kLanes];
  Store(a, v);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) a[i] = a[i] > a[i + width] ? a[i] : a[i + width];
  }
  return a[0];
}

// e^x within 2 ulp; 0 below -87.3, e^88 above 88; exp(0) = 1 exactly. Cody and Waite's reduction,
// then a polynomial of degree 6.
PACELINE_INLINE F32 Exp(F32 x) {
  const F32 clamped = MinOf(MaxOf(x, Set(-87.3f)), Set(88.0f));
  const F32 n = Round(Mul(clamped, Set(1.44269504f)));
  F32 r = MulAdd(n, Set(-0.693145752f), clamped);
  r = MulAdd(n, Set(-1.42860677e-6f), r);
  F32 p = Set(1.0f / 720);
  p = MulAdd(p, r, Set(1.0f / 120));
  p = MulAdd(p, r, Set(1.0f / 24));
  p = MulAdd(p, r, Set(1.0f / 6));
  p = MulAdd(p, r, Set(0.5f));
  p = MulAdd(p, r, Set(1.0f));
  p = MulAdd(p, r, Set(1.0f));
  return SelectLess(x, Set(-87.3f), Set(0.0f), ScaleByPower(p, n));
}

// x / (1 + e^-x)
PACELINE_INLINE F32 Silu(F32 x) { return Div(x, Add(Set(1.0f), Exp(Sub(Set(0.0f), x)))); }

}  // namespace paceline::kernels::PACELINE_ISA_NAMESPACE
