#include <vector>

#include "common/check.h"
#include "common/clock.h"
#include "common/flags.h"
#include "common/hash.h"
#include "common/process_end.h"
#include "common/status_macros.h"
#include "gtest/gtest.h"

namespace paceline {
namespace {

TEST(Hash, TokensFoldLeft) {
  const std::vector<int32_t> a = {1, 2, 3}, b = {4, 5}, ab = {1, 2, 3, 4, 5};
  EXPECT_EQ(HashTokens(b, HashTokens(a, 9)), HashTokens(ab, 9));
  EXPECT_NE(HashTokens(a), HashTokens(b));
}

TEST(Hash, ValuesAreFixedForTheWire) {
  EXPECT_EQ(Mix64(0), 0xe220a8397b1dcdafull);  // first output of SplitMix64 seeded with 0
  EXPECT_EQ(HashBytes("abc", 1), HashBytes("abc", 1));
  EXPECT_NE(HashBytes("abc", 1), HashBytes("abc", 2));
  EXPECT_NE(HashBytes(std::string_view("a\0", 2)), HashBytes("a"));
}

TEST(Hash, BlockHalvesAreIndependent) {
  const std::vector<int32_t> t = {7, 7, 7};
  const Hash128 h = HashBlock({}, t);
  EXPECT_NE(h.hi, h.lo);
  EXPECT_FALSE(HashBlock(h, t) == h);
}

absl::StatusOr<int> Half(int v) {
  if (v % 2) return absl::InvalidArgumentError("odd");
  return v / 2;
}
absl::Status Quarter(int v, int* out) {
  ASSIGN_OR_RETURN(const int half, Half(v));
  ASSIGN_OR_RETURN(*out, Half(half));
  return absl::OkStatus();
}

TEST(StatusMacros, PropagateAndAssign) {
  int out = 0;
  EXPECT_TRUE(Quarter(12, &out).ok());
  EXPECT_EQ(out, 3);
  EXPECT_FALSE(Quarter(6, &out).ok());
}

TEST(CheckDeathTest, PrintsConditionAndValues) {
  EXPECT_DEATH(CHECK_EQ(1 + 1, 3) << "context", "CHECK failed.*2 vs 3 context");
}

TEST(RunProcessDeathTest, EndsWithTheStatusOfWhatItRan) {
  const auto exit_with = [](const absl::Status& usage, const absl::Status& result) {
    std::exit(RunProcess(usage, "test", "off", [&](ProcessEnd*) { return result; }));
  };
  const auto bad = absl::InvalidArgumentError("--size is 0"), gone = absl::NotFoundError("gone");
  EXPECT_EXIT(exit_with({}, {}), testing::ExitedWithCode(0), "");
  EXPECT_EXIT(exit_with({}, gone), testing::ExitedWithCode(kExitFailure), "error: gone");
  EXPECT_EXIT(exit_with(bad, gone), testing::ExitedWithCode(kExitUsage), "error: --size is 0");
}

TEST(Clock, ManualMovesOnlyWhenTold) {
  ManualClock clock;
  const TimePoint start = clock.Now();
  clock.Advance(Seconds(0.5));
  EXPECT_DOUBLE_EQ(ToSeconds(clock.Now() - start), 0.5);
}

}  // namespace
}  // namespace paceline
