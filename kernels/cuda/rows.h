// Gathers of rows: embeddings, and rows of the residual stream; rows of random weights. CUDA.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/bf16.h"
#include "kernels/random_weights.h"

namespace paceline::kernels {

// y[r] = table[ids[r]], widened.
struct CudaEmbedParams {
  const Bf16* table = nullptr;   // [vocab, dim]; 16-byte aligned
  const int32_t* ids = nullptr;  // [rows], in [0, vocab)
  float* y = nullptr;            // [rows, dim]
  int32_t rows = 0;
  int32_t dim = 0;  // a multiple of 8
};
cudaError_t CudaEmbed(const CudaEmbedParams& params, cudaStream_t stream);

// y[to[r]] = x[from[r]]; a null list counts up from 0. No row is both written and read.
struct CudaMoveRowsParams {
  const float* x = nullptr;       // [any, dim]
  float* y = nullptr;             // [any, dim]
  const int32_t* from = nullptr;  // [rows] or null
  const int32_t* to = nullptr;    // [rows] or null
  int32_t rows = 0;
  int32_t dim = 0;  // a multiple of 4
};
cudaError_t CudaMoveRows(const CudaMoveRowsParams& params, cudaStream_t stream);

// All rows of a random matrix.
struct CudaRandomRowsParams {
  RandomMatrix matrix;
  Bf16* y = nullptr;  // row r begins at y + r * stride; 16-byte aligned
  int64_t stride = 0;
  int32_t rows = 0;
  int32_t dim = 0;  // a multiple of 8
};
cudaError_t CudaRandomRows(const CudaRandomRowsParams& params, cudaStream_t stream);

}  // namespace paceline::kernels
