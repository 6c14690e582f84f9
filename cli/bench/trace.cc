#include "cli/bench/trace.h"

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/time/time.h"
#include "common/status_macros.h"

namespace paceline {
namespace {

constexpr char kHeader[] = "TIMESTAMP,ContextTokens,GeneratedTokens";

// `arrival` counts from where the trace's own clock begins.
absl::StatusOr<TraceRow> ParseCsvRow(const std::string& line) {
  const std::vector<std::string> cells = absl::StrSplit(line, ',');
  if (cells.size() != 3) {
    return absl::InvalidArgumentError(absl::StrCat(cells.size(), " columns; there must be 3"));
  }
  absl::Time time;
  std::string error;
  if (!absl::ParseTime("%Y-%m-%d %H:%M:%E*S", cells[0], &time, &error)) {
    return absl::InvalidArgumentError(
        absl::StrCat("timestamp '", cells[0], "' is not as 2023-11-16 18:15:46.68"));
  }
  if (time < absl::UnixEpoch() || time > absl::UnixEpoch() + absl::Hours(24 * 365 * 200)) {
    return absl::InvalidArgumentError(
        absl::StrCat("timestamp '", cells[0], "' is not of the years 1970 to 2169"));
  }
  TraceRow row{.arrival = absl::ToChronoNanoseconds(time - absl::UnixEpoch())};
  if (!absl::SimpleAtoi(cells[1], &row.prompt_tokens) || row.prompt_tokens < 0 ||
      !absl::SimpleAtoi(cells[2], &row.output_tokens) || row.output_tokens < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("token counts '", cells[1], "' and '", cells[2], "' must be integers >= 0"));
  }
  return row;
}

absl::StatusOr<int64_t> Count(const nlohmann::json& object, const char* field, int64_t limit) {
  const auto it = object.find(field);
  if (it != object.end() && it->is_number_unsigned() && it->get<uint64_t>() <= uint64_t(limit)) {
    return it->get<int64_t>();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("\"", field, "\" must be an integer in [0, ", limit, "]"));
}

absl::Status ParseBlocks(const nlohmann::json& object, std::vector<int64_t>* blocks) {
  const auto ids = object.find("hash_ids");
  if (ids == object.end()) return absl::OkStatus();
  const bool integers =
      ids->is_array() &&
      std::all_of(ids->begin(), ids->end(), [](const auto& id) { return id.is_number_integer(); });
  if (!integers) return absl::InvalidArgumentError("\"hash_ids\" must be an array of integers");
  *blocks = ids->get<std::vector<int64_t>>();
  return absl::OkStatus();
}

absl::StatusOr<TraceRow> ParseJsonRow(const std::string& line) {
  constexpr int64_t kMaxMs = int64_t{1} << 42;  // 139 years
  const nlohmann::json object = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) return absl::InvalidArgumentError("not a JSON object");
  TraceRow row;
  ASSIGN_OR_RETURN(const int64_t ms, Count(object, "timestamp", kMaxMs));
  ASSIGN_OR_RETURN(row.prompt_tokens, Count(object, "input_length", INT32_MAX));
  ASSIGN_OR_RETURN(row.output_tokens, Count(object, "output_length", INT32_MAX));
  RETURN_IF_ERROR(ParseBlocks(object, &row.blocks));
  row.arrival = std::chrono::milliseconds(ms);
  return row;
}

// Rows on their way in; their arrivals count from the first one's.
class RowList {
 public:
  absl::Status Append(TraceRow row) {
    if (rows_.empty()) start_ = row.arrival;
    row.arrival -= start_;
    if (!rows_.empty() && row.arrival < rows_.back().arrival) {
      return absl::InvalidArgumentError("the timestamp lies before that of the row above");
    }
    row.prompt_tokens = std::max(1, row.prompt_tokens);
    row.output_tokens = std::max(1, row.output_tokens);
    rows_.push_back(std::move(row));
    return absl::OkStatus();
  }
  int64_t size() const { return static_cast<int64_t>(rows_.size()); }
  std::vector<TraceRow> Take() { return std::move(rows_); }

 private:
  Duration start_{};
  std::vector<TraceRow> rows_;
};

absl::Status TakeLine(bool json, int64_t number, const std::string& line, RowList* rows) {
  if (!json && number == 1) {
    if (line == kHeader) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat("the header must be ", kHeader));
  }
  if (line.empty()) return absl::OkStatus();
  ASSIGN_OR_RETURN(TraceRow row, json ? ParseJsonRow(line) : ParseCsvRow(line));
  return rows->Append(std::move(row));
}

}  // namespace

absl::StatusOr<std::vector<TraceRow>> ReadTrace(const std::string& path, int64_t count) {
  std::ifstream file(path);
  if (!file) return absl::NotFoundError(absl::StrCat(path, ": cannot be read"));
  const bool json = absl::EndsWith(path, ".jsonl");
  RowList rows;
  std::string line;
  for (int64_t number = 1; rows.size() < count && std::getline(file, line); ++number) {
    line = std::string(absl::StripAsciiWhitespace(line));
    if (absl::Status status = TakeLine(json, number, line, &rows); !status.ok()) {
      return absl::InvalidArgumentError(absl::StrCat(path, ":", number, ": ", status.message()));
    }
  }
  if (rows.size() == 0) return absl::InvalidArgumentError(absl::StrCat(path, ": holds no row"));
  return rows.Take();
}

}  // namespace paceline
