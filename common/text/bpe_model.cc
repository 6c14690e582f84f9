#include "common/text/bpe_model.h"

#include <algorithm>
#include <limits>
#include <queue>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/hash.h"
#include "common/status_macros.h"
#include "common/text/byte_alphabet.h"
#include "common/text/utf8.h"
#include "nlohmann/json.hpp"

namespace paceline {
namespace {

// Up to this many symbols a scan for the least rank beats a heap.
constexpr size_t kFewSymbols = 24;

uint64_t PairKey(TokenId left, TokenId right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

uint64_t EndsKey(char32_t last, char32_t first) { return uint64_t{last} << 32 | first; }

std::string ByteToken(int byte) { return absl::StrFormat("<0x%02X>", byte); }

}  // namespace

BpeModel::Ends BpeModel::EndsOf(std::string_view token) {
  Ends ends;
  for (size_t pos = 0; pos < token.size();) {
    const Utf8Unit unit = DecodeUtf8(token, pos);
    if (pos == 0) ends.first = unit.character;
    ends.last = unit.character;
    pos += unit.size;
  }
  return ends;
}

absl::StatusOr<BpeModel> BpeModel::FromJson(const JsonNode& node, bool byte_level) {
  RETURN_IF_ERROR(node.ExpectObject());
  // Files of before 2020 leave the type out.
  ASSIGN_OR_RETURN(const std::string type, node.String("type", "BPE"));
  if (type != "BPE") return node.Unsupported(absl::StrCat("model type ", Quoted(type)));
  BpeModel model;
  model.byte_level_ = byte_level;
  ASSIGN_OR_RETURN(const JsonNode vocab, node.Get("vocab"));
  RETURN_IF_ERROR(model.ReadVocab(vocab));
  ASSIGN_OR_RETURN(const JsonNode merges, node.Get("merges"));
  RETURN_IF_ERROR(model.ReadMerges(merges));
  RETURN_IF_ERROR(model.ReadOptions(node));
  model.FindSymbols();
  model.FindWholeWords();
  return model;
}

absl::Status BpeModel::ReadVocab(const JsonNode& node) {
  RETURN_IF_ERROR(node.ExpectObject());
  if (node.value().empty()) return node.Invalid("no tokens");
  std::vector<bool> taken;
  ids_.reserve(node.value().size());
  for (const auto& [text, id] : node.value().items()) {
    const JsonNode place(&id, absl::StrCat(node.path(), "[", Quoted(text), "]"));
    ASSIGN_OR_RETURN(const int64_t value, place.Int());
    if (value < 0 || value >= kMaxVocab) {
      return place.Invalid(absl::StrCat("id ", value, " is outside [0, ", kMaxVocab, ")"));
    }
    if (text.empty()) return place.Invalid("empty token");
    if (static_cast<size_t>(value) >= vocab_.size()) {
      vocab_.resize(value + 1);
      taken.resize(value + 1);
    }
    if (taken[value]) {
      return place.Invalid(absl::StrCat("id ", value, " belongs to ", Quoted(vocab_[value])));
    }
    taken[value] = true;
    vocab_[value] = text;
    ids_.emplace(text, static_cast<TokenId>(value));
  }
  for (size_t id = 0; id < vocab_.size(); ++id) {
    hash_ = HashCombine(hash_, HashBytes(vocab_[id], id));
    ends_.push_back(EndsOf(vocab_[id]));
  }
  return absl::OkStatus();
}

absl::Status BpeModel::ReadMerges(const JsonNode& node) {
  if (!node.value().is_array()) return node.Array().status();
  merges_.reserve(node.value().size());
  uint32_t rank = 0;
  for (const nlohmann::json& item : node.value()) {
    const JsonNode place(&item, absl::StrCat(node.path(), "[", rank, "]"));
    std::string left;
    std::string right;
    if (item.is_array()) {
      if (item.size() != 2) return place.Invalid("expected two tokens");
      ASSIGN_OR_RETURN(left, JsonNode(&item[0], place.path()).String());
      ASSIGN_OR_RETURN(right, JsonNode(&item[1], place.path()).String());
    } else {
      ASSIGN_OR_RETURN(const std::string pair, place.String());
      const size_t space = pair.find(' ');
      if (space == pair.npos || pair.find(' ', space + 1) != pair.npos) {
        return place.Invalid(absl::StrCat(Quoted(pair), " is not two tokens with a space between"));
      }
      left = pair.substr(0, space);
      right = pair.substr(space + 1);
    }
    RETURN_IF_ERROR(AddMerge(place, left, right, rank));
    ++rank;
  }
  return absl::OkStatus();
}

absl::Status BpeModel::AddMerge(const JsonNode& place, const std::string& left,
                                const std::string& right, uint32_t rank) {
  const std::string joined = left + right;
  for (const std::string* token : {&left, &right, &joined}) {
    if (!ids_.contains(*token)) {
      return place.Invalid(absl::StrCat("token ", Quoted(*token), " is not in the vocabulary"));
    }
  }
  const uint64_t key = PairKey(ids_[left], ids_[right]);
  merges_[key] = {rank, ids_[joined]};  // of equal pairs the last one counts, as in HF tokenizers
  joined_.insert(EndsKey(ends_[ids_[left]].last, ends_[ids_[right]].first));
  hash_ = HashCombine(hash_, key);
  return absl::OkStatus();
}

absl::Status BpeModel::ReadOptions(const JsonNode& node) {
  for (const char* affix : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    ASSIGN_OR_RETURN(const std::string text, node.String(affix, ""));
    if (!text.empty()) return node.Unsupported(absl::StrCat(affix, " ", Quoted(text)));
  }
  ASSIGN_OR_RETURN(const JsonNode dropout, node.Get("dropout"));
  if (!dropout.IsNull() && dropout.value() != 0) return dropout.Unsupported("dropout");
  ASSIGN_OR_RETURN(byte_fallback_, node.Bool("byte_fallback", false));
  ASSIGN_OR_RETURN(fuse_unknown_, node.Bool("fuse_unk", false));
  ASSIGN_OR_RETURN(ignore_merges_, node.Bool("ignore_merges", false));
  ASSIGN_OR_RETURN(const JsonNode unknown, node.Get("unk_token"));
  if (!unknown.IsNull()) {
    ASSIGN_OR_RETURN(const std::string token, unknown.String());
    unknown_ = IdOf(token);
    // Written "" by some converters of GPT-2, for none.
    if (unknown_ < 0 && !token.empty()) {
      return unknown.Invalid(absl::StrCat("token ", Quoted(token), " is not in the vocabulary"));
    }
  }
  return absl::OkStatus();
}

void BpeModel::FindSymbols() {
  for (size_t i = 0; i < vocab_.size(); ++i) {
    const auto id = static_cast<TokenId>(i);
    if (vocab_[i].empty()) continue;
    if (byte_level_) {
      const auto bytes = FromByteAlphabet(vocab_[i]);
      if (!bytes.has_value()) continue;
      if (bytes->size() == 1) bytes_[static_cast<uint8_t>((*bytes)[0])] = id;
    } else if (const Utf8Unit unit = DecodeUtf8(vocab_[i], 0); unit.size == vocab_[i].size()) {
      characters_.emplace(unit.character, id);
    }
  }
  if (byte_level_) return;
  for (int byte = 0; byte < 256; ++byte) bytes_[byte] = IdOf(ByteToken(byte));
}

// Most words of a text are one token: they are looked up rather than merged.
void BpeModel::FindWholeWords() {
  if (!byte_level_) {
    if (ignore_merges_) words_ = ids_;
    return;
  }
  std::vector<TokenId> tokens;
  for (size_t i = 0; i < vocab_.size(); ++i) {
    const auto id = static_cast<TokenId>(i);
    const auto bytes = FromByteAlphabet(vocab_[i]);
    if (!bytes.has_value() || bytes->empty()) continue;
    tokens.clear();
    // No word is looked up while none is known: this is what merges make of it.
    if (ignore_merges_ ||
        (MergeSymbols(*bytes, &tokens).ok() && tokens.size() == 1 && tokens.front() == id)) {
      words_.emplace(*bytes, id);
    }
  }
}

TokenId BpeModel::IdOf(const std::string& token) const {
  const auto it = ids_.find(token);
  return it == ids_.end() ? -1 : it->second;
}

absl::Status BpeModel::BytesToSymbols(std::string_view word, std::vector<TokenId>* symbols) const {
  for (const char c : word) {
    const auto byte = static_cast<uint8_t>(c);
    const TokenId token = bytes_[byte] >= 0 ? bytes_[byte] : unknown_;
    if (token < 0) {
      return absl::InvalidArgumentError(
          absl::StrFormat("the vocabulary has no token for byte 0x%02x", byte));
    }
    const bool fused =
        bytes_[byte] < 0 && fuse_unknown_ && !symbols->empty() && symbols->back() == unknown_;
    if (!fused) symbols->push_back(token);
  }
  return absl::OkStatus();
}

bool BpeModel::FallBackToBytes(std::string_view bytes, std::vector<TokenId>* symbols) const {
  if (!byte_fallback_) return false;
  for (const char c : bytes) {
    if (bytes_[static_cast<uint8_t>(c)] < 0) return false;
  }
  for (const char c : bytes) symbols->push_back(bytes_[static_cast<uint8_t>(c)]);
  return true;
}

absl::Status BpeModel::CharactersToSymbols(std::string_view word,
                                           std::vector<TokenId>* symbols) const {
  bool last_unknown = false;
  for (size_t pos = 0; pos < word.size();) {
    const Utf8Unit unit = DecodeUtf8(word, pos);
    const std::string_view bytes = word.substr(pos, unit.size);
    pos += unit.size;
    const bool after_unknown = std::exchange(last_unknown, false);
    if (const auto it = characters_.find(unit.character); it != characters_.end()) {
      symbols->push_back(it->second);
      continue;
    }
    const int escaped = EscapedByte(unit.character);
    const auto byte = static_cast<char>(escaped);
    if (FallBackToBytes(escaped >= 0 ? std::string_view(&byte, 1) : bytes, symbols)) continue;
    if (unknown_ < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("the vocabulary has no token for ", Quoted(UnescapeBytes(bytes))));
    }
    if (!(after_unknown && fuse_unknown_)) symbols->push_back(unknown_);
    last_unknown = true;
  }
  return absl::OkStatus();
}

const BpeModel::Merge* BpeModel::FindMerge(TokenId left, TokenId right) const {
  const auto it = merges_.find(PairKey(left, right));
  return it == merges_.end() ? nullptr : &it->second;
}

// Whether any merge can ever reach over the place between the two.
bool BpeModel::MayJoin(TokenId left, TokenId right) const {
  return joined_.contains(EndsKey(ends_[left].last, ends_[right].first));
}

size_t BpeModel::MergeFew(std::span<TokenId> s) const {
  constexpr Merge kNone{std::numeric_limits<uint32_t>::max(), -1};
  Merge merge[kFewSymbols];  // of symbols i and i + 1
  size_t n = s.size();
  const auto look_up = [&](size_t i) {
    const Merge* found = i + 1 < n ? FindMerge(s[i], s[i + 1]) : nullptr;
    merge[i] = found == nullptr ? kNone : *found;
  };
  for (size_t i = 0; i < n; ++i) look_up(i);
  while (n > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < n; ++i) {
      if (merge[i].rank < merge[best].rank) best = i;
    }
    if (merge[best].token < 0) break;
    s[best] = merge[best].token;
    std::copy(s.begin() + best + 2, s.begin() + n, s.begin() + best + 1);
    std::copy(merge + best + 2, merge + n, merge + best + 1);
    --n;
    look_up(best);
    if (best > 0) look_up(best - 1);
  }
  return n;
}

