// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): a block
// cipher on a counter. Stateless, so any position of any sample can be drawn anywhere, in any
// order, on host and device alike.
#pragma once

#include <cstdint>

#include "kernels/host_device.h"

namespace paceline::kernels {

struct PhiloxBlock {
  uint32_t word[4];
};

inline constexpr uint32_t kPhiloxMul0 = 0xD2511F53u;
inline constexpr uint32_t kPhiloxMul1 = 0xCD9E8D57u;
inline constexpr uint32_t kPhiloxWeyl0 = 0x9E3779B9u;  // golden ratio
inline constexpr uint32_t kPhiloxWeyl1 = 0xBB67AE85u;  // sqrt(3) - 1
inline constexpr int kPhiloxRounds = 10;

// key: low word first.
PACELINE_HOST_DEVICE inline PhiloxBlock Philox4x32(PhiloxBlock counter, uint64_t key) {
  uint32_t k0 = static_cast<uint32_t>(key);
  uint32_t k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint64_t p0 = static_cast<uint64_t>(kPhiloxMul0) * counter.word[0];
    const uint64_t p1 = static_cast<uint64_t>(kPhiloxMul1) * counter.word[2];
    const uint32_t c1 = counter.word[1];
    const uint32_t c3 = counter.word[3];
    counter.word[0] = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    counter.word[1] = static_cast<uint32_t>(p1);
    counter.word[2] = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    counter.word[3] = static_cast<uint32_t>(p0);
    k0 += kPhiloxWeyl0;
    k1 += kPhiloxWeyl1;
  }
  return counter;
}

}  // namespace paceline::kernels
