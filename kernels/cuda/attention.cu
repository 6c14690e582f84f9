// Per chunk of 256 keys a block computes all scores into shared memory, turns them into weights in
// place (bf16), and multiplies those with the values: no running rescale inside a chunk. K and V
// tiles of 64 keys stream through one ring by cp.async, across chunk borders. The four warps of a
// row of warps share the keys in the first product and the columns of the result in the second.
//
// Keys behind the span's end are never read (zeros stand in: 0 * NaN would be NaN in the second
// product); keys that a row does not see get weight 0 by selection.
#include "kernels/cuda/attention.h"

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/mma.cuh"

namespace paceline::kernels {
namespace {

constexpr int kChunk = kCudaAttentionChunk;
constexpr int kTileKeys = 64;
constexpr int kChunkTiles = kChunk / kTileKeys;
constexpr int kScoreStride = kChunk + 4;  // floats: rows shift by 16 bytes
constexpr float kLog2E = 1.4426950408889634f;
constexpr float kNone = -INFINITY;

// kDim: head_dim rounded up, zeros behind it. kTiles x 16 queries, kWarpsM x 4 warps.
template <int kDim_, int kTiles_, int kWarpsM_, int kStages_>
struct Tile {
  static constexpr int kDim = kDim_;
  static constexpr int kQueries = kTiles_ * 16;
  static constexpr int kWarpsM = kWarpsM_;
  static constexpr int kWarps = kWarpsM * 4;
  static constexpr int kThreads = kWarps * kWarp;
  static constexpr int kTilesM = kTiles_ / kWarpsM;  // of a warp
  static constexpr int kTilesN = kDim / 8 / 4;       // of a warp, in the second product
  static constexpr int kStages = kStages_;
  static constexpr int kStride = kDim + 8;  // bf16: rows shift by 16 bytes
  static constexpr int kRingElements = kTileKeys * kStride;
  static constexpr size_t kQueryBytes = sizeof(Bf16) * kQueries * kStride;
  static constexpr size_t kRingBytes = sizeof(Bf16) * kStages * kRingElements;
  static constexpr size_t kScoreBytes = sizeof(float) * kQueries * kScoreStride;
  static constexpr size_t kSharedBytes =
      kQueryBytes + kRingBytes + kScoreBytes + sizeof(float) * kQueries * 4;
  static_assert(kQueryBytes % 16 == 0 && kRingBytes % 16 == 0 && kScoreBytes % 16 == 0);
  static_assert(kSharedBytes <= size_t{163} << 10);  // sm_80 and later
};

struct KernelParams {
  CudaAttentionParams a;
  const CudaAttentionItem* items;
};

// Adding a chunk (maximum c) to what is folded so far (maximum m): old sums times *old_scale plus
// the chunk's times *new_scale. Shared with the folding kernel, so both round alike.
__device__ __forceinline__ float FoldScales(float m, float c, float* old_scale, float* new_scale) {
  const float both = fmaxf(m, c);
  *old_scale = m == kNone ? 0.0f : exp2f(__fsub_rn(m, both));
  *new_scale = c == kNone ? 0.0f : exp2f(__fsub_rn(c, both));
  return both;
}
__device__ __forceinline__ float Fold(float total, float old_scale, float chunk, float new_scale) {
  return __fmaf_rn(chunk, new_scale, __fmul_rn(total, old_scale));
}
__device__ __forceinline__ float Inverse(float sum) {
  return sum == 0.0f ? 0.0f : __fdiv_rn(1.0f, sum);
}

// What a block works on.
struct Work {
  CudaAttentionSpan span;
  CudaAttentionItem item;
  int kv_head;
  int group;
  int num_queries;  // of the span
  int kv_end;       // KV indices from here on are not read
};

template <typename T>
__device__ __forceinline__ Work GetWork(const KernelParams& p) {
  Work w;
  w.item = p.items[blockIdx.x];
  w.span = p.a.spans[w.item.span];
  w.kv_head = static_cast<int>(blockIdx.y);
  w.group = p.a.num_heads / p.a.shape.kv_heads;
  w.num_queries = w.span.num_rows * w.group;
  const int last_query = min(w.item.query_begin + T::kQueries, w.num_queries) - 1;
  const int rows = w.span.mask_begin >= 0 ? w.span.num_rows : last_query / w.group + 1;
  w.kv_end = w.span.context_len + rows;
  return w;
}

// Tiles of 64 keys in a chunk.
__device__ __forceinline__ int TilesOf(const Work& w, int chunk) {
  return min(kChunkTiles, CeilDiv(w.kv_end - chunk * kChunk, kTileKeys));
}

template <typename T>
__device__ __forceinline__ void LoadQueries(const CudaAttentionParams& p, const Work& w, Bf16* to) {
  constexpr int kVectors = T::kDim / 8;
  const int dim = p.shape.head_dim;
  for (int i = static_cast<int>(threadIdx.x); i < T::kQueries * kVectors; i += T::kThreads) {
    const int local = i / kVectors;
    const int column = i % kVectors * 8;
    const int query = w.item.query_begin + local;
    const bool valid = query < w.num_queries && column < dim;
    const Bf16* from = p.q;
    if (valid) {
      const int64_t row = w.span.row_begin + query / w.group;
      const int head = w.kv_head * w.group + query % w.group;
      from += (row * p.num_heads + head) * dim + column;
    }
    CopyAsync16(to + local * T::kStride + column, from, valid);
  }
}

template <typename T>
__device__ __forceinline__ void LoadKeys(const CudaAttentionParams& p, const Work& w,
                                         const Bf16* cache, int first_key, Bf16* to) {
  constexpr int kVectors = T::kDim / 8;
  const int32_t* table = p.block_tables + w.span.table_begin;
  // Plain shifts: divisions of addresses would cost as much time as the loads themselves.
  const int size = p.shape.block_size;
  const int shift = size == 16 ? 4 : size == 32 ? 5 : 6;
  const int dim = p.shape.head_dim;
  const int64_t block_elements = p.shape.block_elements();
  const Bf16* head = cache + int64_t{w.kv_head} * size * dim;
#pragma unroll
  for (int i = static_cast<int>(threadIdx.x); i < kTileKeys * kVectors; i += T::kThreads) {
    const int local = i / kVectors;
    const int column = i % kVectors * 8;
    const int key = first_key + local;
    const bool valid = key < w.kv_end && column < dim;
    const Bf16* from = cache;
    if (valid) {
      from = head + table[key >> shift] * block_elements + (key & (size - 1)) * dim + column;
    }
    CopyAsync16(to + local * T::kStride + column, from, valid);
  }
}

// Scores of the warp's queries with 16 keys of the tile, to columns [tile * 64, tile * 64 + 64).
template <typename T>
__device__ __forceinline__ void ScoreTile(const Bf16* queries, const Bf16* keys, int tile,
                                          float* scores) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int first_query = warp / 4 * T::kTilesM * 16;
  const int first_key = warp % 4 * 16;
  float sums[T::kTilesM][2][4] = {};
#pragma unroll
  for (int k = 0; k < T::kDim; k += 16) {
    unsigned b[4];
    LoadMatrices<false>(
        b, keys + (first_key + lane / 16 * 8 + lane % 8) * T::kStride + k + lane / 8 % 2 * 8);
    const unsigned left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
#pragma unroll
    for (int i = 0; i < T::kTilesM; ++i) {
      unsigned a[4];
      LoadMatrices<false>(
          a, queries + (first_query + i * 16 + lane % 16) * T::kStride + k + lane / 16 * 8);
      MmaBf16(sums[i][0], a, left);
      MmaBf16(sums[i][1], a, right);
    }
  }
#pragma unroll
  for (int i = 0; i < T::kTilesM; ++i) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      float* to = scores + (first_query + i * 16 + lane / 4) * kScoreStride + tile * kTileKeys +
                  first_key + j * 8 + lane % 4 * 2;
      *reinterpret_cast<float2*>(to) = make_float2(sums[i][j][0], sums[i][j][1]);
      *reinterpret_cast<float2*>(to + 8 * kScoreStride) = make_float2(sums[i][j][2], sums[i][j][3]);
    }
  }
}

