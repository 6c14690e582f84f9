// Attention of a ragged batch over paged KV. CUDA, sm_80 and later: prefill chunks, decode rows,
// draft chains and trees through one kernel.
//
// Keys are cut into chunks of kCudaAttentionChunk at absolute KV indices. A chunk's result per
// query (its maximum, the sum of its weights, its weighted values) never depends on what else the
// block computes; the chunks of a query are folded in ascending order by the same arithmetic
// whether one block walks them all or each has a block of its own and a second kernel folds. So a
// row's bits depend on its query and its keys' places alone. (A tree's rows lie at other KV indices
// than the same tokens in a chain: there results agree within rounding.)
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/bf16.h"
#include "kernels/cuda/kv_cache.h"

namespace paceline::kernels {

inline constexpr int32_t kCudaAttentionChunk = 256;
inline constexpr int32_t kAttentionUnit = 16;  // queries, that is (row, head) pairs, of a partial

struct CudaAttentionSpan {
  int32_t table_begin = 0;  // KV index i lies in block block_tables[table_begin + i / block_size]
  int32_t context_len = 0;  // row r is at KV index context_len + r
  int32_t row_begin = 0;    // rows [row_begin, row_begin + num_rows) of q and out
  int32_t num_rows = 0;
  int32_t mask_begin = -1;  // -1: causal. Else bit j % 32 of masks[mask_begin + r * mask_words +
                            // j / 32] says whether row r sees row j of the span
  int32_t mask_words = 0;
};

// A block's work against one kv head: queries [query_begin, ...) of a span, where query i is row
// i / group, head i % group of the kv head's group, over chunks [chunk_begin, chunk_end).
struct CudaAttentionItem {
  int32_t span = 0;
  int32_t query_begin = 0;
  int32_t chunk_begin = 0;
  int32_t chunk_end = 0;
  int32_t partial =
      -1;  // -1: folds and writes `out`. Else one chunk, to partial units from here on
};

// A unit of queries whose chunks lie in partials: chunk c in unit partial + (c - chunk_begin) *
// stride.
struct CudaAttentionSplit {
  int32_t span = 0;
  int32_t query_begin = 0;
  int32_t num_chunks = 0;
  int32_t partial = 0;
  int32_t stride = 0;
};

// Queries of an item: of a small one kAttentionUnit, of a medium one this many at most, of a large
// one 128, above a head_dim of 128 64; a large one has no partial. Sizes change speed, no bits. An
// item or split of a span without rows and chunks does nothing: lists may be padded with them.
inline constexpr int32_t kMediumItemQueries = 64;
constexpr int32_t LargeItemQueries(int32_t head_dim) { return head_dim <= 128 ? 128 : 64; }

// All pointers on the device.
struct CudaAttentionParams {
  CudaKvShape shape;
  const Bf16* k_cache = nullptr;
  const Bf16* v_cache = nullptr;
  const Bf16* q = nullptr;  // [rows, num_heads, head_dim], rope applied
  Bf16* out = nullptr;      // [rows, num_heads, head_dim]
  const int32_t* block_tables = nullptr;
  const CudaAttentionSpan* spans = nullptr;
  const int32_t* visible = nullptr;  // [rows] keys that a row sees, the window aside
  const uint32_t* masks = nullptr;
  const CudaAttentionItem* small_items = nullptr;
  const CudaAttentionItem* medium_items = nullptr;
  const CudaAttentionItem* large_items = nullptr;
  const CudaAttentionSplit* splits = nullptr;
  int32_t num_small_items = 0;
  int32_t num_medium_items = 0;
  int32_t num_large_items = 0;
  int32_t num_splits = 0;
  float* partials = nullptr;       // [units, kv_heads, kAttentionUnit, head_dim]
  float* partial_stats = nullptr;  // [units, kv_heads, kAttentionUnit, 2] maximum, sum
  int32_t num_heads = 0;           // a multiple of shape.kv_heads
  float scale = 0;                 // of q k^T, > 0
  int32_t window = 0;              // > 0: a row sees the last `window` keys of its sequence
  bool portable = false;           // large items too by the code for any GPU; changes no bits
};
cudaError_t CudaAttention(const CudaAttentionParams& params, cudaStream_t stream);

}  // namespace paceline::kernels
