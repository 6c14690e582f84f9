#include "tools/standin/byte_pairs.h"

#include <algorithm>
#include <cctype>
#include <map>

#include "nlohmann/json.hpp"

namespace paceline {
namespace {

constexpr int32_t kFirstMerge = 257;

enum class Kind { kSpace, kLetter, kDigit, kOther };

Kind KindOf(char c) {
  const auto byte = static_cast<unsigned char>(c);
  if (std::isspace(byte) != 0) return Kind::kSpace;
  if (byte >= 0x80 || std::isalpha(byte) != 0) return Kind::kLetter;
  return std::isdigit(byte) != 0 ? Kind::kDigit : Kind::kOther;
}

size_t RunOf(std::string_view text, size_t from, Kind kind) {
  size_t end = from;
  while (end < text.size() && KindOf(text[end]) == kind) ++end;
  return end - from;
}

size_t ContractionAt(std::string_view text) {
  for (std::string_view c : {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"}) {
    if (text.starts_with(c)) return c.size();
  }
  return 0;
}

// Length of the first word: a contraction; an optional space and a run of one kind; or white space,
// less its last character where a word follows.
size_t WordAt(std::string_view text) {
  if (const size_t n = ContractionAt(text); n > 0) return n;
  const size_t space = text[0] == ' ' ? 1 : 0;
  if (space < text.size() && KindOf(text[space]) != Kind::kSpace) {
    return space + RunOf(text, space, KindOf(text[space]));
  }
  const size_t run = RunOf(text, 0, Kind::kSpace);
  return run > 1 && run < text.size() ? run - 1 : run;
}

struct Word {
  std::vector<TokenId> tokens;
  int64_t count = 0;
};

using Words = std::map<std::string, Word, std::less<>>;

void Merge(std::pair<TokenId, TokenId> pair, TokenId merged, Words* words) {
  for (auto& [text, word] : *words) {
    std::vector<TokenId>& t = word.tokens;
    size_t kept = 0;
    for (size_t i = 0; i < t.size(); ++i) {
      const bool joins = i + 1 < t.size() && t[i] == pair.first && t[i + 1] == pair.second;
      t[kept++] = joins ? merged : t[i];
      if (joins) ++i;
    }
    t.resize(kept);
  }
}

std::pair<std::pair<TokenId, TokenId>, int64_t> BestPair(const Words& words) {
  std::map<std::pair<TokenId, TokenId>, int64_t> counts;
  for (const auto& [text, word] : words) {
    for (size_t i = 0; i + 1 < word.tokens.size(); ++i) {
      counts[{word.tokens[i], word.tokens[i + 1]}] += word.count;
    }
  }
  std::pair<std::pair<TokenId, TokenId>, int64_t> best{{0, 0}, 0};
  for (const auto& entry : counts) {
    if (entry.second > best.second) best = {entry.first, entry.second};
  }
  return best;
}

// The printable stand-in of a byte in GPT-2's alphabet, as UTF-8.
std::vector<std::string> ByteAlphabet() {
  std::vector<std::string> names;
  int next = 256;
  for (int byte = 0; byte < 256; ++byte) {
    const bool printable =
        (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
    const int code = printable ? byte : next++;
    std::string name;
    if (code < 0x80) {
      name += static_cast<char>(code);
    } else {
      name += static_cast<char>(0xc0 | (code >> 6));
      name += static_cast<char>(0x80 | (code & 0x3f));
    }
    names.push_back(name);
  }
  return names;
}

}  // namespace

BytePairs TrainBytePairs(std::string_view text, int32_t vocab_size) {
  Words words;
  std::vector<std::string_view> order;
  for (size_t i = 0; i < text.size();) {
    order.push_back(text.substr(i, WordAt(text.substr(i))));
    i += order.back().size();
    auto it = words.find(order.back());
    if (it == words.end()) {
      it = words.emplace(order.back(), Word{}).first;
      for (unsigned char byte : order.back()) it->second.tokens.push_back(1 + byte);
    }
    ++it->second.count;
  }
  BytePairs pairs;
  pairs.bytes.emplace_back();
  for (int byte = 0; byte < 256; ++byte) pairs.bytes.emplace_back(1, static_cast<char>(byte));
  while (pairs.vocab_size() < vocab_size) {
    const auto [pair, count] = BestPair(words);
    if (count < 2) break;
    Merge(pair, pairs.vocab_size(), &words);
    pairs.merges.push_back(pair);
    pairs.bytes.push_back(pairs.bytes[pair.first] + pairs.bytes[pair.second]);
  }
  for (std::string_view word : order) {
    const std::vector<TokenId>& tokens = words.find(word)->second.tokens;
    pairs.text.insert(pairs.text.end(), tokens.begin(), tokens.end());
  }
  return pairs;
}

std::string TokenizerJson(const BytePairs& pairs) {
  const std::vector<std::string> alphabet = ByteAlphabet();
  const auto name = [&](TokenId token) {
    std::string text;
    for (unsigned char byte : pairs.bytes[token]) text += alphabet[byte];
    return text;
  };
  nlohmann::ordered_json vocab;
  vocab["<|endoftext|>"] = BytePairs::kEndOfText;
  for (TokenId t = 1; t < pairs.vocab_size(); ++t) vocab[name(t)] = t;
  nlohmann::ordered_json merges = nlohmann::ordered_json::array();
  for (const auto& [left, right] : pairs.merges) merges.push_back(name(left) + " " + name(right));
  nlohmann::ordered_json json;
  json["version"] = "1.0";
  json["truncation"] = nullptr;
  json["padding"] = nullptr;
  json["added_tokens"] = {{{"id", BytePairs::kEndOfText},
                           {"content", "<|endoftext|>"},
                           {"single_word", false},
                           {"lstrip", false},
                           {"rstrip", false},
                           {"normalized", false},
                           {"special", true}}};
  json["normalizer"] = nullptr;
  json["pre_tokenizer"] = {{"type", "ByteLevel"},
                           {"add_prefix_space", false},
                           {"trim_offsets", true},
                           {"use_regex", true}};
  json["post_processor"] = nullptr;
  json["decoder"] = {{"type", "ByteLevel"},
                     {"add_prefix_space", true},
                     {"trim_offsets", true},
                     {"use_regex", true}};
  json["model"] = {{"type", "BPE"},
                   {"dropout", nullptr},
                   {"unk_token", nullptr},
                   {"continuing_subword_prefix", nullptr},
                   {"end_of_word_suffix", nullptr},
                   {"fuse_unk", false},
                   {"byte_fallback", false},
                   {"vocab", vocab},
                   {"merges", merges}};
  return json.dump(1) + "\n";
}

}  // namespace paceline
