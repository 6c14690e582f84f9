// Trains a byte-level BPE vocabulary (GPT-2's words) and writes it as a tokenizer.json. For the
// stand-in models and for tests; nothing that serves needs it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "common/types/sampling_params.h"

namespace paceline {

// Joins the most frequent pair, ties to the lowest ids, until the vocabulary is full or no pair
// comes twice. The same text gives the same vocabulary, everywhere.
class BpeTrainer {
 public:
  // Token 0 ends a text, token 1 + b is byte b, the rest are merges in order.
  static constexpr TokenId kEndOfText = 0;
  static constexpr char kEndOfTextName[] = "<|endoftext|>";
  static constexpr int32_t kSmallestVocab = 257;

  // `vocab_size` in [kSmallestVocab, kMaxVocab); INVALID_ARGUMENT otherwise.
  static absl::StatusOr<BpeTrainer> Train(std::string_view text, int32_t vocab_size);

  int32_t vocab_size() const { return static_cast<int32_t>(tokens_.size()); }
  const std::vector<std::pair<TokenId, TokenId>>& merges() const { return merges_; }
  std::string ToJson() const;

 private:
  std::vector<std::string> tokens_;  // bytes, by id
  std::vector<std::pair<TokenId, TokenId>> merges_;
};

}  // namespace paceline
