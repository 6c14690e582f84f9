// Each warp owns 16 queries (kAttentionUnit) and walks its keys in tiles of 64, in ascending order:
// scores, weights and results stay in its registers. Inside a chunk of 256 keys the maximum runs
// along and what is summed so far is rescaled; at a chunk's end the result is folded into those
// before it, or goes to a partial. A block's warps share the keys, which stream through a ring of
// slots by cp.async; what a warp computes does not depend on how many others there are.
//
// Keys behind the span's end are never read (zeros stand in: 0 * NaN would be NaN in the second
// product); keys that a row does not see get weight 0 by selection.
#include "kernels/cuda/attention.h"

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/mma.cuh"

namespace paceline::kernels {
namespace {

constexpr int kTileKeys = 64;
constexpr int kChunkTiles = kCudaAttentionChunk / kTileKeys;
constexpr int kPageKeys = 16;  // keys that lie in one block whatever its size
constexpr float kLog2E = 1.4426950408889634f;
constexpr float kNone = -INFINITY;

// kDim: head_dim rounded up, zeros behind it. kSlotKeys: keys of K or V in a slot of the ring.
// kMinBlocks: blocks that shall fit on a multiprocessor.
template <int kDim_, int kWarps_, int kSlotKeys_, int kSlots_, int kMinBlocks_>
struct Tile {
  static constexpr int kDim = kDim_;
  static constexpr int kWarps = kWarps_;
  static constexpr int kSlotKeys = kSlotKeys_;
  static constexpr int kSlots = kSlots_;
  static constexpr int kMinBlocks = kMinBlocks_;
  static constexpr int kThreads = kWarps * kWarp;
  static constexpr int kQueries = kWarps * kAttentionUnit;
  static constexpr int kVectors = kDim / 8;  // of 16 bytes in a row
  static constexpr int kColumns = kDim / 8;  // accumulators of 8 columns
  static constexpr int kParts = kTileKeys / kSlotKeys;
  static constexpr int kSlotElements = kSlotKeys * kDim;
  // Large items load a tile's keys and values together: with one barrier per tile a warp's softmax
  // may run beside another's products.
  static constexpr int kAtOnce = kWarps == 8 ? 2 : 1;
  static_assert(kAtOnce == 1 || kParts == 1);
  // Registers do not hold the queries, a chunk's result and what is folded of more than 64 columns:
  // then what is folded lies in shared memory; above 128 columns the queries stay there too.
  static constexpr bool kHoldQueries = kDim <= 128;
  static constexpr bool kFoldShared = kDim > 64;
  static constexpr int kQuerySteps = kHoldQueries ? kDim / 16 : 1;
  static constexpr size_t kQueryBytes = sizeof(Bf16) * kQueries * kDim;
  static constexpr size_t kRingBytes = sizeof(Bf16) * kSlots * kSlotElements;
  static constexpr size_t kFoldBytes = kFoldShared ? sizeof(float) * kQueries * kDim : 0;
  static constexpr size_t kSharedBytes = kQueryBytes + kRingBytes + kFoldBytes;
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
  // A thread's accumulators belong to queries warp_query + lane / 4 and the eighth after it.
  int row[2];       // of the span
  int first[2];     // the first KV index inside the window
  int warp_end;     // no row of the warp sees KV indices from here on
  int whole_begin;  // KV indices [whole_begin, whole_end) are seen by all rows of the warp
  int whole_end;
};

template <typename T>
__device__ __forceinline__ Work GetWork(const KernelParams& p) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  Work w;
  w.item = p.items[blockIdx.x];
  w.span = p.a.spans[w.item.span];
  w.kv_head = static_cast<int>(blockIdx.y);
  w.group = p.a.num_heads / p.a.shape.kv_heads;
  w.num_queries = w.span.num_rows * w.group;
  const bool tree = w.span.mask_begin >= 0;
  const int last_query = min(w.item.query_begin + T::kQueries, w.num_queries) - 1;
  const int rows = tree ? w.span.num_rows : last_query / w.group + 1;
  w.kv_end = w.span.context_len + rows;
  w.warp_query = w.item.query_begin + static_cast<int>(threadIdx.x) / kWarp * kAttentionUnit;
  w.whole_begin = 0;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    w.row[i] = min(w.warp_query + lane / 4 + 8 * i, last_query) / w.group;
    w.first[i] = 0;
    if (p.a.window > 0) {
      w.first[i] = max(0, p.a.visible[w.span.row_begin + w.row[i]] - p.a.window);
      w.whole_begin = max(w.whole_begin, w.first[i]);
    }
  }
  for (int mask = kWarp / 2; p.a.window > 0 && mask > 0; mask /= 2) {
    w.whole_begin = max(w.whole_begin, __shfl_xor_sync(kAllLanes, w.whole_begin, mask));
  }
  const int warp_last = min(w.warp_query + kAttentionUnit - 1, last_query);
  w.warp_end = tree ? w.kv_end : w.span.context_len + warp_last / w.group + 1;
  w.whole_end = w.span.context_len + (tree ? 0 : min(w.warp_query, last_query) / w.group + 1);
  return w;
}

