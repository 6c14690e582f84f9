// For tests: builds step plans by hand for a few sequences, runs them, and keeps the sequences'
// tokens and block tables in step with the results. Blocks are handed out once and never reused.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "worker/runner/runner.h"

namespace paceline {

class PlanDriver {
 public:
  struct Sequence {
    SlotId slot = 0;
    std::shared_ptr<const SamplingParams> sampling;
    int32_t sample = 0;
    int32_t prompt_len = 0;
    std::vector<TokenId> tokens;
    std::vector<BlockId> blocks;
    int32_t kv = 0;  // entries computed
    bool ended = false;
    SlotResult last;  // of the newest step
    std::vector<float> logprobs;
    std::vector<std::vector<std::pair<TokenId, float>>> top;

    std::vector<TokenId> output() const { return {tokens.begin() + prompt_len, tokens.end()}; }
  };

  explicit PlanDriver(Runner& runner) : runner_(runner) {}

  // A new sequence on a fresh slot, bound by the next plan.
  Sequence& Start(std::vector<TokenId> prompt, const SamplingParams& sampling, int32_t sample = 0);

  // The next `rows` of what is not computed yet; samples if they are the last. 0 = all.
  void Prefill(Sequence& s, int32_t rows = 0);
  void Decode(Sequence& s) { Verify(s, {}); }
  // Drafts behind the newest token; parents index drafts, kNone = the newest token, empty = chain.
  void Verify(Sequence& s, std::span<const TokenId> drafts, std::span<const int32_t> parents = {});
  // A step behind one in flight: the base may be up to max_new tokens further.
  void DecodeAhead(Sequence& s, int32_t max_new, std::vector<PlannedBranch> branches = {});
  // `follower` samples its first token from the row that `leader` samples in this plan.
  void Follow(Sequence& follower);
  // Copies the leader's blocks for `s`: whole ones shared, the last one copied.
  void Fork(const Sequence& leader, Sequence& s);
  SampleRow& last_sample_row() { return plan_.sample_rows.back(); }
  StepPlan& plan() { return plan_; }

  absl::Status Launch();
  // Applies the result to the sequences.
  StepResult Wait();
  void Step();

  // Prefill, then one token at a time until it ends.
  void Finish(Sequence& s);

 private:
  Span& AddSpan(Sequence& s, SpanKind kind, int32_t context, int32_t rows);

  Runner& runner_;
  std::vector<std::unique_ptr<Sequence>> sequences_;
  StepPlan plan_;
  uint64_t step_ = 0;
  BlockId next_block_ = 0;
};

}  // namespace paceline
