#include "cli/bench/trace.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "cli/bench/test_files.h"

namespace paceline {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr char kHeader[] = "TIMESTAMP,ContextTokens,GeneratedTokens\n";

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

std::string ErrorOf(const std::string& content, const std::string& name = "t.csv") {
  const TestFile file(name, content);
  const auto rows = ReadTrace(file.path(), 100);
  EXPECT_EQ(rows.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(rows.status().message());
}

TEST(Trace, MalformedRowsAreNamed) {
  const std::string good = "2023-11-16 18:15:46.68,374,44\n";
  EXPECT_THAT(ErrorOf("a,b,c\n" + good), HasSubstr("t.csv:1: the header must be TIMESTAMP,"));
  EXPECT_THAT(ErrorOf(kHeader + good + "2023-11-16 18:15:47,374\n"), HasSubstr(":3: 2 columns"));
  EXPECT_THAT(ErrorOf(kHeader + std::string("yesterday,1,1\n")), HasSubstr("'yesterday'"));
  for (const char* time : {"infinite-future", "infinite-past", "9023-11-16 18:15:46"}) {
    EXPECT_THAT(ErrorOf(kHeader + std::string(time) + ",1,1\n"), HasSubstr("1970 to 2169"));
  }
  EXPECT_THAT(ErrorOf(kHeader + std::string("2023-11-16 18:15:47,-3,1\n")), HasSubstr("'-3'"));
  EXPECT_THAT(ErrorOf(kHeader + std::string("2023-11-16 18:15:47,3,9999999999\n")),
              HasSubstr("'9999999999'"));
  EXPECT_THAT(ErrorOf(kHeader + good + "2023-11-16 18:15:45,1,1\n"), HasSubstr("before that"));
  EXPECT_THAT(ErrorOf(kHeader), HasSubstr("holds no row"));
  EXPECT_THAT(ErrorOf(""), HasSubstr("holds no row"));
  EXPECT_EQ(ReadTrace("/nonexistent.csv", 1).status().code(), absl::StatusCode::kNotFound);
}

TEST(Trace, JsonRowsWithBlocks) {
  const TestFile file(
      "t.jsonl",
      "{\"timestamp\": 1000, \"input_length\": 700, \"output_length\": 5, \"hash_ids\": [0, 7]}\n"
      "{\"timestamp\": 4500, \"input_length\": 0, \"output_length\": 9}\n");
  const auto rows = ReadTrace(file.path(), 100);
  ASSERT_TRUE(rows.ok()) << rows.status();
  ASSERT_EQ(rows->size(), 2u);
  EXPECT_EQ((*rows)[0].prompt_tokens, 700);
  EXPECT_THAT((*rows)[0].blocks, ElementsAre(0, 7));
  EXPECT_EQ((*rows)[1].arrival, std::chrono::milliseconds(3500));
  EXPECT_EQ((*rows)[1].prompt_tokens, 1);
  EXPECT_TRUE((*rows)[1].blocks.empty());
}

TEST(Trace, MalformedJsonRowsAreNamed) {
  const auto error = [](const std::string& row) { return ErrorOf(row + "\n", "t.jsonl"); };
  EXPECT_THAT(error("[1]"), HasSubstr("t.jsonl:1: not a JSON object"));
  EXPECT_THAT(error("{}"), HasSubstr("\"timestamp\" must be an integer in [0, "));
  EXPECT_THAT(error("{\"timestamp\": -1}"), HasSubstr("\"timestamp\" must"));
  EXPECT_THAT(error("{\"timestamp\": 1, \"input_length\": 4294967296}"),
              HasSubstr("\"input_length\" must be an integer in [0, 2147483647]"));
  EXPECT_THAT(error("{\"timestamp\": 1, \"input_length\": 1, \"output_length\": \"1\"}"),
              HasSubstr("\"output_length\" must"));
  EXPECT_THAT(error("{\"timestamp\": 1, \"input_length\": 1, \"output_length\": 1, "
                    "\"hash_ids\": [0.5]}"),
              HasSubstr("\"hash_ids\" must be an array of integers"));
}

TEST(Trace, SharedTrace) {
  const std::string path = "../shared/data/traces/AzureLLMInferenceTrace_conv_2023.csv";
  if (!std::filesystem::exists(path)) GTEST_SKIP() << "skipped: ../shared/data not found";
  const auto rows = ReadTrace(path, INT64_MAX);
  ASSERT_TRUE(rows.ok()) << rows.status();
  EXPECT_EQ(rows->size(), 19'366u);
  const auto mooncake = ReadTrace("../shared/data/traces/mooncake_conversation_trace.jsonl", 1000);
  ASSERT_TRUE(mooncake.ok()) << mooncake.status();
  EXPECT_EQ((*mooncake)[0].blocks.size(), 14u);
}

}  // namespace
}  // namespace paceline
