#include "worker/draft/draft_pace.h"

#include <vector>

#include <gtest/gtest.h>

namespace paceline {
namespace {

using std::chrono::microseconds;

// 200 us, and 10 us for each row beyond 16.
DraftPace Measured() {
  DraftPace pace;
  for (int i = 0; i < 20; ++i) {
    for (int32_t rows : {1, 4, 16, 64, 128, 256, 512}) {
      pace.Observe(rows, microseconds(200 + 10 * std::max(0, rows - 16)));
    }
  }
  return pace;
}

std::vector<Outcome> Outcomes() {
  return RankOutcomes(std::vector<int32_t>{0, 0, 0}, true, 0.7, GuessRanks(), 16, 24);
}

DraftPace::Verify Within(Duration interval, int32_t sessions) {
  return {
      .interval = interval, .left = interval, .positions = 4, .want_len = 3, .sessions = sessions};
}

TEST(DraftPaceTest, AsksForEverythingWhileNothingIsKnown) {
  const auto outcomes = Outcomes();
  EXPECT_TRUE(DraftPace().CanEnumerate(Within(microseconds(1), 1)));
  EXPECT_EQ(DraftPace().NumOutcomes(Within(microseconds(1), 1), outcomes, 0.7), 24);
  EXPECT_TRUE(Measured().CanEnumerate(Within({}, 1000)));
  EXPECT_EQ(Measured().NumOutcomes(Within({}, 1000), outcomes, 0.7), 24);
}

TEST(DraftPaceTest, DraftsForFewerOutcomesWhereRowsAreDear) {
  const DraftPace pace = Measured();
  const auto outcomes = Outcomes();
  const int32_t alone = pace.NumOutcomes(Within(microseconds(3000), 1), outcomes, 0.7);
  const int32_t many = pace.NumOutcomes(Within(microseconds(3000), 16), outcomes, 0.7);
  const int32_t hurried = pace.NumOutcomes(Within(microseconds(1000), 16), outcomes, 0.7);
  EXPECT_EQ(alone, 24);
  EXPECT_LT(many, alone);
  EXPECT_LT(hurried, many);
  EXPECT_GE(hurried, 1);
}

TEST(DraftPaceTest, DoesNotEnumerateWhatWouldComeTooLate) {
  const DraftPace pace = Measured();
  EXPECT_TRUE(pace.CanEnumerate(Within(microseconds(500), 1)));
  EXPECT_FALSE(pace.CanEnumerate(Within(microseconds(400), 1)));
  EXPECT_FALSE(pace.CanEnumerate(Within(microseconds(500), 64)));
}

}  // namespace
}  // namespace paceline
