#include "cli/bench/prompt_source.h"

#include <fstream>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/hash.h"
#include "common/status_macros.h"
#include "common/text/utf8.h"

namespace paceline {
namespace {

// The text of one line's object.
absl::StatusOr<std::string> PromptOf(const std::string& line) {
  const nlohmann::json object = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) return absl::InvalidArgumentError("not a JSON object");
  if (const auto turns = object.find("turns"); turns != object.end()) {
    if (!turns->is_array() || turns->empty() || !turns->front().is_string()) {
      return absl::InvalidArgumentError("\"turns\" must be an array that begins with a string");
    }
    return turns->front().get<std::string>();
  }
  for (const char* field : {"prompt", "question"}) {
    const auto value = object.find(field);
    if (value == object.end()) continue;
    // Some sets keep the turns' array under "prompt".
    if (value->is_array() && !value->empty() && value->front().is_string()) {
      return value->front().get<std::string>();
    }
    if (!value->is_string()) {
      return absl::InvalidArgumentError(absl::StrCat("\"", field, "\" must be a string"));
    }
    return value->get<std::string>();
  }
  return absl::InvalidArgumentError(
      "none of the fields \"turns\", \"prompt\" and \"question\" is there");
}

absl::StatusOr<std::string> ParseLine(bool json, const std::string& line) {
  if (!IsUtf8(line)) return absl::InvalidArgumentError("not UTF-8");
  if (!json) return line;
  ASSIGN_OR_RETURN(std::string text, PromptOf(line));
  if (text.empty()) return absl::InvalidArgumentError("the prompt is empty");
  return text;
}

}  // namespace

absl::StatusOr<std::vector<std::string>> ReadPromptFile(const std::string& path) {
  std::ifstream file(path);
  if (!file) return absl::NotFoundError(absl::StrCat(path, ": cannot be read"));
  const bool json = absl::EndsWith(path, ".jsonl") || absl::EndsWith(path, ".json");
  std::vector<std::string> prompts;
  std::string line;
  for (int64_t number = 1; std::getline(file, line); ++number) {
    if (absl::EndsWith(line, "\r")) line.pop_back();
    if (line.find_first_not_of(" \t") == std::string::npos) continue;
    absl::StatusOr<std::string> text = ParseLine(json, line);
    if (!text.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ":", number, ": ", text.status().message()));
    }
    prompts.push_back(*std::move(text));
  }
  if (prompts.empty()) return absl::InvalidArgumentError(absl::StrCat(path, ": holds no prompt"));
  return prompts;
}

std::vector<int32_t> SyntheticPrompt(int32_t tokens, int32_t vocabulary, uint64_t seed,
                                     int64_t index) {
  const uint64_t stream = HashCombine(seed, static_cast<uint64_t>(index));
  std::vector<int32_t> ids;
  ids.reserve(static_cast<size_t>(tokens));
  for (int32_t i = 0; i < tokens; ++i) {
    const uint64_t draw = HashCombine(stream, static_cast<uint64_t>(i));
    ids.push_back(static_cast<int32_t>(draw % static_cast<uint64_t>(vocabulary)));
  }
  return ids;
}

void Shuffle(uint64_t seed, std::vector<std::string>* prompts) {
  for (size_t i = prompts->size(); i > 1; --i) {
    std::swap((*prompts)[i - 1], (*prompts)[HashCombine(seed, i) % i]);
  }
}

}  // namespace paceline
