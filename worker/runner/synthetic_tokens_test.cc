#include "worker/runner/synthetic_tokens.h"

#include <algorithm>
#include <array>
#include <set>

#include <gtest/gtest.h>

namespace paceline {
namespace {

constexpr int32_t kVocab = 1000;

SyntheticPlace PlaceOf(uint32_t i) { return {.seed = 77 + i % 3, .sample = i % 2, .position = i}; }

TEST(SyntheticTokensTest, TheTargetRanksTheTruthFirst) {
  const SyntheticTokens target(kVocab, {0, 5}, SyntheticTokens::kTruth);
  for (uint32_t i = 0; i < 2000; ++i) {
    const auto ranking = target.Ranking(PlaceOf(i), 4);
    EXPECT_EQ(ranking[0], target.Truth(PlaceOf(i)));
    EXPECT_NE(ranking[0], 0);
    EXPECT_NE(ranking[0], 5);
  }
}

TEST(SyntheticTokensTest, RankingsHoldEachTokenOnce) {
  const SyntheticTokens draft(kVocab, {0}, 0.5);
  for (uint32_t i = 0; i < 2000; ++i) {
    const auto ranking = draft.Ranking(PlaceOf(i), 16);
    ASSERT_EQ(ranking.size(), 16u);
    EXPECT_EQ(std::set<TokenId>(ranking.begin(), ranking.end()).size(), 16u);
  }
}

// Shares of 20,000 places, each within four standard deviations.
TEST(SyntheticTokensTest, AcceptanceAndGuessesAreAsMeasured) {
  constexpr int kPlaces = 20000;
  const SyntheticTokens draft(kVocab, {}, 0.7);
  int accepted = 0;
  std::array<int, 9> among{};  // of the refused: truth among the first n guesses
  for (uint32_t i = 0; i < kPlaces; ++i) {
    const auto ranking = draft.Ranking(PlaceOf(i), 9);
    const auto rank = std::ranges::find(ranking, draft.Truth(PlaceOf(i))) - ranking.begin();
    accepted += rank == 0;
    for (int n = 1; n <= 8; ++n) among[n] += rank > 0 && rank <= n;
  }
  const double refused = kPlaces - accepted;
  EXPECT_NEAR(accepted / double{kPlaces}, 0.7, 0.013);
  EXPECT_NEAR(among[1] / refused, 0.41, 0.026);
  EXPECT_NEAR(among[2] / refused, 0.60, 0.026);
  EXPECT_NEAR(among[4] / refused, 0.77, 0.022);
  EXPECT_NEAR(among[8] / refused, 0.89, 0.017);
}

}  // namespace
}  // namespace paceline
