#include "kernels/cpu/kv_cache.h"

#include <cstring>
#include <vector>

#include "kernels/cpu/isa_kernels.h"
#include "kernels/cpu/row_blocks.h"

namespace paceline::kernels {
namespace {

bool ValidShape(const KvShape& s) {
  return s.num_blocks >= 0 && s.kv_heads > 0 && s.head_dim > 0 && s.block_size > 0;
}

bool Supported(const KvShape& s) {
  return s.head_dim % 2 == 0 && (s.block_size == 16 || s.block_size == 32 || s.block_size == 64);
}

void CopySlots(const KvShape& shape, const KvSlotCopy& copy, Bf16* k, Bf16* v) {
  const size_t count = static_cast<size_t>(copy.count);
  for (int32_t head = 0; head < shape.kv_heads; ++head) {
    // memmove: moving a path down may overlap inside one block.
    for (int32_t d = 0; d < shape.head_dim; d += 2) {
      std::memmove(static_cast<void*>(k + shape.KIndex(copy.dst, head, d)),
                   k + shape.KIndex(copy.src, head, d), count * 2 * sizeof(Bf16));
    }
    std::memmove(static_cast<void*>(v + shape.VIndex(copy.dst, head, 0)),
                 v + shape.VIndex(copy.src, head, 0),
                 count * static_cast<size_t>(shape.head_dim) * sizeof(Bf16));
  }
}

}  // namespace

CpuResult StoreKv(const StoreKvParams& p, ThreadPool& pool) {
  const KvShape& shape = p.shape;
  if (!ValidShape(shape) || p.rows < 0) return CpuResult::kBadShape;
  if (!Supported(shape)) return CpuResult::kUnsupported;
  const int64_t width = int64_t{shape.kv_heads} * shape.head_dim;
  const int64_t k_stride = p.k_stride != 0 ? p.k_stride : width;
  const int64_t v_stride = p.v_stride != 0 ? p.v_stride : width;
  if (k_stride < width || v_stride < width) return CpuResult::kBadShape;
  if (p.rows == 0) return CpuResult::kOk;
  if (p.k_cache == nullptr || p.v_cache == nullptr || p.k == nullptr || p.v == nullptr ||
      p.slots == nullptr) {
    return CpuResult::kBadShape;
  }
  const int64_t num_slots = int64_t{shape.num_blocks} * shape.block_size;
  for (int64_t row = 0; row < p.rows; ++row) {
    if (p.slots[row] >= num_slots) return CpuResult::kBadShape;
  }
  const IsaKernels& kernels = KernelsFor(pool.isa());
  ForRows(p.rows, 8 * width, pool, [&](int64_t row) {
    const int64_t slot = p.slots[row];
    if (slot < 0) return;
    static thread_local std::vector<Bf16> rounded;
    rounded.resize(static_cast<size_t>(width));
    kernels.to_bf16(p.k + row * k_stride, rounded.data(), width);
    for (int32_t head = 0; head < shape.kv_heads; ++head) {
      const Bf16* from = rounded.data() + int64_t{head} * shape.head_dim;
      Bf16* to = p.k_cache + shape.KIndex(slot, head, 0);
      for (int32_t d = 0; d < shape.head_dim; d += 2, to += 2 * shape.block_size) {
        std::memcpy(static_cast<void*>(to), from + d, 2 * sizeof(Bf16));
      }
      kernels.to_bf16(p.v + row * v_stride + int64_t{head} * shape.head_dim,
                      p.v_cache + shape.VIndex(slot, head, 0), shape.head_dim);
    }
  });
  return CpuResult::kOk;
}

CpuResult CopyKvSlots(const CopyKvParams& p, ThreadPool& pool) {
  const KvShape& shape = p.shape;
  if (!ValidShape(shape) || p.num_layers < 0 || p.num_copies < 0) return CpuResult::kBadShape;
  if (!Supported(shape)) return CpuResult::kUnsupported;
  if (p.num_copies == 0 || p.num_layers == 0) return CpuResult::kOk;
  if (p.k_caches == nullptr || p.v_caches == nullptr || p.copies == nullptr) {
    return CpuResult::kBadShape;
  }
  const int64_t num_slots = int64_t{shape.num_blocks} * shape.block_size;
  for (int64_t i = 0; i < p.num_copies; ++i) {
    const KvSlotCopy& copy = p.copies[i];
    if (copy.src < 0 || copy.dst < 0 || copy.count < 0) return CpuResult::kBadShape;
    if (copy.count == 0) continue;
    const int64_t last = copy.count - 1;
    if (copy.src + last >= num_slots || copy.dst + last >= num_slots ||
        copy.src % shape.block_size + last >= shape.block_size ||
        copy.dst % shape.block_size + last >= shape.block_size) {
      return CpuResult::kBadShape;
    }
  }
  // Order matters between copies, not between layers.
  const int64_t cost = p.num_copies * 4 * int64_t{shape.kv_heads} * shape.head_dim;
  ForRows(p.num_layers, cost, pool, [&](int64_t layer) {
    for (int64_t i = 0; i < p.num_copies; ++i) {
      if (p.copies[i].count == 0) continue;
      CopySlots(shape, p.copies[i], p.k_caches[layer], p.v_caches[layer]);
    }
  });
  return CpuResult::kOk;
}

}  // namespace paceline::kernels
