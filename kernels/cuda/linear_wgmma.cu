// The path of Hopper (sm_90a). A block computes tiles of 64 kGroups rows of x times 8 kTilesN rows
// of W, one after another. One thread has the copy engine bring stages of both into a ring of
// shared memory; kGroups warpgroups multiply them, 64 rows of x each, and hold the sums of the
// slice in hand and the totals in registers.
//
// Blocks of a cluster work together in one of two ways. kPair = 2 take tiles of the same rows of W:
// each brings half of them to both, which spares L2, the bound of large products. kParts take the
// slices of one tile, an equal number each, where there are too few tiles for the multiprocessors;
// the slices' sums meet in shared memory, and each block adds and stores its part of the columns.
#include "kernels/cuda/cluster.cuh"
#include "kernels/cuda/linear_order.cuh"
#include "kernels/cuda/linear_paths.h"
#include "kernels/cuda/linear_store.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace paceline::kernels {
namespace {

#if defined(PACELINE_CUDA_EMULATION) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
constexpr bool kHopperCode = true;
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 900
#error "the CUDA backend takes Hopper as sm_90a"
#else
constexpr bool kHopperCode = false;  // empty kernels, never launched
#endif

constexpr int kGroupThreads = 128;
[[maybe_unused]] constexpr int kBand = 16;  // tiles of x that pass while a tile of W stays in L2

struct WgmmaParams {
  TensorMap w, x;
  CudaLinearParams linear;
};

template <int kGroups_, int kTilesN_, int kStages_, int kBlocks_, int kPair_, int kParts_>
struct Tile {
  static constexpr int kGroups = kGroups_, kTilesN = kTilesN_, kStages = kStages_;
  static constexpr int kBlocks = kBlocks_;  // on a multiprocessor
  static constexpr int kPair = kPair_, kParts = kParts_, kCluster = kPair * kParts;
  static constexpr int kHeld = kSlices / kParts;  // slices of a block
  static constexpr int kBlockM = 64 * kGroups, kBlockN = 8 * kTilesN;
  static constexpr int kConsumers = kGroups * kGroupThreads;
  static constexpr int kThreads = kConsumers + kGroupThreads;
  static constexpr int kElementsW = kBlockN * kStageK, kElementsX = kBlockM * kStageK;
  static constexpr int kStageElements = kElementsW + kElementsX;
  static constexpr int kStageBytes = kStageElements * static_cast<int>(sizeof(Bf16));
  // 1024 to align the ring, 256 for its barriers.
  static constexpr size_t kSharedBytes = size_t{kStages} * kStageBytes + 1024 + 256;
  static_assert(kPair == 1 || kParts == 1);
  static_assert(kStages * 2 * sizeof(uint64_t) <= 256);
  static_assert(kParts == 1 || kHeld * kTilesN * kConsumers * 16 <= kStages * kStageBytes);
  // Of 65536 per multiprocessor, in multiples of 8: what the producer gives back, consumers take.
  [[maybe_unused]] static constexpr int kProducerRegisters = 40;
  [[maybe_unused]] static constexpr int kLaunchRegisters = 65536 / kBlocks / kThreads / 8 * 8;
  [[maybe_unused]] static constexpr int kConsumerRegisters =
      std::min(240, (kLaunchRegisters + (kLaunchRegisters - kProducerRegisters) / kGroups) / 8 * 8);
};

struct Place {
  int m, n;
};
// Of a tile by its number; blocks of a pair take tiles one above the other.
template <typename T>
__device__ __forceinline__ Place PlaceOf(const CudaLinearParams& p, int tile) {
  const int tiles_m = CeilDiv(p.m, T::kBlockM * T::kPair) * T::kPair;
  const int tiles_n = CeilDiv(p.n, T::kBlockN);
  const int band = tile / (kBand * tiles_n), within = tile % (kBand * tiles_n);
  const int high = min(kBand, tiles_m - band * kBand);
  return {(band * kBand + within % high) * T::kBlockM, within / high * T::kBlockN};
}

// What this block does of the launch's tiles: those from `first` on, `stride` apart, each from
// stage `begin` to `end` of K.
struct Share {
  int first, stride, tiles, begin, end;
};
template <typename T>
__device__ __forceinline__ Share ShareOf(const CudaLinearParams& p) {
  const int steps = CeilDiv(p.k, kStageK);
  const int tiles = CeilDiv(p.m, T::kBlockM * T::kPair) * T::kPair * CeilDiv(p.n, T::kBlockN);
  const int block = static_cast<int>(blockIdx.x), blocks = static_cast<int>(gridDim.x);
  const int begin = block % T::kParts * T::kHeld * SliceStages(p.k);
  return {block / T::kParts, blocks / T::kParts, tiles, min(begin, steps),
          min(begin + T::kHeld * SliceStages(p.k), steps)};
}

// Where the ring stands.
template <int kStages>
struct Ring {
  int slot = 0, parity = 0;
  __device__ __forceinline__ void Next() {
    if (++slot == kStages) {
      slot = 0;
      parity ^= 1;
    }
  }
};

// The ring and its barriers: a stage is full when its bytes have come, empty when all warps that
// multiply it, of a pair's other block too, are done.
template <typename T>
struct Shared {
  Bf16* stages;
  uint64_t *full, *empty;

