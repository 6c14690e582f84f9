#include "worker/kv/staging_cuda.h"

#include "common/status_macros.h"

namespace paceline {

absl::Status StagingCuda::Reserve(int64_t bytes) {
  bytes_.reserve(static_cast<size_t>(bytes));
  RETURN_IF_ERROR(pinned_.GrowTo(bytes, "pinned memory for a step's arrays"));
  return device_.GrowTo(bytes, "memory for a step's arrays");
}

absl::Status StagingCuda::Upload(cudaStream_t stream) {
  const auto size = static_cast<int64_t>(bytes_.size());
  if (size == 0) return absl::OkStatus();
  if (size > device_.bytes()) RETURN_IF_ERROR(Reserve(2 * size));
  std::memcpy(pinned_.as<uint8_t>(), bytes_.data(), bytes_.size());
  return CudaStatus(cudaMemcpyAsync(device_.as<uint8_t>(), pinned_.as<uint8_t>(), bytes_.size(),
                                    cudaMemcpyHostToDevice, stream),
                    "upload of a step's arrays");
}

}  // namespace paceline
