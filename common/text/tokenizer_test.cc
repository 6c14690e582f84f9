#include "common/text/tokenizer.h"

#include <map>
#include <sstream>
#include <thread>

#include "absl/strings/escaping.h"
#include "absl/strings/str_replace.h"
#include "common/text/stream_detokenizer.h"
#include "common/text/test_texts.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace paceline {
namespace {

using nlohmann::json;
using testing::ByteLevelFile;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
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

// Llama 3's tokenizer.json, made of its vocabulary of tokens by rank: every split of a token into
// two tokens is a merge, in the order of ranks.
json Llama3File(const std::string& ranks_file) {
  std::map<std::string, int> rank;
  std::vector<std::string> tokens;
  std::istringstream lines(ranks_file);
  std::string encoded, number;
  while (lines >> encoded >> number) {
    std::string token;
    EXPECT_TRUE(absl::Base64Unescape(encoded, &token));
    rank.emplace(token, static_cast<int>(tokens.size()));
    tokens.push_back(token);
  }
  json vocab = json::object();
  json merges = json::array();
  for (size_t id = 0; id < tokens.size(); ++id) {
    const std::string& token = tokens[id];
    vocab[ToByteAlphabet(token)] = id;
    std::vector<std::pair<int, int>> splits;
    for (size_t cut = 1; cut < token.size(); ++cut) {
      const auto left = rank.find(token.substr(0, cut));
      const auto right = rank.find(token.substr(cut));
      if (left != rank.end() && right != rank.end()) {
        splits.emplace_back(left->second, right->second);
      }
    }
    std::sort(splits.begin(), splits.end());
    for (const auto& [left, right] : splits) {
      merges.push_back({ToByteAlphabet(tokens[left]), ToByteAlphabet(tokens[right])});
    }
  }
  json file = ByteLevelFile();
  file["added_tokens"] = json::array();
  file["pre_tokenizer"] = json::parse(R"({"type": "Sequence", "pretokenizers": [
      {"type": "Split", "behavior": "Isolated", "invert": false, "pattern": {"Regex": ""}},
      {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false}]})");
  file["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] =
      R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|)"
      R"( ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
  file["model"] = {{"type", "BPE"}, {"ignore_merges", true}, {"vocab", vocab}, {"merges", merges}};
  return file;
}

TEST(TokenizerGoldenTest, Llama3) {
  SKIP_WITHOUT_SHARED_DATA();
  if (std::getenv("PACELINE_SANITIZED") != nullptr) GTEST_SKIP() << "a vocabulary of 128,000";
  const auto tokenizer =
      FromFile(Llama3File(ReadFile(SharedData() + "/tokenizers/llama3/tokenizer.model")));
  ASSERT_NE(tokenizer, nullptr);
  EXPECT_EQ(tokenizer->vocab_size(), 128000);
  ExpectGolden(*tokenizer, "llama-bpe");
}

std::vector<TokenId> Encode(const Tokenizer& tokenizer, std::string_view text,
                            const EncodeOptions& options = {}) {
  auto tokens = tokenizer.Encode(text, options);
  EXPECT_TRUE(tokens.ok()) << tokens.status();
  return tokens.ok() ? *tokens : std::vector<TokenId>();
}

std::string BytesOf(const Tokenizer& tokenizer, std::span<const TokenId> tokens) {
  std::string bytes;
  for (const TokenId token : tokens) bytes += tokenizer.TokenBytes(token);
  return bytes;
}

TEST(Tokenizer, SpecialTokensInText) {
  const auto tokenizer = FromFile(ByteLevelFile());
  ASSERT_NE(tokenizer, nullptr);
  EXPECT_THAT(Encode(*tokenizer, "a<|end|>the"), ElementsAre('a', 261, 257));
  EXPECT_EQ(Encode(*tokenizer, "<|end|>", {.parse_special = false}).size(), 7);
  EXPECT_TRUE(tokenizer->IsSpecial(261));
  EXPECT_TRUE(tokenizer->IsAdded(261));
  EXPECT_FALSE(tokenizer->IsSpecial(257));
  EXPECT_EQ(tokenizer->TokenOf("<|end|>"), 261);
  EXPECT_EQ(tokenizer->TokenOf("the"), 257);
  EXPECT_EQ(tokenizer->TokenOf("nothing"), -1);
  EXPECT_EQ(tokenizer->vocab_size(), 262);
  const std::vector<TokenId> tokens = {'a', 261, 257};
  EXPECT_EQ(tokenizer->Decode(tokens), "a<|end|>the");
  EXPECT_EQ(tokenizer->Decode(tokens, true), "athe");
}

