// From logits to a token by the one rule: argmax_v(log p(v) + G(seed, sample, position, v)) at
// temperature > 0, argmax_v p(v) at 0, ties to the lowest id.
//
// p is made by, in this order: allowed mask, logit bias, repetition, presence and frequency
// penalties, banned ids, then at temperature > 0: temperature, top-k (exactly k, ties to the lowest
// id), top-p (of what is left, renormalised; the crossing token stays), min-p (relative to the
// greatest). Deterministic; no sort of the whole vocabulary. Logits of NaN count as -infinity.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "kernels/cpu/result.h"
#include "kernels/cpu/thread_pool.h"

namespace paceline::kernels {

struct SampleParams {
  const float* logits = nullptr;  // [vocab_size]
  int32_t vocab_size = 0;
  uint64_t seed = 0;
  uint32_t sample = 0;
  uint32_t position = 0;  // absolute, of the token to be drawn

  float temperature = 1.0f;         // >= 0
  int32_t top_k = 0;                // 0 = all
  float top_p = 1.0f;               // (0, 1]
  float min_p = 0.0f;               // [0, 1)
  float repetition_penalty = 1.0f;  // counts history and path
  float presence_penalty = 0.0f;    // counts history from prompt_len on, and path
  float frequency_penalty = 0.0f;   // as above

  // Tokens before `position`: the slot's own, then a draft row's path. Read only under penalties;
  // the cost is linear in them. All ids in [0, vocab_size); others are ignored.
  const int32_t* history = nullptr;  // [history_len]
  int32_t history_len = 0;
  int32_t prompt_len = 0;         // history[0, prompt_len) is the prompt
  const int32_t* path = nullptr;  // [path_len] output tokens behind the history
  int32_t path_len = 0;

  const std::pair<int32_t, float>* logit_bias = nullptr;  // [num_logit_bias]
  int32_t num_logit_bias = 0;
  const int32_t* banned = nullptr;  // [num_banned] e.g. stop ids below min_tokens
  int32_t num_banned = 0;
  const uint32_t* allowed =
      nullptr;  // [ceil(vocab_size / 32)] bit v % 32 of word v / 32; null = all

  int32_t top_logprobs = -1;   // -1: none; k >= 0: the token's own raw logprob and the k best
  int32_t num_candidates = 0;  // best ids by the score above (at 0: by p), best first
};

struct SampleOutput {
  int32_t token = -1;                                   // -1: nothing was left to choose from
  float logprob = 0;                                    // raw, of token; with top_logprobs >= 0
  std::vector<std::pair<int32_t, float>> top_logprobs;  // best first, ties to the lowest id
  std::vector<int32_t> candidates;                      // fewer where fewer tokens are left
};

// rows, outputs: [num_rows]. Rows are independent of each other.
CpuResult Sample(const SampleParams* rows, int64_t num_rows, SampleOutput* outputs,
                 ThreadPool& pool);

}  // namespace paceline::kernels