template <typename T>
__device__ __forceinline__ void LoadQueries(const CudaAttentionParams& p, const Work& w, Bf16* to) {
  const int dim = p.shape.head_dim;
  for (int i = static_cast<int>(threadIdx.x); i < T::kQueries * T::kVectors; i += T::kThreads) {
    const int local = i / T::kVectors;
    const int vector = i % T::kVectors;
    const int query = w.item.query_begin + local;
    const bool valid = query < w.num_queries && vector * 8 < dim;
    const Bf16* from = p.q;
    if (valid) {
      const int64_t row = w.span.row_begin + query / w.group;
      const int head = w.kv_head * w.group + query % w.group;
      from += (row * p.num_heads + head) * dim + vector * 8;
    }
    CopyAsync16(to + Swizzled<T::kDim>(local, local % 8, vector), from, valid);
  }
}

// Lane i (or i + 16) gets the block that holds keys [16 i, 16 i + 16) of the chunk.
__device__ __forceinline__ int GetPages(const CudaAttentionParams& p, const Work& w, int chunk) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int size = p.shape.block_size;
  const int shift = size == 16 ? 4 : size == 32 ? 5 : 6;
  const int key = chunk * kCudaAttentionChunk + lane % 16 * kPageKeys;
  return key < w.kv_end ? p.block_tables[w.span.table_begin + (key >> shift)] : 0;
}

// The warp's share of a slot: consecutive keys, one block lookup per 16 of them.
template <typename T>
__device__ __forceinline__ void LoadSlot(const CudaAttentionParams& p, const Work& w,
                                         const Bf16* cache, int pages, int first_key, Bf16* slot) {
  constexpr int kShare = T::kSlotKeys / T::kWarps;
  constexpr int kGroup = kShare < kPageKeys ? kShare : kPageKeys;
  constexpr int kRows = kWarp / T::kVectors;  // that the warp loads at once
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int vector = lane % T::kVectors;
  const int size = p.shape.block_size, dim = p.shape.head_dim;
  const int end = vector * 8 < dim ? w.kv_end : 0;
#pragma unroll
  for (int group = 0; group < kShare; group += kGroup) {
    const int local = warp * kShare + group + lane / T::kVectors;
    const int key = first_key + local;
    const int64_t block = __shfl_sync(kAllLanes, pages, key / kPageKeys % 16);
    const Bf16* from = cache + block * p.shape.block_elements() +
                       (w.kv_head * size + (key & (size - 1))) * dim + vector * 8;
#pragma unroll 8
    for (int i = 0; i < kGroup; i += kRows) {
      const int row = local + i;
      CopyAsync16(slot + Swizzled<T::kDim>(row, row % 8, vector), from + i * dim, key + i < end);
    }
  }
}

// The loads of a block, slot after slot: of each tile its keys, then its values.
template <typename T>
class Loads {
 public:
  __device__ __forceinline__ Loads(const CudaAttentionParams& p, const Work& w, Bf16* ring,
                                   int first_tile, int last_tile)
      : ring_(ring), tile_(first_tile), last_tile_(last_tile) {
    pages_ = GetPages(p, w, first_tile / kChunkTiles);
    next_pages_ = GetPages(p, w, first_tile / kChunkTiles + 1);
  }

