#include "cli/bench/comparison.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "cli/bench/test_outcomes.h"

namespace paceline {
namespace {

using ::testing::ElementsAre;

constexpr BenchMode kPlain = BenchMode::kPlain, kChain = BenchMode::kChain,
                    kSync = BenchMode::kSync;

TEST(Comparison, RoundsBeginWithEachModeInTurn) {
  const Comparison comparison({kPlain, kSync, kChain});
  EXPECT_THAT(comparison.RoundOrder(0), ElementsAre(kPlain, kSync, kChain));
  EXPECT_THAT(comparison.RoundOrder(1), ElementsAre(kSync, kChain, kPlain));
  EXPECT_THAT(comparison.RoundOrder(5), ElementsAre(kChain, kPlain, kSync));
}

TEST(Comparison, RatiosAreThoseOfTheSameRound) {
  // The machine is half as fast in round 1; the ratio stays 2.
  Comparison comparison({kChain, kPlain});
  EXPECT_EQ(comparison.reference(), kPlain);
  for (int round = 0; round < 2; ++round) {
    const int64_t slow = round + 1;
    comparison.AddRun(kPlain, round, {Outcome(0, {1, 2, 3}, Ms(0), Ms(0), Ms(200 * slow))}, {});
    comparison.AddRun(kChain, round, {Outcome(0, {1, 2, 3}, Ms(0), Ms(0), Ms(100 * slow))}, {});
  }
  const auto figures = comparison.Figures();
  ASSERT_EQ(figures.size(), 2u);
  EXPECT_EQ(figures[0].mode, kChain);
  EXPECT_DOUBLE_EQ(figures[0].output_ratio.least, 2);
  EXPECT_DOUBLE_EQ(figures[0].output_ratio.greatest, 2);
  EXPECT_DOUBLE_EQ(figures[0].user_ratio.mean, 2);
  EXPECT_DOUBLE_EQ(figures[0].output_throughput.least, 15);
  EXPECT_DOUBLE_EQ(figures[0].output_throughput.greatest, 30);
  EXPECT_DOUBLE_EQ(figures[1].output_ratio.mean, 1);
  EXPECT_EQ(figures[0].summary.completed, 2);
  EXPECT_TRUE(comparison.divergences().empty());
  EXPECT_EQ(comparison.compared(), 3);
  EXPECT_EQ(comparison.run_count(), 4);
}

TEST(Comparison, FindsTheFirstTokenThatDiffers) {
  Comparison comparison({kPlain, kChain});
  comparison.AddRun(
      kPlain, 0,
      {Outcome(0, {1, 2, 3}, Ms(0), Ms(0), Ms(9)), Outcome(1, {4, 5, 6}, Ms(0), Ms(0), Ms(9))}, {});
  comparison.AddRun(
      kChain, 0,
      {Outcome(0, {1, 2, 3}, Ms(0), Ms(0), Ms(9)), Outcome(1, {4, 5, 7}, Ms(0), Ms(0), Ms(9))}, {});
  comparison.AddRun(
      kPlain, 1,
      {Outcome(0, {1, 2}, Ms(0), Ms(0), Ms(9)), Outcome(1, {4, 5, 6}, Ms(0), Ms(0), Ms(9))}, {});
  ASSERT_EQ(comparison.divergences().size(), 2u);
  const Divergence& wrong = comparison.divergences()[0];
  EXPECT_EQ(wrong.request, 1);
  EXPECT_EQ(wrong.mode, kChain);
  EXPECT_EQ(wrong.reference_mode, kPlain);
  EXPECT_EQ(wrong.position, 2);
  // Plain against itself counts too, as does an output that ends early.
  const Divergence& shorter = comparison.divergences()[1];
  EXPECT_EQ(shorter.mode, kPlain);
  EXPECT_EQ(shorter.round, 1);
  EXPECT_EQ(shorter.position, 2);
}

TEST(Comparison, FailedRequestsAreNotCompared) {
  Comparison comparison({kPlain, kChain});
  RequestOutcome failed = Outcome(0, {1}, Ms(0), Ms(0), Ms(9));
  failed.code = "UNAVAILABLE";
  comparison.AddRun(kPlain, 0, {failed}, {});
  comparison.AddRun(kChain, 0, {Outcome(0, {1, 2}, Ms(0), Ms(0), Ms(9))}, {});
  EXPECT_EQ(comparison.compared(), 0);
  EXPECT_TRUE(comparison.divergences().empty());
  EXPECT_EQ(comparison.Figures()[1].output_ratio.mean, 0);  // there is nothing to refer to
}

TEST(Comparison, ReferenceWithoutPlain) {
  EXPECT_EQ(Comparison({kSync, kChain}).reference(), kSync);
}

TEST(Comparison, DraftDevicesCountWhereTheyAreUsed) {
  Comparison comparison({kPlain, kChain}, {}, {.targets = 1, .drafts = 1});
  for (BenchMode mode : {kPlain, kChain}) {
    comparison.AddRun(mode, 0, {Outcome(0, {1, 2, 3}, Ms(0), Ms(0), Ms(100))}, {});
  }
  EXPECT_DOUBLE_EQ(comparison.Figures()[0].device_throughput, 30);
  EXPECT_DOUBLE_EQ(comparison.Figures()[1].device_throughput, 15);
}

TEST(Comparison, ActivityAddsUpOverRounds) {
  Comparison comparison({kChain});
  comparison.AddRun(kChain, 0, {}, SpecActivity{.full = 1, .none = 3});
  comparison.AddRun(kChain, 1, {}, SpecActivity{.full = 4, .none = 0});
  const auto figures = comparison.Figures();
  ASSERT_TRUE(figures[0].activity.has_value());
  EXPECT_EQ(figures[0].activity->steps(), 8);
  EXPECT_DOUBLE_EQ(figures[0].activity->Share(figures[0].activity->full), 0.625);
}

}  // namespace
}  // namespace paceline
