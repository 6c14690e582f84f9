// Acceptance of the draft positions of one request, one route, or one prior: P(position i is
// accepted | all before it), as moving averages.
#pragma once

#include <array>
#include <cstdint>

#include "worker/spec/spec_counters.h"

namespace paceline {

class Survival {
 public:
  // Of a verified chain. `rate` is the weight of the newest observation once there are many.
  void Observe(int32_t drafted, int32_t accepted, double rate);

  // The average at position i, pulled towards `prior` as by `weight` observations.
  double Conditional(int32_t i, double prior, double weight) const;
  double observations(int32_t i) const { return counts_[i]; }

 private:
  std::array<double, kSpecPositions> accept_{};
  std::array<double, kSpecPositions> counts_{};  // effective, at most 1 / rate
};

}  // namespace paceline
