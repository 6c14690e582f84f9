#include "cli/bench/arrivals.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "cli/bench/test_files.h"

namespace paceline {
namespace {

using ::testing::HasSubstr;

constexpr char kHeader[] = "TIMESTAMP,ContextTokens,GeneratedTokens\n";

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

TEST(Trace, ReadsRows) {
  const TestFile file("t.csv", std::string(kHeader) +
                                   "2023-11-16 18:15:46.6805900,374,44\r\n"
                                   "2023-11-16 18:15:50.9951690,396,109\n\n"
                                   "2023-11-16 18:16:50,0,0\n");
  auto rows = ReadTrace(file.path(), 100);
  ASSERT_TRUE(rows.ok()) << rows.status();
  ASSERT_EQ(rows->size(), 3u);
  EXPECT_EQ((*rows)[0].arrival, Duration::zero());
  EXPECT_EQ((*rows)[1].arrival, std::chrono::nanoseconds(4'314'579'000));
  EXPECT_EQ((*rows)[1].prompt_tokens, 396);
  EXPECT_EQ((*rows)[1].output_tokens, 109);
  EXPECT_EQ((*rows)[2].prompt_tokens, 1);
  EXPECT_EQ((*rows)[2].output_tokens, 1);
  EXPECT_EQ(ReadTrace(file.path(), 1)->size(), 1u);
}

std::string ErrorOf(const std::string& content) {
  const TestFile file("t.csv", content);
  const auto rows = ReadTrace(file.path(), 100);
  EXPECT_EQ(rows.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(rows.status().message());
}

TEST(Trace, MalformedRowsAreNamed) {
  const std::string good = "2023-11-16 18:15:46.68,374,44\n";
  EXPECT_THAT(ErrorOf("a,b,c\n" + good), HasSubstr("t.csv:1: the header must be TIMESTAMP,"));
  EXPECT_THAT(ErrorOf(kHeader + good + "2023-11-16 18:15:47,374\n"), HasSubstr(":3: 2 columns"));
  EXPECT_THAT(ErrorOf(kHeader + std::string("yesterday,1,1\n")), HasSubstr("'yesterday'"));
  EXPECT_THAT(ErrorOf(kHeader + std::string("2023-11-16 18:15:47,-3,1\n")), HasSubstr("'-3'"));
  EXPECT_THAT(ErrorOf(kHeader + std::string("2023-11-16 18:15:47,3,9999999999\n")),
              HasSubstr("'9999999999'"));
  EXPECT_THAT(ErrorOf(kHeader + good + "2023-11-16 18:15:45,1,1\n"), HasSubstr("before that"));
  EXPECT_THAT(ErrorOf(kHeader), HasSubstr("holds no row"));
  EXPECT_THAT(ErrorOf(""), HasSubstr("holds no row"));
  EXPECT_EQ(ReadTrace("/nonexistent.csv", 1).status().code(), absl::StatusCode::kNotFound);
}

TEST(Trace, SharedTrace) {
  const std::string path = "../shared/data/traces/AzureLLMInferenceTrace_conv_2023.csv";
  if (!std::filesystem::exists(path)) GTEST_SKIP() << "skipped: ../shared/data not found";
  const auto rows = ReadTrace(path, INT64_MAX);
  ASSERT_TRUE(rows.ok()) << rows.status();
  EXPECT_EQ(rows->size(), 19'366u);
}

}  // namespace
}  // namespace paceline
