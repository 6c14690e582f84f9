// Byte-pair encoding of words (Sennrich et al., arXiv 1508.07909): symbols are joined, the pair of
// least merge rank first and the leftmost of equals, until no pair is in the merge table.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/statusor.h"
#include "common/text/json_node.h"
#include "common/types/sampling_params.h"

namespace paceline {

inline constexpr int32_t kMaxVocab = 1 << 22;  // ids; more is taken for damage

// Immutable; may be used by many threads at once.
class BpeModel {
 public:
  // `byte_level`: the vocabulary is written in GPT-2's alphabet, and words are read as bytes; else
  // words are read as characters, unknown ones as bytes where the file says byte_fallback.
  static absl::StatusOr<BpeModel> FromJson(const JsonNode& node, bool byte_level);

  // Appends the tokens of `word`, in which bytes that are not UTF-8 are escaped (EscapeBytes).
  // INVALID_ARGUMENT where the vocabulary lacks a character and has no unknown token.
  absl::Status Encode(std::string_view word, std::vector<TokenId>* tokens) const;

  // As the file writes them, by id; empty where no token has the id.
  const std::vector<std::string>& vocab() const { return vocab_; }
  TokenId IdOf(const std::string& token) const;  // -1: none
  bool byte_level() const { return byte_level_; }

  // Of vocabulary and merges.
  uint64_t hash() const { return hash_; }

 private:
  struct Merge {
    uint32_t rank = 0;
    TokenId token = 0;
  };
  // First and last character of a token as the file writes it. A joined token has those of its
  // ends, so that no merge ever reaches over a place between two characters that no merge has
  // there.
  struct Ends {
    char32_t first = 0;
    char32_t last = 0;
  };
  struct Symbol {
    TokenId token = 0;
    int32_t previous = 0;
    int32_t next = 0;  // -1: none
  };
  static Ends EndsOf(std::string_view token);
  absl::Status ReadVocab(const JsonNode& node);
  absl::Status ReadMerges(const JsonNode& node);
  absl::Status AddMerge(const JsonNode& place, const std::string& left, const std::string& right,
                        uint32_t rank);
  absl::Status ReadOptions(const JsonNode& node);
  void FindSymbols();
  void FindWholeWords();

  absl::Status BytesToSymbols(std::string_view word, std::vector<TokenId>* symbols) const;
  absl::Status CharactersToSymbols(std::string_view word, std::vector<TokenId>* symbols) const;
  bool FallBackToBytes(std::string_view bytes, std::vector<TokenId>* symbols) const;
  const Merge* FindMerge(TokenId left, TokenId right) const;
  bool MayJoin(TokenId left, TokenId right) const;
  absl::Status MergeSymbols(std::string_view word, std::vector<TokenId>* tokens) const;
  // In place; return how many are left.
  size_t MergeFew(std::span<TokenId> symbols) const;
  size_t MergeMany(std::span<TokenId> symbols) const;

  std::vector<std::string> vocab_;
  absl::flat_hash_map<std::string, TokenId> ids_;
  // By their own bytes: words that are one token in the end. With ignore_merges, all tokens.
  absl::flat_hash_map<std::string, TokenId> words_;
  absl::flat_hash_map<uint64_t, Merge> merges_;  // by (left, right)
  std::vector<Ends> ends_;                       // by id
  absl::flat_hash_set<uint64_t> joined_;         // (last character, first character) of merges
  absl::flat_hash_map<char32_t, TokenId> characters_;
  std::vector<TokenId> bytes_ = std::vector<TokenId>(256, -1);
  bool byte_level_ = false;
  bool byte_fallback_ = false;
  bool fuse_unknown_ = false;
  bool ignore_merges_ = false;
  TokenId unknown_ = -1;
  uint64_t hash_ = 0;
};

}  // namespace paceline
