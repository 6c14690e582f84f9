// The memory of the paged KV pool on the CPU: bf16, one K and one V cache per layer in the kernels'
// layout. BlockManager decides who owns which block; this only holds the bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/cpu/kv_cache.h"
#include "kernels/cpu/thread_pool.h"

namespace paceline {

class KvPoolCpu {
 public:
  // Address space is taken at once, memory only as slots are first written. RESOURCE_EXHAUSTED
  // naming the size when the machine refuses it.
  static absl::StatusOr<KvPoolCpu> Create(const kernels::KvShape& shape, int32_t num_layers);
  KvPoolCpu(KvPoolCpu&& other) noexcept;
  KvPoolCpu& operator=(KvPoolCpu&&) = delete;
  ~KvPoolCpu();

  // Bytes of one block over all layers, K and V.
  static int64_t BlockBytes(const kernels::KvShape& shape, int32_t num_layers);

  const kernels::KvShape& shape() const { return shape_; }
  kernels::Bf16* k(int32_t layer) const { return k_[static_cast<size_t>(layer)]; }
  kernels::Bf16* v(int32_t layer) const { return v_[static_cast<size_t>(layer)]; }

  // Copies slots of all layers, in order.
  void Copy(std::span<const kernels::KvSlotCopy> copies, kernels::ThreadPool& pool);

 private:
  KvPoolCpu() = default;
  kernels::KvShape shape_;
  void* memory_ = nullptr;
  size_t bytes_ = 0;
  std::vector<kernels::Bf16*> k_;
  std::vector<kernels::Bf16*> v_;
};

}  // namespace paceline
