// The decoder of a tokenizer.json: from tokens back to text.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "common/text/json_node.h"

namespace paceline {

// Supported: ByteLevel, Metaspace, Replace (of a string), ByteFallback, Fuse, Strip, Sequence, as
// far as the text of a token depends on the token and on being the first, so that text can be
// streamed. Immutable; may be used by many threads at once.
class TokenDecoder {
 public:
  // UNIMPLEMENTED names a type or an option that is not supported.
  static absl::StatusOr<TokenDecoder> FromJson(const JsonNode& node);

  bool byte_level() const { return byte_level_; }

  // The bytes that a token stands for; not necessarily whole characters. Of a byte-level vocabulary
  // an added token is text as it is (`added`). More than kMaxTokenBytes are an unfinished result,
  // which the tokenizer refuses when it loads.
  static constexpr size_t kMaxTokenBytes = 64 * 1024;
  std::string BytesOf(std::string_view token, bool first, bool added) const;

  // What is taken away from the beginning of the whole text.
  struct LeadingStrip {
    std::string character;
    int count = 0;  // at most
  };
  const std::vector<LeadingStrip>& leading_strips() const { return leading_strips_; }

 private:
  struct Step {
    enum class Kind { kReplace, kByteFallback, kMetaspace, kStrip };
    Kind kind = Kind::kReplace;
    std::string from;  // of kReplace; the replaced character of kMetaspace, the stripped of kStrip
    std::string to;
    int start = 0;  // of kStrip
    int stop = 0;
    bool drop_first = false;  // of kMetaspace: the first token loses its marks
  };
  absl::Status Add(const JsonNode& node);
  absl::Status AddMetaspace(const JsonNode& node);
  absl::Status AddStrip(const JsonNode& node);
  static std::string ApplyStep(const Step& step, std::string text, bool first);

  std::vector<Step> steps_;
  std::vector<LeadingStrip> leading_strips_;
  bool fused_ = false;
  bool byte_level_ = false;
};

}  // namespace paceline
