// What the attention kernels share: which queries and keys a warp works on, its softmax over tiles
// of keys, the folding of chunks, and where results go. One arithmetic, so that a row's bits are
// the same whichever kernel computes it.
//
// A warp owns 16 queries (kAttentionUnit) and walks its keys in tiles of kTileKeys, ascending. A
// thread's fragments (mma.cuh) belong to query lane / 4 of them and to the eighth after it: index i
// is 0 or 1.
#pragma once

#include "kernels/cuda/attention.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/mma.cuh"

namespace paceline::kernels {

inline constexpr int kTileKeys = 64;
inline constexpr int kChunkTiles = kCudaAttentionChunk / kTileKeys;
inline constexpr int kPageKeys = 16;  // keys that lie in one block whatever its size
inline constexpr float kLog2E = 1.4426950408889634f;
inline constexpr float kNone = -INFINITY;

// Adding a chunk (maximum c) to what is folded so far (maximum m): old sums times *old_scale plus
// the chunk's times *new_scale.
__device__ __forceinline__ float FoldScales(float m, float c, float* old_scale, float* new_scale) {
  const float both = fmaxf(m, c);
  *old_scale = m == kNone ? 0.0f : Exp2(__fsub_rn(m, both));
  *new_scale = c == kNone ? 0.0f : Exp2(__fsub_rn(c, both));
  return both;
}
__device__ __forceinline__ float Fold(float total, float old_scale, float chunk, float new_scale) {
  return __fmaf_rn(chunk, new_scale, __fmul_rn(total, old_scale));
}
__device__ __forceinline__ float Inverse(float sum) {
  return sum == 0.0f ? 0.0f : __fdiv_rn(1.0f, sum);
}

// A row of 16-byte vectors lies with vector v at v ^ (row % 8): eight rows of one column of vectors
// meet no bank twice. Callers give row % 8, which they know of a lane.
template <int kDim>
__device__ __forceinline__ int Swizzled(int row, int row_in_8, int vector) {
  return row * kDim + (vector ^ row_in_8) * 8;
}

// What a warp works on.
struct Work {
  CudaAttentionSpan span;
  CudaAttentionItem item;
  int kv_head;
  int group;
  int num_queries;  // of the span
  int kv_end;       // KV indices from here on are not read
  int warp_query;   // the warp's first query
  int row[2];       // of the span
  int first[2];     // the first KV index inside the window
  int warp_end;     // no row of the warp sees KV indices from here on
  int whole_begin;  // KV indices [whole_begin, whole_end) are seen by all rows of the warp
  int whole_end;
};

// KV indices from here on are seen by no query of the span up to `last_query`.
__device__ __forceinline__ int KvEnd(const CudaAttentionSpan& span, int group, int last_query) {
  return span.context_len + (span.mask_begin >= 0 ? span.num_rows : last_query / group + 1);
}

// `warp`: of the block's that share the item, which has `queries` at most.
__device__ __forceinline__ Work GetWork(const CudaAttentionParams& p, const CudaAttentionItem& item,
                                        const CudaAttentionSpan& span, int kv_head, int queries,
                                        int warp) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  Work w;
  w.item = item;
  w.span = span;
  w.kv_head = kv_head;
  w.group = p.num_heads / p.shape.kv_heads;
  w.num_queries = span.num_rows * w.group;
  const bool tree = span.mask_begin >= 0;
  const int last_query = max(min(item.query_begin + queries, w.num_queries) - 1, 0);
  w.kv_end = KvEnd(span, w.group, last_query);
  w.warp_query = item.query_begin + warp * kAttentionUnit;
  w.whole_begin = 0;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    w.row[i] = min(w.warp_query + lane / 4 + 8 * i, last_query) / w.group;
    w.first[i] = 0;
    if (p.window > 0) {
      w.first[i] = max(0, p.visible[span.row_begin + w.row[i]] - p.window);
      w.whole_begin = max(w.whole_begin, w.first[i]);
    }
  }
  for (int mask = kWarp / 2; p.window > 0 && mask > 0; mask /= 2) {
    w.whole_begin = max(w.whole_begin, __shfl_xor_sync(kAllLanes, w.whole_begin, mask));
  }
  w.warp_end = KvEnd(span, w.group, min(w.warp_query + kAttentionUnit - 1, last_query));
  w.whole_end = span.context_len + (tree ? 0 : min(w.warp_query, last_query) / w.group + 1);
  return w;
}

// Copies 16-byte vector i, counted row by row, of the queries from query_begin on to its place.
template <int kDim>
__device__ __forceinline__ void LoadQueryVector(const CudaAttentionParams& p,
                                                const CudaAttentionSpan& span, int query_begin,
                                                int kv_head, int i, Bf16* to) {
  constexpr int kVectors = kDim / 8;
  const int group = p.num_heads / p.shape.kv_heads;
  const int local = i / kVectors;
  const int vector = i % kVectors;
  const int query = query_begin + local;
  const bool valid = query < span.num_rows * group && vector * 8 < p.shape.head_dim;
  const Bf16* from = p.q;
  if (valid) {
    const int64_t row = span.row_begin + query / group;
    const int head = kv_head * group + query % group;
    from += (row * p.num_heads + head) * p.shape.head_dim + vector * 8;
  }
  CopyAsync16(to + Swizzled<kDim>(local, local % 8, vector), from, valid);
}

