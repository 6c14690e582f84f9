#include "cli/bench/prompt_source.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>

#include "cli/bench/test_files.h"

namespace paceline {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string ErrorOf(const std::string& name, const std::string& content) {
  const TestFile file(name, content);
  const auto prompts = ReadPromptFile(file.path());
  EXPECT_EQ(prompts.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(prompts.status().message());
}

TEST(PromptFile, JsonLinesOfSeveralKinds) {
  const TestFile file("mixed.jsonl",
                      "{\"question_id\": 81, \"turns\": [\"First.\", \"Second.\"]}\n"
                      "\r\n"
                      "{\"prompt\": \"A prompt.\"}\r\n"
                      "{\"prompt\": [\"One of turns.\"]}\n"
                      "{\"question\": \"Gr\\u00fc\\u00dfe?\", \"answer\": \"!\"}");
  const auto prompts = ReadPromptFile(file.path());
  ASSERT_TRUE(prompts.ok()) << prompts.status();
  EXPECT_THAT(*prompts, ElementsAre("First.", "A prompt.", "One of turns.",
                                    "Gr\xc3\xbc\xc3\x9f"
                                    "e?"));
}

TEST(PromptFile, PlainTextIsAPromptPerLine) {
  const TestFile file("plain.txt", "{\"prompt\": \"not parsed\"}\n\n   \n two\r\nthree");
  const auto prompts = ReadPromptFile(file.path());
  ASSERT_TRUE(prompts.ok()) << prompts.status();
  EXPECT_THAT(*prompts, ElementsAre("{\"prompt\": \"not parsed\"}", " two", "three"));
}

TEST(PromptFile, MalformedLinesAreNamed) {
  EXPECT_THAT(ErrorOf("a.jsonl", "{\"prompt\": \"x\"}\n{\"prompt\": \"x\"\n"),
              HasSubstr("a.jsonl:2: not a JSON object"));
  EXPECT_THAT(ErrorOf("a.jsonl", "[\"x\"]\n"), HasSubstr(":1: not a JSON object"));
  EXPECT_THAT(ErrorOf("a.jsonl", "{\"text\": \"x\"}\n"), HasSubstr("none of the fields"));
  EXPECT_THAT(ErrorOf("a.jsonl", "{\"turns\": []}\n"), HasSubstr("\"turns\" must be"));
  EXPECT_THAT(ErrorOf("a.jsonl", "{\"turns\": [1]}\n"), HasSubstr("\"turns\" must be"));
  EXPECT_THAT(ErrorOf("a.jsonl", "{\"question\": 5}\n"), HasSubstr("\"question\" must be"));
  EXPECT_THAT(ErrorOf("a.jsonl", "\n\n{\"prompt\": \"\"}\n"), HasSubstr(":3: the prompt is empty"));
  EXPECT_THAT(ErrorOf("a.txt", "fine\n\xff\n"), HasSubstr("a.txt:2: not UTF-8"));
  EXPECT_THAT(ErrorOf("a.jsonl", "{\"prompt\": \"\xff\"}\n"), HasSubstr(":1: not UTF-8"));
  EXPECT_THAT(ErrorOf("a.txt", "\n \n"), HasSubstr("holds no prompt"));
  // Depth costs no stack.
  EXPECT_THAT(ErrorOf("a.jsonl", std::string(200'000, '[') + "\n"), HasSubstr("not a JSON object"));
}

TEST(PromptFile, MissingFile) {
  const auto prompts = ReadPromptFile("/nonexistent/prompts.jsonl");
  EXPECT_EQ(prompts.status().code(), absl::StatusCode::kNotFound);
}

TEST(PromptFile, SharedSets) {
  const std::string folder = "../shared/data/prompts/";
  if (!std::filesystem::exists(folder)) GTEST_SKIP() << "skipped: ../shared/data not found";
  for (const auto& [name, count] : {std::pair{"spec_bench_question.jsonl", 480},
                                    {"mt_bench_question.jsonl", 80},
                                    {"gsm8k_test.jsonl", 1319}}) {
    const auto prompts = ReadPromptFile(folder + name);
    ASSERT_TRUE(prompts.ok()) << prompts.status();
    EXPECT_EQ(prompts->size(), static_cast<size_t>(count)) << name;
  }
}

TEST(SyntheticPrompt, AFunctionOfSeedAndIndex) {
  const auto a = SyntheticPrompt(1000, 37, 7, 0);
  EXPECT_EQ(a, SyntheticPrompt(1000, 37, 7, 0));
  EXPECT_NE(a, SyntheticPrompt(1000, 37, 7, 1));
  EXPECT_NE(a, SyntheticPrompt(1000, 37, 8, 0));
  EXPECT_EQ(a.size(), 1000u);
  EXPECT_EQ(*std::min_element(a.begin(), a.end()), 0);
  EXPECT_EQ(*std::max_element(a.begin(), a.end()), 36);
}

TEST(Shuffle, APermutationOfTheSeed) {
  std::vector<std::string> sorted;
  for (int i = 0; i < 50; ++i) sorted.push_back(std::string(1, static_cast<char>('0' + i)));
  auto a = sorted, b = sorted, c = sorted;
  Shuffle(1, &a);
  Shuffle(1, &b);
  Shuffle(2, &c);
  EXPECT_EQ(a, b);
  EXPECT_NE(a, c);
  EXPECT_NE(a, sorted);
  EXPECT_TRUE(std::is_permutation(a.begin(), a.end(), sorted.begin()));
}

}  // namespace
}  // namespace paceline
