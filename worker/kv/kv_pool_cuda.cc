#include "worker/kv/kv_pool_cuda.h"

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace paceline {

int64_t KvPoolCuda::BlockBytes(const kernels::CudaKvShape& shape, int32_t num_layers) {
  return 2 * num_layers * shape.block_elements() * static_cast<int64_t>(sizeof(kernels::Bf16));
}

absl::StatusOr<KvPoolCuda> KvPoolCuda::Create(const kernels::CudaKvShape& shape,
                                              int32_t num_layers) {
  if (!shape.Valid()) {
    return absl::UnimplementedError(absl::StrCat(
        "the CUDA kernels take a head_dim that is a multiple of 8 up to 256 and blocks "
        "of 16, 32 or 64; this is head_dim ",
        shape.head_dim, ", block size ", shape.block_size, ", ", shape.num_blocks, " blocks"));
  }
  KvPoolCuda pool;
  pool.shape_ = shape;
  pool.num_layers_ = num_layers;
  ASSIGN_OR_RETURN(pool.memory_,
                   DeviceMemory::Allocate(BlockBytes(shape, num_layers) * shape.num_blocks,
                                          "the KV pool (--kv-bytes, --kv-blocks)"));
  return pool;
}

absl::Status KvPoolCuda::Copy(const kernels::CudaKvSlotCopy* copies, const int32_t* group_begin,
                              int32_t num_groups, cudaStream_t stream) {
  kernels::CudaCopyKvParams p;
  p.shape = shape_;
  p.caches = memory_.as<kernels::Bf16>();
  p.num_caches = 2 * num_layers_;
  p.copies = copies;
  p.group_begin = group_begin;
  p.num_groups = num_groups;
  return CudaStatus(kernels::CudaCopyKv(p, stream), "copies of KV slots");
}

}  // namespace paceline