TEST(Tokenizer, IdsWithoutATokenAddNothing) {
  const auto tokenizer = FromFile(ByteLevelFile());
  ASSERT_NE(tokenizer, nullptr);
  for (const TokenId token : {-1, 262, 1 << 30, INT32_MIN}) {
    EXPECT_EQ(tokenizer->TokenBytes(token), "");
    EXPECT_EQ(tokenizer->TokenName(token), "");
    EXPECT_FALSE(tokenizer->IsSpecial(token));
    EXPECT_EQ(tokenizer->Decode(std::vector<TokenId>{'a', token, 'b'}), "ab");
  }
}

json WithAdded(std::vector<json> added) {
  json file = ByteLevelFile();
  for (json& token : added) file["added_tokens"].push_back(std::move(token));
  return file;
}

TEST(Tokenizer, AddedTokensTakeSpaceAlong) {
  const auto tokenizer = FromFile(WithAdded({
      {{"id", 300}, {"content", "[L]"}, {"lstrip", true}, {"normalized", false}},
      {{"id", 301}, {"content", "[R]"}, {"rstrip", true}, {"normalized", false}},
      {{"id", 302}, {"content", "word"}, {"single_word", true}, {"normalized", false}},
      {{"id", 303}, {"content", "[L][R]"}, {"normalized", false}},
  }));
  ASSERT_NE(tokenizer, nullptr);
  EXPECT_THAT(Encode(*tokenizer, "a \n [L] b"), ElementsAre('a', 300, ' ', 'b'));
  EXPECT_THAT(Encode(*tokenizer, "a [R]\u3000 b"), ElementsAre('a', ' ', 301, 'b'));
  EXPECT_THAT(Encode(*tokenizer, "[L][R]"), ElementsAre(303));  // the longest
  EXPECT_THAT(Encode(*tokenizer, "[R]  [L]"), ElementsAre(301, 300));
  EXPECT_THAT(Encode(*tokenizer, "[L][L"), ElementsAre(300, '[', 'L'));
  EXPECT_THAT(Encode(*tokenizer, "(word)"), ElementsAre('(', 302, ')'));
  EXPECT_THAT(Encode(*tokenizer, "word"), ElementsAre(302));
  EXPECT_EQ(Encode(*tokenizer, "swords").size(), 6);
  EXPECT_EQ(Encode(*tokenizer, "wordé").size(), 6);
  EXPECT_EQ(Encode(*tokenizer, "_word").size(), 5);
}

TEST(Tokenizer, NormalizedAddedTokensAreFoundInTheNormalForm) {
  json file = WithAdded({
      {{"id", 300}, {"content", "\u00e9!"}, {"normalized", true}},
      {{"id", 301}, {"content", "\u00e8!"}, {"normalized", false}},
  });
  file["normalizer"] = {{"type", "NFD"}};
  const auto tokenizer = FromFile(file);
  ASSERT_NE(tokenizer, nullptr);
  EXPECT_THAT(Encode(*tokenizer, "e\u0301!"), ElementsAre(300));
  EXPECT_THAT(Encode(*tokenizer, "\u00e9!"), ElementsAre(300));
  EXPECT_THAT(Encode(*tokenizer, "\u00e8!"), ElementsAre(301));
  EXPECT_EQ(Encode(*tokenizer, "e\u0300!").size(), 4);
}

TEST(Tokenizer, SentencePieceText) {
  const auto tokenizer = FromFile(SentencePieceFile());
  ASSERT_NE(tokenizer, nullptr);
  EXPECT_THAT(Encode(*tokenizer, "the ab"), ElementsAre(1, 269, 259, 270));
  EXPECT_THAT(Encode(*tokenizer, "the", {.add_special_tokens = false}), ElementsAre(269));
  EXPECT_THAT(Encode(*tokenizer, ""), ElementsAre(1));
  EXPECT_THAT(Encode(*tokenizer, "a</s>b"), ElementsAre(1, 259, 260, 2, 259, 261));
  EXPECT_EQ(tokenizer->Decode(Encode(*tokenizer, "the ab"), true), "the ab");
  EXPECT_EQ(tokenizer->Decode(Encode(*tokenizer, "é ü\n🦙"), true), "é ü\n🦙");
  EXPECT_EQ(tokenizer->TokenBytes(3 + 0x0a), "\n");
  EXPECT_EQ(tokenizer->TokenName(3 + 0x0a), "<0x0A>");
}

