// The host's part of CUDA attention: cuts the spans of a step into blocks' work, once for all
// layers. Plain integers; knows no device.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/cuda/attention.h"

namespace paceline::kernels {

struct AttentionSpanInput {
  int32_t table_begin = 0;
  int32_t context_len = 0;
  int32_t row_begin = 0;
  int32_t num_rows = 0;
  // Null: causal. Else [num_rows]: the row of this span that precedes row r, < r, or negative.
  const int32_t* parents = nullptr;
};

struct AttentionPlanOptions {
  int32_t num_heads = 0;
  int32_t kv_heads = 0;
  int32_t head_dim = 0;
  int32_t window = 0;
  int32_t max_units = 0;  // partial units that the workspace holds
};

// What the device needs, in its layout. Spans of few rows and several chunks are split as long as
// the workspace lasts; whether they are changes speed, no bits.
struct AttentionPlan {
  std::vector<CudaAttentionSpan> spans;
  std::vector<int32_t> visible;  // [rows]
  std::vector<uint32_t> masks;
  std::vector<CudaAttentionItem> small_items, medium_items, large_items;
  std::vector<CudaAttentionSplit> splits;
  int32_t num_units = 0;  // in use

  void Clear();
};

// Appends to a cleared plan. Rows of the inputs ascend without gaps from 0.
void PlanAttention(const std::vector<AttentionSpanInput>& inputs,
                   const AttentionPlanOptions& options, AttentionPlan* plan);

}  // namespace paceline::kernels
