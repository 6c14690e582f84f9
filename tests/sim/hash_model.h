// A language model made of a hash: the distribution of the next token is a function of a fold over
// the whole prefix, so that one wrong, missing or misplaced token changes everything behind it.
// Cheap, deterministic, and the same on every machine up to the last bit of log().
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "common/types/sampling_params.h"

namespace paceline {

struct HashModelOptions {
  uint64_t seed = 1;
  int32_t vocab_size = 128;
  std::vector<TokenId> eos_token_ids = {0};
  // A drafter: its distribution is that of the model with this seed, except behind a share of
  // 1 - agreement of all prefixes, where it is another one. (Tokens agree there by chance: rarely
  // at temperature 0, about one time in six at 1, as both sides draw with the same noise.)
  double agreement = 1.0;
};

// What one sampled row yields.
struct HashSample {
  TokenId token = 0;
  float logprob = 0;                           // raw
  std::vector<std::pair<TokenId, float>> top;  // raw, best first; params.top_logprobs of them
  std::vector<TokenId> candidates;             // by falling noise-coupled score
};

class HashModel {
 public:
  explicit HashModel(HashModelOptions options) : options_(std::move(options)) {}
  const HashModelOptions& options() const { return options_; }

  // The fold over the empty prefix, and over one token more.
  uint64_t Empty() const;
  uint64_t Extend(uint64_t prefix, TokenId token) const;

  // The token behind a prefix, for which `history` holds prompt and output so far; it gets the
  // absolute position history.size(). Penalties, bias and min_tokens read the history.
  HashSample Sample(uint64_t prefix, const SamplingParams& params, int32_t sample,
                    std::span<const TokenId> history, int32_t prompt_len,
                    int32_t num_candidates = 0) const;

  // Whether `token` as output number `index` (from 0) ends the sample.
  bool Ends(TokenId token, int32_t index, const SamplingParams& params) const;

  // What any engine must emit for one sample of a request, computed with no KV at all.
  std::vector<TokenId> Generate(std::span<const TokenId> prompt, const SamplingParams& params,
                                int32_t sample) const;

 private:
  bool IsStop(TokenId token, const SamplingParams& params) const;
  std::vector<float> Logits(uint64_t prefix) const;

  HashModelOptions options_;
};

}  // namespace paceline
