// What a runner remembers of a sequence from bind to bind, and a plan's spans made definite by it:
// with launch-ahead, tokens, positions and lengths of a plan are known only here.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/runner/runner.h"

namespace paceline {

struct SlotState {
  bool bound = false;
  std::shared_ptr<const SamplingParams> sampling;
  int32_t sample = 0;
  int32_t prompt_len = 0;
  std::vector<TokenId> tokens;  // prompt and output
  // Stop ids, and EOS unless ignored: end the sample, and are masked below min_tokens.
  std::vector<TokenId> stop_ids;
  int32_t last_accepted = 0;  // drafts accepted by the newest step that emitted
  bool ended = false;

  static SlotState FromBind(const SlotBind& bind, const RunnerInfo& info);

  // Whether `token` as output number `index` (from 0) ends the sample.
  bool Ends(TokenId token, int32_t index) const;
  int32_t num_emitted() const { return static_cast<int32_t>(tokens.size()) - prompt_len; }
};

// A span as it runs. Rows of an ended slot, and draft rows for whose outcome no branch was planned,
// do not run.
struct ResolvedSpan {
  int32_t span = 0;  // in the plan
  int32_t context_len = 0;
  int32_t row_begin = 0;  // in ResolvedStep::rows
  int32_t num_rows = 0;   // may be 0
  int32_t sample_begin = 0;
  int32_t sample_end = 0;  // sample rows [sample_begin, sample_end) of the plan are this span's
};

struct ResolvedStep {
  std::vector<ResolvedSpan> spans;  // one per span of the plan, in order
  std::vector<Row> rows;
};

// INTERNAL, with the plan's fault, when a plan does not fit the slots: the host's mistake.
absl::Status CheckBinds(const StepPlan& plan, const RunnerInfo& info);
absl::StatusOr<ResolvedStep> ResolvePlan(const StepPlan& plan, const RunnerInfo& info,
                                         const std::vector<SlotState>& slots);

}  // namespace paceline
