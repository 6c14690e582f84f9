#include "worker/spec/step_cost.h"

#include <algorithm>
#include <random>

#include <gtest/gtest.h>

namespace paceline {
namespace {

TEST(StepCostTest, KnowsNothingAtFirst) {
  StepCost cost;
  EXPECT_EQ(cost.Seconds(1, 0), 0);
  EXPECT_GT(cost.Age(1), 1u << 30);
  cost.Observe(4, 0, 0);  // no measurement
  cost.Observe(0, 0, 1);
  EXPECT_EQ(cost.Seconds(4, 0), 0);
}

TEST(StepCostTest, StraightBetweenFlatBelow) {
  StepCost cost;
  for (int i = 0; i < 10; ++i) {
    cost.Observe(2, 0, 0.010);
    cost.Observe(8, 0, 0.016);
  }
  EXPECT_NEAR(cost.Seconds(1, 0), 0.010, 1e-6);
  EXPECT_NEAR(cost.Seconds(2, 0), 0.010, 1e-6);
  EXPECT_NEAR(cost.Seconds(5, 0), 0.013, 1e-6);
  EXPECT_NEAR(cost.Seconds(8, 0), 0.016, 1e-6);
  // On along the last slope to twice the rows, then as dear as a row is on average.
  EXPECT_NEAR(cost.Seconds(16, 0), 0.024, 1e-6);
  EXPECT_NEAR(cost.Seconds(17, 0), 0.026, 1e-6);
}

TEST(StepCostTest, ARangeIsWhatItsRowsAre) {
  StepCost cost;
  for (int rows : {1, 3, 9, 40, 300}) cost.Observe(rows, 0, 0.001 * rows + 0.01);
  std::vector<double> seconds(1200);
  cost.Seconds(1, 0, seconds);
  for (int i = 0; i < 1200; ++i) ASSERT_DOUBLE_EQ(seconds[i], cost.Seconds(1 + i, 0)) << i;
}

TEST(StepCostTest, NeverFalls) {
  std::mt19937 random(5);
  StepCost cost;
  for (int i = 0; i < 3000; ++i) {
    const int rows = 1 + static_cast<int>(random() % 600);
    const double noise = std::uniform_real_distribution<>(0.7, 1.4)(random);
    cost.Observe(rows, 0, (0.01 + rows * 2e-5) * noise);
    if (i % 50 > 0) continue;
    std::vector<double> seconds(2000);
    cost.Seconds(1, 0, seconds);
    ASSERT_TRUE(std::ranges::is_sorted(seconds));
  }
  EXPECT_NEAR(cost.Seconds(100, 0), 0.012, 0.002);
  EXPECT_NEAR(cost.Seconds(500, 0), 0.020, 0.003);
}

TEST(StepCostTest, OneOutlierMovesLittle) {
  StepCost cost;
  for (int i = 0; i < 100; ++i) cost.Observe(4, 0, 0.010 + (i % 5) * 1e-5);
  cost.Observe(4, 0, 5.0);
  EXPECT_LT(cost.Seconds(4, 0), 0.0105);
}

TEST(StepCostTest, FollowsADrift) {
  StepCost cost;
  for (int i = 0; i < 200; ++i) {
    cost.Observe(4, 0, 0.010);
    cost.Observe(8, 0, 0.012);
  }
  // The chip grows hot: everything takes half as long again, and only one size is seen.
  for (int i = 0; i < 500; ++i) cost.Observe(8, 0, 0.018);
  EXPECT_NEAR(cost.Seconds(8, 0), 0.018, 0.0005);
  EXPECT_GT(cost.Seconds(4, 0), 0.0115);
}

TEST(StepCostTest, ABadFirstMeasurementIsForgotten) {
  StepCost cost;
  cost.Observe(4, 0, 0.010);
  cost.Observe(32, 0, 1.0);  // something else was going on
  EXPECT_NEAR(cost.Seconds(33, 0), 1.0, 0.1);
  for (int i = 0; i < 5000; ++i) cost.Observe(4, 0, 0.010);
  EXPECT_LT(cost.Seconds(8, 0), 0.02);
}

// Rows that cost the same behind any context, and context that costs the same under any rows.
double Measured(int rows, int context) { return 0.008 + 0.001 * rows + 1e-6 * context; }

TEST(StepCostTest, ContextIsAnAddend) {
  StepCost cost;
  for (int i = 0; i < 50; ++i) {
    for (int rows : {1, 4, 8}) cost.Observe(rows, 500, Measured(rows, 500));
  }
  // Only the smallest step is seen behind long contexts.
  for (int i = 0; i < 50; ++i) cost.Observe(1, 20'000, Measured(1, 20'000));
  EXPECT_NEAR(cost.Seconds(1, 20'000), 0.029, 0.0005);
  EXPECT_NEAR(cost.Seconds(8, 20'000), 0.036, 0.001);
  EXPECT_NEAR(cost.Seconds(8, 500), 0.0165, 0.0005) << "as before";
  EXPECT_NEAR(cost.Seconds(4, 10'000), 0.022, 0.001) << "between";
  EXPECT_NEAR(cost.Seconds(4, 30'000), 0.042, 0.002) << "beyond";
}

TEST(StepCostTest, RowsFirstSeenBehindALongContextAreNotDear) {
  StepCost cost;
  for (int i = 0; i < 50; ++i) cost.Observe(1, 500, Measured(1, 500));
  for (int i = 0; i < 50; ++i) cost.Observe(1, 20'000, Measured(1, 20'000));
  for (int i = 0; i < 50; ++i) cost.Observe(8, 20'000, Measured(8, 20'000));
  EXPECT_NEAR(cost.Seconds(8, 500), 0.0165, 0.001);
}

TEST(StepCostTest, LongContextsFirst) {
  StepCost cost;
  for (int i = 0; i < 50; ++i) cost.Observe(2, 30'000, Measured(2, 30'000));
  for (int i = 0; i < 50; ++i) cost.Observe(2, 600, Measured(2, 600));
  EXPECT_NEAR(cost.Seconds(2, 600), 0.0106, 0.0005);
  EXPECT_NEAR(cost.Seconds(2, 30'000), 0.040, 0.001);
}

TEST(StepCostTest, GrowingContextsAndAnyRows) {
  std::mt19937 random(3);
  StepCost cost;
  for (int i = 0; i < 4000; ++i) {
    const int rows = 1 + static_cast<int>(random() % 16), context = 100 + 10 * i;
    const double noise = std::uniform_real_distribution<>(0.9, 1.1)(random);
    cost.Observe(rows, context, Measured(rows, context) * noise);
  }
  EXPECT_NEAR(cost.Seconds(4, 40'000), 0.052, 0.005);
  EXPECT_NEAR(cost.Seconds(12, 40'000) - cost.Seconds(4, 40'000), 0.008, 0.006);
}

TEST(StepCostTest, Age) {
  StepCost cost;
  cost.Observe(3, 0, 0.01);
  cost.Observe(100, 0, 0.02);
  EXPECT_EQ(cost.Age(3), 1u);
  EXPECT_GT(cost.Age(2), 1u << 30);  // few rows: each is a case of its own
  EXPECT_EQ(cost.Age(100), 0u);
  EXPECT_EQ(cost.Age(120), 0u);
  EXPECT_GT(cost.Age(300), 1u << 30);
}

}  // namespace
}  // namespace paceline
