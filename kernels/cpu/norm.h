// RMSNorm: y = x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich, arXiv 1910.07467).
#pragma once

#include <cstdint>

#include "kernels/cpu/bf16.h"
#include "kernels/cpu/result.h"
#include "kernels/cpu/thread_pool.h"

namespace paceline::kernels {

struct RmsNormParams {
  const float* x = nullptr;       // [rows, dim], rows x_stride apart
  const float* weight = nullptr;  // [dim]
  Bf16* y_bf16 = nullptr;         // [rows, dim], rows y_stride apart; this or y_f32
  float* y_f32 = nullptr;         // may be x
  int64_t rows = 0;
  int64_t dim = 0;
  int64_t x_stride = 0;  // elements; 0 = dim
  int64_t y_stride = 0;
  float eps = 1e-5f;
};
CpuResult RmsNorm(const RmsNormParams& params, ThreadPool& pool);

}  // namespace paceline::kernels
