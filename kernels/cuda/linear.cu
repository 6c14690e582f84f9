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

// As measured over the matrices of Llama-3-8B on an H100 (docs/benchmarks/cuda-kernels.md).
CudaTile HopperTile(int32_t m) {
  if (m <= 64) return CudaTile::kWgmma64x128;
  return m <= 256 ? CudaTile::kWgmma128x128 : CudaTile::kWgmma128x192;
}

CudaTile PortableTile(int32_t m, int32_t n) {
  if (m <= 8) return CudaTile::kStream8;
  if (m <= 16) return CudaTile::kStream16;
  if (m <= 32) return CudaTile::kStream32;
  if (m <= 64) return CudaTile::kStream64;
  return m <= 128 && n <= 16384 ? CudaTile::kStream64 : CudaTile::kBlock128;
}

}  // namespace

cudaError_t CudaTileLinear(const CudaLinearParams& p, CudaTile tile, cudaStream_t stream) {
  if (tile >= CudaTile::kWgmma64x128) return WgmmaLinear(p, tile, stream);
  return tile < CudaTile::kBlock64 ? StreamLinear(p, tile, stream) : BlockLinear(p, tile, stream);
}

cudaError_t CudaLinear(const CudaLinearParams& p, cudaStream_t stream) {
  if (p.m == 0) return cudaSuccess;
  if (!Valid(p)) return cudaErrorInvalidValue;
  if (p.m > 32 || p.n > 65536) {
    const cudaError_t error = CudaTileLinear(p, HopperTile(p.m), stream);
    if (error != cudaErrorNotSupported) return error;
  }
  return CudaTileLinear(p, PortableTile(p.m, p.n), stream);
}

}  // namespace paceline::kernels
