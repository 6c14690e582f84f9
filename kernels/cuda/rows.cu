#include "kernels/cuda/rows.h"

#include "kernels/cuda/launch.cuh"

namespace paceline::kernels {
namespace {

constexpr int kThreads = 256;

__global__ void EmbedKernel(CudaEmbedParams p) {
  const int64_t row = blockIdx.x;
  LetNextStart();
  WaitForPrevious();
  const Bf16* from = p.table + int64_t{p.ids[row]} * p.dim;
  float* to = p.y + row * p.dim;
  for (int i = static_cast<int>(threadIdx.x) * 8; i < p.dim; i += kThreads * 8) {
    float v[8];
    Unpack8(*reinterpret_cast<const uint4*>(from + i), v);
    *reinterpret_cast<float4*>(to + i) = make_float4(v[0], v[1], v[2], v[3]);
    *reinterpret_cast<float4*>(to + i + 4) = make_float4(v[4], v[5], v[6], v[7]);
  }
}

__global__ void MoveRowsKernel(CudaMoveRowsParams p) {
  const int32_t row = static_cast<int32_t>(blockIdx.x);
  LetNextStart();
  WaitForPrevious();
  const int64_t from = p.from != nullptr ? p.from[row] : row;
  const int64_t to = p.to != nullptr ? p.to[row] : row;
  for (int i = static_cast<int>(threadIdx.x) * 4; i < p.dim; i += kThreads * 4) {
    *reinterpret_cast<float4*>(p.y + to * p.dim + i) =
        *reinterpret_cast<const float4*>(p.x + from * p.dim + i);
  }
}

__global__ void RandomRowsKernel(CudaRandomRowsParams p) {
  const int32_t row = static_cast<int32_t>(blockIdx.x);
  for (int i = static_cast<int>(threadIdx.x) * kRandomRun; i < p.dim; i += kThreads * kRandomRun) {
    const PhiloxBlock run = RandomRun(p.matrix, (int64_t{row} * p.dim + i) / kRandomRun);
    const auto pair = [&](int lane) {
      return unsigned{RandomElement(p.matrix, run, lane).bits} |
             unsigned{RandomElement(p.matrix, run, lane + 1).bits} << 16;
    };
    *reinterpret_cast<uint4*>(p.y + row * p.stride + i) =
        make_uint4(pair(0), pair(2), pair(4), pair(6));
  }
}

}  // namespace

cudaError_t CudaEmbed(const CudaEmbedParams& p, cudaStream_t stream) {
  if (p.rows < 0 || p.dim <= 0 || p.dim % 8 != 0) return cudaErrorInvalidValue;
  if (p.rows == 0) return cudaSuccess;
  if (p.table == nullptr || p.ids == nullptr || p.y == nullptr) return cudaErrorInvalidValue;
  static const LaunchOrder order = OverlapIfAble(EmbedKernel);
  return Launch(EmbedKernel, dim3(static_cast<unsigned>(p.rows)), kThreads, 0, p, stream, order);
}

cudaError_t CudaMoveRows(const CudaMoveRowsParams& p, cudaStream_t stream) {
  if (p.rows < 0 || p.dim <= 0 || p.dim % 4 != 0) return cudaErrorInvalidValue;
  if (p.rows == 0) return cudaSuccess;
  if (p.x == nullptr || p.y == nullptr) return cudaErrorInvalidValue;
  static const LaunchOrder order = OverlapIfAble(MoveRowsKernel);
  return Launch(MoveRowsKernel, dim3(static_cast<unsigned>(p.rows)), kThreads, 0, p, stream, order);
}

cudaError_t CudaRandomRows(const CudaRandomRowsParams& p, cudaStream_t stream) {
  if (p.rows < 0 || p.dim <= 0 || p.dim % kRandomRun != 0 || p.stride < p.dim || p.y == nullptr) {
    return cudaErrorInvalidValue;
  }
  return Launch(RandomRowsKernel, dim3(static_cast<unsigned>(p.rows)), kThreads, 0, p, stream);
}

}  // namespace paceline::kernels
