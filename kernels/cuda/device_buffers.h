// For tests: arrays on the device between guard bytes, and the question whether there is a device.
#pragma once

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

namespace paceline::kernels {

// True where the kernels run on the CPU: the long matrices are thinned out.
#ifdef PACELINE_CUDA_EMULATION
inline constexpr bool kEmulated = true;
#else
inline constexpr bool kEmulated = false;
#endif

// "" where kernels can run, else why not.
inline std::string WhyNoDevice() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) return std::string("no GPU: ") + cudaGetErrorString(error);
  return count > 0 ? "" : "no GPU";
}

#define PACELINE_NEEDS_GPU()                                                      \
  if (const std::string why = ::paceline::kernels::WhyNoDevice(); !why.empty()) { \
    GTEST_SKIP() << "skipped: " << why;                                           \
  }

inline void Must(cudaError_t error) { ASSERT_EQ(error, cudaSuccess) << cudaGetErrorString(error); }

// Poisoned with 0xff bytes (NaN) unless given values; guards at both ends.
template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(int64_t count) : count_(static_cast<size_t>(count)) {
    void* p = nullptr;
    Must(cudaMalloc(&p, 2 * kGuard + count_ * sizeof(T)));
    bytes_ = static_cast<uint8_t*>(p);
    const std::vector<uint8_t> poison(2 * kGuard + count_ * sizeof(T), 0xff);
    Must(cudaMemcpy(bytes_, poison.data(), poison.size(), cudaMemcpyDefault));
    Must(cudaDeviceSynchronize());  // a copy from pageable memory may return before it has landed
  }
  explicit DeviceArray(const std::vector<T>& values)
      : DeviceArray(static_cast<int64_t>(values.size())) {
    Set(values);
  }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  ~DeviceArray() { cudaFree(bytes_); }

  T* data() const { return reinterpret_cast<T*>(bytes_ + kGuard); }
  void Set(const std::vector<T>& values) {
    if (values.empty()) return;
    Must(cudaMemcpy(data(), values.data(), values.size() * sizeof(T), cudaMemcpyDefault));
    Must(cudaDeviceSynchronize());
  }
  // Waits for the device.
  std::vector<T> Get() const {
    Must(cudaDeviceSynchronize());
    std::vector<T> values(count_);
    if (count_ > 0) {
      Must(cudaMemcpy(values.data(), data(), count_ * sizeof(T), cudaMemcpyDefault));
    }
    return values;
  }
  void ExpectGuards() const {
    Must(cudaDeviceSynchronize());
    std::vector<uint8_t> all(2 * kGuard + count_ * sizeof(T));
    Must(cudaMemcpy(all.data(), bytes_, all.size(), cudaMemcpyDefault));
    for (size_t i = 0; i < kGuard; ++i) {
      ASSERT_EQ(all[i], 0xff) << "before the array";
      ASSERT_EQ(all[all.size() - 1 - i], 0xff) << "behind the array";
    }
  }

 private:
  static constexpr size_t kGuard = 256;
  size_t count_;
  uint8_t* bytes_ = nullptr;
};

}  // namespace paceline::kernels
