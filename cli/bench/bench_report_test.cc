#include "cli/bench/bench_report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <sstream>

#include "cli/bench/progress_line.h"
#include "cli/bench/test_outcomes.h"
#include "cli/bench/text_table.h"

namespace paceline {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(TextTable, Aligns) {
  TextTable table;
  table.AddRow({"", "a", "bcd"});
  table.AddRow({"name", "12345", "6"});
  table.AddRow({"n"});
  EXPECT_EQ(table.ToString(), "          a  bcd\nname  12345    6\nn\n");
  EXPECT_EQ(TextTable().ToString(), "");
}

TEST(ProgressBar, FillsAndClamps) {
  EXPECT_EQ(ProgressBar(0, 4), "[....]");
  EXPECT_EQ(ProgressBar(0.5, 4), "[##..]");
  EXPECT_EQ(ProgressBar(1.7, 4), "[####]");
  EXPECT_EQ(ProgressBar(-1, 4), "[....]");
}

TEST(ProgressLine, SilentWhereThereIsNoTerminal) {
  std::FILE* file = std::tmpfile();
  ASSERT_NE(file, nullptr);
  {
    ProgressLine line(file);
    EXPECT_FALSE(line.shown());
    line.Show("text");
  }
  EXPECT_EQ(std::ftell(file), 0);
  std::fclose(file);
}

RunSummary SomeRun() {
  RequestOutcome good = Outcome(0, {1, 2, 3}, Ms(0), Ms(10), Ms(30));
  good.drafted_tokens = 4;
  good.accepted_tokens = 1;
  RequestOutcome bad;
  bad.index = 1;
  bad.code = "RESOURCE_EXHAUSTED";
  bad.error = "queue full";
  bad.ended = Ms(5);
  return Summarize(std::vector<RequestOutcome>{good, bad});
}

TEST(BenchReport, RunAsText) {
  const std::string text = FormatRun(SomeRun(), {});
  EXPECT_THAT(text, HasSubstr("1 completed, 1 failed in 0.03 s"));
  EXPECT_THAT(text, HasSubstr("100 output tokens/s, 33.3 requests/s; 100 tokens/s per user"));
  EXPECT_THAT(text, HasSubstr("1 of 4 tokens accepted (25.0 %)"));
  EXPECT_THAT(text, HasSubstr("failed: 1 x RESOURCE_EXHAUSTED: queue full"));
  EXPECT_THAT(text, HasSubstr("\nTTFT           10.0"));
  EXPECT_THAT(text, Not(HasSubstr("at step start")));
  EXPECT_THAT(FormatRun(SomeRun(), SpecActivity{.full = 3, .none = 1}),
              HasSubstr("75.0 % full, 0.0 % partial"));
  EXPECT_THAT(FormatRun(SomeRun(), {}, {.ttft = 50, .tpot = 2.5}),
              HasSubstr("a second (TTFT <= 50 ms, TPOT <= 2.5 ms)"));
  EXPECT_THAT(FormatRun(RunSummary{}, {}), HasSubstr("TTFT              -"));
}

TEST(BenchReport, RunAsJson) {
  const auto json = RunJson(SomeRun(), SpecActivity{.full = 3, .none = 1});
  EXPECT_EQ(json["completed"], 1);
  EXPECT_EQ(json["failed"], 1);
  EXPECT_EQ(json["errors"]["RESOURCE_EXHAUSTED"]["count"], 1);
  EXPECT_DOUBLE_EQ(json["ttft_ms"]["p50"], 10);
  EXPECT_DOUBLE_EQ(json["tpot_ms"]["mean"], 10);
  EXPECT_DOUBLE_EQ(json["speculation"]["full_share"], 0.75);
  EXPECT_FALSE(RunJson(SomeRun(), {}).contains("speculation"));
}

Comparison TwoModes(std::vector<int32_t> second) {
  Comparison comparison({BenchMode::kPlain, BenchMode::kChain});
  comparison.AddRun(BenchMode::kPlain, 0, {Outcome(0, {1, 2, 3}, Ms(0), Ms(10), Ms(50))}, {});
  comparison.AddRun(BenchMode::kChain, 0, {Outcome(0, std::move(second), Ms(0), Ms(10), Ms(30))},
                    SpecActivity{.full = 1});
  return comparison;
}

TEST(BenchReport, ComparisonSideBySide) {
  const std::string text = FormatComparison(TwoModes({1, 2, 3}));
  EXPECT_THAT(text, HasSubstr("plain    chain\n"));
  EXPECT_THAT(text, HasSubstr("  ratio (rounds)      1.00     2.00\n"));
  EXPECT_THAT(text, HasSubstr("at step start: full      -  100.0 %\n"));
  EXPECT_THAT(text, HasSubstr("all 1 outputs equal"));
}

TEST(BenchReport, ComparisonNamesDivergences) {
  const Comparison comparison = TwoModes({1, 2, 4});
  EXPECT_THAT(FormatComparison(comparison), HasSubstr("1 of 1 outputs DIFFER"));
  EXPECT_THAT(FormatComparison(comparison),
              HasSubstr("request 0: chain (round 1) leaves plain (round 1) at output token 2"));
  const auto json = ComparisonJson(comparison);
  EXPECT_EQ(json["divergences"][0]["position"], 2);
  EXPECT_EQ(json["modes"][1]["mode"], "chain");
  EXPECT_DOUBLE_EQ(json["modes"][1]["user_ratio"]["mean"], 2);
}

TEST(BenchReport, Description) {
  const LoadDescription d{"m", "8 requests", "closed loop of 2", "seed 7"};
  EXPECT_EQ(FormatDescription(d), "m: 8 requests, closed loop of 2; seed 7\n");
  EXPECT_EQ(DescriptionJson(d)["load"], "closed loop of 2");
}

}  // namespace
}  // namespace paceline
