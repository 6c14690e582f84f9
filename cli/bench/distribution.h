// A sample of measurements in a few figures.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace paceline {

// All 0 where count is 0. In the unit of the values.
struct Distribution {
  int64_t count = 0;
  double mean = 0, p50 = 0, p90 = 0, p95 = 0, p99 = 0, max = 0;
};

// Values in any order.
Distribution Describe(std::vector<double> values);

// The q-quantile of ascending values, q in [0, 1], by linear interpolation between the two nearest
// ranks: rank q * (n - 1), counted from 0 (type 7 of Hyndman and Fan 1996, as NumPy's default). At
// least one value.
double Quantile(std::span<const double> ascending, double q);

// A figure over several rounds.
struct Spread {
  double mean = 0, least = 0, greatest = 0;
};

// All 0 where there are no values.
Spread SpreadOf(std::span<const double> values);

}  // namespace paceline
