#include "kernels/cuda/linear.h"

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/linear_paths.h"

namespace paceline::kernels {
namespace {

bool Valid(const CudaLinearParams& p) {
  if (p.m < 0 || p.n <= 0 || p.k <= 0 || p.k % 8 != 0) return false;
  const bool bf16 = p.output == CudaLinearOutput::kBf16 || p.output == CudaLinearOutput::kSwiGlu;
  if (p.output == CudaLinearOutput::kSwiGlu && (p.n % 2 != 0 || p.bias != nullptr)) return false;
  return p.w != nullptr && p.x != nullptr && (bf16 ? p.y_bf16 != nullptr : p.y_f32 != nullptr);
}

CudaTile PortableTile(int32_t m, int32_t n) {
  if (m <= 8) return CudaTile::kStream8;
  if (m <= 16) return CudaTile::kStream16;
  if (m <= 32) return CudaTile::kStream32;
  if (m <= 64) return CudaTile::kStream64;
  return m <= 128 && n <= 16384 ? CudaTile::kStream64 : CudaTile::kBlock128;
}

// As measured over the matrices of Llama-3-8B on an H100 (docs/benchmarks/cuda-kernels.md): where
// the stream of W is the bound, tiles enough for every multiprocessor; above 128 rows, the tile
// whose rounds over the multiprocessors take less, one of 192 being 1.4 of 128.
CudaTile HopperTile(int32_t m, int32_t n) {
  if (m <= 8 || (m <= 16 && n <= 65536)) return PortableTile(m, n);
  if (m <= 64) return n > 16384 ? CudaTile::kWgmma64x128 : CudaTile::kWgmma64x128Parts4;
  if (m <= 128) return n > 4096 ? CudaTile::kWgmma128x128 : CudaTile::kWgmma128x128Parts4;
  constexpr int64_t kBlocks = 132;
  const int64_t high = CeilDiv(m, 256) * 2;
  const int64_t rounds_128 = CeilDiv(high * CeilDiv(n, 128), kBlocks);
  const int64_t rounds_192 = CeilDiv(high * CeilDiv(n, 192), kBlocks);
  return 5 * rounds_128 <= 7 * rounds_192 ? CudaTile::kWgmma128x128Pair
                                          : CudaTile::kWgmma128x192Pair;
}

}  // namespace

cudaError_t CudaTileLinear(const CudaLinearParams& p, CudaTile tile, cudaStream_t stream) {
  if (tile >= CudaTile::kWgmma64x128) return WgmmaLinear(p, tile, stream);
  if (tile == CudaTile::kBlock128) return BlockLinear(p, stream);
  return StreamLinear(p, tile, stream);
}

cudaError_t CudaLinear(const CudaLinearParams& p, cudaStream_t stream) {
  if (p.m == 0) return cudaSuccess;
  if (!Valid(p)) return cudaErrorInvalidValue;
  const cudaError_t error = CudaTileLinear(p, HopperTile(p.m, p.n), stream);
  if (error != cudaErrorNotSupported) return error;
  return CudaTileLinear(p, PortableTile(p.m, p.n), stream);
}

}  // namespace paceline::kernels
