// JSON that came from outside: parsed with limits, read with types, and every error says where in
// the document it stands ("model.merges[17]: ...").
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "nlohmann/json_fwd.hpp"

namespace paceline {

inline constexpr int kMaxJsonDepth = 64;

// INVALID_ARGUMENT: not JSON, not UTF-8, nested deeper than kMaxJsonDepth, or an object that has a
// key twice. Throws nothing.
absl::StatusOr<nlohmann::json> ParseJson(std::string_view text);

// A value of a document and its place there. Refers to the document, which must outlive it.
class JsonNode {
 public:
  JsonNode(const nlohmann::json* value, std::string path) : value_(value), path_(std::move(path)) {}

  const nlohmann::json& value() const { return *value_; }
  const std::string& path() const { return path_; }
  bool IsNull() const;

  // Of an object; a null node where the key is absent.
  absl::StatusOr<JsonNode> Get(const std::string& key) const;

  absl::StatusOr<std::string> String() const;
  absl::StatusOr<bool> Bool() const;
  absl::StatusOr<int64_t> Int() const;
  absl::StatusOr<std::vector<JsonNode>> Array() const;
  absl::Status ExpectObject() const;

  // Members of an object. With a default: for an absent or null one.
  absl::StatusOr<std::string> String(const std::string& key) const;
  absl::StatusOr<std::string> String(const std::string& key, const std::string& absent) const;
  absl::StatusOr<bool> Bool(const std::string& key, bool absent) const;
  absl::StatusOr<int64_t> Int(const std::string& key) const;
  absl::StatusOr<std::vector<JsonNode>> Array(const std::string& key) const;

  absl::Status Invalid(const std::string& reason) const;    // INVALID_ARGUMENT at this place
  absl::Status Unsupported(const std::string& what) const;  // UNIMPLEMENTED at this place

 private:
  absl::Status WrongType(const char* expected) const;

  const nlohmann::json* value_;
  std::string path_;
};

// At most 60 bytes of `text`, quoted and escaped, for a message.
std::string Quoted(std::string_view text);

}  // namespace paceline
