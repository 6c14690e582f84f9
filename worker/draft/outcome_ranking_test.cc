#include "worker/draft/outcome_ranking.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "worker/draft/row_shares.h"

namespace paceline {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

TEST(OutcomeRankingTest, ThePriorIsTheMeasuredCoverage) {
  const GuessRanks ranks;
  double cover = 0;
  std::vector<double> covers(1);
  for (int32_t rank = 1; rank < kMaxGuessRanks; ++rank)
    covers.push_back(cover += ranks.Share(rank));
  EXPECT_NEAR(covers[1], 0.41, 1e-9);
  EXPECT_NEAR(covers[2], 0.60, 1e-9);
  EXPECT_NEAR(covers[4], 0.77, 1e-9);
  EXPECT_NEAR(covers[8], 0.89, 1e-9);
  EXPECT_LE(covers.back(), 1);
}

TEST(OutcomeRankingTest, RanksAreLearnt) {
  GuessRanks ranks;
  for (int32_t i = 0; i < 20000; ++i) ranks.Observe(i % 4 == 0 ? 7 : i % 4 == 1 ? 1 : -1);
  EXPECT_NEAR(ranks.Share(7), 0.25, 0.02);
  EXPECT_NEAR(ranks.Share(1), 0.25, 0.02);
  EXPECT_NEAR(ranks.Share(2), 0, 0.02);
}

// As many guesses per position as the rule F_n ~ P(n)^(1 / (1 + s)) gives, roughly: most where the
// verify ends most likely.
TEST(OutcomeRankingTest, RowsGoWhereTheVerifyEnds) {
  const std::vector<int32_t> own(5, 0);
  std::vector<int32_t> per_position(6);
  double total = 0;
  for (const Outcome& o : RankOutcomes(own, true, 0.7, GuessRanks(), 16, 24)) {
    ++per_position[o.accepted];
    total += o.probability;
  }
  EXPECT_GE(per_position[0], per_position[2]);
  EXPECT_GE(per_position[2], per_position[4]);
  EXPECT_GE(per_position[4], 1);
  EXPECT_GE(per_position[5], 2);
  EXPECT_GT(total, 0.8);
  EXPECT_LT(total, 1);
}

TEST(OutcomeRankingTest, WhatWouldBeAcceptedIsNoOutcome) {
  for (const Outcome& o :
       RankOutcomes(std::vector<int32_t>{0, 2}, true, 0.6, GuessRanks(), 8, 99)) {
    EXPECT_FALSE(o.accepted == 0 && o.rank == 0);
    EXPECT_FALSE(o.accepted == 1 && o.rank == 2);
  }
  // A draft that is no candidate excludes none.
  EXPECT_EQ(RankOutcomes(std::vector<int32_t>{-1}, false, 0.6, GuessRanks(), 8, 99).size(), 8u);
}

TEST(OutcomeRankingTest, ProbabilitiesSumToOneAtMost) {
  const std::vector<int32_t> ranks = {0, 3, 0};
  double total = 0, last = 1;
  for (const Outcome& o : RankOutcomes(ranks, true, 0.5, GuessRanks(), kMaxGuessRanks, 1000)) {
    total += o.probability;
    EXPECT_LE(o.probability, last);
    last = o.probability;
  }
  EXPECT_NEAR(total, 1, 0.01);
}

TEST(OutcomeRankingTest, NothingWantedNothingGiven) {
  EXPECT_THAT(RankOutcomes({}, true, 0.5, GuessRanks(), 8, 0), IsEmpty());
  EXPECT_THAT(RankOutcomes({}, false, 0.5, GuessRanks(), 8, 9), IsEmpty());
}

TEST(OutcomeRankingTest, TheAgreementFollowsTheSession) {
  Agreement agreement;
  for (int32_t i = 0; i < 200; ++i) agreement.Observe(true);
  EXPECT_GT(agreement.value(), 0.95);
  for (int32_t i = 0; i < 200; ++i) agreement.Observe(i % 2 == 0);
  EXPECT_NEAR(agreement.value(), 0.5, 0.1);
}

TEST(RowSharesTest, WhatOneLeavesGoesToTheOthers) {
  EXPECT_THAT(FairShares(std::vector<int32_t>{5, 100, 100}, 65), ElementsAre(5, 30, 30));
  EXPECT_THAT(FairShares(std::vector<int32_t>{1, 2, 3}, 100), ElementsAre(1, 2, 3));
  EXPECT_THAT(FairShares(std::vector<int32_t>{9, 9, 9}, 2), ElementsAre(0, 1, 1));
  EXPECT_THAT(FairShares(std::vector<int32_t>{}, 10), IsEmpty());
}

}  // namespace
}  // namespace paceline
