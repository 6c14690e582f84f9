#include "kernels/cuda/norm.h"

#include "kernels/cuda/launch.cuh"

namespace paceline::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int kHeld = 4;  // vectors of four that a thread keeps in registers; more are read twice

__device__ __forceinline__ float4 LoadVector(const float* from, int i, int dim) {
  return i < dim ? *reinterpret_cast<const float4*>(from + i) : make_float4(0, 0, 0, 0);
}
__device__ __forceinline__ float Squares(const float4& v) {
  return v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
}
__device__ __forceinline__ void StoreScaled(const float4& v, float scale, const float4& w,
                                            Bf16* to) {
  uint2 out;
  out.x = PackPair(v.x * scale * w.x, v.y * scale * w.y);
  out.y = PackPair(v.z * scale * w.z, v.w * scale * w.w);
  *reinterpret_cast<uint2*>(to) = out;
}

__global__ void __launch_bounds__(kThreads) RmsNormKernel(CudaRmsNormParams p) {
  __shared__ float warp_sums[kThreads / kWarp];
  const int thread = static_cast<int>(threadIdx.x);
  const int32_t row = static_cast<int32_t>(blockIdx.x);
  LetNextStart();
  float4 weight[kHeld], held[kHeld];
#pragma unroll
  for (int j = 0; j < kHeld; ++j) {
    weight[j] = LoadVector(p.weight, (j * kThreads + thread) * 4, p.dim);
  }
  WaitForPrevious();
  const float* x = p.x + int64_t{p.from != nullptr ? p.from[row] : row} * p.dim;
  const int rest = (kHeld * kThreads + thread) * 4;
  float sum = 0;
#pragma unroll
  for (int j = 0; j < kHeld; ++j) held[j] = LoadVector(x, (j * kThreads + thread) * 4, p.dim);
#pragma unroll
  for (int j = 0; j < kHeld; ++j) sum += Squares(held[j]);
  for (int i = rest; i < p.dim; i += kThreads * 4) sum += Squares(LoadVector(x, i, p.dim));
  sum = WarpSum(sum);
  if (thread % kWarp == 0) warp_sums[thread / kWarp] = sum;
  __syncthreads();
  float total = 0;
  for (int w = 0; w < kThreads / kWarp; ++w) total += warp_sums[w];
  const float scale = 1.0f / sqrtf(total / static_cast<float>(p.dim) + p.eps);
  Bf16* y = p.y + int64_t{row} * p.dim;
#pragma unroll
  for (int j = 0; j < kHeld; ++j) {
    const int i = (j * kThreads + thread) * 4;
    if (i < p.dim) StoreScaled(held[j], scale, weight[j], y + i);
  }
  for (int i = rest; i < p.dim; i += kThreads * 4) {
    StoreScaled(LoadVector(x, i, p.dim), scale, LoadVector(p.weight, i, p.dim), y + i);
  }
}

}  // namespace

cudaError_t CudaRmsNorm(const CudaRmsNormParams& p, cudaStream_t stream) {
  if (p.rows < 0 || p.dim <= 0 || p.dim % 4 != 0) return cudaErrorInvalidValue;
  if (p.rows == 0) return cudaSuccess;
  if (p.x == nullptr || p.weight == nullptr || p.y == nullptr) return cudaErrorInvalidValue;
  static const LaunchOrder order = OverlapIfAble(RmsNormKernel);
  return Launch(RmsNormKernel, dim3(static_cast<unsigned>(p.rows)), kThreads, 0, p, stream, order);
}

}  // namespace paceline::kernels
