// Prompt lookup: drafts the tokens that followed the newest earlier occurrence of the sequence's
// own last n tokens, the longest n first. Incremental: O(max_n) hash inserts per token, O(max_n)
// look-ups per draft. One per sequence; not thread-safe.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "common/types/sampling_params.h"

namespace paceline {

class NgramDrafter {
 public:
  static constexpr int kMinN = 2;
  static constexpr int kMaxN = 4;

  explicit NgramDrafter(int32_t min_n = kMinN, int32_t max_n = kMaxN);

  // Behind the tokens given before.
  void Append(std::span<const TokenId> tokens);
  std::span<const TokenId> tokens() const { return tokens_; }

  // At most `count` tokens to follow the sequence and, behind it, `draft` (not part of the index).
  // Where the match runs into the end it goes on into what it drafts, so that a period is
  // continued.
  std::vector<TokenId> Draft(int32_t count, std::span<const TokenId> draft = {}) const;

  // First tokens that followed the last n tokens anywhere before, newest first, each once; longest
  // n first. At most `count`.
  std::vector<TokenId> Alternatives(int32_t count) const;

 private:
  uint64_t Key(int32_t n, std::span<const TokenId> last) const;
  int32_t Find(std::span<const TokenId> tail) const;
  bool Matches(int32_t end, std::span<const TokenId> last) const;

  int32_t min_n_;
  int32_t max_n_;
  std::vector<TokenId> tokens_;
  // Of an n-gram's newest occurrence that has a successor: the successor's index.
  absl::flat_hash_map<uint64_t, int32_t> followers_;
  // [index of a successor] the one before it for the same min_n-gram, or kNone: for alternatives.
  std::vector<int32_t> earlier_;
};

}  // namespace paceline
