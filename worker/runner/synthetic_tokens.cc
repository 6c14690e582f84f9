#include "worker/runner/synthetic_tokens.h"

#include <algorithm>
#include <limits>

#include "common/check.h"
#include "common/hash.h"

namespace paceline {
namespace {

constexpr int32_t kNowhere = std::numeric_limits<int32_t>::max();

uint64_t HashOf(const SyntheticPlace& place, uint64_t purpose) {
  const uint64_t where = uint64_t{place.sample} << 32 | place.position;
  return HashCombine(HashCombine(place.seed, where), purpose);
}

double Uniform(uint64_t hash) { return static_cast<double>(hash >> 11) * 0x1p-53; }

enum Purpose : uint64_t { kTruthOf = 1, kAcceptCoin = 2, kRankCoin = 3, kFiller = 16 };

}  // namespace

SyntheticTokens::SyntheticTokens(int32_t vocab_size, std::vector<TokenId> avoided,
                                 double acceptance)
    : vocab_size_(vocab_size), avoided_(std::move(avoided)), acceptance_(acceptance) {
  CHECK_GE(vocab_size_, 64 + static_cast<int32_t>(avoided_.size()));
}

TokenId SyntheticTokens::Pick(uint64_t hash) const {
  while (true) {
    const auto token = static_cast<TokenId>(hash % static_cast<uint64_t>(vocab_size_));
    if (std::ranges::find(avoided_, token) == avoided_.end()) return token;
    hash = Mix64(hash);
  }
}

TokenId SyntheticTokens::Truth(const SyntheticPlace& place) const {
  return Pick(HashOf(place, kTruthOf));
}

// Behind a refused first choice: uniform within the classes that the measured shares bound.
int32_t SyntheticTokens::RankOfTruth(uint64_t hash) const {
  const double u = Uniform(hash);
  if (u < 0.41) return 1;
  if (u < 0.60) return 2;
  if (u < 0.77) return u < 0.685 ? 3 : 4;
  if (u < 0.89) return 5 + static_cast<int32_t>((u - 0.77) / 0.03);
  return kNowhere;
}

std::vector<TokenId> SyntheticTokens::Ranking(const SyntheticPlace& place, int32_t count) const {
  const TokenId truth = Truth(place);
  const bool accepted = Uniform(HashOf(place, kAcceptCoin)) < acceptance_;
  const int32_t rank = accepted ? 0 : RankOfTruth(HashOf(place, kRankCoin));
  std::vector<TokenId> ranking;
  for (uint64_t filler = kFiller; static_cast<int32_t>(ranking.size()) < count; ++filler) {
    if (static_cast<int32_t>(ranking.size()) == rank) {
      ranking.push_back(truth);
      continue;
    }
    const TokenId token = Pick(HashOf(place, filler));
    if (token == truth || std::ranges::find(ranking, token) != ranking.end()) continue;
    ranking.push_back(token);
  }
  return ranking;
}

void SyntheticTokens::Replace(const kernels::SampleParams& p, kernels::SampleOutput* output) const {
  std::vector<TokenId> ranking =
      Ranking({.seed = p.seed, .sample = p.sample, .position = p.position}, p.num_candidates + 1);
  output->token = ranking[0];
  ranking.resize(static_cast<size_t>(p.num_candidates));
  output->candidates = std::move(ranking);
}

}  // namespace paceline