  __device__ __forceinline__ void Start(const CudaAttentionParams& p, const Work& w) {
    if (tile_ < last_tile_) {
      const bool values = part_ >= T::kParts;
      LoadSlot<T>(p, w, values ? p.v_cache : p.k_cache, pages_,
                  tile_ * kTileKeys + part_ % T::kParts * T::kSlotKeys,
                  ring_ + to_ * T::kSlotElements);
      to_ = to_ + 1 == T::kSlots ? 0 : to_ + 1;
      if (++part_ == 2 * T::kParts) {
        part_ = 0;
        if (++tile_ % kChunkTiles == 0) {
          pages_ = next_pages_;
          next_pages_ = GetPages(p, w, tile_ / kChunkTiles + 1);
        }
      }
    }
    CommitCopies();  // an empty group keeps the count
  }

  // The next slot. With kWait it and the rest of kAtOnce slots become complete, and those before
  // them take new loads.
  template <bool kWait>
  __device__ __forceinline__ const Bf16* Next(const CudaAttentionParams& p, const Work& w) {
    if constexpr (kWait) {
      WaitCopies<T::kSlots - 2 * T::kAtOnce>();
      if constexpr (T::kWarps == 1) {
        __syncwarp();
      } else {
        __syncthreads();
      }
#pragma unroll
      for (int i = 0; i < T::kAtOnce; ++i) Start(p, w);
    }
    const Bf16* slot = ring_ + from_ * T::kSlotElements;
    from_ = from_ + 1 == T::kSlots ? 0 : from_ + 1;
    return slot;
  }

 private:
  Bf16* ring_;
  int tile_, last_tile_;
  int pages_, next_pages_;
  int part_ = 0, to_ = 0, from_ = 0;
};

// Fragment of 16 queries x columns [k, k + 16).
template <typename T>
__device__ __forceinline__ void LoadQueryStep(const Bf16* queries, int k, unsigned (&a)[4]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  LoadMatrices<false>(a, queries + Swizzled<T::kDim>(lane % 16, lane % 8, k / 8 + lane / 16));
}

// Scores with the keys of a slot, part kPart of the tile.
template <typename T, int kPart>
__device__ __forceinline__ void ScoreSlot(const Bf16* queries,
                                          const unsigned (&held)[T::kQuerySteps][4],
                                          const Bf16* keys, float (&s)[kTileKeys / 8][4]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int k = 0; k < T::kDim; k += 16) {
    unsigned a[4];
    if constexpr (T::kHoldQueries) {
#pragma unroll
      for (int i = 0; i < 4; ++i) a[i] = held[k / 16][i];
    } else {
      LoadQueryStep<T>(queries, k, a);
    }
#pragma unroll
    for (int n = 0; n < T::kSlotKeys; n += 16) {
      constexpr int kFirst = kPart * T::kSlotKeys / 8;
      unsigned b[4];
      LoadMatrices<false>(b, keys + Swizzled<T::kDim>(n + lane / 16 * 8 + lane % 8, lane % 8,
                                                      k / 8 + lane / 8 % 2));
      const unsigned left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
      MmaBf16(s[kFirst + n / 8], a, left);
      MmaBf16(s[kFirst + n / 8 + 1], a, right);
    }
  }
}

// Whether row `row` of the span sees KV index `key`; `first`: the window's first.
__device__ __forceinline__ bool Sees(const CudaAttentionParams& p, const CudaAttentionSpan& span,
                                     int row, int first, int key) {
  const int other = key - span.context_len;
  if (other < 0) return key >= first;
  if (other >= span.num_rows) return false;
  if (span.mask_begin < 0) return other <= row && key >= first;
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

// Of a chunk so far: per row maximum of the scores (unscaled) and the thread's part of the sum of
// weights; weighted values, c[2 i], c[2 i + 1] of row i.
template <typename T>
struct Sums {
  float maximum[2];
  float sum[2];
  float values[T::kColumns][4];

  __device__ __forceinline__ void Clear() {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      maximum[i] = kNone;
      sum[i] = 0.0f;
    }
#pragma unroll
    for (int j = 0; j < T::kColumns; ++j) {
#pragma unroll
      for (int c = 0; c < 4; ++c) values[j][c] = 0.0f;
    }
  }
};

