#include "cli/bench/distribution.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <random>

namespace paceline {
namespace {

uint64_t TestSeed() {
  const char* replay = std::getenv("PACELINE_TEST_SEED");
  return replay != nullptr ? std::strtoull(replay, nullptr, 10) : std::random_device{}();
}

// The definition, word for word: the value at rank q * (n - 1), between two ranks in proportion.
double NaiveQuantile(std::vector<double> values, double q) {
  std::sort(values.begin(), values.end());
  const double rank = q * static_cast<double>(values.size() - 1);
  for (size_t i = 0; i + 1 < values.size(); ++i) {
    const auto low = static_cast<double>(i);
    if (rank >= low && rank <= low + 1) {
      return values[i] * (low + 1 - rank) + values[i + 1] * (rank - low);
    }
  }
  return values.back();
}

TEST(Distribution, AgreesWithTheDefinition) {
  const uint64_t seed = TestSeed();
  SCOPED_TRACE("PACELINE_TEST_SEED=" + std::to_string(seed));
  std::mt19937_64 engine(seed);
  for (int trial = 0; trial < 300; ++trial) {
    std::vector<double> values(1 + engine() % 200);
    for (double& v : values) v = std::exponential_distribution<double>(0.1)(engine);
    const Distribution d = Describe(values);
    EXPECT_EQ(d.count, static_cast<int64_t>(values.size()));
    EXPECT_NEAR(d.p50, NaiveQuantile(values, 0.5), 1e-9);
    EXPECT_NEAR(d.p90, NaiveQuantile(values, 0.9), 1e-9);
    EXPECT_NEAR(d.p95, NaiveQuantile(values, 0.95), 1e-9);
    EXPECT_NEAR(d.p99, NaiveQuantile(values, 0.99), 1e-9);
    EXPECT_EQ(d.max, *std::max_element(values.begin(), values.end()));
  }
}

TEST(Distribution, SmallSamples) {
  EXPECT_EQ(Describe({}).count, 0);
  EXPECT_EQ(Describe({}).max, 0);
  const Distribution one = Describe({7});
  EXPECT_EQ(one.mean, 7);
  EXPECT_EQ(one.p50, 7);
  EXPECT_EQ(one.p99, 7);
  EXPECT_EQ(Describe({3, 1}).p50, 2);
  // 0, 1, .., 100: the q-quantile is 100 q.
  std::vector<double> hundred;
  for (int i = 100; i >= 0; --i) hundred.push_back(i);
  EXPECT_DOUBLE_EQ(Describe(hundred).p95, 95);
}

TEST(Spread, LeastMeanGreatest) {
  const double values[] = {2, 1, 3};
  const Spread spread = SpreadOf(values);
  EXPECT_EQ(spread.mean, 2);
  EXPECT_EQ(spread.least, 1);
  EXPECT_EQ(spread.greatest, 3);
  EXPECT_EQ(SpreadOf({}).greatest, 0);
}

}  // namespace
}  // namespace paceline
