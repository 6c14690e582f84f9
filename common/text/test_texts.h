// What the tests of this folder share: the folder of shared data, small tokenizer files, random
// text.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>

#include "common/text/byte_alphabet.h"
#include "common/text/utf8.h"
#include "nlohmann/json.hpp"

namespace paceline::testing {

inline std::string SharedData() {
  const char* folder = std::getenv("PACELINE_SHARED_DATA");
  return folder != nullptr ? folder : "../shared/data";
}

#define SKIP_WITHOUT_SHARED_DATA()                                 \
  if (!std::filesystem::exists(::paceline::testing::SharedData())) \
  GTEST_SKIP() << "skipped: ../shared/data not found"

inline std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

inline uint64_t TestSeed() {
  const char* seed = std::getenv("PACELINE_TEST_SEED");
  return seed != nullptr ? std::strtoull(seed, nullptr, 10) : std::random_device()();
}

// Times a loop runs: `usual`, or more for deep runs (PACELINE_TEST_SCALE).
inline int TestRounds(int usual) {
  const char* scale = std::getenv("PACELINE_TEST_SCALE");
  return scale != nullptr ? usual * std::max(1, std::atoi(scale)) : usual;
}

// A byte-level file: token b is byte b, then "th", "the", " a", " th", " the"; <|end|> is 261.
inline nlohmann::json ByteLevelFile() {
  nlohmann::json vocab;
  for (int b = 0; b < 256; ++b) vocab[ToByteAlphabet(std::string(1, static_cast<char>(b)))] = b;
  const std::string space = ToByteAlphabet(" ");
  vocab["th"] = 256;
  vocab["the"] = 257;
  vocab[space + "a"] = 258;
  vocab[space + "th"] = 259;
  vocab[space + "the"] = 260;
  return {{"version", "1.0"},
          {"added_tokens",
           {{{"id", 261},
             {"content", "<|end|>"},
             {"special", true},
             {"normalized", false},
             {"single_word", false},
             {"lstrip", false},
             {"rstrip", false}}}},
          {"normalizer", nullptr},
          {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}}},
          {"post_processor", nullptr},
          {"decoder", {{"type", "ByteLevel"}}},
          {"model",
           {{"type", "BPE"},
            {"vocab", vocab},
            {"merges", {"t h", "th e", space + " a", space + " th", space + "th e"}}}}};
}

// A file as SentencePiece models have: <unk> <s> </s>, 256 bytes from 3 on, then characters and
// merges.
inline nlohmann::json SentencePieceFile() {
  nlohmann::json vocab = {{"<unk>", 0}, {"<s>", 1}, {"</s>", 2}};
  const char* digits = "0123456789ABCDEF";
  for (int b = 0; b < 256; ++b) {
    vocab[std::string("<0x") + digits[b / 16] + digits[b % 16] + ">"] = 3 + b;
  }
  int next = 259;
  for (const char* token :
       {"▁", "a", "b", "c", "h", "t", "e", "é", "▁t", "he", "▁the", "ab", "▁▁"}) {
    vocab[token] = next++;
  }
  const nlohmann::json added = nlohmann::json::parse(R"([
    {"id": 0, "content": "<unk>", "special": true, "normalized": false},
    {"id": 1, "content": "<s>", "special": true, "normalized": false},
    {"id": 2, "content": "</s>", "special": true, "normalized": false}])");
  return {{"added_tokens", added},
          {"normalizer", nlohmann::json::parse(R"({"type": "Sequence", "normalizers": [
              {"type": "Prepend", "prepend": "▁"},
              {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]})")},
          {"pre_tokenizer", nullptr},
          {"post_processor", nlohmann::json::parse(R"({"type": "TemplateProcessing",
              "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                         {"Sequence": {"id": "A", "type_id": 0}}],
              "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}})")},
          {"decoder", nlohmann::json::parse(R"({"type": "Sequence", "decoders": [
              {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
              {"type": "ByteFallback"}, {"type": "Fuse"},
              {"type": "Strip", "content": " ", "start": 1, "stop": 0}]})")},
          {"model",
           {{"type", "BPE"},
            {"unk_token", "<unk>"},
            {"fuse_unk", true},
            {"byte_fallback", true},
            {"vocab", vocab},
            {"merges", {"▁ t", "h e", "▁t he", "a b", "▁ ▁"}}}}};
}

inline std::string RandomBytes(std::mt19937_64& rng, size_t size) {
  std::string bytes;
  while (bytes.size() < size) bytes.push_back(static_cast<char>(rng()));
  return bytes;
}

// Characters of one to four bytes, with much white space and many of the few letters that merge.
inline std::string RandomText(std::mt19937_64& rng, size_t characters) {
  constexpr char32_t kCommon[] = {' ', ' ', ' ', 't', 'h', 'e', 'a', 'b', '\n', '\'', '1', U'é'};
  std::string text;
  for (size_t i = 0; i < characters; ++i) {
    char32_t c = kCommon[rng() % std::size(kCommon)];
    if (rng() % 4 == 0) c = static_cast<char32_t>(1 + rng() % (rng() % 2 == 0 ? 0x2fff : 0x10fffe));
    if (c >= 0xd800 && c < 0xe000) c = ' ';
    AppendUtf8(c, &text);
  }
  return text;
}

}  // namespace paceline::testing
