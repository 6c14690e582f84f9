#include "kernels/cuda/linear.h"

#include "kernels/cuda/linear_paths.h"

namespace paceline::kernels {
namespace {

bool Valid(const CudaLinearParams& p) {
  if (p.m < 0 || p.n <= 0 || p.k <= 0 || p.k % 8 != 0) return false;
  const bool bf16 = p.output == CudaLinearOutput::kBf16 || p.output == CudaLinearOutput::kSwiGlu;
  if (p.output == CudaLinearOutput::kSwiGlu && (p.n % 2 != 0 || p.bias != nullptr)) return false;
  return p.w != nullptr && p.x != nullptr && (bf16 ? p.y_bf16 != nullptr : p.y_f32 != nullptr);
}

CudaTile TileFor(int32_t m) {
  if (m <= 8) return CudaTile::kStream8;
  if (m <= 16) return CudaTile::kStream16;
  if (m <= 32) return CudaTile::kStream32;
  if (m <= 64) return CudaTile::kStream64;
  return m <= 128 ? CudaTile::kBlock64 : CudaTile::kBlock128;
}

}  // namespace

cudaError_t CudaTileLinear(const CudaLinearParams& p, CudaTile tile, cudaStream_t stream) {
  return tile < CudaTile::kBlock64 ? StreamLinear(p, tile, stream) : BlockLinear(p, tile, stream);
}

cudaError_t CudaLinear(const CudaLinearParams& p, cudaStream_t stream) {
  if (p.m == 0) return cudaSuccess;
  if (!Valid(p)) return cudaErrorInvalidValue;
  if (p.path == CudaLinearPath::kBySize && p.m <= kMaxGemvRows) return CudaGemv(p, stream);
  return CudaTileLinear(p, TileFor(p.m), stream);
}

}  // namespace paceline::kernels
