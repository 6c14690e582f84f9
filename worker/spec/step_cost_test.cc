#include "worker/spec/step_cost.h"

#include <algorithm>
#include <random>

#include <gtest/gtest.h>

namespace paceline {
namespace {

TEST(StepCostTest, KnowsNothingAtFirst) {
  StepCost cost;
  EXPECT_EQ(cost.Seconds(1), 0);
  EXPECT_GT(cost.Age(1), 1u << 30);
  cost.Observe(4, 0);  // no measurement
  cost.Observe(0, 1);
  EXPECT_EQ(cost.Seconds(4), 0);
}

TEST(StepCostTest, StraightBetweenFlatBelow) {
  StepCost cost;
  for (int i = 0; i < 10; ++i) {
    cost.Observe(2, 0.010);
    cost.Observe(8, 0.016);
  }
  EXPECT_NEAR(cost.Seconds(1), 0.010, 1e-6);
  EXPECT_NEAR(cost.Seconds(2), 0.010, 1e-6);
  EXPECT_NEAR(cost.Seconds(5), 0.013, 1e-6);
  EXPECT_NEAR(cost.Seconds(8), 0.016, 1e-6);
  // On along the last slope to twice the rows, then as dear as a row is on average.
  EXPECT_NEAR(cost.Seconds(16), 0.024, 1e-6);
  EXPECT_NEAR(cost.Seconds(17), 0.026, 1e-6);
}

TEST(StepCostTest, ARangeIsWhatItsRowsAre) {
  StepCost cost;
  for (int rows : {1, 3, 9, 40, 300}) cost.Observe(rows, 0.001 * rows + 0.01);
  std::vector<double> seconds(1200);
  cost.Seconds(1, seconds);
  for (int i = 0; i < 1200; ++i) ASSERT_DOUBLE_EQ(seconds[i], cost.Seconds(1 + i)) << i;
}

TEST(StepCostTest, NeverFalls) {
  std::mt19937 random(5);
  StepCost cost;
  for (int i = 0; i < 3000; ++i) {
    const int rows = 1 + static_cast<int>(random() % 600);
    const double noise = std::uniform_real_distribution<>(0.7, 1.4)(random);
    cost.Observe(rows, (0.01 + rows * 2e-5) * noise);
    if (i % 50 > 0) continue;
    std::vector<double> seconds(2000);
    cost.Seconds(1, seconds);
    ASSERT_TRUE(std::ranges::is_sorted(seconds));
  }
  EXPECT_NEAR(cost.Seconds(100), 0.012, 0.002);
  EXPECT_NEAR(cost.Seconds(500), 0.020, 0.003);
}

TEST(StepCostTest, OneOutlierMovesLittle) {
  StepCost cost;
  for (int i = 0; i < 100; ++i) cost.Observe(4, 0.010 + (i % 5) * 1e-5);
  cost.Observe(4, 5.0);
  EXPECT_LT(cost.Seconds(4), 0.0105);
}

TEST(StepCostTest, FollowsADrift) {
  StepCost cost;
  for (int i = 0; i < 200; ++i) {
    cost.Observe(4, 0.010);
    cost.Observe(8, 0.012);
  }
  // Contexts grow: everything takes half as long again, and only one size is seen.
  for (int i = 0; i < 500; ++i) cost.Observe(8, 0.018);
  EXPECT_NEAR(cost.Seconds(8), 0.018, 0.0005);
  EXPECT_GT(cost.Seconds(4), 0.0115);
}

TEST(StepCostTest, ABadFirstMeasurementIsForgotten) {
  StepCost cost;
  cost.Observe(4, 0.010);
  cost.Observe(32, 1.0);  // something else was going on
  EXPECT_NEAR(cost.Seconds(33), 1.0, 0.1);
  for (int i = 0; i < 5000; ++i) cost.Observe(4, 0.010);
  EXPECT_LT(cost.Seconds(8), 0.02);
}

TEST(StepCostTest, Age) {
  StepCost cost;
  cost.Observe(3, 0.01);
  cost.Observe(100, 0.02);
  EXPECT_EQ(cost.Age(3), 1u);
  EXPECT_GT(cost.Age(2), 1u << 30);  // few rows: each is a case of its own
  EXPECT_EQ(cost.Age(100), 0u);
  EXPECT_EQ(cost.Age(120), 0u);
  EXPECT_GT(cost.Age(300), 1u << 30);
}

}  // namespace
}  // namespace paceline
