// A run of a benchmark, or several rounds of it, in figures.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "cli/bench/distribution.h"
#include "cli/bench/request_outcome.h"

namespace paceline {

// What a user bears with, in milliseconds; 0 = no limit.
struct ServiceLimits {
  double ttft = 0, tpot = 0;
  bool any() const { return ttft > 0 || tpot > 0; }
};

struct ErrorCount {
  int64_t count = 0;
  std::string first_message;
};

// Over the requests that ended well, but for `errors`. Times in milliseconds.
struct RunSummary {
  int64_t completed = 0;
  std::map<std::string, ErrorCount> errors;  // by code
  double seconds = 0;                        // from first arrival to last end, rounds added up

  int64_t prompt_tokens = 0, cached_tokens = 0, output_tokens = 0;
  int64_t drafted_tokens = 0, accepted_tokens = 0;
  int64_t messages = 0;  // that brought tokens
  int64_t failovers = 0;
  int64_t within_limits = 0;  // requests that kept all service limits

  double request_throughput = 0;  // per second
  double goodput = 0;             // requests within the limits per second
  double output_throughput = 0;   // output tokens per second, all requests together
  double user_throughput = 0;     // sum(output tokens - 1) / sum(end - first token): one user's
                                  // tokens per second once they flow
  Distribution ttft;              // arrival to the first message with tokens
  Distribution itl;               // between two messages with tokens
  Distribution itl_token;         // that / tokens of the later message, once per token
  Distribution tpot;              // (end - first token) / (output tokens - 1), per request
  Distribution e2e;               // arrival to end
  Distribution send_lag;          // arrival to start: the client's own lateness
  double mean_queue = 0, mean_prefill = 0, mean_decode = 0;  // parts of the mean e2e: queue as the
                                                             // router saw it, the rest of TTFT,
                                                             // first token to end
  int64_t failed() const;
  double acceptance() const;          // accepted / drafted; 0 where nothing was drafted
  double tokens_per_message() const;  // 0 where there was no message
};

// Times of different rounds are never compared; their requests are pooled.
RunSummary Summarize(std::span<const std::vector<RequestOutcome>> rounds,
                     const ServiceLimits& limits = {});
RunSummary Summarize(const std::vector<RequestOutcome>& round, const ServiceLimits& limits = {});

}  // namespace paceline
