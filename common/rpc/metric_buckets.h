// Histogram buckets of all metrics (docs/metrics.md).
#pragma once

#include <vector>

namespace paceline {

using MetricBuckets = std::vector<double>;

inline MetricBuckets FirstTokenBuckets() {
  return {.005, .01, .02, .04, .06, .08, .1, .15, .25, .5, .75, 1, 2.5, 5, 10, 20, 40, 80, 160};
}
inline MetricBuckets InterTokenBuckets() {
  return {.001, .002, .004, .006, .008, .01, .015, .02, .025, .03,
          .04,  .06,  .08,  .1,   .2,   .4,  .8,   1.6, 5};
}
inline MetricBuckets RequestBuckets() {
  return {.05, .1, .25, .5, 1, 2.5, 5, 10, 20, 40, 60, 120, 240, 480, 960};
}
inline MetricBuckets QueueBuckets() {
  return {.001, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120};
}
// 50 us to 0.8 s.
inline MetricBuckets StepBuckets() {
  MetricBuckets buckets;
  for (int k = 0; k < 15; ++k) buckets.push_back(50e-6 * (1 << k));
  return buckets;
}
// 10 us to 0.1 s, fine around 1 ms.
inline MetricBuckets OverheadBuckets() {
  return {.00001, .00002, .00005, .0001, .0002, .0003, .0004, .0005, .0006, .0007, .0008,
          .0009,  .001,   .0012,  .0015, .002,  .003,  .005,  .01,   .02,   .05,   .1};
}
inline MetricBuckets TokenBuckets() {
  MetricBuckets buckets;
  for (double b = 1; b <= 262144; b *= 4) buckets.push_back(b);
  return buckets;
}
inline MetricBuckets DepthBuckets() {
  MetricBuckets buckets;
  for (int k = 0; k <= 16; ++k) buckets.push_back(k);
  return buckets;
}
inline MetricBuckets RatioBuckets() { return {0, .1, .2, .3, .4, .5, .6, .7, .8, .9, 1}; }

}  // namespace paceline
