#include "cli/bench/arrivals.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

namespace paceline {
namespace {

TEST(PoissonArrivals, SameSeedSameArrivals) {
  const auto a = PoissonArrivals(5, 100, Duration::max(), 1);
  EXPECT_EQ(a, PoissonArrivals(5, 100, Duration::max(), 1));
  EXPECT_NE(a, PoissonArrivals(5, 100, Duration::max(), 2));
  EXPECT_TRUE(std::is_sorted(a.begin(), a.end()));
  // More of them have the same beginning.
  const auto more = PoissonArrivals(5, 200, Duration::max(), 1);
  EXPECT_TRUE(std::equal(a.begin(), a.end(), more.begin()));
}

TEST(PoissonArrivals, GapsAreExponential) {
  const int64_t n = 20'000;
  const double rate = 50;
  const auto arrivals = PoissonArrivals(rate, n, Duration::max(), 3);
  double sum = 0, squares = 0;
  Duration last{};
  for (const Duration arrival : arrivals) {
    const double gap = ToSeconds(arrival - last) * rate;
    last = arrival;
    sum += gap;
    squares += gap * gap;
  }
  // Mean 1 and second moment 2, within 5 standard errors (1 and sqrt(20) over sqrt(n)).
  EXPECT_NEAR(sum / n, 1, 5 / std::sqrt(n));
  EXPECT_NEAR(squares / n, 2, 5 * std::sqrt(20.0 / n));
}

TEST(PoissonArrivals, BoundedByCountAndTime) {
  EXPECT_TRUE(PoissonArrivals(5, 0, Duration::max(), 1).empty());
  const auto all = PoissonArrivals(5, 1000, Duration::max(), 1);
  const auto few = PoissonArrivals(5, INT64_MAX, Seconds(10), 1);
  ASSERT_LT(few.size(), all.size());
  EXPECT_LT(few.back(), Seconds(10));
  EXPECT_GE(all[few.size()], Seconds(10));
}

}  // namespace
}  // namespace paceline
