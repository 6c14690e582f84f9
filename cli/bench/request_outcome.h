// What became of one request of a benchmark. A plain value, made by the load generator.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/clock.h"

namespace paceline {

// A message that brought tokens, behind the first such message.
struct TokenGap {
  Duration gap{};  // since the message before
  int32_t tokens = 0;
};

// Times are offsets from the start of the run.
struct RequestOutcome {
  int64_t index = 0;  // in the workload
  // What latencies count from: the scheduled arrival (open loop), or the start (closed loop).
  Duration arrival{};
  Duration started{};      // when it was really sent
  Duration first_token{};  // valid where token_ids is not empty
  Duration ended{};

  std::vector<int32_t> token_ids;
  int32_t message_count = 0;   // that brought tokens
  std::vector<TokenGap> gaps;  // message_count - 1 of them

  // "OK", or the name of a gRPC status code. A stream with a gap, a repeat or no summary is
  // DATA_LOSS.
  std::string code = "OK";
  std::string error;

  // As the router reported at the end.
  Duration queue{};
  int32_t prompt_tokens = 0, cached_tokens = 0, drafted_tokens = 0, accepted_tokens = 0;
  int32_t failover_count = 0;

  bool ok() const { return code == "OK"; }
};

}  // namespace paceline
