#include "cli/bench/metrics_text.h"

#include <algorithm>
#include <cctype>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace paceline {
namespace {

bool IsNameCharacter(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_' || c == ':';
}

// Reads one line from left to right.
class LineReader {
 public:
  explicit LineReader(std::string_view line) : rest_(line) {}

  absl::StatusOr<MetricSample> Read() {
    MetricSample sample;
    ASSIGN_OR_RETURN(sample.name, Name());
    if (Skip('{')) RETURN_IF_ERROR(ReadLabels(&sample.labels));
    ASSIGN_OR_RETURN(sample.value, Value());
    return sample;
  }

 private:
  bool Skip(char c) {
    if (rest_.empty() || rest_.front() != c) return false;
    rest_.remove_prefix(1);
    return true;
  }
  void SkipSpaces() {
    while (Skip(' ') || Skip('\t')) {
    }
  }

  absl::StatusOr<std::string> Name() {
    const auto* end = std::find_if_not(rest_.begin(), rest_.end(), IsNameCharacter);
    std::string name(rest_.begin(), end);
    if (name.empty()) return absl::InvalidArgumentError("a name is missing");
    rest_.remove_prefix(name.size());
    return name;
  }

  absl::Status ReadLabels(std::map<std::string, std::string>* labels) {
    while (true) {
      SkipSpaces();
      if (Skip('}')) return absl::OkStatus();
      ASSIGN_OR_RETURN(const std::string name, Name());
      if (!Skip('=') || !Skip('"')) {
        return absl::InvalidArgumentError(absl::StrCat("label ", name, " has no quoted value"));
      }
      ASSIGN_OR_RETURN((*labels)[name], Quoted());
      SkipSpaces();
      Skip(',');
    }
  }

  // Behind the opening quote.
  absl::StatusOr<std::string> Quoted() {
    std::string text;
    while (!rest_.empty()) {
      const char c = rest_.front();
      rest_.remove_prefix(1);
      if (c == '"') return text;
      if (c != '\\') {
        text += c;
        continue;
      }
      if (rest_.empty()) break;
      text += rest_.front() == 'n' ? '\n' : rest_.front();
      rest_.remove_prefix(1);
    }
    return absl::InvalidArgumentError("a label's value has no end");
  }

  // What follows it, a timestamp, is left alone.
  absl::StatusOr<double> Value() {
    SkipSpaces();
    const std::string text(rest_.substr(0, rest_.find_first_of(" \t")));
    double value;
    if (!absl::SimpleAtod(text, &value)) {
      return absl::InvalidArgumentError(absl::StrCat("'", text, "' is no number"));
    }
    return value;
  }

  std::string_view rest_;
};

}  // namespace

absl::StatusOr<std::vector<MetricSample>> ParseMetricsText(std::string_view text) {
  std::vector<MetricSample> samples;
  for (int64_t number = 1; !text.empty(); ++number) {
    const size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.find_first_not_of(" \t") == std::string_view::npos || line.front() == '#') continue;
    absl::StatusOr<MetricSample> sample = LineReader(line).Read();
    if (!sample.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat("line ", number, ": ", sample.status().message()));
    }
    samples.push_back(*std::move(sample));
  }
  return samples;
}

double SumOf(const std::vector<MetricSample>& samples, const std::string& name,
             const std::string& label, const std::string& value) {
  double sum = 0;
  for (const MetricSample& sample : samples) {
    if (sample.name != name) continue;
    if (label.empty()) {
      sum += sample.value;
    } else if (const auto it = sample.labels.find(label);
               it != sample.labels.end() && it->second == value) {
      sum += sample.value;
    }
  }
  return sum;
}

}  // namespace paceline
