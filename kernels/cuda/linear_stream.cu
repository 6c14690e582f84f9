// The path of few rows: bound by the stream of W from memory. A block computes 16 kRowTiles rows of
// W times 8 kColumnTiles rows of x; each of its eight warps takes one slice of K and loads W
// straight into the fragments of mma, kDepth groups of 32 columns ahead, so no barrier stands in
// the stream. x comes from the caches the same way. The slices' sums meet in shared memory.
#include "kernels/cuda/linear_order.cuh"
#include "kernels/cuda/linear_paths.h"
#include "kernels/cuda/linear_store.cuh"

namespace paceline::kernels {
namespace {

constexpr int kThreads = kSlices * kWarp;
constexpr int kGroupK = 32;

// One load brings lane t of four columns 8t .. 8t + 7 of a group's 32, all of one product of 16.
// Lanes t and t ^ 2 change halves, so that each has four columns of either product. Straight-line
// code alone: where the compiler fears that lanes part, it guards each exchange.
__device__ __forceinline__ uint4 Exchanged(const uint4& loaded, bool upper) {
  const unsigned x = __shfl_xor_sync(kAllLanes, upper ? loaded.x : loaded.z, 2);
  const unsigned y = __shfl_xor_sync(kAllLanes, upper ? loaded.y : loaded.w, 2);
  return upper ? make_uint4(x, y, loaded.z, loaded.w) : make_uint4(loaded.x, loaded.y, x, y);
}

// c[16 rows of W, 8 rows of x] += one group. With g = lane / 4: low and high hold rows g and g + 8
// of W, x row g of x.
__device__ __forceinline__ void MmaGroup(float (&c)[4], const uint4& low, const uint4& high,
                                         const uint4& x) {
  const unsigned a_first[4] = {low.x, high.x, low.y, high.y};
  const unsigned b_first[2] = {x.x, x.y};
  MmaBf16(c, a_first, b_first);
  const unsigned a_second[4] = {low.z, high.z, low.w, high.w};
  const unsigned b_second[2] = {x.z, x.w};
  MmaBf16(c, a_second, b_second);
}

template <int kRowTiles_, int kColumnTiles_, int kDepth_, int kBlocks_>
struct Stream {
  static constexpr int kRowTiles = kRowTiles_, kColumnTiles = kColumnTiles_;
  static constexpr int kDepth = kDepth_;
  static constexpr int kBlocks = kBlocks_;  // on a multiprocessor
  static constexpr int kBlockN = 16 * kRowTiles;
  static constexpr int kBlockM = 8 * kColumnTiles;
  static constexpr int kStride = kBlockN + 4;  // of sums in shared memory: no bank conflicts
  static constexpr size_t kSharedBytes = size_t{kSlices} * kBlockM * kStride * sizeof(float);
};

template <typename T>
__global__ void __launch_bounds__(kThreads, T::kBlocks) StreamKernel(CudaLinearParams p) {
  PACELINE_DYNAMIC_SHARED(shared_bytes);
  float* const shared = reinterpret_cast<float*>(shared_bytes);  // [slice, m, n]
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int slice = static_cast<int>(threadIdx.x) / kWarp;
  const int block_m = static_cast<int>(blockIdx.x) * T::kBlockM;
  const int block_n = static_cast<int>(blockIdx.y) * T::kBlockN;
  const int row = lane / 4;
  const bool upper = lane % 4 >= 2;
  const int begin = slice * SliceColumns(p.k);
  const int end = min(p.k, begin + SliceColumns(p.k));
  const int groups = begin < end ? CeilDiv(end - begin, kGroupK) : 0;
  const Bf16* const w_row = p.w + int64_t{block_n + row} * p.k + begin + lane % 4 * 8;
  const Bf16* const x_row = p.x + int64_t{block_m + row} * p.k + begin + lane % 4 * 8;
  const int columns = end - begin - lane % 4 * 8;  // that this lane may read, from its first

  uint4 w[T::kDepth][2 * T::kRowTiles];
  uint4 x[T::kDepth][T::kColumnTiles];
  const auto load_w = [&](int to, int group) {
    const bool inside = group * kGroupK < columns;
#pragma unroll
    for (int i = 0; i < 2 * T::kRowTiles; ++i) {
      const Bf16* from = w_row + int64_t{8 * i} * p.k + group * kGroupK;
      w[to][i] = inside && block_n + row + 8 * i < p.n
                     ? __ldcs(reinterpret_cast<const uint4*>(from))
                     : uint4{};
    }
  };
  const auto load_x = [&](int to, int group) {
    const bool inside = group * kGroupK < columns;
#pragma unroll
    for (int i = 0; i < T::kColumnTiles; ++i) {
      const Bf16* from = x_row + int64_t{8 * i} * p.k + group * kGroupK;
      x[to][i] =
          inside && block_m + row + 8 * i < p.m ? *reinterpret_cast<const uint4*>(from) : uint4{};
    }
  };
  LetNextStart();
#pragma unroll
  for (int i = 0; i < T::kDepth; ++i) load_w(i, i);
  WaitForPrevious();
#pragma unroll
  for (int i = 0; i < T::kDepth; ++i) load_x(i, i);

  float sums[T::kRowTiles][T::kColumnTiles][4] = {};
  for (int first = 0; first < groups; first += T::kDepth) {  // zeros beyond the slice's groups
#pragma unroll
    for (int i = 0; i < T::kDepth; ++i) {
      uint4 x_parts[T::kColumnTiles];
#pragma unroll
      for (int c = 0; c < T::kColumnTiles; ++c) x_parts[c] = Exchanged(x[i][c], upper);
#pragma unroll
      for (int r = 0; r < T::kRowTiles; ++r) {
        const uint4 low = Exchanged(w[i][2 * r], upper), high = Exchanged(w[i][2 * r + 1], upper);
#pragma unroll
        for (int c = 0; c < T::kColumnTiles; ++c) MmaGroup(sums[r][c], low, high, x_parts[c]);
      }
      load_w(i, first + i + T::kDepth);
      load_x(i, first + i + T::kDepth);
    }
  }

#pragma unroll
  for (int r = 0; r < T::kRowTiles; ++r) {
#pragma unroll
    for (int c = 0; c < T::kColumnTiles; ++c) {
      const int m = slice * T::kBlockM + c * 8 + lane % 4 * 2;
      float* to = shared + m * T::kStride + r * 16 + row;
      to[0] = sums[r][c][0];
      to[T::kStride] = sums[r][c][1];
      to[8] = sums[r][c][2];
      to[T::kStride + 8] = sums[r][c][3];
    }
  }
  __syncthreads();
  constexpr int kPairs = T::kBlockN / 2;
  for (int i = static_cast<int>(threadIdx.x); i < T::kBlockM * kPairs; i += kThreads) {
    const int m = i / kPairs;
    const int n = i % kPairs * 2;
    if (block_m + m >= p.m) return;
    float first = 0, second = 0;
#pragma unroll
    for (int s = 0; s < kSlices; ++s) {
      const float* from = shared + (s * T::kBlockM + m) * T::kStride + n;
      first = __fadd_rn(first, from[0]);
      second = __fadd_rn(second, from[1]);
    }
    StorePair(p, block_m + m, block_n + n, first, second);
  }
}

template <typename T>
cudaError_t LaunchStream(const CudaLinearParams& p, cudaStream_t stream) {
  static const cudaError_t allowed = AllowShared(StreamKernel<T>, T::kSharedBytes);
  if (allowed != cudaSuccess) return allowed;
  const dim3 grid(static_cast<unsigned>(CeilDiv(p.m, T::kBlockM)),
                  static_cast<unsigned>(CeilDiv(p.n, T::kBlockN)));
  if (grid.y > 65535) return cudaErrorInvalidValue;
  static const LaunchOrder order = OverlapIfAble(StreamKernel<T>);
  return Launch(StreamKernel<T>, grid, kThreads, T::kSharedBytes, p, stream, order);
}

}  // namespace

cudaError_t StreamLinear(const CudaLinearParams& p, CudaTile tile, cudaStream_t stream) {
  switch (tile) {
    case CudaTile::kStream8:
      return LaunchStream<Stream<1, 1, 8, 2>>(p, stream);
    case CudaTile::kStream16:
      return LaunchStream<Stream<1, 2, 4, 2>>(p, stream);
    case CudaTile::kStream32:
      return LaunchStream<Stream<2, 4, 2, 2>>(p, stream);
    case CudaTile::kStream64:
      return LaunchStream<Stream<3, 8, 1, 1>>(p, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace paceline::kernels
