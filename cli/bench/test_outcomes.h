// Outcomes made by hand, for tests.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "cli/bench/request_outcome.h"

namespace paceline {

inline Duration Ms(int64_t ms) { return std::chrono::milliseconds(ms); }

// One message per token, the last at the end.
inline RequestOutcome Outcome(int64_t index, std::vector<int32_t> ids, Duration arrival,
                              Duration first, Duration end) {
  RequestOutcome o;
  o.index = index;
  o.arrival = o.started = arrival;
  o.first_token = first;
  o.ended = end;
  o.message_count = static_cast<int32_t>(ids.size());
  for (size_t i = 1; i < ids.size(); ++i) {
    o.gaps.push_back({(end - first) / static_cast<int64_t>(ids.size() - 1), 1});
  }
  o.token_ids = std::move(ids);
  return o;
}

}  // namespace paceline