// Whether row `row` of the span sees KV index `key`; `first`: the window's first ordinal.
__device__ __forceinline__ bool Sees(const CudaAttentionParams& p, const CudaAttentionSpan& span,
                                     int row, int first, int key) {
  const int other = key - span.context_len;
  if (other < 0) return key >= first;
  if (other >= span.num_rows) return false;
  if (span.mask_begin < 0) return other <= row && key >= first;
  const uint32_t word = p.masks[span.mask_begin + row * span.mask_words + other / 32];
  return (word >> (other % 32) & 1u) != 0;
}

// Scores of a chunk into weights, in place. stats: per query maximum, sum, old and new scale.
template <typename T>
__device__ __forceinline__ void SoftmaxChunk(const CudaAttentionParams& p, const Work& w, int chunk,
                                             int tiles, float* scores, float* stats) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  constexpr int kRows = T::kQueries / T::kWarps;
  for (int local = warp * kRows; local < (warp + 1) * kRows; ++local) {
    float* row_scores = scores + local * kScoreStride;
    const int query = w.item.query_begin + local;
    const bool live = query < w.num_queries;
    const int row = live ? query / w.group : 0;
    const int visible = p.visible[w.span.row_begin + row];
    const int first = p.window > 0 ? max(0, visible - p.window) : 0;
    float s[kChunk / kWarp];
    float maximum = kNone;
#pragma unroll
    for (int i = 0; i < kChunk / kWarp; ++i) {
      const int column = i * kWarp + lane;
      s[i] = kNone;
      if (live && column < tiles * kTileKeys &&
          Sees(p, w.span, row, first, chunk * kChunk + column)) {
        s[i] = __fmul_rn(row_scores[column], p.scale * kLog2E);
      }
      maximum = fmaxf(maximum, s[i]);
    }
    maximum = WarpMax(maximum);
    __syncwarp();  // all scores of the row are read: weights may take their place
    Bf16* weights = reinterpret_cast<Bf16*>(row_scores);
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kChunk / kWarp; ++i) {
      const int column = i * kWarp + lane;
      const float weight = s[i] == kNone ? 0.0f : exp2f(__fsub_rn(s[i], maximum));
      const Bf16 rounded = ToBf16(weight);
      sum += ToFloat(rounded);
      if (column < tiles * kTileKeys) weights[column] = rounded;
    }
    sum = WarpSum(sum);
    if (lane != 0) continue;
    if (w.item.partial >= 0) {
      const int64_t unit = w.item.partial + local / kAttentionUnit;
      float* to =
          p.partial_stats +
          ((unit * p.shape.kv_heads + w.kv_head) * kAttentionUnit + local % kAttentionUnit) * 2;
      to[0] = maximum;
      to[1] = sum;
    } else {
      float* stat = stats + local * 4;
      stat[0] = FoldScales(stat[0], maximum, &stat[2], &stat[3]);
      stat[1] = Fold(stat[1], stat[2], sum, stat[3]);
    }
  }
}

