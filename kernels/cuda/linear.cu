// The path of tensor cores. A block computes kBlockM x kBlockN of y; tiles of x and W stream
// through a ring of shared memory by cp.async, zeros standing in beyond M, N and K. Each
// accumulator is one chain of products over k in steps of 16, ascending: no split of K, the same
// for every tile size.
#include "kernels/cuda/linear_store.cuh"
#include "kernels/cuda/mma.cuh"

namespace paceline::kernels {
namespace {

constexpr int kThreads = 128;
constexpr int kBlockK = 64;
constexpr int kStride = kBlockK + 8;  // rows shift by 16 bytes: ldmatrix without bank conflicts

// Warps stand kWarpsM x kWarpsN; a warp computes kTilesM x kTilesN tiles of 16 x 8.
template <int kWarpsM_, int kWarpsN_, int kTilesM_, int kTilesN_, int kStages_>
struct Tile {
  static constexpr int kWarpsM = kWarpsM_, kWarpsN = kWarpsN_;
  static constexpr int kTilesM = kTilesM_, kTilesN = kTilesN_;
  static constexpr int kStages = kStages_;
  static constexpr int kBlockM = kWarpsM * kTilesM * 16;
  static constexpr int kBlockN = kWarpsN * kTilesN * 8;
  static constexpr int kStageElements = (kBlockM + kBlockN) * kStride;
  static constexpr size_t kSharedBytes = size_t{kStages} * kStageElements * sizeof(Bf16);
  static_assert(kWarpsM * kWarpsN * kWarp == kThreads);
};
using SmallTile = Tile<1, 4, 1, 1, 6>;   // 16 x 32: few rows, W streams through many blocks
using MediumTile = Tile<2, 2, 2, 4, 5>;  // 64 x 64: larger batches of decode rows
using LargeTile = Tile<2, 2, 2, 8, 3>;   // 64 x 128: prefill
static_assert(MediumTile::kSharedBytes <= size_t{99} << 10);
static_assert(LargeTile::kSharedBytes <= size_t{99} << 10);  // two blocks of sm_90, one of sm_80

// Rows [begin, begin + kRows) x columns [k, k + kBlockK) of a matrix [rows, p.k] to shared memory.
template <int kRows>
__device__ __forceinline__ void LoadTile(const Bf16* matrix, int rows, int width, int begin, int k,
                                         Bf16* shared) {
  constexpr int kVectors = kBlockK / 8;
#pragma unroll
  for (int i = static_cast<int>(threadIdx.x); i < kRows * kVectors; i += kThreads) {
    const int row = i / kVectors;
    const int column = i % kVectors * 8;
    const bool valid = begin + row < rows && k + column < width;
    const Bf16* from = valid ? matrix + int64_t{begin + row} * width + k + column : matrix;
    CopyAsync16(shared + row * kStride + column, from, valid);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) TileKernel(CudaLinearParams p) {
  PACELINE_DYNAMIC_SHARED(shared_bytes);
  Bf16* const shared = reinterpret_cast<Bf16*>(shared_bytes);
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int warp_m = warp % T::kWarpsM * T::kTilesM * 16;
  const int warp_n = warp / T::kWarpsM * T::kTilesN * 8;
  const int block_m = static_cast<int>(blockIdx.x) * T::kBlockM;
  const int block_n = static_cast<int>(blockIdx.y) * T::kBlockN;
  const int steps = CeilDiv(p.k, kBlockK);

  const auto load = [&](int step) {
    if (step < steps) {
      Bf16* stage = shared + step % T::kStages * T::kStageElements;
      LoadTile<T::kBlockM>(p.x, p.m, p.k, block_m, step * kBlockK, stage);
      LoadTile<T::kBlockN>(p.w, p.n, p.k, block_n, step * kBlockK, stage + T::kBlockM * kStride);
    }
    CommitCopies();  // an empty group keeps the count
  };
#pragma unroll
  for (int step = 0; step < T::kStages - 1; ++step) load(step);

  float sums[T::kTilesM][T::kTilesN][4] = {};
  for (int step = 0; step < steps; ++step) {
    WaitCopies<T::kStages - 2>();  // this thread's part of the stage is there
    __syncthreads();               // everyone's is, and the stage read last is free
    load(step + T::kStages - 1);
    const Bf16* a_stage = shared + step % T::kStages * T::kStageElements;
    const Bf16* b_stage = a_stage + T::kBlockM * kStride;
#pragma unroll
    for (int k = 0; k < kBlockK; k += 32) {
      unsigned b[T::kTilesN][4];  // two steps of 16
#pragma unroll
      for (int j = 0; j < T::kTilesN; ++j) {
        const int row = warp_n + j * 8 + lane % 8;
        LoadMatrices<false>(b[j], b_stage + row * kStride + k + lane / 8 * 8);
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int i = 0; i < T::kTilesM; ++i) {
          unsigned a[4];
          const int row = warp_m + i * 16 + lane % 16;
          LoadMatrices<false>(a, a_stage + row * kStride + k + half * 16 + lane / 16 * 8);
#pragma unroll
          for (int j = 0; j < T::kTilesN; ++j) {
            const unsigned pair[2] = {b[j][half * 2], b[j][half * 2 + 1]};
            MmaBf16(sums[i][j], a, pair);
          }
        }
      }
    }
  }

#pragma unroll
  for (int i = 0; i < T::kTilesM; ++i) {
#pragma unroll
    for (int j = 0; j < T::kTilesN; ++j) {
      const int m = block_m + warp_m + i * 16 + lane / 4;
      const int n = block_n + warp_n + j * 8 + lane % 4 * 2;
      if (m < p.m) StorePair(p, m, n, sums[i][j][0], sums[i][j][1]);
      if (m + 8 < p.m) StorePair(p, m + 8, n, sums[i][j][2], sums[i][j][3]);
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
  return Launch(TileKernel<T>, grid, kThreads, T::kSharedBytes, p, stream);
}

bool Valid(const CudaLinearParams& p) {
  if (p.m < 0 || p.n <= 0 || p.k <= 0 || p.k % 8 != 0) return false;
  const bool bf16 = p.output == CudaLinearOutput::kBf16 || p.output == CudaLinearOutput::kSwiGlu;
  if (p.output == CudaLinearOutput::kSwiGlu && (p.n % 2 != 0 || p.bias != nullptr)) return false;
  return p.w != nullptr && p.x != nullptr && (bf16 ? p.y_bf16 != nullptr : p.y_f32 != nullptr);
}

}  // namespace

cudaError_t CudaTileLinear(const CudaLinearParams& p, CudaTile tile, cudaStream_t stream) {
  switch (tile) {
    case CudaTile::kSmall:
      return LaunchTile<SmallTile>(p, stream);
    case CudaTile::kMedium:
      return LaunchTile<MediumTile>(p, stream);
    case CudaTile::kLarge:
      return LaunchTile<LargeTile>(p, stream);
  }
  return cudaErrorInvalidValue;
}

cudaError_t CudaLinear(const CudaLinearParams& p, cudaStream_t stream) {
  if (p.m == 0) return cudaSuccess;
  if (!Valid(p)) return cudaErrorInvalidValue;
  if (p.path == CudaLinearPath::kBySize && p.m <= kMaxGemvRows) return CudaGemv(p, stream);
  const CudaTile tile = p.m <= 16    ? CudaTile::kSmall
                        : p.m <= 128 ? CudaTile::kMedium
                                     : CudaTile::kLarge;
  return CudaTileLinear(p, tile, stream);
}

}  // namespace paceline::kernels
