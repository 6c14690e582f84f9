// The kernels' inner parts as one table per instruction set. Launchers (linear.cc, attention.cc,
// ...) cut the work into tasks and call these; they know nothing of threads.
#pragma once

#include <cstdint>

#include "kernels/cpu/attention.h"
#include "kernels/cpu/bf16.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/linear.h"

namespace paceline::kernels {

// Panels [panel_begin, panel_end) of rows [row_begin, row_end). SwiGlu: panels come in pairs.
struct LinearTask {
  const Bf16* weights = nullptr;  // all panels
  const Bf16* x = nullptr;
  const float* bias = nullptr;
  float* y_f32 = nullptr;
  Bf16* y_bf16 = nullptr;
  int64_t k = 0;
  int64_t n = 0;  // columns of y
  int64_t x_stride = 0;
  int64_t y_stride = 0;
  int64_t row_begin = 0, row_end = 0;
  int64_t panel_begin = 0, panel_end = 0;
  LinearOutput output = LinearOutput::kFloat;
};

inline constexpr int32_t kMaxHeadDim = 256;
inline constexpr int32_t kMaxQueries = 24;  // (row, head) pairs of one attention task

// Rows [row_begin, row_end) of a span against kv head `kv_head`, query heads [head_begin,
// head_end); chunks [chunk_begin, chunk_end) of keys. (rows x heads) <= kMaxQueries.
struct AttentionTask {
  const AttentionParams* params = nullptr;
  const AttentionSpan* span = nullptr;
  int32_t row_begin = 0, row_end = 0;
  int32_t kv_head = 0;
  int32_t head_begin = 0, head_end = 0;
  int32_t chunk_begin = 0, chunk_end = 0;
  // Null: the task has all chunks and writes `out`. Else it has one chunk and leaves, per query,
  // [head_dim] accumulators, maximum and sum here, rows-major over (row, head).
  float* partial = nullptr;
};

struct IsaKernels {
  void (*linear)(const LinearTask& task);
  void (*attention)(const AttentionTask& task);
  // partials [num_chunks][stride]: head_dim accumulators, maximum, sum -> out [head_dim].
  void (*combine)(const float* partials, int64_t stride, int32_t num_chunks, int32_t head_dim,
                  Bf16* out);
  void (*rms_norm)(const float* x, const float* weight, int64_t dim, float eps, Bf16* y_bf16,
                   float* y_f32);
  void (*rope)(float* x, const float* cos_sin, int32_t num_heads, int32_t head_dim,
               int32_t rotary_dim);
  void (*swiglu)(const float* gate, const float* up, Bf16* y, int64_t count);
  void (*add)(const float* x, float* y, int64_t count);
  void (*to_bf16)(const float* x, Bf16* y, int64_t count);
  void (*from_bf16)(const Bf16* x, float* y, int64_t count, float scale);
  // NaN -> -infinity, +infinity -> FLT_MAX; returns the greatest.
  float (*clean_logits)(const float* x, float* y, int64_t count);
  // y = (x - greatest) / temperature
  void (*scale_logits)(const float* x, float* y, int64_t count, float greatest, float temperature);
  // y = e^x; returns nothing summed: the order of sums is the caller's.
  void (*exponential)(const float* x, float* y, int64_t count);
  // sum of e^(x - greatest), in double per block of 16
  double (*sum_exp)(const float* x, int64_t count, float greatest);
  // y[v] = x[v] + G(seed, sample, position, v)
  void (*add_noise)(const float* x, float* y, int64_t count, uint64_t seed, uint32_t sample,
                    uint32_t position);
  // First index of the greatest; -1 if all are -infinity or NaN.
  int64_t (*argmax)(const float* x, int64_t count);
  // First index at or behind `begin` with x > limit; count if none.
  int64_t (*find_greater)(const float* x, int64_t begin, int64_t count, float limit);
};

extern const IsaKernels kPortableKernels;
extern const IsaKernels kAvx2Kernels;
extern const IsaKernels kAvx512Kernels;

const IsaKernels& KernelsFor(Isa isa);

}  // namespace paceline::kernels
