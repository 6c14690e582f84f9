#include "cli/bench/arrivals.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <random>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/time/time.h"
#include "common/status_macros.h"

namespace paceline {
namespace {

constexpr char kHeader[] = "TIMESTAMP,ContextTokens,GeneratedTokens";

struct ParsedRow {
  absl::Time time;
  int32_t prompt_tokens, output_tokens;
};

absl::StatusOr<ParsedRow> ParseRow(const std::string& line) {
  const std::vector<std::string> cells = absl::StrSplit(line, ',');
  if (cells.size() != 3) {
    return absl::InvalidArgumentError(absl::StrCat(cells.size(), " columns; there must be 3"));
  }
  ParsedRow row;
  std::string error;
  if (!absl::ParseTime("%Y-%m-%d %H:%M:%E*S", cells[0], &row.time, &error)) {
    return absl::InvalidArgumentError(
        absl::StrCat("timestamp '", cells[0], "' is not as 2023-11-16 18:15:46.68"));
  }
  if (!absl::SimpleAtoi(cells[1], &row.prompt_tokens) || row.prompt_tokens < 0 ||
      !absl::SimpleAtoi(cells[2], &row.output_tokens) || row.output_tokens < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("token counts '", cells[1], "' and '", cells[2], "' must be integers >= 0"));
  }
  return row;
}

absl::Status Append(const ParsedRow& row, absl::Time start, std::vector<TraceRow>* rows) {
  const Duration arrival = absl::ToChronoNanoseconds(row.time - start);
  if (!rows->empty() && arrival < rows->back().arrival) {
    return absl::InvalidArgumentError("the timestamp lies before that of the row above");
  }
  rows->push_back({arrival, std::max(1, row.prompt_tokens), std::max(1, row.output_tokens)});
  return absl::OkStatus();
}

}  // namespace

std::vector<Duration> PoissonArrivals(double rate, int64_t count, Duration limit, uint64_t seed) {
  std::mt19937_64 engine(seed);
  std::vector<Duration> arrivals;
  double seconds = 0;
  while (static_cast<int64_t>(arrivals.size()) < count) {
    // In [0, 1), by hand: the library's distributions differ from one to another.
    const double u = static_cast<double>(engine() >> 11) * 0x1p-53;
    seconds += -std::log1p(-u) / rate;
    if (seconds >= ToSeconds(limit)) break;
    arrivals.push_back(Seconds(seconds));
  }
  return arrivals;
}

absl::StatusOr<std::vector<TraceRow>> ReadTrace(const std::string& path, int64_t count) {
  std::ifstream file(path);
  if (!file) return absl::NotFoundError(absl::StrCat(path, ": cannot be read"));
  std::vector<TraceRow> rows;
  std::string line;
  absl::Time start;
  for (int64_t number = 1; static_cast<int64_t>(rows.size()) < count && std::getline(file, line);
       ++number) {
    line = std::string(absl::StripAsciiWhitespace(line));
    const auto at_line = [&](const absl::Status& status) {
      return absl::InvalidArgumentError(absl::StrCat(path, ":", number, ": ", status.message()));
    };
    if (number == 1) {
      if (line == kHeader) continue;
      return at_line(absl::InvalidArgumentError(absl::StrCat("the header must be ", kHeader)));
    }
    if (line.empty()) continue;
    absl::StatusOr<ParsedRow> row = ParseRow(line);
    if (!row.ok()) return at_line(row.status());
    if (rows.empty()) start = row->time;
    if (absl::Status status = Append(*row, start, &rows); !status.ok()) return at_line(status);
  }
  if (rows.empty()) return absl::InvalidArgumentError(absl::StrCat(path, ": holds no row"));
  return rows;
}

}  // namespace paceline
