// y = x W^T for bf16 weights, float accumulation.
//
// Batch-invariant bit for bit: y[m, n] is one chain of accumulations over k in ascending order,
// with the same instruction for every M, whatever rows stand beside it and however many threads
// run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "kernels/cpu/bf16.h"
#include "kernels/cpu/result.h"
#include "kernels/cpu/thread_pool.h"

namespace paceline::kernels {

// Weights in the kernels' own order: [ceil(N / 32)][ceil(K / 2)][32][2], zeros where N or K ends.
// The order is the same for every ISA. Movable; owns its memory, 64-byte aligned.
class PackedWeights {
 public:
  PackedWeights() = default;
  // n, k >= 0. The content is unspecified until Pack.
  PackedWeights(int64_t n, int64_t k);

  // Writes rows [row_begin, row_begin + num_rows) from row-major src [num_rows, k]: lets several
  // matrices (q, k, v) share one packed matrix, and the loader stream. Not thread-safe per panel.
  void Pack(const Bf16* src, int64_t row_begin, int64_t num_rows);
  void PackFloat(const float* src, int64_t row_begin, int64_t num_rows);

  // Of row n: dst [k]. Exact.
  void UnpackRow(int64_t row, Bf16* dst) const;

  int64_t n() const { return n_; }
  int64_t k() const { return k_; }
  const Bf16* data() const { return data_.get(); }
  size_t bytes() const;

  static constexpr int64_t kPanel = 32;

 private:
  struct Free {
    void operator()(Bf16* p) const;
  };
  int64_t n_ = 0;
  int64_t k_ = 0;
  std::unique_ptr<Bf16[], Free> data_;
};

// One matrix [n, k] at once.
PackedWeights PackWeights(const Bf16* src, int64_t n, int64_t k);

// gate [n, k] and up [n, k] with panels of 32 rows alternating, for LinearOutput::kSwiGlu. The
// result has 2 * ceil(n / 32) * 32 rows.
PackedWeights PackGateUp(const Bf16* gate, const Bf16* up, int64_t n, int64_t k);

enum class LinearOutput : uint8_t {
  kFloat,     // y_f32  = x W^T + bias
  kAddFloat,  // y_f32 += x W^T + bias: the residual stream
  kBf16,      // y_bf16 = x W^T + bias
  kSwiGlu,    // y_bf16[m, n] = silu(x Wgate^T) * (x Wup^T); weights from PackGateUp; no bias
};

struct LinearParams {
  const PackedWeights* weights = nullptr;  // [N, K]
  const Bf16* x = nullptr;                 // [M, K], rows x_stride elements apart
  const float* bias = nullptr;             // [N] or null
  float* y_f32 = nullptr;                  // [M, N], rows y_stride elements apart
  Bf16* y_bf16 = nullptr;                  // [M, N], for kBf16 and kSwiGlu
  int64_t m = 0;
  int64_t n = 0;         // 0 = weights->n(); kSwiGlu: columns of y, must be given
  int64_t x_stride = 0;  // 0 = K
  int64_t y_stride = 0;  // 0 = N
  LinearOutput output = LinearOutput::kFloat;
};

CpuResult Linear(const LinearParams& params, ThreadPool& pool);

}  // namespace paceline::kernels
