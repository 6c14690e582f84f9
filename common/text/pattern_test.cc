#include "common/text/pattern.h"

#include <utility>
#include <vector>

#include "common/text/pre_tokenizer.h"
#include "common/text/test_texts.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace paceline {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

std::vector<std::string> MatchesOf(const Pattern& pattern, const std::string& text) {
  std::vector<std::string> found;
  const absl::Status status = pattern.ForEachMatch(
      text, [&](size_t begin, size_t end) { found.push_back(text.substr(begin, end - begin)); });
  EXPECT_TRUE(status.ok()) << status;
  return found;
}

std::vector<std::string> MatchesOf(const std::string& expression, const std::string& text) {
  auto pattern = Pattern::Regex(expression);
  EXPECT_TRUE(pattern.ok()) << pattern.status();
  return MatchesOf(*pattern, text);
}

TEST(Pattern, LiteralsDoNotOverlap) {
  EXPECT_THAT(MatchesOf(Pattern::Literal("aa"), "aaaaa"), ElementsAre("aa", "aa"));
  EXPECT_THAT(MatchesOf(Pattern::Literal("a."), "a.ab"), ElementsAre("a."));
  EXPECT_THAT(MatchesOf(Pattern::Literal(""), "abc"), IsEmpty());
}

TEST(Pattern, RegexKnowsUnicode) {
  EXPECT_THAT(MatchesOf(R"(\p{L}+)", "Größe 4 日本語"), ElementsAre("Größe", "日本語"));
  EXPECT_THAT(MatchesOf(R"(\s)",
                        "a\xc2\xa0"
                        "b\xe3\x80\x80"),
              ElementsAre("\xc2\xa0", "\xe3\x80\x80"));
  EXPECT_THAT(MatchesOf("(?i:É)", "éÉ"), ElementsAre("é", "É"));
  EXPECT_THAT(MatchesOf(".", "🦙é"), ElementsAre("🦙", "é"));
}

TEST(Pattern, LookAroundSeesTheWholeText) {
  EXPECT_THAT(MatchesOf(R"(\s+(?!\S)|\s+)", "a   b"), ElementsAre("  ", " "));
  EXPECT_THAT(MatchesOf("(?<=a)b", "ab b"), ElementsAre("b"));
}

TEST(Pattern, EmptyMatchesGoOn) {
  EXPECT_THAT(MatchesOf("x*", "axxé"), ElementsAre("", "xx", ""));
  EXPECT_THAT(MatchesOf("", "é🦙"), ElementsAre("", ""));
  EXPECT_THAT(MatchesOf(R"(a\Kb)", "abab"), ElementsAre("b", "b"));
}

TEST(Pattern, BadExpressionsAreErrors) {
  for (const char* expression : {"(", "[a", "a{2,1}", R"(\p{Nonsense})", R"(\C)", "(?<", "*"}) {
    const auto pattern = Pattern::Regex(expression);
    EXPECT_EQ(pattern.status().code(), absl::StatusCode::kInvalidArgument) << expression;
    EXPECT_THAT(pattern.status().message(), HasSubstr("at byte"));
  }
  EXPECT_EQ(Pattern::Regex(std::string(100 * 1024, 'a')).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Pattern::Regex("\xff").status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(Pattern, CatastrophicExpressionsAreGivenUp) {
  for (const char* expression : {"(a+)+$", "(a|a)*b", "(.*)*x(.*)*y", R"((\w+\s?)*!)"}) {
    const auto pattern = Pattern::Regex(expression);
    ASSERT_TRUE(pattern.ok());
    const auto status = pattern->ForEachMatch(std::string(64, 'a') + "c", [](size_t, size_t) {});
    if (!status.ok()) {
      EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
      EXPECT_THAT(status.message(), HasSubstr(expression));
    }
  }
  // One that is certainly too much, however clever the matcher is.
  const auto pattern = Pattern::Regex("(a|aa)+(b|c)+$");
  ASSERT_TRUE(pattern.ok());
  EXPECT_EQ(pattern->ForEachMatch(std::string(200, 'a') + "bd", [](size_t, size_t) {}).code(),
            absl::StatusCode::kResourceExhausted);
  // Recursion beyond the stack.
  const auto recursive = Pattern::Regex("(a(?1)?b?)+");
  ASSERT_TRUE(recursive.ok());
  const auto status = recursive->ForEachMatch(std::string(1 << 20, 'a'), [](size_t, size_t) {});
  EXPECT_TRUE(status.ok() || status.code() == absl::StatusCode::kResourceExhausted) << status;
}

// GPT-2's words are all of the text, whatever it is.
TEST(Pattern, Gpt2WordsCoverEveryText) {
  const uint64_t seed = testing::TestSeed();
  SCOPED_TRACE("PACELINE_TEST_SEED=" + std::to_string(seed));
  std::mt19937_64 rng(seed);
  const auto words = Pattern::Regex(kGpt2Words);
  ASSERT_TRUE(words.ok());
  for (int round = 0; round < testing::TestRounds(500); ++round) {
    const std::string text = testing::RandomText(rng, 1 + rng() % 60);
    std::string joined;
    for (const std::string& word : MatchesOf(*words, text)) {
      ASSERT_FALSE(word.empty());
      joined += word;
    }
    ASSERT_EQ(joined, text);
  }
}

}  // namespace
}  // namespace paceline
