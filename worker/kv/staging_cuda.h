// Small arrays of a step on their way to the GPU: gathered in pinned memory, sent by one copy.
#pragma once

#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "worker/kv/device_memory_cuda.h"

namespace paceline {

// Per step: Clear, Add..., Upload, then At. What was uploaded stays until the next Upload; the
// stream must have passed it by then.
class StagingCuda {
 public:
  // Where an array lies.
  using Place = int64_t;

  void Clear() { bytes_.clear(); }
  template <typename T>
  Place Add(std::span<const T> values) {
    const size_t begin = (bytes_.size() + kAlign - 1) / kAlign * kAlign;
    bytes_.resize(begin + values.size_bytes());
    if (!values.empty()) std::memcpy(bytes_.data() + begin, values.data(), values.size_bytes());
    return static_cast<Place>(begin);
  }
  template <typename T>
  Place Add(const std::vector<T>& values) {
    return Add(std::span<const T>(values));
  }

  // Room for `bytes` without a further allocation.
  absl::Status Reserve(int64_t bytes);
  // Grows, if it must, to twice what is needed; the stream must be idle then.
  absl::Status Upload(cudaStream_t stream);

  int64_t bytes() const { return device_.bytes(); }
  template <typename T>
  const T* At(Place place) const {
    return reinterpret_cast<const T*>(device_.as<uint8_t>() + place);
  }

 private:
  static constexpr size_t kAlign = 16;
  std::vector<uint8_t> bytes_;
  PinnedMemory pinned_;
  DeviceMemory device_;
};

}  // namespace paceline
