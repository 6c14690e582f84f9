// Prompt lookup: drafts the tokens that followed an earlier occurrence of the sequence's own last
// tokens, the longest match first, the newest first between equals. Incremental: two writes per
// token; a draft looks at a bounded number of occurrences. One per sequence; not thread-safe.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "common/types/sampling_params.h"

namespace paceline {

class NgramDrafter {
 public:
  // A match has at least kMinN tokens; longer than kMaxN is not told apart.
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

  // First tokens that followed the last n tokens before, longest n first, newest first, each once.
  // At most `count`.
  std::vector<TokenId> Alternatives(int32_t count) const;

 private:
  size_t Slot(std::span<const TokenId> tokens) const;
  int32_t MatchLen(int32_t follower, std::span<const TokenId> tail) const;
  // Calls use(follower, match length) from the newest occurrence backwards while it answers true.
  template <typename Use>
  void Walk(std::span<const TokenId> tail, Use use) const;
  void Link(int32_t follower);
  void Grow();

  int32_t min_n_;
  int32_t max_n_;
  std::vector<TokenId> tokens_;
  // Chains of the indices of successors, newest first, by the hash of the min_n tokens before them.
  std::vector<int32_t> newest_;   // [power of two]
  std::vector<int32_t> earlier_;  // [tokens]
};

}  // namespace paceline
