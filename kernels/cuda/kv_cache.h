// The paged KV cache on the GPU, writing rows into it and moving its slots. CUDA.
//
// K and V of a layer lie alike: [num_blocks][kv_heads][block_size][head_dim] bf16, so that a head's
// keys of a block are consecutive. A slot index is block * block_size + slot in block.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/bf16.h"

namespace paceline::kernels {

struct CudaKvShape {
  int32_t num_blocks = 0;
  int32_t block_size = 16;  // 16, 32 or 64
  int32_t kv_heads = 0;
  int32_t head_dim = 0;  // a multiple of 8, at most 256

  PACELINE_HOST_DEVICE int64_t block_elements() const {  // of K or of V of one layer
    return int64_t{kv_heads} * block_size * head_dim;
  }
  PACELINE_HOST_DEVICE int64_t elements() const { return num_blocks * block_elements(); }
  PACELINE_HOST_DEVICE int64_t Index(int64_t slot, int32_t head) const {
    return slot / block_size * block_elements() +
           (int64_t{head} * block_size + slot % block_size) * head_dim;
  }
  bool Valid() const {
    return num_blocks > 0 && kv_heads > 0 && head_dim > 0 && head_dim % 8 == 0 && head_dim <= 256 &&
           (block_size == 16 || block_size == 32 || block_size == 64);
  }
};

// QkNorm, Rope and KvWrite of one layer at once: q is normed, turned and rounded into its own
// buffer; k is normed, turned and, like v, rounded into the cache.
struct CudaRopeKvParams {
  CudaKvShape shape;
  Bf16* k_cache = nullptr;             // shape.elements()
  Bf16* v_cache = nullptr;             // shape.elements()
  const float* qkv = nullptr;          // [rows, (num_heads + 2 kv_heads) * head_dim]
  Bf16* q = nullptr;                   // [rows, num_heads * head_dim]
  const float* cos_sin = nullptr;      // [max_position][head_dim]: cosines, then sines
  const int32_t* positions = nullptr;  // [rows], in [0, max_position)
  const int64_t* slots = nullptr;      // [rows]; negative: k and v are not stored
  const float* q_norm = nullptr;       // [head_dim] or null
  const float* k_norm = nullptr;       // [head_dim] or null
  float eps = 1e-5f;
  int32_t rows = 0;
  int32_t num_heads = 0;
};
cudaError_t CudaRopeKv(const CudaRopeKvParams& params, cudaStream_t stream);

// Copies `count` consecutive slots; neither range crosses a block border.
struct CudaKvSlotCopy {
  int64_t src = 0;
  int64_t dst = 0;
  int32_t count = 1;
  int32_t unused = 0;
};

// All layers. Copies of one group are done in order; groups touch no slot that another writes.
struct CudaCopyKvParams {
  CudaKvShape shape;
  Bf16* caches = nullptr;  // num_caches caches of shape.elements(), one behind the other
  int32_t num_caches = 0;  // K and V of every layer
  const CudaKvSlotCopy* copies = nullptr;  // on the device
  const int32_t* group_begin = nullptr;    // [num_groups + 1] on the device
  int32_t num_groups = 0;
};
cudaError_t CudaCopyKv(const CudaCopyKvParams& params, cudaStream_t stream);

}  // namespace paceline::kernels
