// The requests of a benchmark: a function of the flags, the seed and the model's limits.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "cli/bench/bench_options.h"
#include "cli/bench/prompt_source.h"
#include "common/clock.h"

namespace paceline {

struct ModelLimits {
  std::string model;
  int32_t context_length = 0;   // prompt and output
  int32_t vocabulary_size = 0;  // token ids lie below it
};

// Text or token ids, never both.
struct BenchPrompt {
  std::string text;  // UTF-8
  std::vector<int32_t> token_ids;
};

// Request i takes entry i modulo their number of each list. Immutable once made: any thread reads
// it.
struct Workload {
  std::vector<std::string> texts;         // empty: prompts are synthetic
  std::vector<int32_t> synthetic_tokens;  // lengths of synthetic prompts
  // Of a trace that tells which prompts share prefixes (TraceRow::blocks); else empty.
  std::vector<std::vector<int64_t>> prompt_blocks;
  int32_t block_tokens = 0;
  std::vector<int32_t> max_tokens;  // output tokens
  int64_t request_count = 0;        // kUnbounded where only time bounds the run
  std::vector<Duration> arrivals;   // open loop: one per request; closed loop: empty
  uint64_t seed = 0;
  int32_t vocabulary_size = 0;
  int64_t left_out_prompts = 0;  // longer than --max-prompt-bytes
  int64_t cut_rows = 0;          // of a trace, shortened to the model's context

  static constexpr int64_t kUnbounded = INT64_MAX;
  bool open_loop() const { return !arrivals.empty(); }
  BenchPrompt PromptOf(int64_t request) const;
  int32_t MaxTokensOf(int64_t request) const;
  uint64_t SeedOf(int64_t request) const;

 private:
  std::vector<int32_t> TokensOfBlocks(const std::vector<int64_t>& blocks, int32_t length) const;
};

// Reads files. NOT_FOUND or INVALID_ARGUMENT name the file and line, or the flag: no prompt is
// short enough, or synthetic lengths do not fit the model's context.
absl::StatusOr<Workload> MakeWorkload(const BenchOptions& options, const ModelLimits& limits);

}  // namespace paceline
