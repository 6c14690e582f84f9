// Random weights, for benchmarks and tests: elements of a matrix follow from a key and their index
// alone, the same bits on host and device.
#pragma once

#include <cstdint>

#include "kernels/bf16.h"
#include "kernels/philox.h"

namespace paceline::kernels {

// Uniform in [-scale, scale).
struct RandomMatrix {
  uint64_t key = 0;
  float scale = 1;
};

// Elements of a matrix that come from one block of the generator.
inline constexpr int kRandomRun = 8;

PACELINE_HOST_DEVICE inline PhiloxBlock RandomRun(const RandomMatrix& matrix, int64_t run) {
  const auto at = static_cast<uint64_t>(run);
  return Philox4x32({{static_cast<uint32_t>(at), static_cast<uint32_t>(at >> 32), 0, 0}},
                    matrix.key);
}
// Element `lane` of a run.
PACELINE_HOST_DEVICE inline Bf16 RandomElement(const RandomMatrix& matrix, const PhiloxBlock& run,
                                               int lane) {
  const auto number = static_cast<int16_t>(run.word[lane / 2] >> (lane % 2 * 16));
  return ToBf16(matrix.scale * (static_cast<float>(number) * 0x1p-15f));
}

}  // namespace paceline::kernels
