#include "common/text/tokenizer.h"

#include <sstream>

#include "common/text/stream_detokenizer.h"
#include "common/text/test_texts.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace paceline {
namespace {

using testing::ByteLevelFile;
using ::testing::ElementsAre;
using testing::ReadFile;
using testing::SentencePieceFile;
using testing::SharedData;

std::unique_ptr<Tokenizer> FromFile(const nlohmann::json& file) {
  auto tokenizer = Tokenizer::FromJson(file.dump());
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return tokenizer.ok() ? std::move(tokenizer).value() : nullptr;
}

std::unique_ptr<Tokenizer> FromSharedData(const std::string& path) {
  auto tokenizer = Tokenizer::Load(SharedData() + "/" + path);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return tokenizer.ok() ? std::move(tokenizer).value() : nullptr;
}

// Texts and ids of `name`.inp and .out, as HF tokenizers gives them without special tokens.
void ExpectGolden(const Tokenizer& tokenizer, const std::string& name) {
  const std::string folder = SharedData() + "/tokenizers/golden/" + name;
  const std::string texts = ReadFile(folder + ".inp");
  std::istringstream lines(ReadFile(folder + ".out"));
  const std::string separator = "\n__ggml_vocab_test__\n";
  int count = 0;
  std::string line;
  for (size_t pos = 0; pos <= texts.size() && std::getline(lines, line); ++count) {
    const size_t end = std::min(texts.find(separator, pos), texts.size());
    const std::string text = texts.substr(pos, end - pos);
    pos = end + separator.size();
    std::istringstream ids(line);
    const std::vector<TokenId> expected{std::istream_iterator<TokenId>(ids), {}};
    const auto tokens = tokenizer.Encode(text, {.add_special_tokens = false});
    ASSERT_TRUE(tokens.ok()) << tokens.status();
    EXPECT_EQ(*tokens, expected) << "text " << count << ": " << text;
    EXPECT_EQ(tokenizer.Decode(*tokens), text);
  }
  EXPECT_GT(count, 40);
}

TEST(TokenizerGoldenTest, Gpt2) {
  SKIP_WITHOUT_SHARED_DATA();
  const auto tokenizer = FromSharedData("tokenizers/gpt2/tokenizer.json");
  ASSERT_NE(tokenizer, nullptr);
  ExpectGolden(*tokenizer, "gpt-2");
}

TEST(TokenizerGoldenTest, Phi3) {
  SKIP_WITHOUT_SHARED_DATA();
  const auto tokenizer = FromSharedData("tokenizers/phi-3");
  ASSERT_NE(tokenizer, nullptr);
  ExpectGolden(*tokenizer, "phi-3");
}

}  // namespace
}  // namespace paceline
