#include "router/service/sample_text_stream.h"

#include <random>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "router/service/router_test_parts.h"

namespace paceline {
namespace {

using ::testing::HasSubstr;

class SampleTextTest : public ::testing::Test {
 protected:
  std::unique_ptr<SampleText> New(std::vector<std::string> stops = {}) {
    return std::make_unique<SampleTextStream>(
        tokenizer_.get(), stops.empty() ? nullptr : std::make_shared<StopStrings>(stops));
  }
  static std::vector<TokenId> Bytes(const std::string& text) {
    std::vector<TokenId> ids;
    for (const char c : text) ids.push_back(static_cast<uint8_t>(c));
    return ids;
  }

  const std::unique_ptr<Tokenizer> tokenizer_ = testing::ByteTokenizer();
};

TEST_F(SampleTextTest, NeverGivesHalfACharacter) {
  auto text = New();
  EXPECT_EQ(text->Push(Bytes("a\xe8\xaa")).text, "a");
  EXPECT_EQ(text->Push(Bytes("\x9e")).text, "語");
  EXPECT_EQ(text->Push(Bytes("\xe8")).text, "");
  EXPECT_EQ(text->Flush(), "\xef\xbf\xbd");
}

TEST_F(SampleTextTest, KeepsTheTokensUpToTheOneThatCompletesAStopString) {
  auto text = New({"the end"});
  const auto first = text->Push(Bytes("x the "));
  EXPECT_EQ(first.text, "x ");
  EXPECT_EQ(first.kept, 6);
  const auto last = text->Push(Bytes("end and more"));
  EXPECT_EQ(last.kept, 3);
  EXPECT_TRUE(last.stopped);
  EXPECT_EQ(last.text, "");
  EXPECT_EQ(text->Flush(), "");
}

TEST_F(SampleTextTest, AStopStringMayLieInsideOneToken) {
  auto text = New({"h"});
  const std::vector<TokenId> ids = {'a', 260, 'b'};  // " the"
  const auto piece = text->Push(ids);
  EXPECT_EQ(piece.kept, 2);
  EXPECT_EQ(piece.text, "a t");
  EXPECT_TRUE(piece.stopped);
}

TEST_F(SampleTextTest, SpecialTokensAddNoText) {
  auto text = New();
  const std::vector<TokenId> ids = {'a', 261, 'b'};
  EXPECT_EQ(text->Push(ids).text, "ab");
}

TEST_F(SampleTextTest, WhatIsHeldBackComesAtTheEnd) {
  auto text = New({"END"});
  EXPECT_EQ(text->Push(Bytes("the EN")).text, "the ");
  EXPECT_EQ(text->Flush(), "EN");
}

// Random bytes, stop strings and cuts: what the tokens say does not depend on the cuts, and a
// stream that is broken anywhere and resumed gives the rest.
TEST_F(SampleTextTest, CutsAndResumesDoNotShow) {
  const uint64_t seed = testing::TestSeed();
  SCOPED_TRACE("PACELINE_TEST_SEED=" + std::to_string(seed));
  std::mt19937_64 random(seed);
  auto below = [&](size_t n) { return static_cast<size_t>(random() % n); };
  const std::string alphabet = "ab\xc3\xa9\xe8\xaa\x9e\xff";
  for (int round = 0; round < testing::TestRounds(2000); ++round) {
    std::vector<TokenId> ids;
    for (size_t n = 1 + below(30); n > 0; --n) {
      ids.push_back(static_cast<uint8_t>(alphabet[below(alphabet.size())]));
    }
    std::vector<std::string> stops;
    const std::vector<std::string> candidates = {"ab", "é", "aé", "語b", "ba\xef\xbf\xbd"};
    for (size_t n = below(3); n > 0; --n) stops.push_back(candidates[below(candidates.size())]);

    auto whole = New(stops);
    const auto want = whole->Push(ids);
    const std::string want_text = want.text + (want.stopped ? "" : whole->Flush());

    auto text = New(stops);
    std::string got;
    std::vector<TokenId> received;
    bool stopped = false;
    size_t pos = 0;
    while (pos < ids.size() && !stopped) {
      if (below(4) == 0) {  // breaks, and goes on elsewhere
        const bool told = below(2) == 0;
        const size_t lost = told ? below(std::min<size_t>(got.size(), 3) + 1) : 0;
        std::string kept = got.substr(0, got.size() - lost);
        while (!IsUtf8(kept)) kept.pop_back();
        auto state = ResumedSampleText::Replay(
            New(stops), received, told ? std::optional<int64_t>(kept.size()) : std::nullopt, false);
        ASSERT_TRUE(state.ok()) << state.status();
        ASSERT_FALSE(state->stopped);
        text = std::make_unique<ResumedSampleText>(*std::move(state));
        if (told) got = kept;
        ASSERT_EQ(text->Push(received).text, "");
      }
      const size_t n = std::min(ids.size() - pos, 1 + below(4));
      const auto piece = text->Push(std::span(ids).subspan(pos, n));
      ASSERT_TRUE(IsUtf8(piece.text));
      got += piece.text;
      stopped = piece.stopped;
      received.insert(received.end(), ids.begin() + pos, ids.begin() + pos + piece.kept);
      pos += n;
    }
    if (!stopped) got += text->Flush();
    ASSERT_EQ(stopped, want.stopped);
    ASSERT_EQ(static_cast<int32_t>(received.size()), want.kept);
    ASSERT_EQ(got, want_text);
  }
}

TEST_F(SampleTextTest, RefusesWhatTheTokensCannotHaveGiven) {
  const auto behind = ResumedSampleText::Replay(New({"b"}), Bytes("abc"), std::nullopt, false);
  EXPECT_THAT(behind.status().message(), HasSubstr("after 2 tokens"));
  const auto more = ResumedSampleText::Replay(New(), Bytes("abc"), 4, false);
  EXPECT_THAT(more.status().message(), HasSubstr("3 bytes of text"));
  const auto within = ResumedSampleText::Replay(New(), Bytes("é"), 1, false);
  EXPECT_THAT(within.status().message(), HasSubstr("within a character"));
  EXPECT_TRUE(ResumedSampleText::Replay(New({"cd"}), Bytes("abc"), 3, true).ok());
  EXPECT_FALSE(ResumedSampleText::Replay(New({"cd"}), Bytes("abc"), 3, false).ok());
}

}  // namespace
}  // namespace paceline