// Lane i (or i + 16) gets the block that holds keys [16 i, 16 i + 16) of the chunk.
__device__ __forceinline__ int GetPages(const CudaAttentionParams& p, int table_begin, int kv_end,
                                        int chunk) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int size = p.shape.block_size;
  const int shift = size == 16 ? 4 : size == 32 ? 5 : 6;
  const int key = chunk * kCudaAttentionChunk + lane % 16 * kPageKeys;
  return key < kv_end ? p.block_tables[table_begin + (key >> shift)] : 0;
}

// Fragment of 16 queries x columns [k, k + 16).
template <int kDim>
__device__ __forceinline__ void LoadQueryStep(const Bf16* queries, int k, unsigned (&a)[4]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  LoadMatrices<false>(a, queries + Swizzled<kDim>(lane % 16, lane % 8, k / 8 + lane / 16));
}

// Whether row `row` of a tree sees KV index `key`; `first`: the window's first.
__device__ __forceinline__ bool InTree(const CudaAttentionParams& p, const CudaAttentionSpan& span,
                                       int row, int first, int key) {
  const int other = key - span.context_len;
  if (other < 0) return key >= first;
  if (other >= span.num_rows) return false;
  const uint32_t word = p.masks[span.mask_begin + row * span.mask_words + other / 32];
  return (word >> (other % 32) & 1u) != 0;
}

__device__ __forceinline__ float QuadMax(float x) {
  x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, 1));
  return fmaxf(x, __shfl_xor_sync(kAllLanes, x, 2));
}
__device__ __forceinline__ float QuadSum(float x) {
  x = __fadd_rn(x, __shfl_xor_sync(kAllLanes, x, 1));
  return __fadd_rn(x, __shfl_xor_sync(kAllLanes, x, 2));
}

template <int kColumns>
__device__ __forceinline__ void ClearValues(float (&values)[kColumns][4]) {
#pragma unroll
  for (int j = 0; j < kColumns; ++j) {
#pragma unroll
    for (int c = 0; c < 4; ++c) values[j][c] = 0.0f;
  }
}

// Of a row's keys so far: the maximum of their scores and the sum of their weights.
struct RowStats {
  float maximum[2] = {kNone, kNone};
  float sum[2] = {0.0f, 0.0f};
};

// Whether some row of the warp does not see all keys of the tile.
__device__ __forceinline__ bool SeenInPart(int tile, int whole_begin, int whole_end) {
  return tile * kTileKeys < whole_begin || (tile + 1) * kTileKeys > whole_end;
}
__device__ __forceinline__ void HideUnseen(const CudaAttentionParams& p, const Work& w, int tile,
                                           float (&s)[kTileKeys / 8][4]) {
  const int key = tile * kTileKeys + static_cast<int>(threadIdx.x) % 4 * 2;
  // Without a tree comparisons are enough, and branches would cost more than the products.
  if (w.span.mask_begin < 0) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int first = w.first[i] - key, last = w.span.context_len + w.row[i] - key;
#pragma unroll
      for (int j = 0; j < kTileKeys / 8; ++j) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const int at = j * 8 + c;
          s[j][2 * i + c] = at >= first && at <= last ? s[j][2 * i + c] : kNone;
        }
      }
    }
    return;
  }
#pragma unroll
  for (int j = 0; j < kTileKeys / 8; ++j) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      if (!InTree(p, w.span, w.row[c / 2], w.first[c / 2], key + j * 8 + c % 2)) s[j][c] = kNone;
    }
  }
}

// Scores of a tile into weights, in place; `chunk`: of the tiles before it in its chunk, scores
// unscaled, the thread's own part of the sums. What is summed so far has to be multiplied by
// `rescale`.
__device__ __forceinline__ void Weigh(const CudaAttentionParams& p, float (&s)[kTileKeys / 8][4],
                                      RowStats& chunk, float (&rescale)[2]) {
  // Step by step for both rows: what one waits for is filled by the other.
  const float scale = p.scale * kLog2E;
  float maximum[2], base[2], sum[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) maximum[i] = fmaxf(s[0][2 * i], s[0][2 * i + 1]);
#pragma unroll
  for (int j = 1; j < kTileKeys / 8; ++j) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      maximum[i] = fmaxf(maximum[i], fmaxf(s[j][2 * i], s[j][2 * i + 1]));
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    maximum[i] = QuadMax(fmaxf(chunk.maximum[i], maximum[i]));
    base[i] = maximum[i] == kNone ? 0.0f : __fmul_rn(maximum[i], scale);
    rescale[i] = Exp2(__fsub_rn(__fmul_rn(chunk.maximum[i], scale), base[i]));  // 1 where it stays
    chunk.maximum[i] = maximum[i];
  }
