// The kernel behind CudaAttention's large items on Hopper.
#pragma once

#include "kernels/cuda/attention.h"

namespace paceline::kernels {

// Whether the GPU and the shape are what WarpgroupAttention is for: sm_90, a head_dim of 64 or 128.
bool HasWarpgroupAttention(const CudaAttentionParams& params);

// The large items alone. The same bits as without it.
cudaError_t WarpgroupAttention(const CudaAttentionParams& params, cudaStream_t stream);

}  // namespace paceline::kernels
