#include "tools/standin/byte_tokenizer.h"

#include "nlohmann/json.hpp"

namespace paceline {
namespace {

// The printable stand-ins of GPT-2's byte alphabet, as UTF-8.
std::string ByteName(int byte, int* next) {
  const bool printable =
      (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
  const int code = printable ? byte : 256 + (*next)++;
  std::string name;
  if (code < 0x80) {
    name += static_cast<char>(code);
  } else {
    name += static_cast<char>(0xc0 | (code >> 6));
    name += static_cast<char>(0x80 | (code & 0x3f));
  }
  return name;
}

}  // namespace

std::string ByteTokenizerJson() {
  nlohmann::ordered_json vocab;
  vocab["<|endoftext|>"] = 0;
  for (int byte = 0, next = 0; byte < 256; ++byte) vocab[ByteName(byte, &next)] = 1 + byte;
  nlohmann::ordered_json json;
  json["version"] = "1.0";
  json["added_tokens"] = {{{"id", 0},
                           {"content", "<|endoftext|>"},
                           {"single_word", false},
                           {"lstrip", false},
                           {"rstrip", false},
                           {"normalized", false},
                           {"special", true}}};
  json["normalizer"] = nullptr;
  json["pre_tokenizer"] = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}};
  json["post_processor"] = nullptr;
  json["decoder"] = {{"type", "ByteLevel"}};
  json["model"] = {{"type", "BPE"}, {"vocab", vocab}, {"merges", nlohmann::json::array()}};
  return json.dump(1) + "\n";
}

std::vector<TokenId> EncodeBytes(std::string_view text) {
  std::vector<TokenId> tokens;
  for (unsigned char byte : text) tokens.push_back(1 + byte);
  return tokens;
}

}  // namespace paceline
