// How the requests of a run ask to be decoded.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace paceline {

enum class BenchMode {
  kAuto,       // the controller decides
  kPlain,      // no drafts
  kDraft,      // always drafts, by the worker's own strategy
  kSync,       // always drafts; steps wait for them
  kChain,      // always drafts; the drafter runs ahead
  kEnumerate,  // always drafts; the drafter drafts for the likely outcomes
  kNgram,      // always local n-gram drafts
};

// "auto", "plain", "draft", "sync", "chain", "enumerate", "ngram".
const char* BenchModeName(BenchMode mode);

// Whether the mode has any use for a draft worker.
bool UsesDraftWorker(BenchMode mode);

// "plain,chain" -> both. INVALID_ARGUMENT: no mode, an unknown one, or one twice.
absl::StatusOr<std::vector<BenchMode>> ParseBenchModes(const std::string& list);

}  // namespace paceline