// sums += weights of the tile's 64 keys x their values, the warp's quarter of the columns.
template <typename T>
__device__ __forceinline__ void ValueTile(const float* scores, const Bf16* values, int tile,
                                          float (&sums)[T::kTilesM][T::kTilesN][4]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int first_query = warp / 4 * T::kTilesM * 16;
  const int first_column = warp % 4 * (T::kDim / 4);
#pragma unroll
  for (int k = 0; k < kTileKeys; k += 16) {
    unsigned a[T::kTilesM][4];
#pragma unroll
    for (int i = 0; i < T::kTilesM; ++i) {
      const float* row = scores + (first_query + i * 16 + lane % 16) * kScoreStride;
      LoadMatrices<false>(
          a[i], reinterpret_cast<const Bf16*>(row) + tile * kTileKeys + k + lane / 16 * 8);
    }
#pragma unroll
    for (int j = 0; j < T::kTilesN; j += 2) {
      unsigned b[4];
      LoadMatrices<true>(b, values + (k + lane / 8 % 2 * 8 + lane % 8) * T::kStride + first_column +
                                j * 8 + lane / 16 * 8);
      const unsigned left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
#pragma unroll
      for (int i = 0; i < T::kTilesM; ++i) {
        MmaBf16(sums[i][j], a[i], left);
        MmaBf16(sums[i][j + 1], a[i], right);
      }
    }
  }
}

