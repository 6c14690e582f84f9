#include "worker/spec/plan_delay.h"

#include <gtest/gtest.h>

namespace paceline {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;

constexpr TimePoint kStart{std::chrono::seconds(5)};

PlanDelay::Step Step(Duration since_start = {}) {
  return {.now = kStart + since_start,
          .started = kStart,
          .takes = milliseconds(10),
          .host = microseconds(200)};
}

TEST(PlanDelayTest, EndsSoEarlyThatPlanAndLaunchFitIntoTheStep) {
  PlanDelay delay;
  const Duration longest = delay.Longest(Step());
  EXPECT_GT(longest, milliseconds(8));
  EXPECT_LT(longest, microseconds(9800));
  EXPECT_EQ(delay.Longest(Step(milliseconds(3))), longest - milliseconds(3));
  EXPECT_EQ(delay.Longest(Step(milliseconds(9))), Duration{});
  EXPECT_EQ(delay.Longest({.now = kStart, .started = kStart}), Duration{});  // nothing is measured
}

TEST(PlanDelayTest, StaysFurtherFromTheEndBehindALaunchThatCameTooLate) {
  PlanDelay delay;
  const Duration first = delay.Longest(Step());
  delay.Observe(1, microseconds(5));
  EXPECT_EQ(delay.overruns(), 1u);
  const Duration careful = delay.Longest(Step());
  EXPECT_LT(careful, first);
  for (int i = 0; i < 1000; ++i) {
    delay.Observe(1, milliseconds(2));
    delay.Longest(Step());
  }
  EXPECT_GT(delay.Longest(Step()), first);
  EXPECT_EQ(delay.overruns(), 1u);
}

TEST(PlanDelayTest, IsLeftWhereDraftsDoNotComeAndTriedNowAndThen) {
  PlanDelay delay;
  EXPECT_TRUE(delay.pays());
  int delayed = 0;
  for (int i = 0; i < 330; ++i) {
    if (delay.Longest(Step()) == Duration{}) continue;
    ++delayed;
    delay.Observe(0, milliseconds(1));
  }
  EXPECT_FALSE(delay.pays());
  EXPECT_LE(delayed, 12);
  EXPECT_GE(delayed, 8);
  while (!delay.pays()) {
    if (delay.Longest(Step()) != Duration{}) delay.Observe(1, milliseconds(1));
  }
  EXPECT_GT(delay.Longest(Step()), Duration{});
}

}  // namespace
}  // namespace paceline
