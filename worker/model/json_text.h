// Parsing JSON that a stranger wrote: depth, size and repeated keys are bounded before anything is
// built from it.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "nlohmann/json_fwd.hpp"

namespace paceline {

inline constexpr int kMaxJsonDepth = 64;

// INVALID_ARGUMENT naming `source`: not JSON, not an object, nested deeper than kMaxJsonDepth, or a
// key twice in one object.
absl::StatusOr<nlohmann::json> ParseJsonObject(std::string_view text, const std::string& source);

// The whole file. NOT_FOUND, or INVALID_ARGUMENT when it is larger than max_bytes.
absl::StatusOr<std::string> ReadTextFile(const std::string& path, size_t max_bytes);

}  // namespace paceline
