#include "worker/spec/survival.h"

#include <gtest/gtest.h>

namespace paceline {
namespace {

TEST(SurvivalTest, CountsUpToTheFirstRejection) {
  Survival s;
  s.Observe(4, 2, 0.1);
  EXPECT_EQ(s.observations(0), 1);
  EXPECT_EQ(s.observations(2), 1);
  EXPECT_EQ(s.observations(3), 0);  // nobody knows
  EXPECT_EQ(s.Conditional(0, 0, 0), 1);
  EXPECT_EQ(s.Conditional(1, 0, 0), 1);
  EXPECT_EQ(s.Conditional(2, 1, 0), 0);
  EXPECT_DOUBLE_EQ(s.Conditional(3, 0.6, 4), 0.6);
}

TEST(SurvivalTest, ShrinksToThePrior) {
  Survival s;
  s.Observe(1, 1, 0.1);
  EXPECT_DOUBLE_EQ(s.Conditional(0, 0.5, 3), (1 + 1.5) / 4);
  for (int i = 0; i < 1000; ++i) s.Observe(1, 1, 0.1);
  EXPECT_NEAR(s.observations(0), 10, 1e-9);  // 1 / rate at most
  EXPECT_NEAR(s.Conditional(0, 0, 10), 0.5, 1e-9);
}

TEST(SurvivalTest, FollowsAChange) {
  Survival s;
  for (int i = 0; i < 100; ++i) s.Observe(1, 1, 0.1);
  for (int i = 0; i < 40; ++i) s.Observe(1, 0, 0.1);
  EXPECT_LT(s.Conditional(0, 0, 0), 0.03);
}

TEST(SurvivalTest, MoreDraftsThanPositions) {
  Survival s;
  s.Observe(100, 100, 0.1);
  EXPECT_EQ(s.observations(kSpecPositions - 1), 1);
}

}  // namespace
}  // namespace paceline