// Scores of a tile into weights, in place.
template <typename T>
__device__ __forceinline__ void SoftmaxTile(const CudaAttentionParams& p, const Work& w, int tile,
                                            float (&s)[kTileKeys / 8][4], Sums<T>& sums) {
  const int first_key = tile * kTileKeys;
  if (first_key < w.whole_begin || first_key + kTileKeys > w.whole_end) {
    const int key = first_key + static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
    for (int j = 0; j < kTileKeys / 8; ++j) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        if (!Sees(p, w.span, w.row[c / 2], w.first[c / 2], key + j * 8 + c % 2)) s[j][c] = kNone;
      }
    }
  }
  const float scale = p.scale * kLog2E;
  float rescale[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float maximum = sums.maximum[i];
#pragma unroll
    for (int j = 0; j < kTileKeys / 8; ++j) {
      maximum = fmaxf(maximum, fmaxf(s[j][2 * i], s[j][2 * i + 1]));
    }
    maximum = QuadMax(maximum);
    const float base = maximum == kNone ? 0.0f : __fmul_rn(maximum, scale);
    rescale[i] = Exp2(__fsub_rn(__fmul_rn(sums.maximum[i], scale), base));  // 1 where it stays
    sums.maximum[i] = maximum;
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < kTileKeys / 8; ++j) {
#pragma unroll
      for (int c = 2 * i; c < 2 * i + 2; ++c) {
        s[j][c] = Exp2(__fmaf_rn(s[j][c], scale, -base));
        sum = __fadd_rn(sum, s[j][c]);
      }
    }
    sums.sum[i] = __fmaf_rn(sums.sum[i], rescale[i], sum);
  }
  // Times one changes no bits, and is most often all there is to do.
  if (!__any_sync(kAllLanes, rescale[0] != 1.0f || rescale[1] != 1.0f)) return;
#pragma unroll
  for (int j = 0; j < T::kColumns; ++j) {
#pragma unroll
    for (int c = 0; c < 4; ++c) sums.values[j][c] = __fmul_rn(sums.values[j][c], rescale[c / 2]);
  }
}

// Adds the weights of a slot's keys, part kPart of the tile, times their values.
template <typename T, int kPart>
__device__ __forceinline__ void ValueSlot(const float (&s)[kTileKeys / 8][4], const Bf16* values,
                                          Sums<T>& sums) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int n = 0; n < T::kSlotKeys; n += 16) {
    constexpr int kFirst = kPart * T::kSlotKeys / 8;
    const float(&low)[4] = s[kFirst + n / 8];
    const float(&high)[4] = s[kFirst + n / 8 + 1];
    const unsigned a[4] = {PackBf16(low[0], low[1]), PackBf16(low[2], low[3]),
                           PackBf16(high[0], high[1]), PackBf16(high[2], high[3])};
#pragma unroll
    for (int j = 0; j < T::kColumns; j += 2) {
      unsigned b[4];
      LoadMatrices<true>(
          b, values + Swizzled<T::kDim>(n + lane / 8 % 2 * 8 + lane % 8, lane % 8, j + lane / 16));
      const unsigned left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
      MmaBf16(sums.values[j], a, left);
      MmaBf16(sums.values[j + 1], a, right);
    }
  }
}

// The chunks folded so far; with kFoldShared the values lie in shared memory, a thread's own.
template <typename T>
struct Folded {
  float maximum[2];
  float sum[2];
  float held[T::kFoldShared ? 1 : T::kColumns][4];
  float* shared;

