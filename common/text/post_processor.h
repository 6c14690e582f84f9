// The post-processor of a tokenizer.json: the special tokens around a text (begin of text, ...).
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/text/json_node.h"
#include "common/types/sampling_params.h"

namespace paceline {

// Supported: TemplateProcessing (of a single text), ByteLevel (nothing to do with ids), Sequence,
// null.
struct PostProcessor {
  std::vector<TokenId> before;
  std::vector<TokenId> behind;

  // UNIMPLEMENTED names a type that is not supported. `vocab_size` bounds the ids.
  static absl::StatusOr<PostProcessor> FromJson(const JsonNode& node, int32_t vocab_size);
};

}  // namespace paceline
