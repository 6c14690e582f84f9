// The path of Hopper (sm_90a). A block computes tiles of 64 kGroups rows of x times 8 kTilesN rows of
// W, one after another. One thread has the copy engine bring stages of both into a ring of shared
// memory; kGroups warpgroups multiply them, 64 rows of x each, and hold the sums of the slice in hand
// and the totals in registers.
#include "kernels/cuda/linear_order.cuh"
#include "kernels/cuda/linear_paths.h"
#include "kernels/cuda/linear_store.cuh"
#include "kernels/cuda/mbarrier.cuh"
#include "kernels/cuda/wgmma.cuh"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 900 && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
#error "the CUDA backend takes Hopper as sm_90a"
#endif

namespace paceline::kernels {
namespace {

constexpr int kGroupThreads = 128;
constexpr int kBand = 16;  // tiles of x that pass while a tile of W stays in L2

struct WgmmaParams {
  TensorMap w, x;
  CudaLinearParams linear;
};

template <int kGroups_, int kTilesN_, int kStages_, int kBlocks_>
struct Tile {
  static constexpr int kGroups = kGroups_, kTilesN = kTilesN_, kStages = kStages_;
  static constexpr int kBlocks = kBlocks_;  // on a multiprocessor
  static constexpr int kBlockM = 64 * kGroups, kBlockN = 8 * kTilesN;
  static constexpr int kThreads = (kGroups + 1) * kGroupThreads;
  static constexpr int kElementsW = kBlockN * kStageK, kElementsX = kBlockM * kStageK;
  static constexpr int kStageElements = kElementsW + kElementsX;
  static constexpr int kStageBytes = kStageElements * static_cast<int>(sizeof(Bf16));
  static constexpr size_t kSharedBytes = size_t{kStages} * kStageBytes + 1024;  // to align it
  // Of 65536 per multiprocessor, in multiples of 8: what the producer gives back, consumers take.
  static constexpr int kProducerRegisters = 40;
  static constexpr int kLaunchRegisters = 65536 / kBlocks / kThreads / 8 * 8;
  static constexpr int kConsumerRegisters =
      std::min(240, (kLaunchRegisters + (kLaunchRegisters - kProducerRegisters) / kGroups) / 8 * 8);
};

struct Place {
  int m, n;
};
template <typename T>
__device__ __forceinline__ Place PlaceOf(const CudaLinearParams& p, int tile) {
  const int tiles_m = CeilDiv(p.m, T::kBlockM), tiles_n = CeilDiv(p.n, T::kBlockN);
  const int band = tile / (kBand * tiles_n), within = tile % (kBand * tiles_n);
  const int high = min(kBand, tiles_m - band * kBand);
  return {(band * kBand + within % high) * T::kBlockM, within / high * T::kBlockN};
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

// The thread that feeds the ring. W is nobody's output: its first stages are under way before the
// kernel before is done.
template <typename T>
__device__ __forceinline__ void Produce(const WgmmaParams& p, Bf16* stages, uint64_t* full,
                                        uint64_t* empty, int tiles) {
  const int steps = CeilDiv(p.linear.k, kStageK);
  const auto copy_w = [&](int slot, const Place& at, int step) {
    ArriveAndExpect(&full[slot], T::kStageBytes);
    CopyBox(stages + slot * T::kStageElements, &p.w, step * kStageK, at.n, &full[slot]);
  };
  const auto copy_x = [&](int slot, const Place& at, int step) {
    CopyBox(stages + slot * T::kStageElements + T::kElementsW, &p.x, step * kStageK, at.m,
            &full[slot]);
  };
  int tile = static_cast<int>(blockIdx.x);
  Place at = PlaceOf<T>(p.linear, tile);
  const int ahead = min(steps, T::kStages);
  for (int step = 0; step < ahead; ++step) copy_w(step, at, step);
  WaitForPrevious();
  Ring<T::kStages> ring;
  for (int step = 0; step < ahead; ++step, ring.Next()) copy_x(step, at, step);
  for (int step = ahead;; step = 0) {
    for (; step < steps; ++step, ring.Next()) {
      WaitForPhase(&empty[ring.slot], ring.parity ^ 1);
      copy_w(ring.slot, at, step);
      copy_x(ring.slot, at, step);
    }
    tile += static_cast<int>(gridDim.x);
    if (tile >= tiles) return;
    at = PlaceOf<T>(p.linear, tile);
  }
}

template <typename T>
__device__ __forceinline__ void StoreTile(const CudaLinearParams& p, const Place& at, int group,
                                          const float (&totals)[T::kTilesN][4]) {
  const int thread = static_cast<int>(threadIdx.x) % kGroupThreads;
  const int m = at.m + group * 64 + thread / kWarp * 16 + thread % kWarp / 4;
  const int n = at.n + thread % 4 * 2;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (m + half * 8 >= p.m) return;
#pragma unroll
    for (int j = 0; j < T::kTilesN; ++j) {
      StorePair(p, m + half * 8, n + j * 8, totals[j][half * 2], totals[j][half * 2 + 1]);
    }
  }
}

// A warpgroup's 64 rows of x.
template <typename T>
__device__ __forceinline__ void Consume(const WgmmaParams& p, int group, const Bf16* stages,
                                        uint64_t* full, uint64_t* empty, int tiles) {
  const int steps = CeilDiv(p.linear.k, kStageK);
  const int slice_steps = SliceStages(p.linear.k);
  const bool speaks = threadIdx.x % kWarp == 0;  // for its warp
  Ring<T::kStages> ring;
  float sums[T::kTilesN][4];
  WaitForPrevious();
  for (int tile = static_cast<int>(blockIdx.x); tile < tiles; tile += static_cast<int>(gridDim.x)) {
    float totals[T::kTilesN][4] = {};
    for (int begin = 0; begin < steps; begin += slice_steps) {
      const int count = min(slice_steps, steps - begin);
      int last = 0;  // the slot that products under way may still read
      for (int step = 0; step < count; ++step, ring.Next()) {
        WaitForPhase(&full[ring.slot], ring.parity);
        const Bf16* const w = stages + ring.slot * T::kStageElements;
        const Bf16* const x = w + T::kElementsW + group * 64 * kStageK;
        BeginProducts();
#pragma unroll
        for (int k = 0; k < kStageK; k += 16) {
          Multiply<false>(sums, RowsOperand(x + k), RowsOperand(w + k), step > 0 || k > 0);
        }
        CommitProducts();
        WaitProducts<1>();
        if (step > 0 && speaks) Arrive(&empty[last]);
        last = ring.slot;
      }
      WaitProducts<0>();
      Settle(sums);
      if (speaks) Arrive(&empty[last]);
#pragma unroll
      for (int j = 0; j < T::kTilesN; ++j) {
#pragma unroll
        for (int c = 0; c < 4; ++c) totals[j][c] = __fadd_rn(totals[j][c], sums[j][c]);
      }
    }
    StoreTile<T>(p.linear, PlaceOf<T>(p.linear, tile), group, totals);
  }
}

template <typename T>
__global__ void __launch_bounds__(T::kThreads, T::kBlocks)
    WgmmaKernel(const __grid_constant__ WgmmaParams p) {
#if defined(PACELINE_CUDA_EMULATION) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  PACELINE_DYNAMIC_SHARED(shared_bytes);
  __shared__ uint64_t full[T::kStages], empty[T::kStages];
  Bf16* const stages = reinterpret_cast<Bf16*>(
      shared_bytes + (1024 - reinterpret_cast<uintptr_t>(shared_bytes) % 1024) % 1024);
  const int group = static_cast<int>(threadIdx.x) / kGroupThreads;
  const int tiles = CeilDiv(p.linear.m, T::kBlockM) * CeilDiv(p.linear.n, T::kBlockN);
  if (threadIdx.x == 0) {
    for (int i = 0; i < T::kStages; ++i) {
      InitBarrier(&full[i], 1);
      InitBarrier(&empty[i], T::kGroups * kGroupThreads / kWarp);
    }
    FenceBarriers();
  }
  LetNextStart();
  __syncthreads();
  if (group == T::kGroups) {
    ShrinkRegisters<T::kProducerRegisters>();
    if (threadIdx.x % kGroupThreads == 0) Produce<T>(p, stages, full, empty, tiles);
  } else {
    GrowRegisters<T::kConsumerRegisters>();
    Consume<T>(p, group, stages, full, empty, tiles);
  }
#else
  static_cast<void>(p);
#endif
}

// Whether the device runs what was compiled for sm_90a.
template <typename Params>
bool RunsHere(void (*kernel)(Params)) {
#ifdef PACELINE_CUDA_EMULATION
  static_cast<void>(kernel);
  return true;
#else
  cudaFuncAttributes attributes = {};
  return cudaFuncGetAttributes(&attributes, kernel) == cudaSuccess &&
         attributes.binaryVersion == 90 && attributes.ptxVersion == 90;
#endif
}

int Multiprocessors() {
  int count = 1;
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, 0);
  return count;
}

template <typename T>
cudaError_t LaunchTile(const CudaLinearParams& p, cudaStream_t stream) {
  static const bool runs = RunsHere(WgmmaKernel<T>);
  if (!runs) return cudaErrorNotSupported;
  static const cudaError_t allowed = AllowShared(WgmmaKernel<T>, T::kSharedBytes);
  if (allowed != cudaSuccess) return allowed;
  WgmmaParams params = {};
  params.linear = p;
  cudaError_t error = MakeTensorMap(p.w, p.n, p.k, T::kBlockN, &params.w);
  if (error == cudaSuccess) error = MakeTensorMap(p.x, p.m, p.k, T::kBlockM, &params.x);
  if (error != cudaSuccess) return error;
  const int64_t tiles = int64_t{CeilDiv(p.m, T::kBlockM)} * CeilDiv(p.n, T::kBlockN);
  if (tiles > INT32_MAX) return cudaErrorInvalidValue;
  static const int at_once = Multiprocessors() * T::kBlocks;
  const dim3 grid(static_cast<unsigned>(std::min<int64_t>(tiles, at_once)));
  return Launch(WgmmaKernel<T>, grid, T::kThreads, T::kSharedBytes, params, stream,
                LaunchOrder::kOverlap);
}

}  // namespace

cudaError_t WgmmaLinear(const CudaLinearParams& p, CudaTile tile, cudaStream_t stream) {
  switch (tile) {
    case CudaTile::kWgmma64x128:
      return LaunchTile<Tile<1, 16, 4, 2>>(p, stream);
    case CudaTile::kWgmma128x128:
      return LaunchTile<Tile<2, 16, 6, 1>>(p, stream);
    case CudaTile::kWgmma128x192:
      return LaunchTile<Tile<2, 24, 5, 1>>(p, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace paceline::kernels
