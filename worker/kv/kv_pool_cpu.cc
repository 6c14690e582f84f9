#include "worker/kv/kv_pool_cpu.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"

namespace paceline {

int64_t KvPoolCpu::BlockBytes(const kernels::KvShape& shape, int32_t num_layers) {
  return 2 * num_layers * shape.block_elements() * static_cast<int64_t>(sizeof(kernels::Bf16));
}

absl::StatusOr<KvPoolCpu> KvPoolCpu::Create(const kernels::KvShape& shape, int32_t num_layers) {
  KvPoolCpu pool;
  pool.shape_ = shape;
  pool.bytes_ = static_cast<size_t>(BlockBytes(shape, num_layers) * shape.num_blocks);
  void* memory = mmap(nullptr, pool.bytes_, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    return absl::ResourceExhaustedError(absl::StrCat("KV pool of ", shape.num_blocks, " blocks (",
                                                     pool.bytes_,
                                                     " bytes): ", std::strerror(errno)));
  }
  madvise(memory, pool.bytes_, MADV_HUGEPAGE);
  pool.memory_ = memory;
  auto* next = static_cast<kernels::Bf16*>(memory);
  for (int32_t l = 0; l < num_layers; ++l) {
    pool.k_.push_back(next);
    pool.v_.push_back(next + shape.elements());
    next += 2 * shape.elements();
  }
  return pool;
}

KvPoolCpu::KvPoolCpu(KvPoolCpu&& other) noexcept
    : shape_(other.shape_),
      memory_(std::exchange(other.memory_, nullptr)),
      bytes_(other.bytes_),
      k_(std::move(other.k_)),
      v_(std::move(other.v_)) {}

KvPoolCpu::~KvPoolCpu() {
  if (memory_ != nullptr) munmap(memory_, bytes_);
}

void KvPoolCpu::Copy(std::span<const kernels::KvSlotCopy> copies, kernels::ThreadPool& pool) {
  if (copies.empty()) return;
  kernels::CopyKvParams params;
  params.shape = shape_;
  params.k_caches = k_.data();
  params.v_caches = v_.data();
  params.num_layers = static_cast<int32_t>(k_.size());
  params.copies = copies.data();
  params.num_copies = static_cast<int64_t>(copies.size());
  CHECK(kernels::CopyKvSlots(params, pool) == kernels::CpuResult::kOk);
}

}  // namespace paceline
