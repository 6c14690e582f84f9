#include "cli/bench/arrivals.h"

#include <cmath>
#include <random>

namespace paceline {

std::vector<Duration> PoissonArrivals(double rate, int64_t count, Duration limit, uint64_t seed) {
  std::mt19937_64 engine(seed);
  std::vector<Duration> arrivals;
  double seconds = 0;
  while (static_cast<int64_t>(arrivals.size()) < count) {
    // In [0, 1), by hand: the library's distributions differ from one to another.
    const double u = static_cast<double>(engine() >> 11) * 0x1p-53;
    seconds += -std::log1p(-u) / rate;
    if (seconds >= ToSeconds(limit)) break;
    arrivals.push_back(Seconds(seconds));
  }
  return arrivals;
}

}  // namespace paceline
