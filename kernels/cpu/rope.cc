#include "kernels/cpu/rope.h"

#include <cmath>

#include "kernels/cpu/isa_kernels.h"
#include "kernels/cpu/row_blocks.h"

namespace paceline::kernels {
namespace {

constexpr double kPi = 3.14159265358979323846;

// Llama 3.1's scaling: low frequencies are divided by the factor, high ones kept, those between
// blended by how often they turn within the original context.
double Llama3Frequency(const RopeConfig& config, double frequency) {
  const double wavelength = 2 * kPi / frequency;
  const double original = config.original_max_position;
  if (wavelength < original / config.high_freq_factor) return frequency;
  if (wavelength > original / config.low_freq_factor) return frequency / config.factor;
  const double smooth = (original / wavelength - config.low_freq_factor) /
                        (config.high_freq_factor - config.low_freq_factor);
  return (1 - smooth) * frequency / config.factor + smooth * frequency;
}

}  // namespace

RopeTable::RopeTable(const RopeConfig& config, int32_t max_position)
    : rotary_dim_(config.rotary_dim), max_position_(max_position) {
  data_.resize(static_cast<size_t>(int64_t{max_position} * rotary_dim_));
  const int32_t half = rotary_dim_ / 2;
  for (int32_t i = 0; i < half; ++i) {
    double frequency = std::pow(config.theta, -2.0 * i / rotary_dim_);
    if (config.scaling == RopeScaling::kLinear) frequency /= config.factor;
    if (config.scaling == RopeScaling::kLlama3) frequency = Llama3Frequency(config, frequency);
    for (int32_t position = 0; position < max_position; ++position) {
      float* row = data_.data() + int64_t{position} * rotary_dim_;
      row[i] = static_cast<float>(std::cos(position * frequency));
      row[half + i] = static_cast<float>(std::sin(position * frequency));
    }
  }
}

CpuResult Rope(const RopeParams& p, ThreadPool& pool) {
  if (p.table == nullptr) return CpuResult::kBadShape;
  const int64_t width = int64_t{p.num_heads} * p.head_dim;
  const int64_t stride = p.x_stride != 0 ? p.x_stride : width;
  if (p.rows < 0 || p.num_heads < 0 || stride < width || p.table->rotary_dim() > p.head_dim) {
    return CpuResult::kBadShape;
  }
  if (p.rows == 0) return CpuResult::kOk;
  if (p.x == nullptr || p.positions == nullptr) return CpuResult::kBadShape;
  for (int64_t row = 0; row < p.rows; ++row) {
    if (p.positions[row] < 0 || p.positions[row] >= p.table->max_position()) {
      return CpuResult::kBadShape;
    }
  }
  const IsaKernels& kernels = KernelsFor(pool.isa());
  ForRows(p.rows, width, pool, [&](int64_t row) {
    kernels.rope(p.x + row * stride, p.table->row(p.positions[row]), p.num_heads, p.head_dim,
                 p.table->rotary_dim());
  });
  return CpuResult::kOk;
}

}  // namespace paceline::kernels