TEST(Tokenizer, TemplatesOnBothSides) {
  json file = ByteLevelFile();
  file["post_processor"] = json::parse(R"({"type": "Sequence", "processors": [
      {"type": "ByteLevel"},
      {"type": "TemplateProcessing",
       "single": [{"SpecialToken": {"id": "<|end|>", "type_id": 0}},
                  {"Sequence": {"id": "A", "type_id": 0}},
                  {"SpecialToken": {"id": "<|end|>", "type_id": 0}}],
       "special_tokens": {"<|end|>": {"id": "<|end|>", "ids": [261], "tokens": ["<|end|>"]}}}]})");
  const auto tokenizer = FromFile(file);
  ASSERT_NE(tokenizer, nullptr);
  EXPECT_THAT(Encode(*tokenizer, "a"), ElementsAre(261, 'a', 261));
  EXPECT_THAT(Encode(*tokenizer, "a", {.add_special_tokens = false}), ElementsAre('a'));
}

// Random bytes and random text, of both families: nothing is lost.
TEST(Tokenizer, NoByteIsLost) {
  const uint64_t seed = testing::TestSeed();
  SCOPED_TRACE("PACELINE_TEST_SEED=" + std::to_string(seed));
  std::mt19937_64 rng(seed);
  const auto bytes = FromFile(ByteLevelFile());
  const auto pieces = FromFile(SentencePieceFile());
  ASSERT_TRUE(bytes != nullptr && pieces != nullptr);
  const EncodeOptions plain = {.add_special_tokens = false, .parse_special = false};
  for (int round = 0; round < testing::TestRounds(1000); ++round) {
    const std::string text = round % 2 == 0 ? testing::RandomBytes(rng, rng() % 60)
                                            : testing::RandomText(rng, rng() % 60);
    EXPECT_EQ(BytesOf(*bytes, Encode(*bytes, text, plain)), text);
    const std::vector<TokenId> tokens = Encode(*pieces, text, plain);
    std::string back = BytesOf(*pieces, tokens);
    if (!text.empty()) {
      ASSERT_TRUE(back.starts_with(" "));  // of Prepend
      back.erase(0, 1);
    }
    const std::string spaced = absl::StrReplaceAll(text, {{"▁", " "}});
    EXPECT_EQ(back, spaced);
    if (IsUtf8(text)) {
      EXPECT_EQ(bytes->Decode(Encode(*bytes, text, plain)), text);
      EXPECT_EQ(pieces->Decode(tokens), spaced);
    }
  }
}

// Any tokens, cut anywhere: whole characters only, and together what Decode says.
void ExpectStreamIsDecode(const Tokenizer& tokenizer, std::mt19937_64& rng) {
  std::vector<TokenId> tokens;
  for (size_t n = rng() % 40; n > 0; --n) {
    tokens.push_back(static_cast<TokenId>(rng() % (tokenizer.vocab_size() + 2)) - 1);
  }
  const bool skip_special = rng() % 2 == 0;
  StreamDetokenizer stream(&tokenizer, {.skip_special = skip_special});
  std::string text;
  for (size_t pos = 0; pos < tokens.size();) {
    const size_t size = std::min<size_t>(rng() % 5, tokens.size() - pos);
    const std::string piece =
        size == 1 ? stream.Push(tokens[pos]) : stream.Push(std::span(tokens).subspan(pos, size));
    ASSERT_TRUE(IsUtf8(piece));
    text += piece;
    pos += size;
  }
  const std::string end = stream.Flush();
  ASSERT_TRUE(IsUtf8(end));
  ASSERT_EQ(text + end, tokenizer.Decode(tokens, skip_special));
}

TEST(StreamDetokenizer, IsDecodeUnderRandomCuts) {
  const uint64_t seed = testing::TestSeed();
  SCOPED_TRACE("PACELINE_TEST_SEED=" + std::to_string(seed));
  std::mt19937_64 rng(seed);
  json metaspace = SentencePieceFile();
  metaspace["decoder"] = json::parse(R"({"type": "Sequence", "decoders": [
      {"type": "ByteFallback"}, {"type": "Metaspace", "prepend_scheme": "first"},
      {"type": "Strip", "content": " ", "start": 1, "stop": 1}]})");
  for (const json& file : {ByteLevelFile(), SentencePieceFile(), metaspace}) {
    const auto tokenizer = FromFile(file);
    ASSERT_NE(tokenizer, nullptr);
    for (int round = 0; round < testing::TestRounds(2000) && !::testing::Test::HasFailure();
         ++round) {
      ExpectStreamIsDecode(*tokenizer, rng);
    }
  }
}

