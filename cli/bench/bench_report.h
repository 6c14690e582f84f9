// The figures of a benchmark as text for people and as JSON for programs.
#pragma once

#include <optional>
#include <string>

#include "cli/bench/comparison.h"
#include "cli/bench/run_summary.h"
#include "cli/bench/spec_activity.h"
#include "nlohmann/json_fwd.hpp"

namespace paceline {

// What was asked for, as it stands above the figures.
struct LoadDescription {
  std::string model;
  std::string prompts;   // "480 prompts of question.jsonl"
  std::string load;      // "closed loop of 8"
  std::string settings;  // "128 tokens, temperature 1, seed 7"
};

std::string FormatDescription(const LoadDescription& description);
std::string FormatRun(const RunSummary& summary, const std::optional<SpecActivity>& activity,
                      const ServiceLimits& limits = {});
// Side by side, one column per mode; below it whether the tokens agree.
std::string FormatComparison(const Comparison& comparison);
// One line per code; empty where nothing failed.
std::string FormatErrors(const RunSummary& summary);

// Field names of throughputs and latencies are those of common serving benchmarks; times in
// milliseconds.
nlohmann::ordered_json RunJson(const RunSummary& summary,
                               const std::optional<SpecActivity>& activity);
nlohmann::ordered_json ComparisonJson(const Comparison& comparison);
nlohmann::ordered_json DescriptionJson(const LoadDescription& description);

}  // namespace paceline
