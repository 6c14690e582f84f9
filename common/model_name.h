// What a model directory is called, and which tokenizer it has.
#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace paceline {

// The last part of the path: "/models/llama-8b/" -> "llama-8b".
std::string ModelName(const std::string& dir);

// Of the directory's tokenizer; empty when it has none (a worker needs ids only).
absl::StatusOr<std::string> TokenizerFingerprint(const std::string& dir);

}  // namespace paceline
