// Prometheus' text format, as far as a reader of counters needs it.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace paceline {

struct MetricSample {
  std::string name;
  std::map<std::string, std::string> labels;
  double value = 0;
};

// INVALID_ARGUMENT as "line N: reason". Comments and timestamps are left out.
absl::StatusOr<std::vector<MetricSample>> ParseMetricsText(std::string_view text);

// The sum of all samples of that name whose label has that value; an empty label fits all. 0 where
// there are none.
double SumOf(const std::vector<MetricSample>& samples, const std::string& name,
             const std::string& label = "", const std::string& value = "");

}  // namespace paceline