#pragma unroll
  for (int j = 0; j < kTileKeys / 8; ++j) {
#pragma unroll
    for (int c = 0; c < 4; ++c) s[j][c] = Exp2(__fmaf_rn(s[j][c], scale, -base[c / 2]));
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) sum[i] = 0.0f;
#pragma unroll
  for (int j = 0; j < kTileKeys / 8; ++j) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
#pragma unroll
      for (int i = 0; i < 2; ++i) sum[i] = __fadd_rn(sum[i], s[j][2 * i + c]);
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) chunk.sum[i] = __fmaf_rn(chunk.sum[i], rescale[i], sum[i]);
}

template <int kColumns>
__device__ __forceinline__ void Rescale(const float (&rescale)[2], float (&values)[kColumns][4]) {
  // Times one changes no bits, and is most often all there is to do.
  if (!__any_sync(kAllLanes, rescale[0] != 1.0f || rescale[1] != 1.0f)) return;
#pragma unroll
  for (int j = 0; j < kColumns; ++j) {
#pragma unroll
    for (int c = 0; c < 4; ++c) values[j][c] = __fmul_rn(values[j][c], rescale[c / 2]);
  }
}

// Weights of 16 keys, two of a tile's accumulators, as fragment A.
__device__ __forceinline__ void PackWeights(const float (&low)[4], const float (&high)[4],
                                            unsigned (&a)[4]) {
  a[0] = PackBf16(low[0], low[1]);
  a[1] = PackBf16(low[2], low[3]);
  a[2] = PackBf16(high[0], high[1]);
  a[3] = PackBf16(high[2], high[3]);
}

// A chunk's end: its maximum scaled, the sum of all its keys.
__device__ __forceinline__ RowStats CloseChunk(const CudaAttentionParams& p,
                                               const RowStats& chunk) {
  const float scale = p.scale * kLog2E;
  RowStats closed;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    closed.maximum[i] = __fmul_rn(chunk.maximum[i], scale);
    closed.sum[i] = QuadSum(chunk.sum[i]);
  }
  return closed;
}

// The factors by which the chunks' values are then folded.
struct FoldFactors {
  float old_scale[2], new_scale[2];
};
__device__ __forceinline__ FoldFactors FoldStats(const RowStats& chunk, RowStats& total) {
  FoldFactors f;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    total.maximum[i] =
        FoldScales(total.maximum[i], chunk.maximum[i], &f.old_scale[i], &f.new_scale[i]);
    total.sum[i] = Fold(total.sum[i], f.old_scale[i], chunk.sum[i], f.new_scale[i]);
  }
  return f;
}

// The values of the chunks folded so far: the first kHeld accumulators of 8 columns in registers,
// the others in shared memory, a thread's own.
template <int kColumns, int kHeld, int kThreads>
struct FoldedValues {
  float held[kHeld > 0 ? kHeld : 1][4];
  float* shared;  // [kColumns - kHeld][4][kThreads]

  __device__ __forceinline__ float& At(int j, int c) {
    return j < kHeld ? held[j][c]
                     : shared[((j - kHeld) * 4 + c) * kThreads + static_cast<int>(threadIdx.x)];
  }
  __device__ __forceinline__ void Clear() {
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
#pragma unroll
      for (int c = 0; c < 4; ++c) At(j, c) = 0.0f;
    }
  }
  __device__ __forceinline__ void Add(const FoldFactors& f, const float (&chunk)[kColumns][4]) {
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        At(j, c) = Fold(At(j, c), f.old_scale[c / 2], chunk[j][c], f.new_scale[c / 2]);
      }
    }
  }
};

__device__ __forceinline__ Bf16* OutOf(const CudaAttentionParams& p, const CudaAttentionSpan& span,
                                       int kv_head, int group, int query) {
  const int64_t row = span.row_begin + query / group;
  return p.out + (row * p.num_heads + kv_head * group + query % group) * p.shape.head_dim;
}

template <int kColumns, typename Values>
__device__ __forceinline__ void StoreOut(const CudaAttentionParams& p, const Work& w,
                                         const RowStats& total, Values& values) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int query = w.warp_query + lane / 4 + 8 * i;
    if (query >= w.num_queries) continue;
    Bf16* out = OutOf(p, w.span, w.kv_head, w.group, query);
    const float inverse = Inverse(total.sum[i]);
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      const int column = j * 8 + lane % 4 * 2;
      if (column >= p.shape.head_dim) continue;
      *reinterpret_cast<unsigned*>(out + column) = PackBf16(
          __fmul_rn(values.At(j, 2 * i), inverse), __fmul_rn(values.At(j, 2 * i + 1), inverse));
    }
  }
}

}  // namespace paceline::kernels