size_t BpeModel::MergeMany(std::span<TokenId> s) const {
  struct Candidate {
    uint32_t rank;
    int32_t left;  // place of the left symbol
    TokenId left_token;
    TokenId right_token;
    TokenId merged;
    bool operator<(const Candidate& other) const {  // the greatest is on top of the heap
      return rank != other.rank ? rank > other.rank : left > other.left;
    }
  };
  const auto n = static_cast<int32_t>(s.size());
  std::vector<Symbol> list(n);
  for (int32_t i = 0; i < n; ++i) list[i] = {s[i], i - 1, i + 1 < n ? i + 1 : -1};
  std::priority_queue<Candidate> queue;
  const auto consider = [&](int32_t left) {
    if (left < 0 || list[left].next < 0) return;
    const TokenId a = list[left].token;
    const TokenId b = list[list[left].next].token;
    if (const Merge* m = FindMerge(a, b)) queue.push({m->rank, left, a, b, m->token});
  };
  for (int32_t i = 0; i + 1 < n; ++i) consider(i);
  while (!queue.empty()) {
    const Candidate top = queue.top();
    queue.pop();
    Symbol& left = list[top.left];
    // What was merged since: the symbol is gone (its token is -1), or either is another one now.
    if (left.token != top.left_token || left.next < 0) continue;
    Symbol& right = list[left.next];
    if (right.token != top.right_token) continue;
    left.token = top.merged;
    right.token = -1;
    left.next = right.next;
    if (left.next >= 0) list[left.next].previous = top.left;
    consider(top.left);
    consider(left.previous);
  }
  size_t merged = 0;
  for (int32_t i = 0; i >= 0; i = list[i].next) s[merged++] = list[i].token;
  return merged;
}

