// Each warp owns 16 queries (kAttentionUnit) and walks its keys in tiles of 64, in ascending order:
// scores, weights and results stay in its registers. Inside a chunk of 256 keys the maximum runs
// along and what is summed so far is rescaled; at a chunk's end the result is folded into those
// before it, or goes to a partial. A block's warps share the keys, which stream through a ring of
// slots by cp.async; what a warp computes does not depend on how many others there are.
//
// Keys behind the span's end are never read (zeros stand in: 0 * NaN would be NaN in the second
// product); keys that a row does not see get weight 0 by selection.
#include "kernels/cuda/attention.h"

#include "kernels/cuda/attention_parts.cuh"
#include "kernels/cuda/attention_paths.h"

namespace paceline::kernels {
namespace {

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
    pages_ = GetPages(p, w.span.table_begin, w.kv_end, first_tile / kChunkTiles);
    next_pages_ = GetPages(p, w.span.table_begin, w.kv_end, first_tile / kChunkTiles + 1);
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
          next_pages_ = GetPages(p, w.span.table_begin, w.kv_end, tile_ / kChunkTiles + 1);
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
      LoadQueryStep<T::kDim>(queries, k, a);
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

// Adds the weights of a slot's keys, part kPart of the tile, times their values.
template <typename T, int kPart>
__device__ __forceinline__ void ValueSlot(const float (&s)[kTileKeys / 8][4], const Bf16* slot,
                                          float (&values)[T::kColumns][4]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int n = 0; n < T::kSlotKeys; n += 16) {
    constexpr int kFirst = kPart * T::kSlotKeys / 8;
    unsigned a[4];
    PackWeights(s[kFirst + n / 8], s[kFirst + n / 8 + 1], a);
#pragma unroll
    for (int j = 0; j < T::kColumns; j += 2) {
      unsigned b[4];
      LoadMatrices<true>(
          b, slot + Swizzled<T::kDim>(n + lane / 8 % 2 * 8 + lane % 8, lane % 8, j + lane / 16));
      const unsigned left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
      MmaBf16(values[j], a, left);
      MmaBf16(values[j + 1], a, right);
    }
  }
}

// Of a query in a unit of partials: its place among [units, kv_heads, kAttentionUnit].
__device__ __forceinline__ int64_t PartialIndex(const CudaAttentionParams& p, int64_t unit,
                                                int kv_head, int local) {
  return (unit * p.shape.kv_heads + kv_head) * kAttentionUnit + local;
}
template <typename T>
__device__ __forceinline__ void StorePartial(const CudaAttentionParams& p, const Work& w,
                                             const RowStats& stats,
                                             const float (&values)[T::kColumns][4]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int unit = w.item.partial + static_cast<int>(threadIdx.x) / kWarp;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int local = lane / 4 + 8 * i;
    if (w.warp_query + local >= w.num_queries) continue;
    const int64_t at = PartialIndex(p, unit, w.kv_head, local);
    if (lane % 4 == 0) {
      *reinterpret_cast<float2*>(p.partial_stats + at * 2) =
          make_float2(stats.maximum[i], stats.sum[i]);
    }
#pragma unroll
    for (int j = 0; j < T::kColumns; ++j) {
      const int column = j * 8 + lane % 4 * 2;
      if (column >= p.shape.head_dim) continue;
      *reinterpret_cast<float2*>(p.partials + at * p.shape.head_dim + column) =
          make_float2(values[j][2 * i], values[j][2 * i + 1]);
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(T::kThreads, T::kMinBlocks) AttentionKernel(KernelParams params) {
  PACELINE_DYNAMIC_SHARED(shared);
  LetNextStart();
  WaitForPrevious();
  const CudaAttentionParams& p = params.a;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const CudaAttentionItem item = params.items[blockIdx.x];
  const Work w =
      GetWork(p, item, p.spans[item.span], static_cast<int>(blockIdx.y), T::kQueries, warp);
  Bf16* const all_queries = reinterpret_cast<Bf16*>(shared);
  const int first_tile = w.item.chunk_begin * kChunkTiles;
  const int last_tile = min(w.item.chunk_end * kChunkTiles, CeilDiv(w.kv_end, kTileKeys));
  Loads<T> loads(p, w, reinterpret_cast<Bf16*>(shared + T::kQueryBytes), first_tile, last_tile);
  // In the first group.
  for (int i = static_cast<int>(threadIdx.x); i < T::kQueries * T::kVectors; i += T::kThreads) {
    LoadQueryVector<T::kDim>(p, w.span, w.item.query_begin, w.kv_head, i, all_queries);
  }
#pragma unroll
  for (int n = 0; n < T::kSlots - T::kAtOnce; ++n) loads.Start(p, w);

  const Bf16* const queries = all_queries + warp * kAttentionUnit * T::kDim;
  unsigned held[T::kQuerySteps][4] = {};
  RowStats chunk, total;
  float values[T::kColumns][4] = {};
  FoldedValues<T::kColumns, T::kFoldShared ? 0 : T::kColumns, T::kThreads> folded;
  folded.shared = reinterpret_cast<float*>(shared + T::kQueryBytes + T::kRingBytes);
  folded.Clear();
  for (int tile = first_tile; tile < last_tile; ++tile) {
    const bool seen = w.warp_query < w.num_queries && tile * kTileKeys < w.warp_end;
    float s[kTileKeys / 8][4] = {};
    const Bf16* slot = loads.template Next<true>(p, w);
    if constexpr (T::kHoldQueries) {
      if (tile == first_tile) {
#pragma unroll
        for (int k = 0; k < T::kDim; k += 16) LoadQueryStep<T::kDim>(queries, k, held[k / 16]);
      }
    }
    if (seen) ScoreSlot<T, 0>(queries, held, slot, s);
    if constexpr (T::kParts == 2) {
      slot = loads.template Next<true>(p, w);
      if (seen) ScoreSlot<T, 1>(queries, held, slot, s);
    }
    if (seen) {
      float rescale[2];
      if (SeenInPart(tile, w.whole_begin, w.whole_end)) HideUnseen(p, w, tile, s);
      Weigh(p, s, chunk, rescale);
      Rescale(rescale, values);
    }
    slot = loads.template Next<T::kAtOnce == 1>(p, w);
    if (seen) ValueSlot<T, 0>(s, slot, values);
    if constexpr (T::kParts == 2) {
      slot = loads.template Next<true>(p, w);
      if (seen) ValueSlot<T, 1>(s, slot, values);
    }
    if ((tile + 1) % kChunkTiles != 0 && tile + 1 < last_tile) continue;
    const RowStats closed = CloseChunk(p, chunk);
    if (w.item.partial >= 0) {  // a block with partials has one chunk
      StorePartial<T>(p, w, closed, values);
      return;
    }
    folded.Add(FoldStats(closed, total), values);
    chunk = {};
    ClearValues(values);
  }
  StoreOut<T::kColumns>(p, w, total, folded);
}

// --- Folding of partials: a warp per query ---

constexpr int kFoldThreads = 128;
constexpr int kFoldAhead = 8;  // chunks whose loads are in flight together

template <int kDim>
__global__ void __launch_bounds__(kFoldThreads) FoldKernel(CudaAttentionParams p) {
  LetNextStart();
  WaitForPrevious();
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

// In order, as the fold behind: started early, blocks that wait hold the shared memory and
// registers that the matrices around them need, and a decode step of Llama-3-8B takes 0.9 ms
// longer.
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
  cudaError_t error = HasWarpgroupAttention(p)
                          ? WarpgroupAttention(p, stream)
                          : LaunchItems<Large>(p, p.large_items, p.num_large_items, stream);
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
