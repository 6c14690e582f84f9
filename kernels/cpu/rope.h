// Rotary position embedding (Su et al., arXiv 2104.09864) in the half-rotation layout of HF models:
// (x[i], x[i + dim/2]) turn together.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/cpu/result.h"
#include "kernels/cpu/thread_pool.h"

namespace paceline::kernels {

enum class RopeScaling : uint8_t { kNone, kLinear, kLlama3 };

struct RopeConfig {
  int32_t rotary_dim = 0;  // even; the first rotary_dim of a head turn
  double theta = 10000.0;
  RopeScaling scaling = RopeScaling::kNone;
  double factor = 1.0;                   // kLinear, kLlama3
  double low_freq_factor = 1.0;          // kLlama3
  double high_freq_factor = 4.0;         // kLlama3
  int32_t original_max_position = 8192;  // kLlama3
};

// cos and sin for positions [0, max_position). Immutable.
class RopeTable {
 public:
  RopeTable() = default;
  RopeTable(const RopeConfig& config, int32_t max_position);

  int32_t rotary_dim() const { return rotary_dim_; }
  int32_t max_position() const { return max_position_; }
  // [rotary_dim / 2] cosines, then as many sines.
  const float* row(int32_t position) const {
    return data_.data() + int64_t{position} * rotary_dim_;
  }

 private:
  int32_t rotary_dim_ = 0;
  int32_t max_position_ = 0;
  std::vector<float> data_;
};

struct RopeParams {
  const RopeTable* table = nullptr;
  float* x = nullptr;                  // [rows, num_heads, head_dim], in place, rows x_stride apart
  const int32_t* positions = nullptr;  // [rows], in [0, max_position)
  int64_t rows = 0;
  int32_t num_heads = 0;
  int32_t head_dim = 0;
  int64_t x_stride = 0;  // elements; 0 = num_heads * head_dim
};
CpuResult Rope(const RopeParams& params, ThreadPool& pool);

}  // namespace paceline::kernels
