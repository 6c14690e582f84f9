// Fresh random inputs for the kernels' tests. The seed is printed and replays: PACELINE_TEST_SEED.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "kernels/cpu/bf16.h"
#include "kernels/cpu/isa.h"

namespace paceline::kernels {

inline uint64_t TestSeed() {
  static const uint64_t seed = [] {
    const char* text = std::getenv("PACELINE_TEST_SEED");
    const uint64_t value =
        text != nullptr ? std::strtoull(text, nullptr, 10) : std::random_device{}();
    std::printf("PACELINE_TEST_SEED=%llu\n", static_cast<unsigned long long>(value));
    return value;
  }();
  return seed;
}

// True under the sanitizers, where the matrices are thinned out.
inline bool Thin() { return std::getenv("PACELINE_SANITIZED") != nullptr; }

inline std::vector<Isa> SupportedIsas() {
  std::vector<Isa> isas;
  for (Isa isa : {Isa::kPortable, Isa::kAvx2, Isa::kAvx512Bf16}) {
    if (IsaSupported(isa)) isas.push_back(isa);
  }
  return isas;
}

class RandomInputs {
 public:
  explicit RandomInputs(uint64_t salt) : engine_(TestSeed() + salt * 1000003) {}

  int Int(int low, int high) { return std::uniform_int_distribution<int>(low, high)(engine_); }
  float Uniform() { return std::uniform_real_distribution<float>(-1, 1)(engine_); }
  std::vector<float> Floats(int64_t count, float scale = 1.0f) {
    std::vector<float> values(static_cast<size_t>(count));
    for (float& v : values) v = Uniform() * scale;
    return values;
  }
  std::vector<Bf16> Bf16s(int64_t count) {
    std::vector<Bf16> values(static_cast<size_t>(count));
    for (Bf16& v : values) v = ToBf16(Uniform());
    return values;
  }
  std::mt19937_64& engine() { return engine_; }

 private:
  std::mt19937_64 engine_;
};

// An output of NaN (every byte 0xff) with guards at both ends.
template <typename T>
class GuardedOutput {
 public:
  explicit GuardedOutput(int64_t count)
      : count_(static_cast<size_t>(count)), bytes_(kGuard * 2 + count_ * sizeof(T), 0xff) {}
  T* data() { return reinterpret_cast<T*>(bytes_.data() + kGuard); }
  std::vector<T> values() { return std::vector<T>(data(), data() + count_); }
  void ExpectGuards() const {
    for (size_t i = 0; i < kGuard; ++i) {
      ASSERT_EQ(bytes_[i], 0xff) << "before the output";
      ASSERT_EQ(bytes_[bytes_.size() - 1 - i], 0xff) << "behind the output";
    }
  }

 private:
  static constexpr size_t kGuard = 256;
  size_t count_;
  std::vector<uint8_t> bytes_;
};

template <typename T>
bool SameBits(const T* a, const T* b, int64_t count) {
  return std::memcmp(a, b, static_cast<size_t>(count) * sizeof(T)) == 0;
}

}  // namespace paceline::kernels
