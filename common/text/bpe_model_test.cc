#include "common/text/bpe_model.h"

#include <map>

#include "common/text/bpe_trainer.h"
#include "common/text/test_texts.h"
#include "common/text/tokenizer.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace paceline {
namespace {

using nlohmann::json;
using testing::ByteLevelFile;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::SentencePieceFile;

absl::StatusOr<std::vector<TokenId>> Encode(const json& file, bool byte_level,
                                            std::string_view word) {
  auto model = BpeModel::FromJson(JsonNode(&file, "model"), byte_level);
  if (!model.ok()) return model.status();
  std::vector<TokenId> tokens;
  const absl::Status status = model->Encode(word, &tokens);
  if (!status.ok()) return status;
  return tokens;
}

std::vector<TokenId> Tokens(const json& file, bool byte_level, std::string_view word) {
  auto tokens = Encode(file, byte_level, word);
  EXPECT_TRUE(tokens.ok()) << tokens.status();
  return tokens.ok() ? *tokens : std::vector<TokenId>();
}

std::string ErrorOf(const json& file, bool byte_level = true) {
  return std::string(BpeModel::FromJson(JsonNode(&file, "model"), byte_level).status().message());
}

TEST(BpeModel, MergesByRank) {
  const json file = ByteLevelFile()["model"];
  EXPECT_THAT(Tokens(file, true, "the"), ElementsAre(257));
  EXPECT_THAT(Tokens(file, true, "thth"), ElementsAre(256, 256));
  // " th" has a later rank than "the", so that " the" comes of "th", "the" and then nothing.
  EXPECT_THAT(Tokens(file, true, " the"), ElementsAre(' ', 257));
  EXPECT_THAT(Tokens(file, true, ""), ElementsAre());
}

TEST(BpeModel, IgnoreMergesTakesWholeWords) {
  json file = ByteLevelFile()["model"];
  file["ignore_merges"] = true;
  EXPECT_THAT(Tokens(file, true, " the"), ElementsAre(260));
  EXPECT_THAT(Tokens(file, true, " thet"), ElementsAre(' ', 257, 't'));
}

TEST(BpeModel, UnknownCharacters) {
  json file = SentencePieceFile()["model"];
  EXPECT_THAT(Tokens(file, false, "aé"), ElementsAre(260, 266));
  EXPECT_THAT(Tokens(file, false, "ü"), ElementsAre(3 + 0xc3, 3 + 0xbc));
  EXPECT_THAT(Tokens(file, false, EscapeBytes("\xff")), ElementsAre(3 + 0xff));
  file["byte_fallback"] = false;
  EXPECT_THAT(Tokens(file, false, "aüüb"), ElementsAre(260, 0, 261));
  file["fuse_unk"] = false;
  EXPECT_THAT(Tokens(file, false, "aüüb"), ElementsAre(260, 0, 0, 261));
  file["unk_token"] = nullptr;
  const auto none = Encode(file, false, "aü");
  EXPECT_EQ(none.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(none.status().message(), HasSubstr("no token for \"ü\""));
}

// One of the byte tokens is missing: the whole character is unknown, as in HF tokenizers.
TEST(BpeModel, ByteFallbackIsAllOrNothing) {
  json file = SentencePieceFile()["model"];
  file["vocab"].erase("<0xBC>");
  EXPECT_THAT(Tokens(file, false, "ü"), ElementsAre(0));
}

TEST(BpeModel, MergesAsPairs) {
  json file = ByteLevelFile()["model"];
  file["merges"] = json::parse(R"([["t", "h"], ["th", "e"]])");
  EXPECT_THAT(Tokens(file, true, "the"), ElementsAre(257));
}

TEST(BpeModel, ErrorsSayWhere) {
  const json good = ByteLevelFile()["model"];
  const auto with = [&](const char* key, json value) {
    json file = good;
    file[key] = std::move(value);
    return ErrorOf(file);
  };
  EXPECT_THAT(with("type", "WordPiece"), HasSubstr("model: model type \"WordPiece\""));
  EXPECT_THAT(with("vocab", nullptr), HasSubstr("model.vocab: expected an object"));
  EXPECT_THAT(with("vocab", json::object()), HasSubstr("model.vocab: no tokens"));
  EXPECT_THAT(with("vocab", {{"a", -1}}), HasSubstr("model.vocab[\"a\"]: id -1 is outside"));
  EXPECT_THAT(with("vocab", {{"a", 1 << 30}}), HasSubstr("is outside"));
  EXPECT_THAT(with("vocab", {{"a", 0}, {"b", 0}}), HasSubstr("id 0 belongs to \"a\""));
  EXPECT_THAT(with("vocab", {{"a", "0"}}), HasSubstr("expected an integer"));
  EXPECT_THAT(with("vocab", {{"", 0}}), HasSubstr("empty token"));
  EXPECT_THAT(with("merges", {"t h", "nospace"}), HasSubstr("model.merges[1]: \"nospace\""));
  EXPECT_THAT(with("merges", {"t h e"}), HasSubstr("model.merges[0]"));
  EXPECT_THAT(with("merges", {"q z"}), HasSubstr("token \"qz\" is not in the vocabulary"));
  EXPECT_THAT(with("merges", json::parse(R"([["t"]])")), HasSubstr("expected two tokens"));
  EXPECT_THAT(with("merges", json::parse(R"([["t", 1]])")), HasSubstr("expected a string"));
  EXPECT_THAT(with("merges", 3), HasSubstr("model.merges: expected an array"));
  EXPECT_THAT(with("unk_token", "no"), HasSubstr("model.unk_token: token \"no\""));
  EXPECT_THAT(with("dropout", 0.1), HasSubstr("model.dropout: dropout is not supported"));
  EXPECT_THAT(with("end_of_word_suffix", "</w>"), HasSubstr("end_of_word_suffix \"</w>\""));
  EXPECT_EQ(with("dropout", 0.0), "");
}

// The definition, over tokens as the file writes them: join the leftmost pair of least rank, again
// and again.
class NaiveBpe {
 public:
  explicit NaiveBpe(json model) : vocab_(std::move(model["vocab"])) {
    for (const json& merge : model["merges"]) {
      const std::string pair = merge.get<std::string>();
      const size_t space = pair.find(' ');
      ranks_.emplace(std::make_pair(pair.substr(0, space), pair.substr(space + 1)), ranks_.size());
    }
  }
  std::vector<TokenId> Encode(std::vector<std::string> symbols) const {
    while (true) {
      size_t best = symbols.size();
      size_t best_rank = ranks_.size();
      for (size_t i = 0; i + 1 < symbols.size(); ++i) {
        const auto it = ranks_.find({symbols[i], symbols[i + 1]});
        if (it != ranks_.end() && it->second < best_rank) {
          best = i;
          best_rank = it->second;
        }
      }
      if (best == symbols.size()) break;
      symbols[best] += symbols[best + 1];
      symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(best) + 1);
    }
    std::vector<TokenId> tokens;
    for (const std::string& symbol : symbols) tokens.push_back(vocab_[symbol].get<TokenId>());
    return tokens;
  }
  std::vector<TokenId> EncodeBytes(const std::string& word) const {
    std::vector<std::string> symbols;
    for (const char c : word) symbols.push_back(ToByteAlphabet(std::string(1, c)));
    return Encode(std::move(symbols));
  }
  std::vector<TokenId> EncodeCharacters(const std::string& word) const {
    std::vector<std::string> symbols;
    for (size_t pos = 0; pos < word.size();) {
      const size_t size = DecodeUtf8(word, pos).size;
      symbols.push_back(word.substr(pos, size));
      pos += size;
    }
    return Encode(std::move(symbols));
  }

 private:
  const json vocab_;
  std::map<std::pair<std::string, std::string>, size_t> ranks_;
};

TEST(BpeModel, AgreesWithTheDefinition) {
  const uint64_t seed = testing::TestSeed();
  SCOPED_TRACE("PACELINE_TEST_SEED=" + std::to_string(seed));
  std::mt19937_64 rng(seed);
  const auto trained = BpeTrainer::Train(testing::RandomText(rng, 20000), 700);
  ASSERT_TRUE(trained.ok()) << trained.status();
  EXPECT_GT(trained->vocab_size(), 400);
  const json file = json::parse(trained->ToJson());
  const NaiveBpe naive(file["model"]);
  const auto model = BpeModel::FromJson(JsonNode(&file["model"], "model"), true);
  ASSERT_TRUE(model.ok()) << model.status();
  for (int round = 0; round < testing::TestRounds(500); ++round) {
    // Short words and long ones go different ways.
    const std::string word = testing::RandomText(rng, 1 + rng() % (round % 10 == 0 ? 200 : 20));
    std::vector<TokenId> tokens;
    ASSERT_TRUE(model->Encode(word, &tokens).ok());
    ASSERT_EQ(tokens, naive.EncodeBytes(word)) << word;
  }
  // Many equal pairs side by side, and a word of a megabyte in little time.
  for (const size_t size : {23, 24, 25, 26, 500}) {
    std::vector<TokenId> tokens;
    ASSERT_TRUE(model->Encode(std::string(size, ' '), &tokens).ok());
    ASSERT_EQ(tokens, naive.EncodeBytes(std::string(size, ' ')));
  }
  std::vector<TokenId> tokens;
  ASSERT_TRUE(model->Encode(std::string(1 << 20, 't'), &tokens).ok());
}

// A text in one word, of characters that merges join and of some that none does.
TEST(BpeModel, LongTextsAgreeWithTheDefinition) {
  const uint64_t seed = testing::TestSeed();
  SCOPED_TRACE("PACELINE_TEST_SEED=" + std::to_string(seed));
  std::mt19937_64 rng(seed);
  const json file = SentencePieceFile()["model"];
  const NaiveBpe naive(file);
  const auto model = BpeModel::FromJson(JsonNode(&file, "model"), false);
  ASSERT_TRUE(model.ok()) << model.status();
  const std::vector<std::string> letters = {"▁", "▁", "a", "b", "c", "h", "t", "e", "é"};
  for (int round = 0; round < testing::TestRounds(300); ++round) {
    std::string word;
    const size_t distinct = 2 + rng() % (letters.size() - 1);
    for (size_t n = 1 + rng() % 150; n > 0; --n) word += letters[rng() % distinct];
    std::vector<TokenId> tokens;
    ASSERT_TRUE(model->Encode(word, &tokens).ok());
    ASSERT_EQ(tokens, naive.EncodeCharacters(word)) << word;
  }
}

TEST(BpeTrainer, SameTextSameVocabulary) {
  const std::string text = "the theme of the thesis is the other theory; they bathe there. ";
  const auto trained = BpeTrainer::Train(text + text, 270);
  ASSERT_TRUE(trained.ok());
  EXPECT_EQ(trained->merges().front(), (std::pair<TokenId, TokenId>{1 + 'h', 1 + 'e'}));
  EXPECT_EQ(trained->ToJson(), BpeTrainer::Train(text + text, 270)->ToJson());
  const auto tokenizer = Tokenizer::FromJson(trained->ToJson());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->vocab_size(), trained->vocab_size());
  const auto tokens = (*tokenizer)->Encode(text);
  ASSERT_TRUE(tokens.ok());
  EXPECT_LT(tokens->size(), text.size() * 3 / 4);
  EXPECT_EQ((*tokenizer)->Decode(*tokens), text);
}

TEST(BpeTrainer, Limits) {
  EXPECT_EQ(BpeTrainer::Train("x", 256).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(BpeTrainer::Train("x", kMaxVocab).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(BpeTrainer::Train("", 1000)->vocab_size(), BpeTrainer::kSmallestVocab);
  EXPECT_EQ(BpeTrainer::Train("\xff\xff \xff\xff \xff\xff", 1000)->vocab_size(),
            BpeTrainer::kSmallestVocab + 2);
}

}  // namespace
}  // namespace paceline
