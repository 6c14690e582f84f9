// Tokens that follow from (seed, sample, position) alone, for benchmarks that must tell the
// protocol of speculation from the quality of a draft: target and drafter run their whole
// computation, then the sampler's answer is replaced. The target emits the truth; the drafter
// offers it with a given acceptance, and where it does not, the truth is among its next guesses as
// often as was measured on real logits with shared noise at temperature 1: among the first 1, 2, 4,
// 8 in 0.41, 0.60, 0.77, 0.89 of cases. Both follow from coins that every process tosses alike.
#pragma once

#include <cstdint>
#include <vector>

#include "common/types/sampling_params.h"
#include "kernels/cpu/sampler.h"

namespace paceline {

struct SyntheticPlace {
  uint64_t seed = 0;
  uint32_t sample = 0;
  uint32_t position = 0;
};

class SyntheticTokens {
 public:
  // Never yields one of `avoided` (ends of text). vocab_size at least 64 above their number.
  // A target's tokens: `acceptance` above 1.
  SyntheticTokens(int32_t vocab_size, std::vector<TokenId> avoided, double acceptance);

  static constexpr double kTruth = 2;

  // The target's token.
  TokenId Truth(const SyntheticPlace& place) const;

  // The `count` best tokens of this side, best first, each once; the first one is its own choice.
  std::vector<TokenId> Ranking(const SyntheticPlace& place, int32_t count) const;

  // Puts token and candidates of this side in the place of what was sampled.
  void Replace(const kernels::SampleParams& params, kernels::SampleOutput* output) const;

 private:
  TokenId Pick(uint64_t hash) const;
  int32_t RankOfTruth(uint64_t hash) const;

  int32_t vocab_size_;
  std::vector<TokenId> avoided_;
  double acceptance_;
};

}  // namespace paceline
