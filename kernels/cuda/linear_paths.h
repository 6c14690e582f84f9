// The kernels behind CudaTileLinear.
#pragma once

#include "kernels/cuda/linear.h"

namespace paceline::kernels {

cudaError_t StreamLinear(const CudaLinearParams& params, CudaTile tile, cudaStream_t stream);
cudaError_t BlockLinear(const CudaLinearParams& params, cudaStream_t stream);
cudaError_t WgmmaLinear(const CudaLinearParams& params, CudaTile tile, cudaStream_t stream);

}  // namespace paceline::kernels
