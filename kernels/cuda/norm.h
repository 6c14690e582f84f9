// RMSNorm: y = x / sqrt(mean(x^2) + eps) * weight. CUDA. One block per row whatever the batch, so a
// row's bits depend on that row alone.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/bf16.h"

namespace paceline::kernels {

struct CudaRmsNormParams {
  const float* x = nullptr;       // [rows, dim]
  const int32_t* from = nullptr;  // [rows] row of x that row r reads, or null: r
  const float* weight = nullptr;  // [dim]
  Bf16* y = nullptr;              // [rows, dim]
  int32_t rows = 0;
  int32_t dim = 0;  // a multiple of 4
  float eps = 1e-5f;
};
cudaError_t CudaRmsNorm(const CudaRmsNormParams& params, cudaStream_t stream);

}  // namespace paceline::kernels
