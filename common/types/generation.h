// A generation as router and worker both see it: token ids in, token ids out. Plain values.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/clock.h"
#include "common/types/sampling_params.h"

namespace paceline {

enum class FinishReason : uint8_t {
  kNone = 0,
  kStop,       // EOS, a stop id or a stop string
  kLength,     // max_tokens
  kCancelled,  // the client went away
  kDeadline,
  kError,
};

// How the target may draft. The tokens are the same in every mode; only the speed differs.
enum class DecodingMode : uint8_t {
  kAuto = 0,  // the controller decides, step by step
  kPlain,     // no drafts
  kDraft,     // always the remote draft, no controller
  kNgram,     // always the local n-gram draft
};

// How a draft worker is used.
enum class DraftStrategy : uint8_t {
  kDefault = 0,  // as the worker is set up
  kChain,        // the drafter runs ahead; what agrees is used
  kEnumerate,    // the drafter drafts for the outcomes of the step in flight
  kSync,         // as kChain, but steps are sat out for a proposal; for comparison only
};

inline constexpr int kMaxDraftLen = 16;  // tokens per step that a request may ask for

// Of the raw model distribution, before penalties and temperature.
struct TokenLogprob {
  TokenId token = 0;
  float logprob = 0;
  friend bool operator==(const TokenLogprob&, const TokenLogprob&) = default;
};

struct TokenLogprobs {
  float logprob = 0;              // of the chosen token
  std::vector<TokenLogprob> top;  // best first, at most SamplingParams::top_logprobs
  friend bool operator==(const TokenLogprobs&, const TokenLogprobs&) = default;
};

// What a sample had emitted when its request moved here from elsewhere.
struct SampleProgress {
  std::vector<TokenId> emitted;
  FinishReason finish = FinishReason::kNone;
};

struct GenerationRequest {
  std::string request_id;       // unique among those in flight; for logs and duplicates
  std::vector<TokenId> prompt;  // at least one id
  SamplingParams sampling;      // seed is always set
  int32_t num_samples = 1;      // sample s of n equals the run with that sample alone
  DecodingMode decoding = DecodingMode::kAuto;
  DraftStrategy draft_strategy = DraftStrategy::kDefault;
  int32_t draft_len = 0;   // of kDraft, at most kMaxDraftLen; 0 = the worker's
  int32_t priority = 0;    // greater goes first
  std::string cache_salt;  // prefixes are shared only within an equal salt
  std::string session_id;  // tags the blocks for retention; empty = none
  TimePoint deadline = kNoDeadline;
  std::vector<SampleProgress> resumed;  // empty, or one per sample
};

// New tokens of one sample. Deltas of a sample come in order and without gaps:
// first_index is the number of its output tokens before this delta.
struct SampleDelta {
  int32_t sample = 0;
  int32_t first_index = 0;
  std::vector<TokenId> tokens;
  std::vector<TokenLogprobs> logprobs;  // empty, or one per token
  FinishReason finish = FinishReason::kNone;
};

// Sent once, when the last sample of a request has finished.
struct GenerationUsage {
  int32_t prompt_tokens = 0;
  int32_t cached_tokens = 0;    // of the prompt, found in the prefix cache
  int32_t output_tokens = 0;    // all samples
  int32_t drafted_tokens = 0;   // verified by the target
  int32_t accepted_tokens = 0;  // of those, equal to the target's own
  Duration queue_time{};        // submit to first scheduled
  Duration first_token_time{};  // submit to first token
  Duration total_time{};
};

}  // namespace paceline
