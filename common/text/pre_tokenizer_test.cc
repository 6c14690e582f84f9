#include "common/text/pre_tokenizer.h"

#include "common/text/test_texts.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace paceline {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::ElementsAreArray;
using ::testing::HasSubstr;

absl::StatusOr<std::vector<std::string>> Cut(const json& file, std::string_view text,
                                             bool at_start = true) {
  auto pre_tokenizer = PreTokenizer::FromJson(JsonNode(&file, "pre_tokenizer"));
  if (!pre_tokenizer.ok()) return pre_tokenizer.status();
  std::vector<std::string> words;
  const absl::Status status =
      pre_tokenizer->ForEachWord(text, at_start, [&](std::string_view word) {
        words.emplace_back(word);
        return absl::OkStatus();
      });
  if (!status.ok()) return status;
  return words;
}

std::vector<std::string> Words(const json& file, std::string_view text, bool at_start = true) {
  auto words = Cut(file, text, at_start);
  EXPECT_TRUE(words.ok()) << words.status();
  return words.ok() ? *words : std::vector<std::string>();
}

json Split(const std::string& regex, const std::string& behavior = "Isolated",
           bool invert = false) {
  return {{"type", "Split"},
          {"pattern", {{"Regex", regex}}},
          {"behavior", behavior},
          {"invert", invert}};
}

TEST(PreTokenizer, NoneLeavesTheTextWhole) {
  EXPECT_THAT(Words(nullptr, "one two"), ElementsAre("one two"));
  EXPECT_THAT(Words(nullptr, ""), ElementsAre());
}

TEST(PreTokenizer, BehaviorsOfSplit) {
  const std::string text = "the-final--countdown";
  EXPECT_THAT(Words(Split("-", "Removed"), text), ElementsAre("the", "final", "countdown"));
  EXPECT_THAT(Words(Split("-", "Isolated"), text),
              ElementsAre("the", "-", "final", "-", "-", "countdown"));
  EXPECT_THAT(Words(Split("-", "MergedWithPrevious"), text),
              ElementsAre("the-", "final-", "-", "countdown"));
  EXPECT_THAT(Words(Split("-", "MergedWithNext"), text),
              ElementsAre("the", "-final", "-", "-countdown"));
  EXPECT_THAT(Words(Split("-", "Contiguous"), text),
              ElementsAre("the", "-", "final", "--", "countdown"));
  EXPECT_THAT(Words(Split("[a-z]+", "Removed", true), text),
              ElementsAre("the", "final", "countdown"));
}

TEST(PreTokenizer, Gpt2Words) {
  const json file = {{"type", "ByteLevel"}, {"add_prefix_space", false}};
  EXPECT_THAT(Words(file, "I'll see 42 cats!!  Größe\n\n x"),
              ElementsAre("I", "'ll", " see", " 42", " cats", "!!", " ", " Größe", "\n\n", " x"));
  EXPECT_THAT(Words({{"type", "ByteLevel"}}, "see"), ElementsAre(" see"));
  EXPECT_THAT(Words({{"type", "ByteLevel"}}, " see"), ElementsAre(" see"));
  EXPECT_THAT(
      Words({{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}, "a b"),
      ElementsAre("a b"));
}

// As Llama 3 and Qwen 2 write them; what differs is how many digits stay together.
TEST(PreTokenizer, WordsOfLlama3AndQwen2) {
  const std::string head = R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|)";
  const std::string tail = R"(| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
  const json bytes = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}};
  const json llama = {{"type", "Sequence"},
                      {"pretokenizers", {Split(head + R"(\p{N}{1,3})" + tail), bytes}}};
  const json qwen = {{"type", "Sequence"},
                     {"pretokenizers", {Split(head + R"(\p{N})" + tail), bytes}}};
  const std::string text = "I'VE 12345 (x)\r\n\n  y\tz ...\n!";
  EXPECT_THAT(Words(llama, text), ElementsAre("I", "'VE", " ", "123", "45", " (", "x", ")\r\n\n",
                                              " ", " y", "\tz", " ...\n", "!"));
  EXPECT_THAT(Words(qwen, text), ElementsAre("I", "'VE", " ", "1", "2", "3", "4", "5", " (", "x",
                                             ")\r\n\n", " ", " y", "\tz", " ...\n", "!"));
  EXPECT_THAT(Words(llama, "   "), ElementsAre("   "));
  EXPECT_THAT(Words(llama, "a   b"), ElementsAre("a", "  ", " b"));
  EXPECT_THAT(Words(llama, "日本語 ½x"), ElementsAre("日本語", " ", "½", "x"));
}

