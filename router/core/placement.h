// Which worker gets a request: a pure function of the request and what is known of the workers, so
// that every router replica places alike. The score is predicted work until the first token, in
// prompt tokens (lower is better), and keeps its terms so that it can be shown.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "router/core/worker_set.h"

namespace paceline {

struct PlacementOptions {
  double tokens_per_sequence = 32;   // what a running or queued request costs a newcomer
  double session_bonus = 256;        // what a session's home is worth beyond its known prefixes
  double fingerprint_penalty = 1e6;  // a resumed request on other numerics
  double kv_penalty = 1e5;           // the pool has no room for the request now
};

struct PlacementRequest {
  std::string model;
  std::string session_id;               // empty = none
  std::string fingerprint;              // wanted numerics of a resumed request; empty = any
  std::string tokenizer;                // required of workers that tell theirs; empty = any
  std::vector<uint64_t> prefix_hashes;  // of the prompt's whole chunks (PrefixChunkHashes)
  int64_t prompt_tokens = 0;            // to be prefilled: prompt, and output if resumed
  int64_t total_tokens = 0;             // prompt and max_tokens
  uint64_t tie_break = 0;               // spreads requests over equal workers
  std::span<const WorkerId> avoid;      // refused or lost this request; only as a last resort
};

struct PlacementScore {
  WorkerId worker = kNoWorker;
  double total = 0;
  int64_t matched_tokens = 0;  // predicted prefix hit
  double prefill = 0;          // prompt tokens left to prefill
  double load = 0;
  bool session_home = false;
  bool other_numerics = false;
  bool avoided = false;
  uint64_t rendezvous = 0;  // order among equals
  std::string ToString() const;
};

// Hash of each prefix of whole chunks of `prompt`.
std::vector<uint64_t> PrefixChunkHashes(std::span<const int32_t> prompt,
                                        const std::string& cache_salt);

// The worker whose hash with `key` is greatest has it (highest random weight, Thaler and
// Ravishankar 1998): when a worker goes, only its own keys move.
uint64_t RendezvousWeight(uint64_t key, const std::string& worker_address);

// Workers that can take the request now, best first. Empty: none.
std::vector<PlacementScore> RankWorkers(const PlacementRequest& request,
                                        std::span<const Worker> workers, TimePoint now,
                                        const PlacementOptions& options = {});

}  // namespace paceline