// Calls fn(local query, column, i, j, c) for the pairs of accumulators (c, c + 1) of a thread.
template <typename T, typename Fn>
__device__ __forceinline__ void ForPairs(const CudaAttentionParams& p, const Work& w, Fn fn) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
#pragma unroll
  for (int i = 0; i < T::kTilesM; ++i) {
#pragma unroll
    for (int c = 0; c < 4; c += 2) {
      const int local = warp / 4 * T::kTilesM * 16 + i * 16 + lane / 4 + c * 4;
#pragma unroll
      for (int j = 0; j < T::kTilesN; ++j) {
        const int column = warp % 4 * (T::kDim / 4) + j * 8 + lane % 4 * 2;
        if (column < p.shape.head_dim) fn(local, column, i, j, c);
      }
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(T::kThreads) AttentionKernel(KernelParams params) {
  PACELINE_DYNAMIC_SHARED(shared);
  const CudaAttentionParams& p = params.a;
  const Work w = GetWork<T>(params);
  Bf16* const queries = reinterpret_cast<Bf16*>(shared);
  Bf16* const ring = reinterpret_cast<Bf16*>(shared + T::kQueryBytes);
  float* const scores = reinterpret_cast<float*>(shared + T::kQueryBytes + T::kRingBytes);
  float* const stats = scores + T::kQueries * kScoreStride;
  for (int i = static_cast<int>(threadIdx.x); i < T::kQueries; i += T::kThreads) {
    stats[i * 4] = kNone;
    stats[i * 4 + 1] = 0.0f;
  }

  // Tile loads in one line: of each chunk the K tiles, then the V tiles.
  const int chunks = w.item.chunk_end - w.item.chunk_begin;
  const int total = (chunks - 1) * 2 * kChunkTiles + 2 * TilesOf(w, w.item.chunk_end - 1);
  const auto load = [&](int n) {
    if (n < total) {
      const int chunk = w.item.chunk_begin + n / (2 * kChunkTiles);
      const int tiles = TilesOf(w, chunk);
      const int at = n % (2 * kChunkTiles);
      const bool is_k = at < tiles;
      LoadKeys<T>(p, w, is_k ? p.k_cache : p.v_cache,
                  chunk * kChunk + (is_k ? at : at - tiles) * kTileKeys,
                  ring + n % T::kStages * T::kRingElements);
    }
    CommitCopies();  // an empty group keeps the count
  };
  LoadQueries<T>(p, w, queries);  // in the first group
#pragma unroll
  for (int n = 0; n < T::kStages - 1; ++n) load(n);

  float folded[T::kTilesM][T::kTilesN][4] = {};
  float sums[T::kTilesM][T::kTilesN][4] = {};
  for (int n = 0; n < total; ++n) {
    WaitCopies<T::kStages - 2>();  // this thread's part of tile n is there
    __syncthreads();               // everyone's is, and the tile read last is free
    load(n + T::kStages - 1);
    const Bf16* keys = ring + n % T::kStages * T::kRingElements;
    const int chunk = w.item.chunk_begin + n / (2 * kChunkTiles);
    const int tiles = TilesOf(w, chunk);
    const int at = n % (2 * kChunkTiles);
    if (at < tiles) {
      ScoreTile<T>(queries, keys, at, scores);
      continue;
    }
    if (at == tiles) {
      SoftmaxChunk<T>(p, w, chunk, tiles, scores, stats);
      __syncthreads();
    }
    ValueTile<T>(scores, keys, at - tiles, sums);
    if (at < 2 * tiles - 1) continue;
    if (w.item.partial >= 0) {
      ForPairs<T>(p, w, [&](int local, int column, int i, int j, int c) {
        const int64_t unit = w.item.partial + local / kAttentionUnit;
        float* to =
            p.partials +
            ((unit * p.shape.kv_heads + w.kv_head) * kAttentionUnit + local % kAttentionUnit) *
                p.shape.head_dim +
            column;
        *reinterpret_cast<float2*>(to) = make_float2(sums[i][j][c], sums[i][j][c + 1]);
      });
      return;  // a block with partials has one chunk
    }
    ForPairs<T>(p, w, [&](int local, int, int i, int j, int c) {
      const float old_scale = stats[local * 4 + 2], new_scale = stats[local * 4 + 3];
      folded[i][j][c] = Fold(folded[i][j][c], old_scale, sums[i][j][c], new_scale);
      folded[i][j][c + 1] = Fold(folded[i][j][c + 1], old_scale, sums[i][j][c + 1], new_scale);
      sums[i][j][c] = sums[i][j][c + 1] = 0.0f;
    });
  }
  ForPairs<T>(p, w, [&](int local, int column, int i, int j, int c) {
    const int query = w.item.query_begin + local;
    if (query >= w.num_queries) return;
    const float inverse = Inverse(stats[local * 4 + 1]);
    const int64_t row = w.span.row_begin + query / w.group;
    const int head = w.kv_head * w.group + query % w.group;
    Bf16* to = p.out + (row * p.num_heads + head) * p.shape.head_dim + column;
    *reinterpret_cast<unsigned*>(to) =
        PackPair(__fmul_rn(folded[i][j][c], inverse), __fmul_rn(folded[i][j][c + 1], inverse));
  });
}

// --- Folding of partials: a warp per query ---

constexpr int kFoldThreads = 128;
constexpr int kFoldColumns = 256 / kWarp;  // of a lane

__global__ void __launch_bounds__(kFoldThreads) FoldKernel(CudaAttentionParams p) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const CudaAttentionSplit split = p.splits[blockIdx.x];
  const CudaAttentionSpan span = p.spans[split.span];
  const int kv_head = static_cast<int>(blockIdx.y);
  const int group = p.num_heads / p.shape.kv_heads;
  const int dim = p.shape.head_dim;
  for (int local = warp; local < kAttentionUnit; local += kFoldThreads / kWarp) {
    const int query = split.query_begin + local;
    if (query >= span.num_rows * group) return;
    float maximum = kNone, sum = 0.0f;
    float folded[kFoldColumns] = {};
    for (int c = 0; c < split.num_chunks; ++c) {
      const int64_t unit = split.partial + int64_t{c} * split.stride;
      const int64_t at = (unit * p.shape.kv_heads + kv_head) * kAttentionUnit + local;
      float old_scale, new_scale;
      maximum = FoldScales(maximum, p.partial_stats[at * 2], &old_scale, &new_scale);
      sum = Fold(sum, old_scale, p.partial_stats[at * 2 + 1], new_scale);
#pragma unroll
      for (int i = 0; i < kFoldColumns; ++i) {
        const int column = i * kWarp + lane;
        if (column < dim) {
          folded[i] = Fold(folded[i], old_scale, p.partials[at * dim + column], new_scale);
        }
      }
    }
    const float inverse = Inverse(sum);
    const int64_t row = span.row_begin + query / group;
    const int head = kv_head * group + query % group;
    Bf16* out = p.out + (row * p.num_heads + head) * dim;
#pragma unroll
    for (int i = 0; i < kFoldColumns; ++i) {
      const int column = i * kWarp + lane;
      if (column < dim) out[column] = ToBf16(__fmul_rn(folded[i], inverse));
    }
  }
}

template <typename T>
cudaError_t LaunchItems(const CudaAttentionParams& p, const CudaAttentionItem* items, int32_t count,
                        cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  static const cudaError_t allowed = AllowShared(AttentionKernel<T>, T::kSharedBytes);
  if (allowed != cudaSuccess) return allowed;
  const dim3 grid(static_cast<unsigned>(count), static_cast<unsigned>(p.shape.kv_heads));
  return Launch(AttentionKernel<T>, grid, T::kThreads, T::kSharedBytes, KernelParams{p, items},
                stream);
}

template <typename Small, typename Large>
cudaError_t LaunchBoth(const CudaAttentionParams& p, cudaStream_t stream) {
  static_assert(Small::kQueries == kAttentionUnit);
  static_assert(Large::kQueries == LargeItemQueries(Large::kDim));
  const cudaError_t small = LaunchItems<Small>(p, p.small_items, p.num_small_items, stream);
  if (small != cudaSuccess) return small;
  return LaunchItems<Large>(p, p.large_items, p.num_large_items, stream);
}

bool Valid(const CudaAttentionParams& p) {
  return p.shape.Valid() && p.num_heads > 0 && p.num_heads % p.shape.kv_heads == 0 &&
         p.num_small_items >= 0 && p.num_large_items >= 0 && p.num_splits >= 0 && p.window >= 0 &&
         p.k_cache != nullptr && p.v_cache != nullptr && p.q != nullptr && p.out != nullptr &&
         p.block_tables != nullptr && p.spans != nullptr && p.visible != nullptr &&
         (p.num_splits == 0 || (p.partials != nullptr && p.partial_stats != nullptr));
}

}  // namespace

cudaError_t CudaAttention(const CudaAttentionParams& p, cudaStream_t stream) {
  if (p.num_small_items == 0 && p.num_large_items == 0) return cudaSuccess;
  if (!Valid(p)) return cudaErrorInvalidValue;
  cudaError_t error;
  if (p.shape.head_dim <= 64) {
    error = LaunchBoth<Tile<64, 1, 1, 4>, Tile<64, 4, 2, 3>>(p, stream);
  } else if (p.shape.head_dim <= 128) {
    error = LaunchBoth<Tile<128, 1, 1, 4>, Tile<128, 4, 2, 3>>(p, stream);
  } else {
    error = LaunchBoth<Tile<256, 1, 1, 3>, Tile<256, 2, 1, 3>>(p, stream);
  }
  if (error != cudaSuccess || p.num_splits == 0) return error;
  const dim3 grid(static_cast<unsigned>(p.num_splits), static_cast<unsigned>(p.shape.kv_heads));
  return Launch(FoldKernel, grid, kFoldThreads, 0, p, stream);
}

}  // namespace paceline::kernels
