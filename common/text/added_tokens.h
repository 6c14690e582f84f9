// The added tokens of a tokenizer.json: strings that stand for one token wherever they occur in the
// text, looked for before anything is cut into words.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "common/text/json_node.h"
#include "common/types/sampling_params.h"

namespace paceline {

struct AddedToken {
  TokenId id = 0;
  std::string content;
  bool special = false;      // no text of its own: left out where special tokens are skipped
  bool normalized = false;   // looked for in the normalized text, in its own normal form
  bool single_word = false;  // not within a word
  bool lstrip = false;       // takes the white space before it along
  bool rstrip = false;       // and behind it

  static absl::StatusOr<AddedToken> FromJson(const JsonNode& node);
};

// Finds added tokens in text, the longest at the leftmost place first. Immutable after the last
// Add.
class AddedTokenFinder {
 public:
  // `pattern` is what to look for: the content, or its normal form.
  void Add(std::string_view pattern, const AddedToken& token);
  bool empty() const { return tokens_.empty(); }

  // Cuts `text` (UTF-8) into pieces, in order and none empty: found tokens (with their white
  // space), and what lies between (id -1). `parse_special` false: special tokens are text like any
  // other.
  using PieceFunction = absl::FunctionRef<absl::Status(std::string_view piece, TokenId id)>;
  absl::Status Split(std::string_view text, bool parse_special, PieceFunction piece) const;

 private:
  struct Match {
    size_t size = 0;
    int token = -1;
  };
  Match LongestAt(std::string_view text, size_t pos, bool parse_special) const;

  std::vector<AddedToken> tokens_;
  // A trie: node 0 is the root; an edge is (node, byte).
  absl::flat_hash_map<uint64_t, uint32_t> edges_;
  std::vector<int> token_of_node_ = {-1};
  std::vector<bool> begins_ = std::vector<bool>(256, false);
};

}  // namespace paceline
