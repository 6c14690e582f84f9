#include "common/text/added_tokens.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "common/text/bpe_model.h"
#include "common/text/character_class.h"
#include "common/text/utf8.h"

namespace paceline {
namespace {

constexpr size_t kMaxContent = 4096;  // bytes

uint64_t Edge(uint64_t node, char byte) { return node << 8 | static_cast<uint8_t>(byte); }

// Begin of the last character of `text`.
size_t LastCharacter(std::string_view text) {
  size_t pos = text.size() - 1;
  while (pos > 0 && (static_cast<uint8_t>(text[pos]) & 0xc0) == 0x80) --pos;
  return pos;
}

bool IsSingleWord(std::string_view before, std::string_view behind) {
  const bool joined_before =
      !before.empty() && IsWordCharacter(DecodeUtf8(before, LastCharacter(before)).character);
  const bool joined_behind = !behind.empty() && IsWordCharacter(DecodeUtf8(behind, 0).character);
  return !joined_before && !joined_behind;
}

size_t SpaceAtEnd(std::string_view text) {
  size_t end = text.size();
  while (end > 0) {
    const size_t pos = LastCharacter(text.substr(0, end));
    if (!IsWhiteSpace(DecodeUtf8(text, pos).character)) break;
    end = pos;
  }
  return text.size() - end;
}

size_t SpaceAtStart(std::string_view text) {
  size_t pos = 0;
  while (pos < text.size()) {
    const Utf8Unit unit = DecodeUtf8(text, pos);
    if (!IsWhiteSpace(unit.character)) break;
    pos += unit.size;
  }
  return pos;
}

}  // namespace

absl::StatusOr<AddedToken> AddedToken::FromJson(const JsonNode& node) {
  AddedToken token;
  ASSIGN_OR_RETURN(const int64_t id, node.Int("id"));
  if (id < 0 || id >= kMaxVocab) {
    return node.Invalid(absl::StrCat("id ", id, " is outside [0, ", kMaxVocab, ")"));
  }
  token.id = static_cast<TokenId>(id);
  ASSIGN_OR_RETURN(token.content, node.String("content"));
  if (token.content.empty() || token.content.size() > kMaxContent) {
    return node.Invalid(
        absl::StrCat("content of ", token.content.size(), " bytes, expected 1 to ", kMaxContent));
  }
  ASSIGN_OR_RETURN(token.special, node.Bool("special", false));
  ASSIGN_OR_RETURN(token.normalized, node.Bool("normalized", !token.special));
  ASSIGN_OR_RETURN(token.single_word, node.Bool("single_word", false));
  ASSIGN_OR_RETURN(token.lstrip, node.Bool("lstrip", false));
  ASSIGN_OR_RETURN(token.rstrip, node.Bool("rstrip", false));
  return token;
}

void AddedTokenFinder::Add(std::string_view pattern, const AddedToken& token) {
  if (pattern.empty()) return;  // a normal form may be
  uint32_t node = 0;
  for (const char byte : pattern) {
    const auto next = static_cast<uint32_t>(token_of_node_.size());
    const auto [it, added] = edges_.try_emplace(Edge(node, byte), next);
    if (added) token_of_node_.push_back(-1);
    node = it->second;
  }
  begins_[static_cast<uint8_t>(pattern[0])] = true;
  token_of_node_[node] = static_cast<int>(tokens_.size());
  tokens_.push_back(token);
}

AddedTokenFinder::Match AddedTokenFinder::LongestAt(std::string_view text, size_t pos,
                                                    bool parse_special) const {
  Match best;
  uint32_t node = 0;
  for (size_t i = pos; i < text.size(); ++i) {
    const auto it = edges_.find(Edge(node, text[i]));
    if (it == edges_.end()) break;
    node = it->second;
    const int token = token_of_node_[node];
    if (token >= 0 && (parse_special || !tokens_[token].special)) best = {i + 1 - pos, token};
  }
  return best;
}

absl::Status AddedTokenFinder::Split(std::string_view text, bool parse_special,
                                     PieceFunction piece) const {
  size_t done = 0;  // text before it is cut already
  for (size_t pos = 0; pos < text.size() && !tokens_.empty();) {
    Match match;
    if (begins_[static_cast<uint8_t>(text[pos])]) match = LongestAt(text, pos, parse_special);
    if (match.token < 0) {
      ++pos;
      continue;
    }
    const AddedToken& token = tokens_[match.token];
    size_t begin = pos;
    size_t end = pos + match.size;
    pos = end;
    if (token.single_word && !IsSingleWord(text.substr(0, begin), text.substr(end))) continue;
    if (token.lstrip) begin -= std::min(SpaceAtEnd(text.substr(0, begin)), begin - done);
    if (token.rstrip) end += SpaceAtStart(text.substr(end));
    if (done < begin) RETURN_IF_ERROR(piece(text.substr(done, begin - done), -1));
    RETURN_IF_ERROR(piece(text.substr(begin, end - begin), token.id));
    pos = done = end;
  }
  if (done < text.size()) RETURN_IF_ERROR(piece(text.substr(done), -1));
  return absl::OkStatus();
}

}  // namespace paceline
