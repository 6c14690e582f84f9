// The pre-tokenizer of a tokenizer.json: cuts text into the words that byte-pair merges stay
// within.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "common/text/json_node.h"
#include "common/text/pattern.h"

namespace paceline {

// GPT-2's words: contractions, runs of letters, of digits, of the rest, each with the space before
// it; white space.
inline constexpr char kGpt2Words[] =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

// Supported: ByteLevel, Split, Metaspace, Digits, Punctuation, Sequence, null. Immutable; may be
// used by many threads at once.
class PreTokenizer {
 public:
  // UNIMPLEMENTED names a type or an option that is not supported.
  static absl::StatusOr<PreTokenizer> FromJson(const JsonNode& node);

  // The words are to be read as bytes (GPT-2) rather than as characters.
  bool byte_level() const { return byte_level_; }

  using WordFunction = absl::FunctionRef<absl::Status(std::string_view word)>;
  // `text` is UTF-8. `at_start`: nothing comes before it in the whole text. Words are in order,
  // none is empty, and each lives for the call only. The first error ends it.
  absl::Status ForEachWord(std::string_view text, bool at_start, WordFunction word) const;

 private:
  enum class Behavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };
  enum class Prepend { kNever, kFirst, kAlways };
  struct Step {
    std::shared_ptr<const Pattern> pattern;  // null: the text stays whole
    Behavior behavior = Behavior::kIsolated;
    bool invert = false;
    Prepend prepend = Prepend::kNever;  // `mark`, where the text does not begin with it
    std::string mark;
    bool mark_spaces = false;  // spaces become `mark` (Metaspace)
  };
  struct Piece {
    size_t begin = 0;
    size_t end = 0;
  };
  absl::Status Add(const JsonNode& node);
  absl::Status AddByteLevel(const JsonNode& node);
  absl::Status AddSplit(const JsonNode& node);
  absl::Status AddMetaspace(const JsonNode& node);
  static absl::StatusOr<Behavior> BehaviorFromJson(const JsonNode& node, const std::string& absent);
  static absl::StatusOr<std::vector<Piece>> Cut(const Step& step, std::string_view text);
  absl::Status Run(size_t step, std::string_view text, bool at_start, WordFunction word) const;

  std::vector<Step> steps_;
  bool byte_level_ = false;
};

}  // namespace paceline
