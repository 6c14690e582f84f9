#include "common/text/stop_matcher.h"

#include <random>

#include <gtest/gtest.h>

#include "common/text/test_texts.h"

namespace paceline {
namespace {

struct Result {
  std::string text;
  bool stopped = false;
  size_t used = 0;  // bytes of the input up to the match's end
  friend bool operator==(const Result&, const Result&) = default;
};

// The definition: at each end, every string is compared.
Result Naive(const std::vector<std::string>& strings, const std::string& text) {
  for (size_t end = 1; end <= text.size(); ++end) {
    size_t longest = 0;
    for (const std::string& s : strings) {
      if (text.substr(0, end).ends_with(s)) longest = std::max(longest, s.size());
    }
    if (longest > 0) return {text.substr(0, end - longest), true, end};
  }
  return {text, false, text.size()};
}

// What may not be given out yet: the longest end of the text that begins a string.
size_t NaiveHeld(const std::vector<std::string>& strings, const std::string& text) {
  for (size_t n = text.size(); n > 0; --n) {
    for (const std::string& s : strings) {
      if (s.starts_with(text.substr(text.size() - n))) return n;
    }
  }
  return 0;
}

Result Match(const std::vector<std::string>& strings, const std::vector<std::string>& pieces) {
  StopMatcher matcher(std::make_shared<StopStrings>(strings));
  Result result;
  for (const std::string& piece : pieces) {
    if (matcher.Push(piece, &result.text)) {
      result.stopped = true;
      return result;
    }
  }
  matcher.Flush(&result.text);
  return result;
}

TEST(StopMatcher, EndsBeforeTheMatch) {
  EXPECT_EQ(Match({"END"}, {"one EN", "D two"}), (Result{"one ", true}));
  EXPECT_EQ(Match({"END"}, {"one EN", "Q"}), (Result{"one ENQ"}));
  EXPECT_EQ(Match({"END"}, {"one EN"}), (Result{"one EN"}));
  EXPECT_EQ(Match({}, {"one", "two"}), (Result{"onetwo"}));
}

TEST(StopMatcher, TheMatchThatIsCompleteFirstWins) {
  EXPECT_EQ(Match({"abcd", "bc"}, {"xabcd"}), (Result{"xa", true}));
  EXPECT_EQ(Match({"c", "abc"}, {"xabc"}), (Result{"x", true}));  // both end here: the longest
}

TEST(StopMatcher, OverlapsAreFound) {
  EXPECT_EQ(Match({"aab"}, {"aa", "aab"}), (Result{"aa", true}));
  EXPECT_EQ(Match({"abab!"}, {"ab", "ab", "ab!"}), (Result{"ab", true}));
}

TEST(StopMatcher, HoldsBackOnlyWhatMayBeginAMatch) {
  StopMatcher matcher(std::make_shared<StopStrings>(std::vector<std::string>{"\n\nUser:"}));
  std::string out;
  EXPECT_FALSE(matcher.Push("line\n", &out));
  EXPECT_EQ(out, "line");
  EXPECT_FALSE(matcher.Push("next\n\n", &out));
  EXPECT_EQ(out, "line\nnext");
  EXPECT_TRUE(matcher.Push("User:", &out));
  EXPECT_EQ(out, "line\nnext");
}

TEST(StopMatcher, WithoutStringsNothingIsHeld) {
  StopMatcher matcher(nullptr);
  std::string out;
  EXPECT_FALSE(matcher.Push("all of it", &out));
  EXPECT_EQ(out, "all of it");
}

TEST(StopMatcher, AgreesWithTheDefinitionUnderRandomCuts) {
  const uint64_t seed = testing::TestSeed();
  SCOPED_TRACE("PACELINE_TEST_SEED=" + std::to_string(seed));
  std::mt19937_64 random(seed);
  auto below = [&](size_t n) { return static_cast<size_t>(random() % n); };
  const std::vector<std::string> letters = {"a", "b", "é", "語"};
  auto word = [&](size_t most) {
    std::string w;
    for (size_t n = 1 + below(most); n > 0; --n) w += letters[below(1 + below(letters.size()))];
    return w;
  };
  for (int round = 0; round < testing::TestRounds(3000); ++round) {
    std::vector<std::string> strings;
    for (size_t n = 1 + below(5); n > 0; --n) strings.push_back(word(5));
    const std::string text = word(40);
    const Result want = Naive(strings, text);
    StopMatcher matcher(std::make_shared<StopStrings>(strings));
    std::string out;
    size_t pos = 0;
    bool stopped = false;
    while (pos < text.size() && !stopped) {
      const size_t n = std::min(text.size() - pos, below(6));
      stopped = matcher.Push(text.substr(pos, n), &out);
      pos += n;
      if (stopped) break;
      const std::string so_far = text.substr(0, pos);
      ASSERT_EQ(out, so_far.substr(0, pos - NaiveHeld(strings, so_far)));
    }
    ASSERT_EQ(stopped, want.stopped) << text;
    if (stopped) {
      ASSERT_GE(pos, want.used);
    } else {
      matcher.Flush(&out);
    }
    ASSERT_EQ(out, want.text) << text;
  }
}

}  // namespace
}  // namespace paceline
