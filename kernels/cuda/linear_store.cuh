// The epilogue that the paths of Linear share.
#pragma once

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/linear.h"

namespace paceline::kernels {

// Columns 2 pair and 2 pair + 1 of row m, in one store; p.n is even.
template <CudaLinearOutput kOutput>
__device__ __forceinline__ void StoreEven(const CudaLinearParams& p, int m, int pair, float first,
                                          float second) {
  if (pair >= p.n / 2) return;
  const int64_t at = int64_t{m} * (p.n / 2) + pair;
  if constexpr (kOutput == CudaLinearOutput::kSwiGlu) {
    p.y_bf16[at] = ToBf16(__fmul_rn(Silu(first), second));
    return;
  }
  if (p.bias != nullptr) {
    first = __fadd_rn(first, p.bias[2 * pair]);
    second = __fadd_rn(second, p.bias[2 * pair + 1]);
  }
  if constexpr (kOutput == CudaLinearOutput::kBf16) {
    reinterpret_cast<unsigned*>(p.y_bf16)[at] = PackPair(first, second);
  } else {
    float2* const to = reinterpret_cast<float2*>(p.y_f32) + at;
    if constexpr (kOutput == CudaLinearOutput::kAddFloat) {
      const float2 before = *to;
      first = __fadd_rn(before.x, first);
      second = __fadd_rn(before.y, second);
    }
    *to = make_float2(first, second);
  }
}

// store.operator()<p.output>()
template <typename F>
__device__ __forceinline__ void ForOutput(CudaLinearOutput output, const F& store) {
  switch (output) {
    case CudaLinearOutput::kFloat:
      return store.template operator()<CudaLinearOutput::kFloat>();
    case CudaLinearOutput::kAddFloat:
      return store.template operator()<CudaLinearOutput::kAddFloat>();
    case CudaLinearOutput::kBf16:
      return store.template operator()<CudaLinearOutput::kBf16>();
    case CudaLinearOutput::kSwiGlu:
      return store.template operator()<CudaLinearOutput::kSwiGlu>();
  }
}

// Columns n and n + 1 of row m; n is even.
__device__ __forceinline__ void StorePair(const CudaLinearParams& p, int m, int n, float first,
                                          float second) {
  if (p.n % 2 == 0) {
    ForOutput(p.output,
              [&]<CudaLinearOutput kOutput>() { StoreEven<kOutput>(p, m, n / 2, first, second); });
    return;
  }
  const float sums[2] = {first, second};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (n + i >= p.n) return;
    float sum = sums[i];
    if (p.bias != nullptr) sum = __fadd_rn(sum, p.bias[n + i]);
    const int64_t at = int64_t{m} * p.n + n + i;
    if (p.output == CudaLinearOutput::kBf16) {
      p.y_bf16[at] = ToBf16(sum);
    } else {
      p.y_f32[at] = p.output == CudaLinearOutput::kAddFloat ? __fadd_rn(p.y_f32[at], sum) : sum;
    }
  }
}

}  // namespace paceline::kernels
