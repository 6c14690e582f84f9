// The epilogue that both paths of Linear share.
#pragma once

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/linear.h"

namespace paceline::kernels {

// Columns n and n + 1 of row m; n is even.
__device__ __forceinline__ void StorePair(const CudaLinearParams& p, int m, int n, float first,
                                          float second) {
  if (p.output == CudaLinearOutput::kSwiGlu) {
    if (n >= p.n) return;
    p.y_bf16[int64_t{m} * (p.n / 2) + n / 2] = ToBf16(__fmul_rn(Silu(first), second));
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
