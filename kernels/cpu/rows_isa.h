// Kernels over one row at a time: a row's bits depend on that row alone. Included by isa_*.cc only.
#pragma once

#include "kernels/cpu/isa_kernels.h"
#include "kernels/cpu/vec.h"

namespace paceline::kernels::PACELINE_ISA_NAMESPACE {

void RmsNorm(const float* x, const float* weight, int64_t dim, float eps, Bf16* y_bf16,
             float* y_f32) {
  F32 sums[4] = {Set(0.0f), Set(0.0f), Set(0.0f), Set(0.0f)};
  for (int64_t i = 0; i < dim; i += kLanes) {
    const F32 v = LoadN(x + i, dim - i);
    F32& sum = sums[i / kLanes % 4];
    sum = MulAdd(v, v, sum);
  }
  const float total = ReduceAdd(Add(Add(sums[0], sums[1]), Add(sums[2], sums[3])));
  const F32 scale = Set(1.0f / __builtin_sqrtf(total / static_cast<float>(dim) + eps));
  for (int64_t i = 0; i < dim; i += kLanes) {
    const int64_t left = dim - i;
    const F32 y = Mul(Mul(LoadN(x + i, left), scale), LoadN(weight + i, left));
    if (y_bf16 != nullptr) StoreBf16N(y_bf16 + i, y, left);
    if (y_f32 != nullptr) StoreN(y_f32 + i, y, left);
  }
}

void Rope(float* x, const float* cos_sin, int32_t num_heads, int32_t head_dim, int32_t rotary_dim) {
  const int64_t half = rotary_dim / 2;
  for (int64_t h = 0; h < num_heads; ++h) {
    float* a = x + h * head_dim;
    float* b = a + half;
    for (int64_t i = 0; i < half; i += kLanes) {
      const int64_t left = half - i;
      const F32 c = LoadN(cos_sin + i, left);
      const F32 s = LoadN(cos_sin + half + i, left);
      const F32 va = LoadN(a + i, left);
      const F32 vb = LoadN(b + i, left);
      StoreN(a + i, Sub(Mul(va, c), Mul(vb, s)), left);
      StoreN(b + i, Add(Mul(vb, c), Mul(va, s)), left);
    }
  }
}

void SwiGlu(const float* gate, const float* up, Bf16* y, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t left = count - i;
    StoreBf16N(y + i, Mul(Silu(LoadN(gate + i, left)), LoadN(up + i, left)), left);
  }
}

void AddRows(const float* x, float* y, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t left = count - i;
    StoreN(y + i, Add(LoadN(y + i, left), LoadN(x + i, left)), left);
  }
}

void ToBf16Rows(const float* x, Bf16* y, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes) StoreBf16N(y + i, LoadN(x + i, count - i), count - i);
}

void FromBf16Rows(const Bf16* x, float* y, int64_t count, float scale) {
  for (int64_t i = 0; i < count; i += kLanes) {
    StoreN(y + i, Mul(LoadBf16N(x + i, count - i), Set(scale)), count - i);
  }
}

}  // namespace paceline::kernels::PACELINE_ISA_NAMESPACE