  __device__ __forceinline__ float& Value(int j, int c) {
    if constexpr (T::kFoldShared) {
      return shared[(j * 4 + c) * T::kThreads + static_cast<int>(threadIdx.x)];
    } else {
      return held[j][c];
    }
  }
  __device__ __forceinline__ void Clear() {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      maximum[i] = kNone;
      sum[i] = 0.0f;
    }
#pragma unroll
    for (int j = 0; j < T::kColumns; ++j) {
#pragma unroll
      for (int c = 0; c < 4; ++c) Value(j, c) = 0.0f;
    }
  }
  __device__ __forceinline__ void Add(const float (&chunk_maximum)[2], const float (&chunk_sum)[2],
                                      const Sums<T>& chunk) {
    float old_scale[2], new_scale[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      maximum[i] = FoldScales(maximum[i], chunk_maximum[i], &old_scale[i], &new_scale[i]);
      sum[i] = Fold(sum[i], old_scale[i], chunk_sum[i], new_scale[i]);
    }
#pragma unroll
    for (int j = 0; j < T::kColumns; ++j) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        Value(j, c) = Fold(Value(j, c), old_scale[c / 2], chunk.values[j][c], new_scale[c / 2]);
      }
    }
  }
};

// Of a query in a unit of partials: its place among [units, kv_heads, kAttentionUnit].
__device__ __forceinline__ int64_t PartialIndex(const CudaAttentionParams& p, int64_t unit,
                                                int kv_head, int local) {
  return (unit * p.shape.kv_heads + kv_head) * kAttentionUnit + local;
}
__device__ __forceinline__ Bf16* OutOf(const CudaAttentionParams& p, const CudaAttentionSpan& span,
                                       int kv_head, int group, int query) {
  const int64_t row = span.row_begin + query / group;
  return p.out + (row * p.num_heads + kv_head * group + query % group) * p.shape.head_dim;
}

template <typename T>
__device__ __forceinline__ void StorePartial(const CudaAttentionParams& p, const Work& w,
                                             const float (&maximum)[2], const float (&sum)[2],
                                             const Sums<T>& sums) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int unit = w.item.partial + static_cast<int>(threadIdx.x) / kWarp;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int local = lane / 4 + 8 * i;
    if (w.warp_query + local >= w.num_queries) continue;
    const int64_t at = PartialIndex(p, unit, w.kv_head, local);
    if (lane % 4 == 0) {
      *reinterpret_cast<float2*>(p.partial_stats + at * 2) = make_float2(maximum[i], sum[i]);
    }
#pragma unroll
    for (int j = 0; j < T::kColumns; ++j) {
      const int column = j * 8 + lane % 4 * 2;
      if (column >= p.shape.head_dim) continue;
      *reinterpret_cast<float2*>(p.partials + at * p.shape.head_dim + column) =
          make_float2(sums.values[j][2 * i], sums.values[j][2 * i + 1]);
    }
  }
}

template <typename T>
__device__ __forceinline__ void StoreOut(const CudaAttentionParams& p, const Work& w,
                                         Folded<T>& folded) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int query = w.warp_query + lane / 4 + 8 * i;
    if (query >= w.num_queries) continue;
    Bf16* out = OutOf(p, w.span, w.kv_head, w.group, query);
    const float inverse = Inverse(folded.sum[i]);
