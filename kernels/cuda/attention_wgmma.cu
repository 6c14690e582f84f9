// Large items on Hopper: two warpgroups of 64 queries each multiply by wgmma what a third brings
// into shared memory: one warp of it keys and one values, by the copy engine through a ring of
// stages, two the next item's queries. A block stays on its multiprocessor and takes one item after
// another, so that loads and the end of an item run beside the products of the next.
//
// A warpgroup keeps its queries, a tile's scores and weights, a chunk's values and what is folded
// in registers. It issues the next tile's scores before this tile's values, so its softmax runs
// beside products of its own; the two warpgroups drift apart (to make them issue by turns took a
// twentieth longer).
#include <algorithm>

#include "kernels/cuda/attention_parts.cuh"
#include "kernels/cuda/attention_paths.h"
#include "kernels/cuda/mbarrier.cuh"
#include "kernels/cuda/tensor_map.h"
#include "kernels/cuda/wgmma.cuh"

namespace paceline::kernels {
namespace {

constexpr int kGroupWarps = 4;  // of a warpgroup
constexpr int kGroupQueries = kGroupWarps * kAttentionUnit;
constexpr int kGroups = 2;  // that multiply
constexpr int kItemQueries = kGroups * kGroupQueries;
constexpr int kProductWarps = kGroups * kGroupWarps;
constexpr int kTileWarps = 2;                          // that load keys and values
constexpr int kQueryWarps = kGroupWarps - kTileWarps;  // that load queries
constexpr int kProductThreads = kProductWarps * kWarp;
constexpr int kThreads = (kProductWarps + kGroupWarps) * kWarp;

// kHeld: accumulators of 8 columns of what is folded that registers hold.
template <int kDim_, int kStages_, int kHeld_>
struct WideTile {
  static constexpr int kDim = kDim_;
  static constexpr int kStages = kStages_;  // of a tile's keys and values each
  static constexpr int kHeld = kHeld_;
  static constexpr int kColumns = kDim / 8;
  static constexpr int kQuerySteps = kDim / 16;
  // Keys or values: blocks of 64 columns, each [kTileKeys][64] and swizzled.
  static constexpr int kBlockElements = kTileKeys * kBoxColumns;
  static constexpr int kTileElements = kTileKeys * kDim;
  static constexpr int kTileBytes = kTileElements * static_cast<int>(sizeof(Bf16));
};

// What the loaders of queries say of the item that they loaded.
struct Job {
  CudaAttentionItem item;
  CudaAttentionSpan span;
};

template <typename T>
struct Barriers {
  uint64_t full_keys[T::kStages], full_values[T::kStages];
  uint64_t empty_keys[T::kStages], empty_values[T::kStages];
  uint64_t full_queries, empty_queries;
  uint64_t last_values;  // the loader's own: values whose end it has to clear
};

template <typename T>
struct WideShared {
  Bf16 tiles[T::kStages][2][T::kTileElements];  // keys, values
  Bf16 queries[kItemQueries * T::kDim];
  float folded[(T::kColumns - T::kHeld) * 4 * kProductThreads + 1];
  Job jobs[2];  // of this item and the next, by turns
  Barriers<T> barriers;
};

template <typename T>
struct WideParams {
  CudaAttentionParams a;
  TensorMap keys, values;  // [num_blocks * kv_heads * block_size, head_dim] in boxes of kPageKeys
};

// The stage of a tile, and the parity of its use of it.
template <typename T>
struct Place {
  int stage = 0;
  int parity = 0;

  __device__ __forceinline__ void Next() {
    if (++stage == T::kStages) *this = {0, parity ^ 1};
  }
  __device__ __forceinline__ Place Previous() const {
    return stage == 0 ? Place{T::kStages - 1, parity ^ 1} : Place{stage - 1, parity};
  }
};

// A block's work: items of one kv head after the other, so that its keys stay in the L2 cache; the
// longest come first. Every other round runs backwards: blocks get the same share of long ones.
struct Round {
  int round = 0;

