#include "common/model_name.h"

#include <filesystem>
#include <fstream>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/hash.h"

namespace paceline {

std::string ModelName(const std::string& dir) {
  auto path = std::filesystem::path(dir).lexically_normal();
  if (!path.has_filename()) path = path.parent_path();
  const std::string name = path.filename().string();
  return name.empty() || name == "." || name == ".." ? "model" : name;
}

absl::StatusOr<std::string> TokenizerFingerprint(const std::string& dir) {
  const auto path = std::filesystem::path(dir) / "tokenizer.json";
  std::error_code error;
  if (!std::filesystem::exists(path, error)) return std::string();
  std::ifstream file(path, std::ios::binary);
  std::ostringstream bytes;
  bytes << file.rdbuf();
  if (!file) return absl::UnavailableError(absl::StrCat("cannot read ", path.string()));
  return absl::StrFormat("%016x", HashBytes(bytes.str()));
}

}  // namespace paceline