absl::Status BpeModel::MergeSymbols(std::string_view word, std::vector<TokenId>* tokens) const {
  thread_local std::vector<TokenId> symbols;
  symbols.clear();
  RETURN_IF_ERROR(byte_level_ ? BytesToSymbols(word, &symbols)
                              : CharactersToSymbols(word, &symbols));
  // Long words fall into parts that cannot meet: a whole text in one word, as SentencePiece has it,
  // into its words.
  const size_t n = symbols.size();
  for (size_t begin = 0, end = 0; begin < n; begin = end) {
    end = n <= kFewSymbols ? n : begin + 1;
    while (end < n && MayJoin(symbols[end - 1], symbols[end])) ++end;
    const auto part = std::span(symbols).subspan(begin, end - begin);
    const size_t merged = part.size() <= kFewSymbols ? MergeFew(part) : MergeMany(part);
    tokens->insert(tokens->end(), part.begin(), part.begin() + merged);
  }
  return absl::OkStatus();
}

absl::Status BpeModel::Encode(std::string_view word, std::vector<TokenId>* tokens) const {
  const auto it = words_.find(absl::string_view(word.data(), word.size()));
  if (it == words_.end()) return MergeSymbols(word, tokens);
  tokens->push_back(it->second);
  return absl::OkStatus();
}

}  // namespace paceline