  __device__ __forceinline__ bool Get(const CudaAttentionParams& p, int* item, int* kv_head) {
    const int blocks = static_cast<int>(gridDim.x), block = static_cast<int>(blockIdx.x);
    const int at = round * blocks + (round % 2 == 0 ? block : blocks - 1 - block);
    if (at >= p.num_large_items * p.shape.kv_heads) return false;
    *kv_head = at / p.num_large_items;
    *item = at % p.num_large_items;
    ++round;
    return true;
  }
};

// Of the whole warp.
__device__ __forceinline__ void Release(uint64_t* barrier) {
  __syncwarp();
  if (threadIdx.x % kWarp == 0) Arrive(barrier);
}

// --- Loading ---

// Pages behind the end are rows behind the matrix: zeros.
template <typename T>
__device__ __forceinline__ void CopyTile(const CudaAttentionParams& p, const TensorMap* map,
                                         int kv_head, int kv_end, int pages, int first_key,
                                         Bf16* tile, uint64_t* barrier) {
  constexpr int kTilePages = kTileKeys / kPageKeys;
  const int size = p.shape.block_size;
  int rows[kTilePages];
#pragma unroll
  for (int i = 0; i < kTilePages; ++i) {
    const int key = first_key + i * kPageKeys;
    const int block = __shfl_sync(kAllLanes, pages, key / kPageKeys % 16);
    rows[i] = key < kv_end ? (block * p.shape.kv_heads + kv_head) * size + (key & (size - 1))
                           : p.shape.num_blocks * p.shape.kv_heads * size;
  }
  if (!ElectLane()) return;
  ArriveAndExpect(barrier, T::kTileBytes);
#pragma unroll
  for (int i = 0; i < kTilePages; ++i) {
#pragma unroll
    for (int block = 0; block < T::kDim / kBoxColumns; ++block) {
      CopyBox(tile + block * T::kBlockElements + i * kPageKeys * kBoxColumns, map,
              block * kBoxColumns, rows[i], barrier);
    }
  }
}

// Zeros instead of the values of keys from `key` of the tile up to the end of its page: nobody may
// have written them.
template <typename T>
__device__ __forceinline__ void ClearValuesFrom(int key, Bf16* tile) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int end = CeilDiv(key, kPageKeys) * kPageKeys;
  constexpr int kVectors = kBoxColumns / 8;
  for (int at = key * kVectors + lane; at < end * kVectors; at += kWarp) {
#pragma unroll
    for (int block = 0; block < T::kDim / kBoxColumns; ++block) {
      *reinterpret_cast<uint4*>(tile + block * T::kBlockElements + at * 8) = uint4{};
    }
  }
}

// One warp brings the keys, another the values.
template <typename T, bool kValues>
__device__ __forceinline__ void LoadTiles(const WideParams<T>& params, WideShared<T>& shared) {
  Barriers<T>& barriers = shared.barriers;
  const CudaAttentionParams& p = params.a;
  const int group = p.num_heads / p.shape.kv_heads;
  Place<T> place;
  int last_parity = 0;
  Round round;
  for (int index, kv_head; round.Get(p, &index, &kv_head);) {
    const CudaAttentionItem item = p.large_items[index];
    const CudaAttentionSpan span = p.spans[item.span];
    const int last_query = min(item.query_begin + kItemQueries, span.num_rows * group) - 1;
    const int kv_end = KvEnd(span, group, max(last_query, 0));
    const int first = item.chunk_begin * kChunkTiles;
    const int last = min(item.chunk_end * kChunkTiles, CeilDiv(kv_end, kTileKeys));
    int pages = GetPages(p, span.table_begin, kv_end, item.chunk_begin);
    int next_pages = GetPages(p, span.table_begin, kv_end, item.chunk_begin + 1);
    for (int tile = first; tile < last; ++tile) {
      if (tile % kChunkTiles == 0 && tile != first) {
        pages = next_pages;
        next_pages = GetPages(p, span.table_begin, kv_end, tile / kChunkTiles + 1);
      }
      const int first_key = tile * kTileKeys;
      Bf16* const to = shared.tiles[place.stage][kValues];
      uint64_t* const full =
          kValues ? &barriers.full_values[place.stage] : &barriers.full_keys[place.stage];
      WaitForPhase(
          kValues ? &barriers.empty_values[place.stage] : &barriers.empty_keys[place.stage],
          place.parity ^ 1);
      const bool clear = kValues && kv_end - first_key < kTileKeys && kv_end % kPageKeys != 0;
      CopyTile<T>(p, kValues ? &params.values : &params.keys, kv_head, kv_end, pages, first_key, to,
                  clear ? &barriers.last_values : full);
      __syncwarp();
      if (clear) {
        WaitForPhase(&barriers.last_values, last_parity);
        last_parity ^= 1;
        ClearValuesFrom<T>(kv_end - first_key, to);
        FenceShared();
        Release(full);
      }
      place.Next();
    }
  }
}

template <typename T>
__device__ __forceinline__ void LoadQueries(const CudaAttentionParams& p, WideShared<T>& shared) {
  Barriers<T>& barriers = shared.barriers;
  const int thread = static_cast<int>(threadIdx.x) - (kProductWarps + kTileWarps) * kWarp;
  int parity = 0;
  Round round;
  for (int index, kv_head; round.Get(p, &index, &kv_head);) {
    const CudaAttentionItem item = p.large_items[index];
    const CudaAttentionSpan span = p.spans[item.span];
    WaitForPhase(&barriers.empty_queries, parity ^ 1);
    if (thread == 0) shared.jobs[parity] = {item, span};
    parity ^= 1;
    for (int i = thread; i < kItemQueries * T::kColumns; i += kQueryWarps * kWarp) {
      LoadQueryVector<T::kDim>(p, span, item.query_begin, kv_head, i, shared.queries);
    }
    CommitCopies();
    WaitCopies<0>();
    Arrive(&barriers.full_queries);
  }
}

// --- Multiplying ---

constexpr int kRowBytes = kBoxColumns * static_cast<int>(sizeof(Bf16));

template <typename T>
__device__ __forceinline__ void ScoreTile(const unsigned (&queries)[T::kQuerySteps][4],
                                          const SharedOperand& keys, float (&s)[kTileKeys / 8][4]) {
#pragma unroll
  for (int k = 0; k < T::kQuerySteps; ++k) {
    const int offset = k / 4 * T::kBlockElements + k % 4 * 16;
    Multiply<false>(s, queries[k], keys.After(offset * static_cast<int>(sizeof(Bf16))), k > 0);
  }
  CommitProducts();
}

template <typename T>
__device__ __forceinline__ void ValueTile(const unsigned (&weights)[kTileKeys / 16][4],
                                          const SharedOperand& tile, bool add,
                                          float (&values)[T::kColumns][4]) {
#pragma unroll
  for (int n = 0; n < kTileKeys / 16; ++n) {
    Multiply<true>(values, weights[n], tile.After(n * 16 * kRowBytes), n > 0 || add);
  }
  CommitProducts();
}

__device__ __forceinline__ void PackTile(const float (&s)[kTileKeys / 8][4],
                                         unsigned (&weights)[kTileKeys / 16][4]) {
#pragma unroll
  for (int n = 0; n < kTileKeys / 16; ++n) PackWeights(s[2 * n], s[2 * n + 1], weights[n]);
}

// What a warp works on, made again wherever it is needed: registers are short.
__device__ __forceinline__ Work GetJob(const CudaAttentionParams& p, const Job& job, int kv_head) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  return GetWork(p, job.item, job.span, kv_head, kItemQueries, warp);
}

