// Attention of a ragged batch over paged KV: the one entry point for prefill chunks, decode rows,
// draft chains and draft trees.
//
// Order of work: FlashAttention's (tiles of keys, online softmax, float accumulation), long
// contexts in fixed chunks as in Flash-Decoding. Tiles and chunks are cut by a key's *ordinal in
// the row's visible sequence*: [0, context_len) are the context, and the span's rows that the row
// sees follow in path order, wherever they lie. A row's bits therefore depend on its query and its
// visible keys alone: they are equal whether the same keys came by prefill, decode, chain or tree,
// before or after an accepted path was moved to consecutive slots, for any number of threads and
// any neighbours.
#pragma once

#include <cstdint>

#include "kernels/cpu/bf16.h"
#include "kernels/cpu/kv_cache.h"
#include "kernels/cpu/result.h"
#include "kernels/cpu/thread_pool.h"

namespace paceline::kernels {

inline constexpr int32_t kAttentionTile = 64;    // keys per step of the online softmax
inline constexpr int32_t kAttentionChunk = 512;  // keys per partial result

struct AttentionSpan {
  // KV index i lies in block block_table[i / block_size]; the span's row r at index context_len +
  // r.
  const int32_t* block_table = nullptr;
  int32_t context_len = 0;
  int32_t row_begin = 0;  // rows [row_begin, row_begin + num_rows) of q and out
  int32_t num_rows = 0;
  // Null: causal. Else a tree, [num_rows]: the row of this span that precedes row r, < r, or
  // negative for none. A row sees the context, its ancestors and itself.
  const int32_t* parents = nullptr;
};

struct AttentionParams {
  KvShape kv;
  const Bf16* k_cache = nullptr;
  const Bf16* v_cache = nullptr;
  const float* q = nullptr;  // [rows, num_heads, head_dim], rope applied; rounded to bf16 here
  Bf16* out = nullptr;       // [rows, num_heads, head_dim]
  const AttentionSpan* spans = nullptr;  // [num_spans]; rows of no span are left alone
  int32_t num_spans = 0;
  int32_t num_heads = 0;   // a multiple of kv.kv_heads
  int64_t q_stride = 0;    // elements between rows; 0 = num_heads * head_dim
  int64_t out_stride = 0;  // as above
  float scale = 0;         // of q k^T, usually 1 / sqrt(head_dim)
  int32_t window = 0;  // > 0: a row sees the last `window` keys of its sequence, itself included
};

CpuResult Attention(const AttentionParams& params, ThreadPool& pool);

}  // namespace paceline::kernels
