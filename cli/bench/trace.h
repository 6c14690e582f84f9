// Recorded traces of requests: when they came and how long they were.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/clock.h"

namespace paceline {

// Tokens of a block of TraceRow::blocks.
inline constexpr int32_t kTraceBlockTokens = 512;

struct TraceRow {
  Duration arrival{};  // since the first row
  int32_t prompt_tokens = 0;
  int32_t output_tokens = 0;
  // Names of the prompt's blocks of kTraceBlockTokens tokens, the last one perhaps not full: equal
  // names mean equal tokens. Empty where the trace does not tell.
  std::vector<int64_t> blocks;
};

// The first `count` rows of a file, timestamps not descending. NOT_FOUND, or INVALID_ARGUMENT as
// "FILE:LINE: reason". Rows without prompt or output count as 1 token each. Two formats:
// - names ending in .jsonl: an object per line with "timestamp" (ms), "input_length",
//   "output_length" and perhaps "hash_ids" (the Mooncake traces);
// - all others: CSV with the header TIMESTAMP,ContextTokens,GeneratedTokens, timestamps as
//   "2023-11-16 18:15:46.6805900" (the Azure LLM inference traces).
absl::StatusOr<std::vector<TraceRow>> ReadTrace(const std::string& path, int64_t count);

}  // namespace paceline
