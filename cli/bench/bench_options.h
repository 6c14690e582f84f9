// The flags of `paceline bench`.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "cli/bench/bench_mode.h"

namespace paceline {

struct BenchOptions {
  std::string router = "127.0.0.1:50051", model;
  // The load.
  std::vector<std::string> prompts;  // files; none: synthetic prompts, or a trace
  int32_t prompt_tokens = 0;         // synthetic; 0 = not asked for
  int32_t max_prompt_bytes = 0;      // longer prompts of files are left out; 0 = none
  bool shuffle = false;
  std::string trace;
  double trace_speed = 1, length_scale = 1;
  int64_t requests = 0;     // 0 = each prompt once; 32 synthetic ones; no limit with a duration
  double duration = 0;      // seconds; 0 = no limit
  int32_t concurrency = 1;  // closed loop
  double rate = 0;          // open loop, requests per second; 0 = closed loop, or a trace
  int32_t warmup = 0;       // before each mode of a comparison, where `concurrency` is the default
  double timeout = 300;     // seconds per request
  bool shared_cache = false;
  // Each request.
  int32_t max_tokens = 128, top_k = 0, draft_length = 0;
  double temperature = 1, top_p = 1;
  uint64_t seed = 0;
  bool ignore_eos = false;
  BenchMode mode = BenchMode::kAuto;
  // Comparison: empty = a single run under `mode`.
  std::vector<BenchMode> compare;
  int32_t rounds = 3;
  // What is counted besides.
  double slo_ttft = 0, slo_tpot = 0;  // ms; 0 = no limit
  int32_t target_devices = 0, draft_devices = 0;
  // Output.
  std::vector<std::string> metrics;
  std::string json, svg;
  bool allow_errors = false;

  bool open_loop() const { return rate > 0 || !trace.empty(); }
};

// INVALID_ARGUMENT names the flag: unknown, out of range, or at odds with another. --help prints
// the help and exits 0.
absl::StatusOr<BenchOptions> ParseBenchOptions(int argc, const char* const* argv);

}  // namespace paceline
