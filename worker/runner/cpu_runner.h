// The Runner of the CPU backend: resolves a plan against its slots, runs the decoder, samples,
// accepts drafts and moves their KV. Launch checks and keeps the plan, Wait carries it out: so what
// is to happen beside a step (drafters at work on its outcomes) has begun when the step does.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/sampler.h"
#include "kernels/cpu/thread_pool.h"
#include "worker/kv/kv_pool_cpu.h"
#include "worker/model/cpu_decoder.h"
#include "worker/model/cpu_model.h"
#include "worker/runner/runner.h"
#include "worker/runner/slot_state.h"
#include "worker/runner/synthetic_tokens.h"

namespace paceline {

struct CpuRunnerOptions {
  int32_t threads = 0;                    // of the compute pool, the caller included; 0 = all cores
  int64_t kv_bytes = int64_t{256} << 20;  // of the KV pool, where num_blocks is 0
  int32_t num_blocks = 0;                 // of the KV pool; 0 = as many as kv_bytes hold
  int32_t block_size = 16;                // 16, 32 or 64
  int32_t max_slots = 64;
  int32_t max_context = 0;          // positions; 0 = the model's, never more
  int32_t max_hidden_slots = 0;     // saved-hidden slots
  std::optional<kernels::Isa> isa;  // none: the best this machine has
  // For benchmarks: replaces what was sampled by tokens at this acceptance (SyntheticTokens); 0 =
  // off.
  double synthetic_acceptance = 0;
  // For tests: sees the logits [vocab_size] of every sample row, with slot and position sampled.
  std::function<void(SlotId, int32_t, std::span<const float>)> logits_probe;
};

class CpuRunner final : public Runner {
 public:
  // INVALID_ARGUMENT naming option, value and limit; RESOURCE_EXHAUSTED when memory is short.
  static absl::StatusOr<std::unique_ptr<CpuRunner>> Create(std::shared_ptr<const CpuModel> model,
                                                           CpuRunnerOptions options);

  const RunnerInfo& info() const override { return info_; }
  absl::Status Launch(const StepPlan& plan) override;
  absl::StatusOr<StepResult> Wait() override;

 private:
  // A token to draw: a sample row that runs, of a slot that has not ended.
  struct Draw {
    int32_t row = 0;         // in the resolved step
    int32_t sample_row = 0;  // in the plan
  };

  CpuRunner(std::shared_ptr<const CpuModel> model, CpuRunnerOptions options, KvPoolCpu kv,
            RunnerInfo info);

  absl::StatusOr<StepResult> Run(const StepPlan& plan);
  absl::Status CheckPlan(const StepPlan& plan) const;
  absl::Status CheckSpan(const Span& span) const;
  void CopyBlocks(const std::vector<KvCopy>& copies);
  absl::Status RunDecoder(const StepPlan& plan, const ResolvedStep& step);
  void ListDraws(const StepPlan& plan, const ResolvedStep& step);
  void DrawTokens(const StepPlan& plan, const ResolvedStep& step);
  void DrawSome(const StepPlan& plan, const ResolvedStep& step, size_t begin, size_t end);
  void ReplaceBySynthetic(size_t begin);
  kernels::SampleParams ParamsOf(const StepPlan& plan, const ResolvedStep& step, const Draw& draw,
                                 std::vector<int32_t>* path) const;
  void EmitSpan(const StepPlan& plan, const ResolvedStep& step, const ResolvedSpan& run,
                size_t* draw, StepResult* result);
  void EmitAccepted(const StepPlan& plan, const ResolvedStep& step, const ResolvedSpan& run,
                    size_t first_draw, SlotResult* result);
  void Emit(SlotState* slot, kernels::SampleOutput* output, SlotResult* result);

  const std::shared_ptr<const CpuModel> model_;
  const CpuRunnerOptions options_;
  RunnerInfo info_;
  PlanLimits limits_;
  kernels::ThreadPool pool_;
  KvPoolCpu kv_;
  CpuDecoder decoder_;
  std::optional<SyntheticTokens> synthetic_;
  std::vector<SlotState> slots_;  // [max_slots]
  std::deque<StepPlan> plans_;    // launched, not yet waited for

  // Of the step in hand.
  DecoderBatch batch_;
  std::vector<int32_t> parents_;                // [rows] of tree spans
  std::vector<Draw> draws_;                     // in sample-row order
  std::vector<int32_t> span_of_row_;            // [rows]
  std::vector<kernels::SampleOutput> outputs_;  // [draws]
  std::vector<std::vector<int32_t>> paths_;     // [draws of a group] draft tokens above the row
  std::vector<kernels::SampleParams> params_;   // [draws of a group]
  std::vector<int32_t> head_rows_;
  std::vector<float> logits_;  // [head rows of a group, vocab]
  std::vector<kernels::KvSlotCopy> kv_moves_;
};

// "cpu-<isa>-bf16-kvbf16-tp1-s<sampler>-k<kernel build>": equal fingerprints, equal bits.
std::string CpuNumericsFingerprint(kernels::Isa isa);

}  // namespace paceline
