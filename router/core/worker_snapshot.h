// What a worker last told about itself. Stale values cost speed, never correctness.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <unordered_set>

namespace paceline {

using WorkerId = int32_t;  // of one router; given when an address is first listed, never reused
inline constexpr WorkerId kNoWorker = -1;

// Hashes of the whole chunks of 64 tokens (common/hash.h) that a worker's prefix cache holds.
using PrefixSummary = std::unordered_set<uint64_t>;

struct WorkerSnapshot {
  std::string model;
  std::string fingerprint;  // numerics; equal ones give equal bits
  std::string tokenizer_fingerprint;
  int32_t max_context = 0;  // tokens, prompt and output; 0 = unknown
  int32_t vocab_size = 0;   // 0 = unknown
  bool ready = false;       // loaded and warm
  bool draining = false;
  int32_t running = 0;  // sequences with KV
  int32_t waiting = 0;  // requests queued
  int64_t queued_prompt_tokens = 0;
  int32_t num_blocks = 0;
  int32_t block_size = 0;
  int32_t active_blocks = 0;
  int32_t cached_blocks = 0;
  int32_t free_blocks = 0;
  double tokens_per_second = 0;
  uint64_t prefix_epoch = 0;
  // Null in an update: the summary of this epoch is known already.
  std::shared_ptr<const PrefixSummary> prefixes;
};

}  // namespace paceline