  __device__ __forceinline__ Bf16* W(int slot) const { return stages + slot * T::kStageElements; }
  __device__ __forceinline__ Bf16* X(int slot) const { return W(slot) + T::kElementsW; }
};

// The thread that feeds the ring. W is nobody's output: its first stages are under way before the
// kernel before is done.
template <typename T>
__device__ __forceinline__ void Produce(const WgmmaParams& p, const Shared<T>& shared,
                                        const Share& share) {
  const auto copy_w = [&](int slot, const Place& at, int step) {
    uint64_t* const full = &shared.full[slot];
    ArriveAndExpect(full, T::kStageBytes);
    if constexpr (T::kPair == 2) {
      const int half = ClusterRank() * (T::kBlockN / 2);
      CopyBoxToPair(shared.W(slot) + half * kStageK, &p.w, step * kStageK, at.n + half, full);
    } else {
      CopyBox(shared.W(slot), &p.w, step * kStageK, at.n, full);
    }
  };
  const auto copy_x = [&](int slot, const Place& at, int step) {
    CopyBox(shared.X(slot), &p.x, step * kStageK, at.m, &shared.full[slot]);
  };
  const int ahead = min(share.end - share.begin, T::kStages);
  Place at = PlaceOf<T>(p.linear, share.first);
  for (int i = 0; i < ahead; ++i) copy_w(i, at, share.begin + i);
  WaitForPrevious();
  Ring<T::kStages> ring;
  for (int i = 0; i < ahead; ++i, ring.Next()) copy_x(i, at, share.begin + i);
  int step = share.begin + ahead;
  for (int tile = share.first;;) {
    for (; step < share.end; ++step, ring.Next()) {
      WaitForPhase(&shared.empty[ring.slot], ring.parity ^ 1);
      copy_w(ring.slot, at, step);
      copy_x(ring.slot, at, step);
    }
    tile += share.stride;
    if (tile >= share.tiles) return;
    at = PlaceOf<T>(p.linear, tile);
    step = share.begin;
  }
}

// sums = the products of `count` stages, 64 rows of x (those of `group`) times all of W's.
template <typename T>
__device__ __forceinline__ void MultiplyStages(const Shared<T>& shared, int group, int count,
                                               Ring<T::kStages>& ring,
                                               float (&sums)[T::kTilesN][4]) {
  const auto release = [&](int slot) {
    if (threadIdx.x % kWarp != 0) return;
    Arrive(&shared.empty[slot]);
    if constexpr (T::kPair == 2) ArriveAtBlock(&shared.empty[slot], ClusterRank() ^ 1);
  };
  int last = 0;  // the slot that products under way may still read
  for (int step = 0; step < count; ++step, ring.Next()) {
    WaitForPhase(&shared.full[ring.slot], ring.parity);
    const Bf16* const w = shared.W(ring.slot);
    const Bf16* const x = shared.X(ring.slot) + group * 64 * kStageK;
    BeginProducts();
#pragma unroll
    for (int k = 0; k < kStageK; k += 16) {
      Multiply<false>(sums, RowsOperand(x + k), RowsOperand(w + k), step > 0 || k > 0);
    }
    CommitProducts();
    WaitProducts<1>();
    if (step > 0) release(last);
    last = ring.slot;
  }
  WaitProducts<0>();
  Settle(sums);
  if (count > 0) release(last);
}

// Columns 8 j and on of the thread's two rows.
template <typename T, CudaLinearOutput kOutput>
__device__ __forceinline__ void StoreColumns(const CudaLinearParams& p, const Place& at, int j,
                                             const float (&sums)[4]) {
  const int thread = static_cast<int>(threadIdx.x);
  const int m = at.m + thread / kWarp * 16 + thread % kWarp / 4;
  const int pair = at.n / 2 + j * 4 + thread % 4;
  if (m < p.m) StoreEven<kOutput>(p, m, pair, sums[0], sums[1]);
  if (m + 8 < p.m) StoreEven<kOutput>(p, m + 8, pair, sums[2], sums[3]);
}

template <typename T>
__device__ __forceinline__ void ConsumeTiles(const CudaLinearParams& p, const Shared<T>& shared,
                                             const Share& share) {
  const int group = static_cast<int>(threadIdx.x) / kGroupThreads;
  const int slice = SliceStages(p.k);
  Ring<T::kStages> ring;
  float sums[T::kTilesN][4];
  for (int tile = share.first; tile < share.tiles; tile += share.stride) {
    float totals[T::kTilesN][4] = {};
    for (int step = share.begin; step < share.end; step += slice) {
      MultiplyStages<T>(shared, group, min(slice, share.end - step), ring, sums);
#pragma unroll
      for (int j = 0; j < T::kTilesN; ++j) {
#pragma unroll
        for (int c = 0; c < 4; ++c) totals[j][c] = __fadd_rn(totals[j][c], sums[j][c]);
      }
    }
    const Place at = PlaceOf<T>(p, tile);
    ForOutput(p.output, [&]<CudaLinearOutput kOutput>() {
#pragma unroll
      for (int j = 0; j < T::kTilesN; ++j) {
        StoreColumns<T, kOutput>(p, at, j, totals[j]);
        if (j % 4 == 3)
          __syncwarp();  // what the stores read is not read earlier: registers are few
      }
    });
  }
}

// The block's slices of one tile, then its columns of all slices.
template <typename T>
__device__ __forceinline__ void ConsumeSlices(const CudaLinearParams& p, const Shared<T>& shared,
                                              const Share& share) {
  const int thread = static_cast<int>(threadIdx.x);
  const int slice = SliceStages(p.k);
  Ring<T::kStages> ring;
  float sums[T::kHeld][T::kTilesN][4];
#pragma unroll
  for (int h = 0; h < T::kHeld; ++h) {
    const int count = max(0, min(slice, share.end - share.begin - h * slice));
    MultiplyStages<T>(shared, thread / kGroupThreads, count, ring, sums[h]);
  }
  // [slice of the block, 8 columns, thread], where the stages were.
  float4* const held = reinterpret_cast<float4*>(shared.stages);
  SyncWarps(1, T::kConsumers);
#pragma unroll
  for (int h = 0; h < T::kHeld; ++h) {
    const bool none = share.begin + h * slice >= share.end;
#pragma unroll
    for (int j = 0; j < T::kTilesN; ++j) {
      const float(&s)[4] = sums[h][j];
      held[(h * T::kTilesN + j) * T::kConsumers + thread] =
          none ? make_float4(0, 0, 0, 0) : make_float4(s[0], s[1], s[2], s[3]);
    }
  }
  SyncCluster();
  constexpr int kOwn = T::kTilesN / T::kParts;
  const Place at = PlaceOf<T>(p, share.first);
  const int first = ClusterRank() * kOwn;
#pragma unroll
  for (int j = first; j < first + kOwn; ++j) {
    float total[4] = {};
#pragma unroll
    for (int s = 0; s < kSlices; ++s) {
      const float4* const from = SharedOfBlock(held, s / T::kHeld);
      const float4 sum = from[(s % T::kHeld * T::kTilesN + j) * T::kConsumers + thread];
      total[0] = __fadd_rn(total[0], sum.x);
      total[1] = __fadd_rn(total[1], sum.y);
      total[2] = __fadd_rn(total[2], sum.z);
      total[3] = __fadd_rn(total[3], sum.w);
    }
    ForOutput(p.output,
              [&]<CudaLinearOutput kOutput>() { StoreColumns<T, kOutput>(p, at, j, total); });
  }
}

template <typename T>
__device__ __forceinline__ void RunBlock(const WgmmaParams& p) {
  PACELINE_DYNAMIC_SHARED(shared_bytes);
  Shared<T> shared;
  shared.stages = reinterpret_cast<Bf16*>(
      shared_bytes + (1024 - reinterpret_cast<uintptr_t>(shared_bytes) % 1024) % 1024);
  shared.full = reinterpret_cast<uint64_t*>(shared.W(T::kStages));
  shared.empty = shared.full + T::kStages;
  if (threadIdx.x == 0) {
    for (int i = 0; i < T::kStages; ++i) {
      InitBarrier(&shared.full[i], 1);
      InitBarrier(&shared.empty[i], T::kPair * T::kConsumers / kWarp);
    }
    FenceBarriers();
  }
  LetNextStart();
  if constexpr (T::kPair > 1) {
    SyncCluster();
  } else {
    __syncthreads();
  }
  const Share share = ShareOf<T>(p.linear);
  if (threadIdx.x >= T::kConsumers) {
    ShrinkRegisters<T::kProducerRegisters>();
    if (threadIdx.x == T::kConsumers) Produce<T>(p, shared, share);
    if constexpr (T::kParts > 1) SyncCluster();
  } else {
    GrowRegisters<T::kConsumerRegisters>();
    WaitForPrevious();
    if constexpr (T::kParts > 1) {
      ConsumeSlices<T>(p.linear, shared, share);
    } else {
      ConsumeTiles<T>(p.linear, shared, share);
    }
  }
  if constexpr (T::kCluster > 1) SyncCluster();  // others may still read or fill this memory
}

template <typename T>
__global__ void __launch_bounds__(T::kThreads, T::kBlocks)
    WgmmaKernel(const __grid_constant__ WgmmaParams p) {
  if constexpr (kHopperCode) RunBlock<T>(p);
}

// Blocks that run at the same time, in whole clusters.
template <typename T>
int BlocksAtOnce() {
#ifdef PACELINE_CUDA_EMULATION
  return 4;
#else
  cudaLaunchAttribute cluster = {};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = T::kCluster;
  cluster.val.clusterDim.y = 1;
  cluster.val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(T::kCluster);
  config.blockDim = dim3(T::kThreads);
  config.dynamicSmemBytes = T::kSharedBytes;
  config.attrs = &cluster;
  config.numAttrs = 1;
  int clusters = 0;
  const cudaError_t error = cudaOccupancyMaxActiveClusters(&clusters, WgmmaKernel<T>, &config);
  return error == cudaSuccess ? std::max(1, clusters) * T::kCluster : T::kCluster;
#endif
}

template <typename T>
cudaError_t LaunchTile(const CudaLinearParams& p, cudaStream_t stream) {
  static const bool runs = RunsOnHopper(WgmmaKernel<T>);
  if (!runs || p.n % 2 != 0) return cudaErrorNotSupported;
  static const cudaError_t allowed = AllowShared(WgmmaKernel<T>, T::kSharedBytes);
  if (allowed != cudaSuccess) return allowed;
  WgmmaParams params = {};
  params.linear = p;
  cudaError_t error = MakeTensorMap(p.w, p.n, p.k, T::kBlockN / T::kPair, &params.w);
  if (error == cudaSuccess) error = MakeTensorMap(p.x, p.m, p.k, T::kBlockM, &params.x);
  if (error != cudaSuccess) return error;
  const int64_t tiles =
      int64_t{CeilDiv(p.m, T::kBlockM * T::kPair)} * T::kPair * CeilDiv(p.n, T::kBlockN);
  if (tiles > INT32_MAX / kSlices) return cudaErrorInvalidValue;
  static const int at_once = BlocksAtOnce<T>();
  const int64_t blocks = T::kParts > 1 ? tiles * T::kParts : std::min<int64_t>(tiles, at_once);
  const dim3 grid(static_cast<unsigned>(blocks));
  return Launch(WgmmaKernel<T>, grid, T::kThreads, T::kSharedBytes, params, stream,
                LaunchOrder::kOverlap, T::kCluster);
}

}  // namespace

cudaError_t WgmmaLinear(const CudaLinearParams& p, CudaTile tile, cudaStream_t stream) {
  switch (tile) {
    case CudaTile::kWgmma64x128:
      return LaunchTile<Tile<1, 16, 4, 2, 1, 1>>(p, stream);
    case CudaTile::kWgmma64x128Parts4:
      return LaunchTile<Tile<1, 16, 4, 2, 1, 4>>(p, stream);
    case CudaTile::kWgmma128x128Parts4:
      return LaunchTile<Tile<2, 16, 6, 1, 1, 4>>(p, stream);
    case CudaTile::kWgmma128x128:
      return LaunchTile<Tile<2, 16, 6, 1, 1, 1>>(p, stream);
    case CudaTile::kWgmma128x128Pair:
      return LaunchTile<Tile<2, 16, 6, 1, 2, 1>>(p, stream);
    case CudaTile::kWgmma128x192Pair:
      return LaunchTile<Tile<2, 24, 5, 1, 2, 1>>(p, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace paceline::kernels
