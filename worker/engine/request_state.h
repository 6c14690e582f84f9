// One request between Submit and its last word: its samples and what its usage will say. Owned by
// the scheduler; touched by the engine thread only.
#pragma once

#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "worker/engine/engine.h"
#include "worker/engine/sequence.h"

namespace paceline {

inline constexpr int32_t kMaxSamples = 128;

struct RequestState {
  RequestHandle handle = 0;
  GenerationRequest request;
  std::shared_ptr<const SamplingParams> sampling;
  std::vector<std::unique_ptr<Sequence>> samples;
  int32_t unfinished = 0;  // samples
  int32_t running = 0;     // samples with KV
  bool admitted = false;   // once
  uint64_t copy_step = 0;  // newest plan that copies blocks among its samples

  TimePoint submitted{};
  bool first_token = false;
  GenerationUsage usage;

  // The sample whose prefill serves the followers too; null when there are none.
  Sequence* leader = nullptr;
};

// What Submit refuses, for reasons that need no look at the queue. Thread-safe.
absl::Status ValidateRequest(const GenerationRequest& request, const RunnerInfo& info);

// Builds the samples of a valid request: those that had finished elsewhere are kDone, those with
// output prefill on their own, the rest follow the first of them.
std::unique_ptr<RequestState> MakeRequestState(RequestHandle handle, GenerationRequest request,
                                               const RunnerInfo& info, TimePoint submitted);

// Whether output number `index` (from 0), `token`, ends a sample, and how.
FinishReason FinishOf(TokenId token, int32_t index, const SamplingParams& sampling,
                      const RunnerInfo& info);

}  // namespace paceline
