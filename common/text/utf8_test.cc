#include "common/text/utf8.h"

#include "common/text/test_texts.h"
#include "gtest/gtest.h"

namespace paceline {
namespace {

using testing::RandomBytes;
using testing::TestRounds;
using testing::TestSeed;

std::string Repaired(std::string_view bytes) {
  Utf8Stream stream;
  std::string out;
  stream.Push(bytes, &out);
  stream.Flush(&out);
  return out;
}

TEST(Utf8, EveryCharacterThereAndBack) {
  for (char32_t c = 0; c <= 0x10ffff; ++c) {
    if (c >= 0xd800 && c < 0xe000) continue;
    std::string text;
    AppendUtf8(c, &text);
    const Utf8Unit unit = DecodeUtf8(text, 0);
    ASSERT_EQ(unit.kind, Utf8Unit::Kind::kCharacter);
    ASSERT_EQ(unit.character, c);
    ASSERT_EQ(unit.size, text.size());
    for (size_t cut = 1; cut < text.size(); ++cut) {
      const Utf8Unit half = DecodeUtf8(std::string_view(text).substr(0, cut), 0);
      ASSERT_EQ(half.kind, Utf8Unit::Kind::kCutOff);
      ASSERT_EQ(half.size, cut);
    }
  }
}

TEST(Utf8, WhatIsIllFormed) {
  for (const std::string& text :
       {std::string("\x80"), std::string("\xc0\xaf"), std::string("\xc1\xbf"),
        std::string("\xe0\x80\xaf"), std::string("\xed\xa0\x80"), std::string("\xf0\x80\x80\xaf"),
        std::string("\xf4\x90\x80\x80"), std::string("\xf5\x80\x80\x80"), std::string("\xff"),
        std::string("\xc3("), std::string("\xe2\x82"), std::string("\xf0\x9f\xa6")}) {
    EXPECT_FALSE(IsUtf8(text));
    EXPECT_FALSE(IsUtf8("eight ASCII characters" + text));
    EXPECT_TRUE(NeedsEscape(text));
  }
  EXPECT_TRUE(IsUtf8(""));
  EXPECT_TRUE(IsUtf8("Größe 4 ½, 日本語 🦙"));
}

// The examples of The Unicode Standard 15, tables 3-8 to 3-11: a replacement for each maximal
// subpart.
TEST(Utf8, MaximalSubpartsAreReplaced) {
  const std::string r(kReplacementCharacter);
  EXPECT_EQ(Repaired("\xc0\xaf\xe0\x80\xbf\xf0\x81\x82\x41"), r + r + r + r + r + r + r + r + "A");
  EXPECT_EQ(Repaired("\xed\xa0\x80\xed\xbf\xbf\xed\xaf\x41"), r + r + r + r + r + r + r + r + "A");
  EXPECT_EQ(Repaired("\xf4\x91\x92\x93\xff\x41\x80\xbf\x42"),
            r + r + r + r + r + "A" + r + r + "B");
  EXPECT_EQ(Repaired("\xe1\x80\xe2\xf0\x91\x92\xf1\xbf\x41"), r + r + r + r + "A");
}

TEST(Utf8, StreamIsTheWholeUnderRandomCuts) {
  const uint64_t seed = TestSeed();
  SCOPED_TRACE("PACELINE_TEST_SEED=" + std::to_string(seed));
  std::mt19937_64 rng(seed);
  for (int round = 0; round < TestRounds(3000); ++round) {
    std::string bytes =
        rng() % 2 == 0 ? RandomBytes(rng, rng() % 40) : testing::RandomText(rng, 20);
    if (!bytes.empty() && rng() % 2 == 0) bytes.erase(rng() % bytes.size(), 1);
    Utf8Stream stream;
    std::string out;
    for (size_t pos = 0; pos < bytes.size();) {
      const size_t size = std::min<size_t>(rng() % 6, bytes.size() - pos);
      stream.Push(std::string_view(bytes).substr(pos, size), &out);
      ASSERT_TRUE(IsUtf8(out));  // never half a character
      pos += size;
    }
    stream.Flush(&out);
    ASSERT_EQ(out, Repaired(bytes));
    ASSERT_TRUE(IsUtf8(out));
    if (IsUtf8(bytes)) {
      ASSERT_EQ(out, bytes);
    }
  }
}

TEST(Utf8, EscapesOfAnyBytesAreTextAndUndone) {
  const uint64_t seed = TestSeed();
  SCOPED_TRACE("PACELINE_TEST_SEED=" + std::to_string(seed));
  std::mt19937_64 rng(seed);
  for (int round = 0; round < TestRounds(3000); ++round) {
    std::string bytes = RandomBytes(rng, rng() % 30);
    if (rng() % 3 == 0) AppendUtf8(0x10fe00 + rng() % 256, &bytes);  // the escapes' own range
    const std::string escaped = EscapeBytes(bytes);
    ASSERT_TRUE(IsUtf8(escaped));
    ASSERT_EQ(UnescapeBytes(escaped), bytes);
    if (!NeedsEscape(bytes)) {
      ASSERT_EQ(escaped, bytes);
    }
  }
}

}  // namespace
}  // namespace paceline