// A warpgroup's tiles [first, last) of an item. `place`: of the first; afterwards of the one behind
// them.
template <typename T>
__device__ __forceinline__ void MultiplyTiles(const CudaAttentionParams& p, const Job& job,
                                              int kv_head, int first, int last,
                                              WideShared<T>& shared,
                                              unsigned (&queries)[T::kQuerySteps][4],
                                              Place<T>& place) {
  Barriers<T>& barriers = shared.barriers;
  const SharedOperand first_keys = RowsOperand(shared.tiles[0][0]);
  const SharedOperand first_values = ColumnsOperand(shared.tiles[0][1], kTileKeys * kRowBytes);
  float s[kTileKeys / 8][4];
  float values[T::kColumns][4];
  unsigned weights[kTileKeys / 16][4];
  float rescale[2];
  RowStats chunk, total;
  FoldedValues<T::kColumns, T::kHeld, kProductThreads> folded;
  folded.shared = shared.folded;
  folded.Clear();
  ClearValues(values);
  int whole_begin, whole_end;
  {
    const Work w = GetJob(p, job, kv_head);
    whole_begin = w.whole_begin;
    whole_end = w.whole_end;
  }

  WaitForPhase(&barriers.full_keys[place.stage], place.parity);
  Settle(queries);
  BeginProducts();
  ScoreTile<T>(queries, first_keys.After(place.stage * 2 * T::kTileBytes), s);
  WaitProducts<0>();
  Settle(s);
  Release(&barriers.empty_keys[place.stage]);
  if (SeenInPart(first, whole_begin, whole_end)) HideUnseen(p, GetJob(p, job, kv_head), first, s);
  Weigh(p, s, chunk, rescale);
  PackTile(s, weights);
  place.Next();
  for (int tile = first + 1; tile < last; ++tile) {
    const Place<T> before = place.Previous();
    WaitForPhase(&barriers.full_values[before.stage], before.parity);
    WaitForPhase(&barriers.full_keys[place.stage], place.parity);
    Settle(s);
    Settle(values);
    Settle(weights);
    BeginProducts();
    ScoreTile<T>(queries, first_keys.After(place.stage * 2 * T::kTileBytes), s);
    ValueTile<T>(weights, first_values.After(before.stage * 2 * T::kTileBytes),
                 (tile - 1) % kChunkTiles != 0, values);
    WaitProducts<1>();
    Settle(s);
    Release(&barriers.empty_keys[place.stage]);
    const bool new_chunk = tile % kChunkTiles == 0;
    FoldFactors factors;
    if (new_chunk) {
      factors = FoldStats(CloseChunk(p, chunk), total);
      chunk = {};
    }
    if (SeenInPart(tile, whole_begin, whole_end)) HideUnseen(p, GetJob(p, job, kv_head), tile, s);
    Weigh(p, s, chunk, rescale);
    Settle(s);  // all weights beside the products
    WaitProducts<0>();
    Settle(values);
    Release(&barriers.empty_values[before.stage]);
    if (new_chunk) {
      folded.Add(factors, values);
    } else {
      Rescale(rescale, values);
    }
    PackTile(s, weights);
    place.Next();
  }
  const Place<T> before = place.Previous();
  WaitForPhase(&barriers.full_values[before.stage], before.parity);
  Settle(values);
  Settle(weights);
  BeginProducts();
  ValueTile<T>(weights, first_values.After(before.stage * 2 * T::kTileBytes),
               last - 1 > first && (last - 1) % kChunkTiles != 0, values);
  WaitProducts<0>();
  Settle(values);
  Release(&barriers.empty_values[before.stage]);
  folded.Add(FoldStats(CloseChunk(p, chunk), total), values);
  StoreOut<T::kColumns>(p, GetJob(p, job, kv_head), total, folded);
}

