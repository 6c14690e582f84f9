// When the requests of an open loop arrive: at times that do not depend on how the cluster keeps
// up.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/clock.h"

namespace paceline {

// A Poisson process of `rate` arrivals per second (> 0) from a seed: the first `count` arrivals,
// and none from `limit` on. Ascending offsets from the start of the run.
std::vector<Duration> PoissonArrivals(double rate, int64_t count, Duration limit, uint64_t seed);

// A request of a recorded trace.
struct TraceRow {
  Duration arrival{};  // since the first row
  int32_t prompt_tokens = 0;
  int32_t output_tokens = 0;
};

// The first `count` rows of a CSV file with the header TIMESTAMP,ContextTokens,GeneratedTokens (the
// Azure LLM inference traces), timestamps as "2023-11-16 18:15:46.6805900" and not descending.
// NOT_FOUND, or INVALID_ARGUMENT as "FILE:LINE: reason". Rows without prompt or output count as 1
// token each.
absl::StatusOr<std::vector<TraceRow>> ReadTrace(const std::string& path, int64_t count);

}  // namespace paceline