TEST(PreTokenizer, Metaspace) {
  const json always = {{"type", "Metaspace"}, {"replacement", "▁"}, {"prepend_scheme", "always"}};
  json first = always;
  first["prepend_scheme"] = "first";
  json never = always;
  never["prepend_scheme"] = "never";
  json whole = always;
  whole["split"] = false;
  EXPECT_THAT(Words(always, "one two  x"), ElementsAre("▁one", "▁two", "▁", "▁x"));
  EXPECT_THAT(Words(always, " one"), ElementsAre("▁one"));
  EXPECT_THAT(Words(first, "one", true), ElementsAre("▁one"));
  EXPECT_THAT(Words(first, "one", false), ElementsAre("one"));
  EXPECT_THAT(Words(never, "one two"), ElementsAre("one", "▁two"));
  EXPECT_THAT(Words(whole, "one two"), ElementsAre("▁one▁two"));
}

TEST(PreTokenizer, DigitsAndPunctuation) {
  EXPECT_THAT(Words({{"type", "Digits"}}, "a12b"), ElementsAre("a", "12", "b"));
  EXPECT_THAT(Words({{"type", "Digits"}, {"individual_digits", true}}, "a12b"),
              ElementsAre("a", "1", "2", "b"));
  EXPECT_THAT(Words({{"type", "Punctuation"}}, "a?!b¿"), ElementsAre("a", "?", "!", "b", "¿"));
  EXPECT_THAT(Words({{"type", "Punctuation"}, {"behavior", "Contiguous"}}, "a?!b"),
              ElementsAre("a", "?!", "b"));
}

TEST(PreTokenizer, ErrorsSayWhere) {
  const auto error_of = [](const json& file) { return Cut(file, "x").status(); };
  EXPECT_THAT(error_of({{"type", "BertPreTokenizer"}}).message(),
              HasSubstr("pre_tokenizer: pre_tokenizer type \"BertPreTokenizer\" is not supported"));
  EXPECT_EQ(error_of({{"type", "BertPreTokenizer"}}).code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(error_of(Split("(")).message(),
              HasSubstr("pre_tokenizer.pattern.Regex: bad regular"));
  EXPECT_THAT(error_of(Split("-", "Sideways")).message(), HasSubstr("behavior \"Sideways\""));
  EXPECT_THAT(error_of({{"type", "Split"}}).message(), HasSubstr("pre_tokenizer.pattern"));
  EXPECT_THAT(error_of({{"type", "Split"}, {"pattern", {{"Glob", "*"}}}}).message(),
              HasSubstr("String or Regex"));
  EXPECT_THAT(error_of({{"type", "Metaspace"}, {"replacement", "xy"}}).message(),
              HasSubstr("not one character"));
  EXPECT_THAT(error_of({{"type", "Metaspace"}, {"prepend_scheme", "x"}}).message(),
              HasSubstr("prepend_scheme"));
  EXPECT_THAT(error_of("ByteLevel").message(), HasSubstr("expected an object"));
  const json behind = {{"type", "Sequence"},
                       {"pretokenizers", {{{"type", "ByteLevel"}}, {{"type", "Digits"}}}}};
  EXPECT_THAT(error_of(behind).message(),
              HasSubstr("pre_tokenizer.pretokenizers[1]: \"Digits\" behind ByteLevel"));
  json many = {{"type", "Sequence"}, {"pretokenizers", json::array()}};
  for (int i = 0; i < 40; ++i) many["pretokenizers"].push_back({{"type", "Digits"}});
  EXPECT_THAT(error_of(many).message(), HasSubstr("more than 32 pre-tokenizers"));
}

// Isolated pieces are all of the text, in order, whatever the expression.
TEST(PreTokenizer, IsolatedPiecesJoinToTheText) {
  const uint64_t seed = testing::TestSeed();
  SCOPED_TRACE("PACELINE_TEST_SEED=" + std::to_string(seed));
  std::mt19937_64 rng(seed);
  for (const char* regex : {"", "x*", R"(\s)", "[a-h]+", R"(a\Kb)", "(?=t)", R"(\p{L}{2})"}) {
    for (const char* behavior :
         {"Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"}) {
      const std::string text = testing::RandomText(rng, 200);
      std::string joined;
      for (const std::string& word : Words(Split(regex, behavior), text)) {
        EXPECT_FALSE(word.empty());
        joined += word;
      }
      EXPECT_EQ(joined, text) << regex << " " << behavior;
    }
  }
}

}  // namespace
}  // namespace paceline
