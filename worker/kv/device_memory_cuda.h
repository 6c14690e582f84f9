// Memory of the GPU and pinned memory of the host, owned; and CUDA's errors as statuses.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace paceline {

// OK, or "<what>: <CUDA's words>": RESOURCE_EXHAUSTED for memory, INTERNAL else.
absl::Status CudaStatus(cudaError_t error, std::string_view what);

// "1.25 GiB".
std::string GibText(int64_t bytes);

// The GPU that this process uses, checked: what keeps it from serving is said in one sentence.
struct CudaDevice {
  std::string name;
  int32_t compute_capability = 0;  // 90 for 9.0
  int32_t multiprocessors = 0;
  int64_t free_bytes = 0;
  int64_t total_bytes = 0;
};
// NOT_FOUND: no GPU, or its driver is too old. UNIMPLEMENTED: an architecture before sm_80.
absl::StatusOr<CudaDevice> OpenCudaDevice();

enum class MemoryKind : uint8_t { kDevice, kPinned };

// Empty or owning; movable.
template <MemoryKind kind>
class CudaMemory {
 public:
  CudaMemory() = default;
  CudaMemory(CudaMemory&& other) noexcept;
  CudaMemory& operator=(CudaMemory&& other) noexcept;
  ~CudaMemory();

  // Uninitialised, 256-byte aligned. RESOURCE_EXHAUSTED naming purpose, size and what is free.
  static absl::StatusOr<CudaMemory> Allocate(int64_t bytes, std::string_view purpose);
  // Keeps memory that is large enough; else replaces it, contents lost. The device must be idle.
  absl::Status GrowTo(int64_t bytes, std::string_view purpose);

  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  int64_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  int64_t bytes_ = 0;
};
using DeviceMemory = CudaMemory<MemoryKind::kDevice>;
using PinnedMemory = CudaMemory<MemoryKind::kPinned>;

// A stream of its own, destroyed with this.
class CudaStream {
 public:
  static absl::StatusOr<CudaStream> Create();
  CudaStream(CudaStream&& other) noexcept;
  CudaStream& operator=(CudaStream&&) = delete;
  ~CudaStream();
  cudaStream_t get() const { return stream_; }
  // Everything enqueued is done when this returns; the first error of any of it.
  absl::Status Synchronize(std::string_view what) const;

 private:
  CudaStream() = default;
  cudaStream_t stream_ = nullptr;
  bool owned_ = false;
};

}  // namespace paceline