#pragma unroll
    for (int j = 0; j < T::kColumns; ++j) {
      const int column = j * 8 + lane % 4 * 2;
      if (column >= p.shape.head_dim) continue;
      *reinterpret_cast<unsigned*>(out + column) =
          PackBf16(__fmul_rn(folded.Value(j, 2 * i), inverse),
                   __fmul_rn(folded.Value(j, 2 * i + 1), inverse));
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(T::kThreads, T::kMinBlocks) AttentionKernel(KernelParams params) {
  PACELINE_DYNAMIC_SHARED(shared);
  const CudaAttentionParams& p = params.a;
  const Work w = GetWork<T>(params);
  Bf16* const all_queries = reinterpret_cast<Bf16*>(shared);
  const int first_tile = w.item.chunk_begin * kChunkTiles;
  const int last_tile = min(w.item.chunk_end * kChunkTiles, CeilDiv(w.kv_end, kTileKeys));
  Loads<T> loads(p, w, reinterpret_cast<Bf16*>(shared + T::kQueryBytes), first_tile, last_tile);
  LoadQueries<T>(p, w, all_queries);  // in the first group
#pragma unroll
  for (int n = 0; n < T::kSlots - T::kAtOnce; ++n) loads.Start(p, w);

  const Bf16* const queries =
      all_queries + static_cast<int>(threadIdx.x) / kWarp * kAttentionUnit * T::kDim;
  const float scale = p.scale * kLog2E;
  unsigned held[T::kQuerySteps][4] = {};
  Sums<T> sums;
  sums.Clear();
  Folded<T> folded;
  folded.shared = reinterpret_cast<float*>(shared + T::kQueryBytes + T::kRingBytes);
  folded.Clear();
  for (int tile = first_tile; tile < last_tile; ++tile) {
    const bool seen = w.warp_query < w.num_queries && tile * kTileKeys < w.warp_end;
    float s[kTileKeys / 8][4] = {};
    const Bf16* slot = loads.template Next<true>(p, w);
    if constexpr (T::kHoldQueries) {
      if (tile == first_tile) {
#pragma unroll
        for (int k = 0; k < T::kDim; k += 16) LoadQueryStep<T>(queries, k, held[k / 16]);
      }
    }
    if (seen) ScoreSlot<T, 0>(queries, held, slot, s);
    if constexpr (T::kParts == 2) {
      slot = loads.template Next<true>(p, w);
      if (seen) ScoreSlot<T, 1>(queries, held, slot, s);
    }
    if (seen) SoftmaxTile<T>(p, w, tile, s, sums);
    slot = loads.template Next<T::kAtOnce == 1>(p, w);
    if (seen) ValueSlot<T, 0>(s, slot, sums);
    if constexpr (T::kParts == 2) {
      slot = loads.template Next<true>(p, w);
      if (seen) ValueSlot<T, 1>(s, slot, sums);
    }
    if ((tile + 1) % kChunkTiles != 0 && tile + 1 < last_tile) continue;
    const float maximum[2] = {__fmul_rn(sums.maximum[0], scale), __fmul_rn(sums.maximum[1], scale)};
    const float sum[2] = {QuadSum(sums.sum[0]), QuadSum(sums.sum[1])};
    if (w.item.partial >= 0) {  // a block with partials has one chunk
      StorePartial<T>(p, w, maximum, sum, sums);
      return;
    }
    folded.Add(maximum, sum, sums);
    sums.Clear();
  }
  StoreOut<T>(p, w, folded);
}

// --- Folding of partials: a warp per query ---

constexpr int kFoldThreads = 128;
constexpr int kFoldAhead = 8;  // chunks whose loads are in flight together

template <int kDim>
__global__ void __launch_bounds__(kFoldThreads) FoldKernel(CudaAttentionParams p) {
  constexpr int kColumns = kDim / kWarp;  // of a lane: side by side, 2, 4 or 8
  const int column = static_cast<int>(threadIdx.x) % kWarp * kColumns;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const CudaAttentionSplit split = p.splits[blockIdx.x];
  const CudaAttentionSpan span = p.spans[split.span];
  const int kv_head = static_cast<int>(blockIdx.y);
  const int group = p.num_heads / p.shape.kv_heads;
  const int dim = p.shape.head_dim;
  if (column >= dim) return;
  for (int local = warp; local < kAttentionUnit; local += kFoldThreads / kWarp) {
    const int query = split.query_begin + local;
    if (query >= span.num_rows * group) return;
    float maximum = kNone, sum = 0.0f;
    float folded[kColumns] = {};
    for (int first = 0; first < split.num_chunks; first += kFoldAhead) {
      float2 stats[kFoldAhead], values[kFoldAhead][kColumns / 2];
#pragma unroll
      for (int c = 0; c < kFoldAhead; ++c) {
        const int chunk = min(first + c, split.num_chunks - 1);
        const int64_t at =
            PartialIndex(p, split.partial + int64_t{chunk} * split.stride, kv_head, local);
        stats[c] = *reinterpret_cast<const float2*>(p.partial_stats + at * 2);
#pragma unroll
        for (int i = 0; i < kColumns / 2; ++i) {
          values[c][i] = *reinterpret_cast<const float2*>(p.partials + at * dim + column + 2 * i);
        }
      }
#pragma unroll
      for (int c = 0; c < kFoldAhead; ++c) {
        if (first + c >= split.num_chunks) continue;
        float old_scale, new_scale;
        maximum = FoldScales(maximum, stats[c].x, &old_scale, &new_scale);
        sum = Fold(sum, old_scale, stats[c].y, new_scale);
#pragma unroll
        for (int i = 0; i < kColumns; ++i) {
          folded[i] = Fold(folded[i], old_scale,
                           i % 2 == 0 ? values[c][i / 2].x : values[c][i / 2].y, new_scale);
        }
      }
    }
    const float inverse = Inverse(sum);
    Bf16* out = OutOf(p, span, kv_head, group, query) + column;
#pragma unroll
    for (int i = 0; i < kColumns; i += 2) {
      *reinterpret_cast<unsigned*>(out + i) =
          PackBf16(__fmul_rn(folded[i], inverse), __fmul_rn(folded[i + 1], inverse));
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

template <typename Small, typename Medium, typename Large>
cudaError_t LaunchAll(const CudaAttentionParams& p, cudaStream_t stream) {
  static_assert(Small::kQueries == kAttentionUnit && Medium::kQueries == kMediumItemQueries);
  static_assert(Large::kQueries == LargeItemQueries(Large::kDim));
  cudaError_t error = LaunchItems<Large>(p, p.large_items, p.num_large_items, stream);
  if (error != cudaSuccess) return error;
  error = LaunchItems<Medium>(p, p.medium_items, p.num_medium_items, stream);
  if (error != cudaSuccess) return error;
  error = LaunchItems<Small>(p, p.small_items, p.num_small_items, stream);
  if (error != cudaSuccess) return error;
  const dim3 grid(static_cast<unsigned>(p.num_splits), static_cast<unsigned>(p.shape.kv_heads));
  return Launch(FoldKernel<Large::kDim>, grid, kFoldThreads, 0, p, stream);
}

bool Valid(const CudaAttentionParams& p) {
  return p.shape.Valid() && p.num_heads > 0 && p.num_heads % p.shape.kv_heads == 0 &&
         p.num_small_items >= 0 && p.num_medium_items >= 0 && p.num_large_items >= 0 &&
         p.num_splits >= 0 && p.window >= 0 && p.scale > 0 && p.k_cache != nullptr &&
         p.v_cache != nullptr && p.q != nullptr && p.out != nullptr && p.block_tables != nullptr &&
         p.spans != nullptr && p.visible != nullptr &&
         (p.num_splits == 0 || (p.partials != nullptr && p.partial_stats != nullptr));
}

}  // namespace

// Of an H100's multiprocessor, at 128 columns: 5 small items of one warp, each with 24 KB on the
// way; 2 medium ones; one large one, whose 8 warps take all registers.
cudaError_t CudaAttention(const CudaAttentionParams& p, cudaStream_t stream) {
  if (p.num_small_items == 0 && p.num_medium_items == 0 && p.num_large_items == 0) {
    return cudaSuccess;
  }
  if (!Valid(p)) return cudaErrorInvalidValue;
  if (p.shape.head_dim <= 64) {
    return LaunchAll<Tile<64, 1, 32, 6, 1>, Tile<64, 4, 32, 6, 2>, Tile<64, 8, 64, 6, 1>>(p,
                                                                                          stream);
  }
  if (p.shape.head_dim <= 128) {
    return LaunchAll<Tile<128, 1, 32, 4, 1>, Tile<128, 4, 32, 6, 2>, Tile<128, 8, 64, 4, 1>>(
        p, stream);
  }
  return LaunchAll<Tile<256, 1, 32, 3, 1>, Tile<256, 4, 32, 3, 1>, Tile<256, 4, 32, 3, 1>>(p,
                                                                                           stream);
}

}  // namespace paceline::kernels
