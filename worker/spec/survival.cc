#include "worker/spec/survival.h"

#include <algorithm>

namespace paceline {

void Survival::Observe(int32_t drafted, int32_t accepted, double rate) {
  // The position of the first rejection is seen, those behind it are not.
  const int32_t seen = std::min({drafted, accepted + 1, static_cast<int32_t>(kSpecPositions)});
  for (int32_t i = 0; i < seen; ++i) {
    counts_[i] = std::min(counts_[i] + 1, 1 / rate);
    accept_[i] += ((i < accepted ? 1.0 : 0.0) - accept_[i]) / counts_[i];
  }
}

double Survival::Conditional(int32_t i, double prior, double weight) const {
  return (accept_[i] * counts_[i] + prior * weight) / (counts_[i] + weight);
}

}  // namespace paceline
