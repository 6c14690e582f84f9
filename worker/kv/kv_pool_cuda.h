// The memory of the paged KV pool on the GPU: bf16, all layers in one allocation, K and V of each
// side by side. BlockManager decides who owns which block; this only holds the bytes.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "kernels/cuda/kv_cache.h"
#include "worker/kv/device_memory_cuda.h"

namespace paceline {

class KvPoolCuda {
 public:
  // UNIMPLEMENTED naming a head_dim that the kernels lack; RESOURCE_EXHAUSTED when memory is short.
  static absl::StatusOr<KvPoolCuda> Create(const kernels::CudaKvShape& shape, int32_t num_layers);

  // Bytes of one block over all layers, K and V.
  static int64_t BlockBytes(const kernels::CudaKvShape& shape, int32_t num_layers);

  const kernels::CudaKvShape& shape() const { return shape_; }
  int64_t bytes() const { return memory_.bytes(); }
  kernels::Bf16* k(int32_t layer) const { return Cache(2 * layer); }
  kernels::Bf16* v(int32_t layer) const { return Cache(2 * layer + 1); }

  // Enqueues copies of slots of all layers; the lists lie on the device (CudaCopyKvParams).
  absl::Status Copy(const kernels::CudaKvSlotCopy* copies, const int32_t* group_begin,
                    int32_t num_groups, cudaStream_t stream);

 private:
  KvPoolCuda() = default;
  kernels::Bf16* Cache(int32_t index) const {
    return memory_.as<kernels::Bf16>() + index * shape_.elements();
  }
  kernels::CudaKvShape shape_;
  int32_t num_layers_ = 0;
  DeviceMemory memory_;
};

}  // namespace paceline
