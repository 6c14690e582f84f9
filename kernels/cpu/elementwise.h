// Gather of embeddings, SwiGLU, addition, conversion.
#pragma once

#include <cstdint>

#include "kernels/cpu/bf16.h"
#include "kernels/cpu/linear.h"
#include "kernels/cpu/result.h"
#include "kernels/cpu/thread_pool.h"

namespace paceline::kernels {

// y[r] = table[ids[r]] * scale. Give either table or packed (a tied head's weights).
struct EmbedParams {
  const Bf16* table = nullptr;            // [vocab, dim] by rows
  const PackedWeights* packed = nullptr;  // n = vocab, k = dim
  const int32_t* ids = nullptr;           // [rows], in [0, vocab)
  float* y = nullptr;                     // [rows, dim]
  int64_t rows = 0;
  int64_t dim = 0;
  float scale = 1.0f;
};
CpuResult Embed(const EmbedParams& params, ThreadPool& pool);

// y = silu(gate) * up.
struct SwiGluParams {
  const float* gate = nullptr;  // [rows, dim], rows x_stride apart
  const float* up = nullptr;    // [rows, dim], rows x_stride apart
  Bf16* y = nullptr;            // [rows, dim]
  int64_t rows = 0;
  int64_t dim = 0;
  int64_t x_stride = 0;  // elements; 0 = dim
};
CpuResult SwiGlu(const SwiGluParams& params, ThreadPool& pool);

// y += x, [count].
CpuResult AddInPlace(const float* x, float* y, int64_t count, ThreadPool& pool);

// [count], round to nearest even.
CpuResult ConvertToBf16(const float* x, Bf16* y, int64_t count, ThreadPool& pool);

}  // namespace paceline::kernels
