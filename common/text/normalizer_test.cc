#include "common/text/normalizer.h"

#include "common/text/test_texts.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace paceline {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

absl::StatusOr<std::string> Normal(const json& file, std::string_view text) {
  auto normalizer = Normalizer::FromJson(JsonNode(&file, "normalizer"));
  if (!normalizer.ok()) return normalizer.status();
  return normalizer->Apply(text);
}

TEST(Normalizer, NormalForms) {
  EXPECT_EQ(*Normal({{"type", "NFC"}}, "e\u0301 \u1100\u1161"), "\u00e9 \uac00");
  EXPECT_EQ(*Normal({{"type", "NFD"}}, "\u00e9"), "e\u0301");
  EXPECT_EQ(*Normal({{"type", "NFKC"}}, "ﬁ ½ Ａ"), "fi 1\u20442 A");
  EXPECT_EQ(*Normal({{"type", "NFKD"}}, "ﬁ\u00e9"), "fie\u0301");
  // Marks go in canonical order, and what composition excludes stays apart.
  EXPECT_EQ(*Normal({{"type", "NFC"}}, "a\u0315\u0300"), "\u00e0\u0315");
  EXPECT_EQ(*Normal({{"type", "NFC"}}, "\u0958"), "\u0915\u093c");
}

TEST(Normalizer, StepsInOrder) {
  const json file = json::parse(R"({"type": "Sequence", "normalizers": [
      {"type": "Strip", "strip_left": true, "strip_right": false},
      {"type": "Prepend", "prepend": "▁"},
      {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
      {"type": "Replace", "pattern": {"Regex": "[0-9]{2}"}, "content": "#"}]})");
  EXPECT_EQ(*Normal(file, " \n a 123 "), "▁a▁#3▁");
  EXPECT_EQ(*Normal(file, ""), "");
  EXPECT_EQ(*Normal(nullptr, " a "), " a ");
}

TEST(Normalizer, StripTakesUnicodeSpace) {
  const json both = {{"type", "Strip"}, {"strip_left", true}, {"strip_right", true}};
  EXPECT_EQ(*Normal(both, "\u3000\t a b \u00a0"), "a b");
  EXPECT_EQ(*Normal(both, " \n"), "");
  EXPECT_EQ(*Normal({{"type", "Strip"}, {"strip_right", true}}, " a "), " a");
  EXPECT_EQ(*Normal({{"type", "Strip"}}, " a "), " a ");
}

TEST(Normalizer, ErrorsSayWhere) {
  EXPECT_EQ(Normal({{"type", "BertNormalizer"}}, "").status().code(),
            absl::StatusCode::kUnimplemented);
  EXPECT_THAT(Normal({{"type", "BertNormalizer"}}, "").status().message(),
              HasSubstr("normalizer: normalizer type \"BertNormalizer\" is not supported"));
  const json bad =
      json::parse(R"({"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Replace"}]})");
  EXPECT_THAT(Normal(bad, "").status().message(),
              HasSubstr("normalizer.normalizers[1].content: expected a string"));
}

TEST(Normalizer, GrowthIsBounded) {
  json file = {{"type", "Sequence"}, {"normalizers", json::array()}};
  const json twice = json::parse(
      R"({"type": "Replace", "pattern": {"Regex": "a"}, "content": "aaaaaaaaaaaaaaaa"})");
  for (int i = 0; i < 32; ++i) file["normalizers"].push_back(twice);
  const auto grown = Normal(file, "a");
  EXPECT_EQ(grown.status().code(), absl::StatusCode::kResourceExhausted);
  file["normalizers"].push_back(twice);
  EXPECT_THAT(Normal(file, "").status().message(), HasSubstr("more than 32 normalizers"));
  EXPECT_THAT(
      Normal({{"type", "Prepend"}, {"prepend", std::string(5000, 'a')}}, "").status().message(),
      HasSubstr("content of 5000 bytes, the limit is 4096"));
}

TEST(Normalizer, NormalFormsAreStable) {
  const uint64_t seed = testing::TestSeed();
  SCOPED_TRACE("PACELINE_TEST_SEED=" + std::to_string(seed));
  std::mt19937_64 rng(seed);
  for (int round = 0; round < testing::TestRounds(300); ++round) {
    const std::string text = testing::RandomText(rng, 40);
    for (const char* form : {"NFC", "NFD", "NFKC", "NFKD"}) {
      const auto once = Normal({{"type", form}}, text);
      ASSERT_TRUE(once.ok()) << once.status();
      ASSERT_TRUE(IsUtf8(*once));
      ASSERT_EQ(*Normal({{"type", form}}, *once), *once) << form;
    }
  }
}

}  // namespace
}  // namespace paceline
