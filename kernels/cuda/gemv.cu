// The path of few rows: a warp reads two rows of W in 16-byte pieces, each once, and multiplies
// them with all M rows of x. A lane sums its pieces in ascending k, the lanes' sums meet in a
// butterfly: the same order for every M.
#include "kernels/cuda/linear_store.cuh"

namespace paceline::kernels {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarp;
constexpr int kRowsPerWarp = 2;

template <int M>
__global__ void __launch_bounds__(kThreads) GemvKernel(CudaLinearParams p) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t warp = int64_t{blockIdx.x} * kWarps + static_cast<int>(threadIdx.x) / kWarp;
  const int64_t n = warp * kRowsPerWarp;
  if (n >= p.n) return;  // whole warps
  // Where N is odd the last warp reads its row twice and drops the second sum.
  const Bf16* w0 = p.w + n * p.k;
  const Bf16* w1 = n + 1 < p.n ? w0 + p.k : w0;
  float sums[M][kRowsPerWarp] = {};
#pragma unroll 4
  for (int k = lane * 8; k < p.k; k += kWarp * 8) {
    float a[8], b[8];
    Unpack8(__ldcs(reinterpret_cast<const uint4*>(w0 + k)), a);
    Unpack8(__ldcs(reinterpret_cast<const uint4*>(w1 + k)), b);
#pragma unroll
    for (int m = 0; m < M; ++m) {
      float x[8];
      Unpack8(*reinterpret_cast<const uint4*>(p.x + int64_t{m} * p.k + k), x);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        sums[m][0] = __fmaf_rn(a[i], x[i], sums[m][0]);
        sums[m][1] = __fmaf_rn(b[i], x[i], sums[m][1]);
      }
    }
  }
#pragma unroll
  for (int m = 0; m < M; ++m) {
    const float first = WarpSum(sums[m][0]);
    const float second = WarpSum(sums[m][1]);
    if (lane == 0) StorePair(p, m, static_cast<int>(n), first, second);
  }
}

}  // namespace

cudaError_t CudaGemv(const CudaLinearParams& p, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(CeilDiv<int64_t>(p.n, int64_t{kWarps} * kRowsPerWarp));
  switch (p.m) {
    case 1:
      return Launch(GemvKernel<1>, dim3(blocks), kThreads, 0, p, stream);
    case 2:
      return Launch(GemvKernel<2>, dim3(blocks), kThreads, 0, p, stream);
    case 3:
      return Launch(GemvKernel<3>, dim3(blocks), kThreads, 0, p, stream);
    case 4:
      return Launch(GemvKernel<4>, dim3(blocks), kThreads, 0, p, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace paceline::kernels
