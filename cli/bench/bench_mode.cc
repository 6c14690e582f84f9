#include "cli/bench/bench_mode.h"

#include <algorithm>
#include <iterator>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/flags.h"

namespace paceline {
namespace {

constexpr const char* kNames[] = {"auto", "plain", "draft", "sync", "chain", "enumerate", "ngram"};

}  // namespace

const char* BenchModeName(BenchMode mode) { return kNames[static_cast<size_t>(mode)]; }

bool UsesDraftWorker(BenchMode mode) {
  return mode != BenchMode::kPlain && mode != BenchMode::kNgram;
}

absl::StatusOr<std::vector<BenchMode>> ParseBenchModes(const std::string& list) {
  std::vector<BenchMode> modes;
  for (const std::string& name : SplitList(list)) {
    const auto* found = std::find(std::begin(kNames), std::end(kNames), name);
    if (found == std::end(kNames)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "--compare names '", name, "'; it must be some of ", absl::StrJoin(kNames, ",")));
    }
    const auto mode = static_cast<BenchMode>(found - std::begin(kNames));
    if (std::find(modes.begin(), modes.end(), mode) != modes.end()) {
      return absl::InvalidArgumentError(absl::StrCat("--compare names '", name, "' twice"));
    }
    modes.push_back(mode);
  }
  if (modes.empty()) return absl::InvalidArgumentError("--compare names no mode");
  return modes;
}

}  // namespace paceline
