// The normalizer of a tokenizer.json: what happens to text before it is cut into words.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "common/text/json_node.h"
#include "common/text/pattern.h"

namespace paceline {

// Supported: NFC, NFD, NFKC, NFKD, Prepend, Replace, Strip, Sequence, null. Immutable; may be used
// by many threads at once.
class Normalizer {
 public:
  // UNIMPLEMENTED names a type that is not supported.
  static absl::StatusOr<Normalizer> FromJson(const JsonNode& node);

  bool empty() const { return steps_.empty(); }

  // `text` is UTF-8, and so is the result. RESOURCE_EXHAUSTED: the steps make too much of it.
  absl::StatusOr<std::string> Apply(std::string_view text) const;

 private:
  struct Step {
    enum class Kind { kNfc, kNfd, kNfkc, kNfkd, kPrepend, kReplace, kStrip };
    Kind kind = Kind::kNfc;
    std::string content;  // of kPrepend and kReplace
    std::shared_ptr<const Pattern> pattern;
    bool strip_left = false;
    bool strip_right = false;
  };
  absl::Status Add(const JsonNode& node);
  static absl::StatusOr<std::string> ApplyStep(const Step& step, const std::string& text,
                                               size_t limit);

  std::vector<Step> steps_;
};

// {"String": "..."} or {"Regex": "..."}.
absl::StatusOr<Pattern> PatternFromJson(const JsonNode& node);

}  // namespace paceline
