// What a request may ask of the sampler. A plain value, shared by router and worker.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/status/status.h"

namespace paceline {

using TokenId = int32_t;

// Part of every fingerprint: the order and meaning of the transformations below. A change of either
// changes tokens and must change this number.
inline constexpr int kSamplerVersion = 1;

// The token at absolute position i of sample s is argmax_v(log p_i(v) + G(seed, s, i, v)), or
// argmax_v p_i(v) at temperature 0. p_i is the model's distribution after, in this order: logit
// bias, repetition, presence and frequency penalties, then (at temperature > 0) temperature, top-k,
// top-p, min-p. Ties go to the lowest id.
struct SamplingParams {
  float temperature = 1.0f;         // >= 0; 0 = greedy
  int32_t top_k = 0;                // keep exactly k, ties to the lowest id; 0 = all
  float top_p = 1.0f;               // (0, 1]; includes the token that crosses p
  float min_p = 0.0f;               // [0, 1); relative to the greatest p after top-p
  float repetition_penalty = 1.0f;  // > 0; counts prompt and output
  float presence_penalty = 0.0f;    // [-2, 2]; counts output only
  float frequency_penalty = 0.0f;   // [-2, 2]; counts output only
  std::vector<std::pair<TokenId, float>> logit_bias;  // added to the logits; each in [-100, 100]

  uint64_t seed = 0;
  int32_t max_tokens = 16;              // >= 1 output tokens
  int32_t min_tokens = 0;               // below it, stop ids and EOS are masked out
  std::vector<TokenId> stop_token_ids;  // emitted, then the sample ends with kStop
  bool ignore_eos = false;              // the model's EOS ids are ordinary tokens
  int32_t top_logprobs = -1;            // -1: none; k >= 0: the token's own and the k best

  friend bool operator==(const SamplingParams&, const SamplingParams&) = default;
};

inline constexpr int kMaxTopLogprobs = 20;
inline constexpr int kMaxLogitBias = 1024;
inline constexpr int kMaxStopTokenIds = 64;

// INVALID_ARGUMENT naming field, value and limit. `vocab_size` bounds every token id.
absl::Status ValidateSamplingParams(const SamplingParams& params, int32_t vocab_size);

}  // namespace paceline
