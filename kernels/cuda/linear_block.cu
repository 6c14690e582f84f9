// The path of many rows. A block computes kBlockN rows of W times kBlockM rows of x; tiles of both
// stream through a ring of shared memory by cp.async, zeros standing in beyond M, N and K. A warp
// walks the slices of K one after another.
#include "kernels/cuda/linear_order.cuh"
#include "kernels/cuda/linear_paths.h"
#include "kernels/cuda/linear_store.cuh"

namespace paceline::kernels {
namespace {

// Warps stand kWarpsN x kWarpsM; a warp computes kTilesN x kTilesM tiles of 16 rows of W x 8 of x.
template <int kWarpsN_, int kWarpsM_, int kTilesN_, int kTilesM_, int kStages_>
struct Tile {
  static constexpr int kWarpsN = kWarpsN_, kWarpsM = kWarpsM_;
  static constexpr int kTilesN = kTilesN_, kTilesM = kTilesM_;
  static constexpr int kStages = kStages_;
  static constexpr int kThreads = kWarpsN * kWarpsM * kWarp;
  static constexpr int kBlockN = kWarpsN * kTilesN * 16;
  static constexpr int kBlockM = kWarpsM * kTilesM * 8;
  static constexpr int kStageElements = (kBlockN + kBlockM) * kStageK;
  static constexpr size_t kSharedBytes = size_t{kStages} * kStageElements * sizeof(Bf16);
};

// Where 16 bytes of a row lie: the same vector of eight rows touches every bank once.
__device__ __forceinline__ int Swizzled(int row, int vector) {
  return row * kStageK + (vector ^ (row & 7)) * 8;
}

// Rows [begin, begin + kRows) x columns [k, k + kStageK) of a matrix [rows, p.k] to shared memory.
template <int kRows, int kThreads>
__device__ __forceinline__ void LoadTile(const Bf16* matrix, int rows, int width, int begin, int k,
                                         Bf16* shared) {
  constexpr int kVectors = kStageK / 8;
#pragma unroll
  for (int i = static_cast<int>(threadIdx.x); i < kRows * kVectors; i += kThreads) {
    const int row = i / kVectors;
    const int vector = i % kVectors;
    const bool valid = begin + row < rows && k + vector * 8 < width;
    const Bf16* from = valid ? matrix + int64_t{begin + row} * width + k + vector * 8 : matrix;
    CopyAsync16(shared + Swizzled(row, vector), from, valid);
  }
}

template <typename T>
__global__ void __launch_bounds__(T::kThreads) TileKernel(CudaLinearParams p) {
  PACELINE_DYNAMIC_SHARED(shared_bytes);
  Bf16* const shared = reinterpret_cast<Bf16*>(shared_bytes);
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int warp_n = warp % T::kWarpsN * T::kTilesN * 16;
  const int warp_m = warp / T::kWarpsN * T::kTilesM * 8;
  const int block_m = static_cast<int>(blockIdx.x) * T::kBlockM;
  const int block_n = static_cast<int>(blockIdx.y) * T::kBlockN;
  const int steps = CeilDiv(p.k, kStageK);
  const int slice_steps = SliceStages(p.k);

  LetNextStart();
  WaitForPrevious();
  const auto load = [&](int step) {
    if (step < steps) {
      Bf16* stage = shared + step % T::kStages * T::kStageElements;
      LoadTile<T::kBlockN, T::kThreads>(p.w, p.n, p.k, block_n, step * kStageK, stage);
      LoadTile<T::kBlockM, T::kThreads>(p.x, p.m, p.k, block_m, step * kStageK,
                                        stage + T::kBlockN * kStageK);
    }
    CommitCopies();  // an empty group keeps the count
  };
#pragma unroll
  for (int step = 0; step < T::kStages - 1; ++step) load(step);

  float totals[T::kTilesN][T::kTilesM][4] = {};
  float sums[T::kTilesN][T::kTilesM][4] = {};  // of the slice in hand
  int left = slice_steps;
  for (int step = 0; step < steps; ++step) {
    WaitCopies<T::kStages - 2>();  // this thread's part of the stage is there
    __syncthreads();               // everyone's is, and the stage read last is free
    load(step + T::kStages - 1);
    const Bf16* w_stage = shared + step % T::kStages * T::kStageElements;
    const Bf16* x_stage = w_stage + T::kBlockN * kStageK;
#pragma unroll
    for (int product = 0; product < kStageK / 16; ++product) {
      const auto load_matrices = [&](const Bf16* stage, int row, int half, unsigned(&to)[4]) {
        LoadMatrices<false>(to, stage + Swizzled(row, product * 2 + half));
      };
      unsigned w[T::kTilesN][4];
#pragma unroll
      for (int i = 0; i < T::kTilesN; ++i) {
        load_matrices(w_stage, warp_n + i * 16 + lane % 16, lane / 16, w[i]);
      }
#pragma unroll
      for (int j = 0; j < T::kTilesM; j += 2) {
        unsigned x[4];  // two tiles
        load_matrices(x_stage, warp_m + (j + lane / 16) * 8 + lane % 8, lane / 8 % 2, x);
#pragma unroll
        for (int i = 0; i < T::kTilesN; ++i) {
          MmaBf16(sums[i][j], w[i], {x[0], x[1]});
          MmaBf16(sums[i][j + 1], w[i], {x[2], x[3]});
        }
      }
    }
    if (--left == 0 || step == steps - 1) {
      left = slice_steps;
#pragma unroll
      for (int i = 0; i < T::kTilesN; ++i) {
#pragma unroll
        for (int j = 0; j < T::kTilesM; ++j) {
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            totals[i][j][c] = __fadd_rn(totals[i][j][c], sums[i][j][c]);
            sums[i][j][c] = 0;
          }
        }
      }
    }
  }

  // A lane has one row of W for two rows of x; two neighbours exchange, so that each gets a pair of
  // rows of W for one row of x.
  const int row = lane / 4;
  const bool odd = row % 2 != 0;
#pragma unroll
  for (int i = 0; i < T::kTilesN; ++i) {
#pragma unroll
    for (int j = 0; j < T::kTilesM; ++j) {
      const int m = block_m + warp_m + j * 8 + lane % 4 * 2 + odd;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int n = block_n + warp_n + i * 16 + half * 8 + row - odd;
        const float even_m = totals[i][j][half * 2], odd_m = totals[i][j][half * 2 + 1];
        const float other = __shfl_xor_sync(kAllLanes, odd ? even_m : odd_m, 4);
        if (m < p.m) StorePair(p, m, n, odd ? other : even_m, odd ? odd_m : other);
      }
    }
  }
}

template <typename T>
cudaError_t LaunchTile(const CudaLinearParams& p, cudaStream_t stream) {
  static const cudaError_t allowed = AllowShared(TileKernel<T>, T::kSharedBytes);
  if (allowed != cudaSuccess) return allowed;
  const dim3 grid(static_cast<unsigned>(CeilDiv(p.m, T::kBlockM)),
                  static_cast<unsigned>(CeilDiv(p.n, T::kBlockN)));
  if (grid.y > 65535) return cudaErrorInvalidValue;
  static const LaunchOrder order = OverlapIfAble(TileKernel<T>);
  return Launch(TileKernel<T>, grid, T::kThreads, T::kSharedBytes, p, stream, order);
}

}  // namespace

cudaError_t BlockLinear(const CudaLinearParams& p, cudaStream_t stream) {
  return LaunchTile<Tile<2, 4, 4, 4, 4>>(p, stream);  // W 128 x x 128
}

}  // namespace paceline::kernels