TEST(StreamDetokenizer, HoldsBackHalfACharacter) {
  const auto tokenizer = FromFile(ByteLevelFile());
  ASSERT_NE(tokenizer, nullptr);
  StreamDetokenizer stream(tokenizer.get());
  EXPECT_EQ(stream.Push(0xf0), "");
  EXPECT_EQ(stream.Push(0x9f), "");
  EXPECT_EQ(stream.Push(0xa6), "");
  EXPECT_EQ(stream.Push(0x99), "🦙");
  EXPECT_EQ(stream.Push(0xe2), "");
  EXPECT_EQ(stream.Push('a'),
            "\ufffd"
            "a");
  EXPECT_EQ(stream.Push(0xc3), "");
  EXPECT_EQ(stream.Flush(), "\ufffd");
}

TEST(StreamDetokenizer, AnOutputKeepsItsFirstSpace) {
  const auto tokenizer = FromFile(SentencePieceFile());
  ASSERT_NE(tokenizer, nullptr);
  const std::vector<TokenId> tokens = {269, 269};  // "▁the▁the"
  StreamDetokenizer text(tokenizer.get());
  EXPECT_EQ(text.Push(tokens), "the the");
  StreamDetokenizer output(tokenizer.get(), {.at_start = false});
  EXPECT_EQ(output.Push(tokens), " the the");
}

TEST(Tokenizer, FingerprintSaysWhetherIdsMeanTheSame) {
  const json file = ByteLevelFile();
  const std::string same = FromFile(file)->fingerprint();
  EXPECT_EQ(same.size(), 16);
  EXPECT_EQ(same, FromFile(json::parse(file.dump(4)))->fingerprint());
  json other = file;
  other["model"]["merges"].erase(4);
  EXPECT_NE(same, FromFile(other)->fingerprint());
  other = file;
  std::swap(other["model"]["vocab"]["th"], other["model"]["vocab"]["the"]);
  EXPECT_NE(same, FromFile(other)->fingerprint());
  other = file;
  other["added_tokens"][0]["lstrip"] = true;
  EXPECT_NE(same, FromFile(other)->fingerprint());
}

absl::Status ErrorOf(const json& file) {
  return Tokenizer::FromJson(file.dump(), "dir/tokenizer.json").status();
}

TEST(TokenizerErrors, SayFilePlaceAndReason) {
  json file = ByteLevelFile();
  file["model"]["merges"][3] = "q z";
  EXPECT_THAT(ErrorOf(file).message(), HasSubstr("dir/tokenizer.json: model.merges[3]: token"));
  file = ByteLevelFile();
  file["decoder"] = nullptr;
  EXPECT_THAT(ErrorOf(file).message(), HasSubstr("decoder: no decoder is not supported"));
  file["decoder"] = json::parse(R"({"type": "Fuse"})");
  EXPECT_THAT(ErrorOf(file).message(), HasSubstr("ByteLevel in only one of"));
  file = WithAdded({{{"id", 5}, {"content", "new"}}});
  EXPECT_THAT(ErrorOf(file).message(), HasSubstr("added_tokens[1]: id 5 of \"new\" belongs to"));
  file = WithAdded({{{"id", 5}, {"content", "the"}}});
  EXPECT_THAT(ErrorOf(file).message(), HasSubstr("\"the\" has id 5, in the vocabulary 257"));
  file = WithAdded({{{"id", 261}, {"content", "<|end|>"}}});
  EXPECT_THAT(ErrorOf(file).message(), HasSubstr("comes twice"));
  file = WithAdded({{{"id", 1 << 30}, {"content", "x"}}});
  EXPECT_THAT(ErrorOf(file).message(), HasSubstr("added_tokens[1]: id 1073741824 is outside"));
  file = WithAdded({{{"id", 300}, {"content", ""}}});
  EXPECT_THAT(ErrorOf(file).message(), HasSubstr("content of 0 bytes"));
  file = ByteLevelFile();
  file["post_processor"] = {{"type", "BertProcessing"}};
  EXPECT_THAT(ErrorOf(file).message(), HasSubstr("post_processor type \"BertProcessing\""));
  EXPECT_THAT(ErrorOf(nullptr).message(), HasSubstr("top level: expected an object"));
  EXPECT_THAT(ErrorOf(json::object()).message(), HasSubstr("model: expected an object"));
}

