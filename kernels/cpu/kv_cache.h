// The paged KV cache of one layer, and writing and moving its slots.
//
// A slot index is block * block_size + slot in block. K lies transposed in pairs inside a block, so
// that attention reads 16 keys with one vector; V lies by rows:
//   K [num_blocks][kv_heads][head_dim / 2][block_size][2]    bf16
//   V [num_blocks][kv_heads][block_size][head_dim]           bf16
#pragma once

#include <cstdint>

#include "kernels/cpu/bf16.h"
#include "kernels/cpu/result.h"
#include "kernels/cpu/thread_pool.h"

namespace paceline::kernels {

struct KvShape {
  int32_t num_blocks = 0;
  int32_t block_size = 16;  // 16, 32 or 64
  int32_t kv_heads = 0;
  int32_t head_dim = 0;  // even

  [[gnu::always_inline]] int64_t block_elements() const {  // of K or of V alone
    return int64_t{kv_heads} * block_size * head_dim;
  }
  [[gnu::always_inline]] int64_t elements() const { return num_blocks * block_elements(); }
  [[gnu::always_inline]] int64_t KIndex(int64_t slot, int32_t head, int32_t d) const {
    const int64_t block = slot / block_size;
    const int64_t in_block = slot % block_size;
    return block * block_elements() + int64_t{head} * block_size * head_dim +
           (int64_t{d / 2} * block_size + in_block) * 2 + d % 2;
  }
  [[gnu::always_inline]] int64_t VIndex(int64_t slot, int32_t head, int32_t d) const {
    const int64_t block = slot / block_size;
    const int64_t in_block = slot % block_size;
    return block * block_elements() + (int64_t{head} * block_size + in_block) * head_dim + d;
  }
};

struct StoreKvParams {
  KvShape shape;
  Bf16* k_cache = nullptr;         // shape.elements()
  Bf16* v_cache = nullptr;         // shape.elements()
  const float* k = nullptr;        // [rows, kv_heads * head_dim], rope applied; rows k_stride apart
  const float* v = nullptr;        // [rows, kv_heads * head_dim], rows v_stride apart
  const int64_t* slots = nullptr;  // [rows] slot index; negative: the row is not stored
  int64_t rows = 0;
  int64_t k_stride = 0;  // elements
  int64_t v_stride = 0;
};
CpuResult StoreKv(const StoreKvParams& params, ThreadPool& pool);

// Copies `count` consecutive slots; neither range crosses a block border.
struct KvSlotCopy {
  int64_t src = 0;
  int64_t dst = 0;
  int32_t count = 1;
};

struct CopyKvParams {
  KvShape shape;
  Bf16* const* k_caches = nullptr;  // [num_layers] caches of all layers
  Bf16* const* v_caches = nullptr;  // [num_layers]
  int32_t num_layers = 0;
  const KvSlotCopy* copies = nullptr;  // [num_copies], done in order
  int64_t num_copies = 0;
};
CpuResult CopyKvSlots(const CopyKvParams& params, ThreadPool& pool);

}  // namespace paceline::kernels
