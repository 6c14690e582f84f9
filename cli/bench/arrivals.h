// When the requests of an open loop arrive: at times that do not depend on how the cluster keeps
// up.
#pragma once

#include <cstdint>
#include <vector>

#include "common/clock.h"

namespace paceline {

// A Poisson process of `rate` arrivals per second (> 0) from a seed: the first `count` arrivals,
// and none from `limit` on. Ascending offsets from the start of the run.
std::vector<Duration> PoissonArrivals(double rate, int64_t count, Duration limit, uint64_t seed);

}  // namespace paceline