TEST(TokenizerErrors, Templates) {
  const auto error_of = [](const char* single, const char* special) {
    json file = SentencePieceFile();
    file["post_processor"]["single"] = json::parse(single);
    file["post_processor"]["special_tokens"] = json::parse(special);
    return std::string(ErrorOf(file).message());
  };
  const char* known = R"({"<s>": {"ids": [1]}})";
  EXPECT_THAT(error_of(R"([{"SpecialToken": {"id": "<x>"}}, {"Sequence": {"id": "A"}}])", known),
              HasSubstr("\"<x>\" is not in special_tokens"));
  EXPECT_THAT(error_of(R"([{"SpecialToken": {"id": "<s>"}}])", known), HasSubstr("no Sequence A"));
  EXPECT_THAT(error_of(R"([{"Sequence": {"id": "B"}}])", known),
              HasSubstr("a template but of one"));
  EXPECT_THAT(error_of(R"([{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}])",
                       R"({"<s>": {"ids": [99999]}})"),
              HasSubstr("id 99999 is outside the vocabulary"));
}

// Small files that would make much of little.
TEST(TokenizerErrors, GrowthIsBounded) {
  json file = SentencePieceFile();
  file["decoder"]["decoders"] = json::array();
  const json grow = json::parse(
      R"({"type": "Replace", "pattern": {"String": "a"}, "content": "aaaaaaaaaaaaaaaa"})");
  for (int i = 0; i < 32; ++i) file["decoder"]["decoders"].push_back(grow);
  EXPECT_THAT(ErrorOf(file).message(), HasSubstr("stands for more than 65536 bytes"));
  file = SentencePieceFile();
  json around = file["post_processor"];
  for (int i = 0; i < 600; ++i) {
    around["single"].push_back({{"SpecialToken", {{"id", "<s>"}}}});
  }
  file["post_processor"] = {{"type", "Sequence"}, {"processors", {around, around}}};
  EXPECT_THAT(ErrorOf(file).message(), HasSubstr("more than 1024 tokens around a text"));
  file = ByteLevelFile();
  for (int i = 0; i < 300; ++i) {
    std::string content = std::to_string(i);
    content.resize(4096, 'x');
    file["added_tokens"].push_back({{"id", 300 + i}, {"content", content}});
  }
  EXPECT_THAT(ErrorOf(file).message(), HasSubstr("added tokens of more than 1048576 bytes"));
}

TEST(TokenizerErrors, FilesThatCannotBeRead) {
  EXPECT_EQ(Tokenizer::Load("/nonexistent").status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Tokenizer::Load("/nonexistent").status().message(),
              HasSubstr("/nonexistent: cannot"));
  const std::string folder = ::testing::TempDir() + "/tokenizer_test_folder";
  std::filesystem::create_directories(folder + "/tokenizer.json");
  EXPECT_FALSE(Tokenizer::Load(folder).ok());
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  EXPECT_THAT(Tokenizer::Load(folder).status().message(), HasSubstr(folder + "/tokenizer.json"));
  std::ofstream(folder + "/tokenizer.json") << "{\"model\": ";
  EXPECT_EQ(Tokenizer::Load(folder).status().code(), absl::StatusCode::kInvalidArgument);
  std::ofstream(folder + "/tokenizer.json") << ByteLevelFile().dump();
  EXPECT_TRUE(Tokenizer::Load(folder).ok());
  std::filesystem::remove_all(folder);
}

// Cut short, or with bytes changed: an error or a tokenizer that works, never a crash.
TEST(TokenizerErrors, DamagedFiles) {
  const uint64_t seed = testing::TestSeed();
  SCOPED_TRACE("PACELINE_TEST_SEED=" + std::to_string(seed));
  std::mt19937_64 rng(seed);
  for (const std::string& good : {ByteLevelFile().dump(), SentencePieceFile().dump()}) {
    for (int round = 0; round < testing::TestRounds(300); ++round) {
      std::string bad = good;
      if (round % 3 == 0) {
        bad.resize(rng() % bad.size());
      } else {
        for (size_t n = 1 + rng() % 4; n > 0; --n) {
          const size_t pos = rng() % bad.size();
          if (rng() % 2 == 0) {
            bad[pos] = static_cast<char>(rng());
          } else {
            bad[pos] = "{}[]\",:0123456789-etnfu"[rng() % 23];
          }
        }
      }
      const auto tokenizer = Tokenizer::FromJson(bad);
      if (!tokenizer.ok()) continue;
      const auto tokens = (*tokenizer)->Encode("the ab é\xff <|end|></s>");
      if (tokens.ok()) (*tokenizer)->Decode(*tokens);
    }
  }
}

TEST(Tokenizer, OneForManyThreads) {
  const auto tokenizer = FromFile(ByteLevelFile());
  ASSERT_NE(tokenizer, nullptr);
  const std::string text = "the theme of a thesis <|end|> é";
  const std::vector<TokenId> expected = Encode(*tokenizer, text);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 200; ++i) {
        EXPECT_EQ(Encode(*tokenizer, text), expected);
        EXPECT_EQ(tokenizer->Decode(expected), text);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace paceline
