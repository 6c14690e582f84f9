// y = x W^T for bf16 weights, float accumulation. CUDA, sm_80 and later.
//
// Tensor cores; K is cut into eight slices, the same for every M and tile (linear_order.cuh), so a
// row's bits do not depend on its batch.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/bf16.h"

namespace paceline::kernels {

enum class CudaLinearOutput : uint8_t {
  kFloat,     // y_f32  = x W^T + bias
  kAddFloat,  // y_f32 += x W^T + bias: the residual stream
  kBf16,      // y_bf16 = x W^T + bias
  kSwiGlu,    // y_bf16[m, j] = silu(row 2j) * (row 2j + 1) of x W^T, [M, N / 2]; no bias
};

struct CudaLinearParams {
  // [N, K]; 16-byte aligned. Read before kernels launched earlier are done: none of them writes it.
  const Bf16* w = nullptr;
  const Bf16* x = nullptr;      // [M, K]; 16-byte aligned
  const float* bias = nullptr;  // [N] or null
  float* y_f32 = nullptr;       // [M, N]; 8-byte aligned
  Bf16* y_bf16 = nullptr;       // [M, N], kSwiGlu: [M, N / 2]; 4-byte aligned
  int32_t m = 0;
  int32_t n = 0;  // kSwiGlu: even
  int32_t k = 0;  // a multiple of 8
  CudaLinearOutput output = CudaLinearOutput::kFloat;
};
cudaError_t CudaLinear(const CudaLinearParams& params, cudaStream_t stream);

// For tests and benchmarks; any tile serves any m. A tile's first number is the rows of x that it
// takes together, its second the rows of W. kStream tiles hold W in registers and spread the slices
// over a block's warps, kBlock128 holds both in shared memory and walks the slices. kWgmma tiles do
// so with Hopper's own instructions, Pair with two blocks of a cluster that share W, Parts4 with
// four that share out the slices; cudaErrorNotSupported on other GPUs and where n is odd.
enum class CudaTile : uint8_t {
  kStream8,
  kStream16,
  kStream32,
  kStream64,
  kBlock128,
  kWgmma64x128,
  kWgmma64x128Parts4,
  kWgmma128x128,
  kWgmma128x128Parts4,
  kWgmma128x128Pair,
  kWgmma128x192Pair
};
inline constexpr int kCudaTiles = 11;
cudaError_t CudaTileLinear(const CudaLinearParams& params, CudaTile tile, cudaStream_t stream);

}  // namespace paceline::kernels