template <typename T>
__device__ __forceinline__ void MultiplyItems(const CudaAttentionParams& p, WideShared<T>& shared) {
  Barriers<T>& barriers = shared.barriers;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  Place<T> place;
  int parity = 0;
  Round round;
  for (int index, kv_head; round.Get(p, &index, &kv_head);) {
    WaitForPhase(&barriers.full_queries, parity);
    const Job& job = shared.jobs[parity];
    parity ^= 1;
    unsigned queries[T::kQuerySteps][4];
#pragma unroll
    for (int k = 0; k < T::kQuerySteps; ++k) {
      LoadQueryStep<T::kDim>(shared.queries + warp * kAttentionUnit * T::kDim, k * 16, queries[k]);
    }
    Arrive(&barriers.empty_queries);
    const Work w = GetJob(p, job, kv_head);
    const int first = w.item.chunk_begin * kChunkTiles;
    const int last = min(w.item.chunk_end * kChunkTiles, CeilDiv(w.kv_end, kTileKeys));
    // Of the item's tiles the warpgroup needs those that its own queries see.
    const int group_begin = w.item.query_begin + warp / kGroupWarps * kGroupQueries;
    const int group_last = min(group_begin + kGroupQueries, w.num_queries) - 1;
    int own = first;
    if (group_last >= group_begin) {
      own = min(last, CeilDiv(KvEnd(w.span, w.group, group_last), kTileKeys));
    }
    if (own > first) MultiplyTiles<T>(p, job, kv_head, first, own, shared, queries, place);
    for (int tile = max(own, first); tile < last; ++tile) {
      WaitForPhase(&barriers.full_keys[place.stage], place.parity);
      Release(&barriers.empty_keys[place.stage]);
      WaitForPhase(&barriers.full_values[place.stage], place.parity);
      Release(&barriers.empty_values[place.stage]);
      place.Next();
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 1)
    WarpgroupKernel(const __grid_constant__ WideParams<T> params) {
#if defined(PACELINE_CUDA_EMULATION) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  PACELINE_DYNAMIC_SHARED(shared);
  LetNextStart();
  auto& block = *reinterpret_cast<WideShared<T>*>(shared);
  Barriers<T>& barriers = block.barriers;
  if (threadIdx.x == 0) {
    for (int i = 0; i < T::kStages; ++i) {
      InitBarrier(&barriers.full_keys[i], 1);
      InitBarrier(&barriers.full_values[i], 1);
      InitBarrier(&barriers.empty_keys[i], kProductWarps);
      InitBarrier(&barriers.empty_values[i], kProductWarps);
    }
    InitBarrier(&barriers.full_queries, kQueryWarps * kWarp);
    InitBarrier(&barriers.empty_queries, kProductThreads);
    InitBarrier(&barriers.last_values, 1);
    FenceBarriers();
    FetchMap(&params.keys);
    FetchMap(&params.values);
  }
  __syncthreads();
  WaitForPrevious();
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  if (warp >= kProductWarps) {
    ShrinkRegisters<40>();
    if (warp == kProductWarps) {
      LoadTiles<T, false>(params, block);
    } else if (warp == kProductWarps + 1) {
      LoadTiles<T, true>(params, block);
    } else {
      LoadQueries<T>(params.a, block);
    }
  } else {
    GrowRegisters<232>();
    MultiplyItems<T>(params.a, block);
  }
#endif
}

// Of the current device. Ask once.
int Multiprocessors() {
  int device = 0, count = 1;
  if (cudaGetDevice(&device) != cudaSuccess) return 1;
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return count;
}

template <typename T>
cudaError_t LaunchWide(const CudaAttentionParams& p, cudaStream_t stream) {
  static const cudaError_t allowed = AllowShared(WarpgroupKernel<T>, sizeof(WideShared<T>));
  static const LaunchOrder order = OverlapIfAble(WarpgroupKernel<T>);
  static_assert(sizeof(WideShared<T>) <= size_t{227} << 10);
  if (allowed != cudaSuccess) return allowed;
  WideParams<T> params = {p, {}, {}};
  const int64_t rows = int64_t{p.shape.num_blocks} * p.shape.kv_heads * p.shape.block_size;
  cudaError_t error = MakeTensorMap(p.k_cache, rows, T::kDim, kPageKeys, &params.keys);
  if (error != cudaSuccess) return error;
  error = MakeTensorMap(p.v_cache, rows, T::kDim, kPageKeys, &params.values);
  if (error != cudaSuccess) return error;
  static const int processors = Multiprocessors();
  const int64_t works = int64_t{p.num_large_items} * p.shape.kv_heads;
  const dim3 grid(static_cast<unsigned>(std::min<int64_t>(works, processors)));
  return Launch(WarpgroupKernel<T>, grid, kThreads, sizeof(WideShared<T>), params, stream, order);
}

using Wide64 = WideTile<64, 8, 8>;
using Wide128 = WideTile<128, 5, 8>;

}  // namespace

bool HasWarpgroupAttention(const CudaAttentionParams& p) {
  if (p.portable || (p.shape.head_dim != 64 && p.shape.head_dim != 128)) return false;
  static const bool runs = RunsOnHopper(WarpgroupKernel<Wide128>);
  return runs;
}

cudaError_t WarpgroupAttention(const CudaAttentionParams& p, cudaStream_t stream) {
  static_assert(kItemQueries == LargeItemQueries(64) && kItemQueries == LargeItemQueries(128));
  if (p.num_large_items == 0) return cudaSuccess;
  return p.shape.head_dim == 64 ? LaunchWide<Wide64>(p, stream) : LaunchWide<Wide128>(p, stream);
}

}  // namespace paceline::kernels
