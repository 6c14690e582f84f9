// Byte-level byte-pair encoding of a text (Sennrich et al., arXiv 1508.07909; bytes and word
// pattern as in GPT-2), and its tokenizer.json.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common/types/sampling_params.h"

namespace paceline {

struct BytePairs {
  // Token 0 ends a text, token 1 + b is byte b, token 257 + i joins merges[i].
  static constexpr TokenId kEndOfText = 0;
  std::vector<std::pair<TokenId, TokenId>> merges;  // by falling priority
  std::vector<std::string> bytes;                   // of each token
  std::vector<TokenId> text;                        // the training text, encoded

  int32_t vocab_size() const { return static_cast<int32_t>(bytes.size()); }
};

// Merges the most frequent pair, ties to the lowest ids, until the vocabulary is full or no pair
// comes twice.
BytePairs TrainBytePairs(std::string_view text, int32_t vocab_size);

std::string TokenizerJson(const BytePairs& pairs);

}  // namespace paceline
