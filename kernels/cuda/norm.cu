#include "kernels/cuda/norm.h"

#include "kernels/cuda/launch.cuh"

namespace paceline::kernels {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads) RmsNormKernel(CudaRmsNormParams p) {
  __shared__ float warp_sums[kThreads / kWarp];
  const int thread = static_cast<int>(threadIdx.x);
  const int32_t row = static_cast<int32_t>(blockIdx.x);
  const float* x = p.x + int64_t{p.from != nullptr ? p.from[row] : row} * p.dim;
  float sum = 0;
  for (int i = thread * 4; i < p.dim; i += kThreads * 4) {
    const float4 v = *reinterpret_cast<const float4*>(x + i);
    sum += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
  }
  sum = WarpSum(sum);
  if (thread % kWarp == 0) warp_sums[thread / kWarp] = sum;
  __syncthreads();
  float total = 0;
  for (int w = 0; w < kThreads / kWarp; ++w) total += warp_sums[w];
  const float scale = 1.0f / sqrtf(total / static_cast<float>(p.dim) + p.eps);
  Bf16* y = p.y + int64_t{row} * p.dim;
  for (int i = thread * 4; i < p.dim; i += kThreads * 4) {
    const float4 v = *reinterpret_cast<const float4*>(x + i);
    const float4 w = *reinterpret_cast<const float4*>(p.weight + i);
    uint2 out;
    out.x = PackPair(v.x * scale * w.x, v.y * scale * w.y);
    out.y = PackPair(v.z * scale * w.z, v.w * scale * w.w);
    *reinterpret_cast<uint2*>(y + i) = out;
  }
}

}  // namespace

cudaError_t CudaRmsNorm(const CudaRmsNormParams& p, cudaStream_t stream) {
  if (p.rows < 0 || p.dim <= 0 || p.dim % 4 != 0) return cudaErrorInvalidValue;
  if (p.rows == 0) return cudaSuccess;
  if (p.x == nullptr || p.weight == nullptr || p.y == nullptr) return cudaErrorInvalidValue;
  return Launch(RmsNormKernel, dim3(static_cast<unsigned>(p.rows)), kThreads, 0, p, stream);
}

}  // namespace paceline::kernels
