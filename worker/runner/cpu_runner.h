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
#include "worker/runner/host_state.h"
#include "worker/runner/runner.h"
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

  const RunnerInfo& info() const override { return host_.info(); }
  absl::Status Launch(const StepPlan& plan) override;
  absl::StatusOr<StepResult> Wait() override;

 private:
  CpuRunner(std::shared_ptr<const CpuModel> model, CpuRunnerOptions options, KvPoolCpu kv,
            RunnerInfo info);

  absl::StatusOr<StepResult> Run(const StepPlan& plan);
  void DrawTokens();
  void DrawSome(size_t begin, size_t end);

  const std::shared_ptr<const CpuModel> model_;
  const CpuRunnerOptions options_;
  HostState host_;
  kernels::ThreadPool pool_;
  KvPoolCpu kv_;
  CpuDecoder decoder_;
  std::optional<SyntheticTokens> synthetic_;
  std::deque<StepPlan> plans_;  // launched, not yet waited for

  // Of the step in hand.
  DecoderBatch batch_;
  HostState::KvMoves moves_;
  std::vector<kernels::SampleOutput> outputs_;  // [draws]
  std::vector<std::vector<int32_t>> paths_;     // [draws of a group] draft tokens above the row
  std::vector<kernels::SampleParams> params_;   // [draws of a group]
  std::vector<int32_t> head_rows_;
  std::vector<float> logits_;  // [head rows of a group, vocab]
};

// "cpu-<isa>-bf16-kvbf16-tp1-s<sampler>-k<kernel build>": equal fingerprints, equal bits.
std::string CpuNumericsFingerprint(kernels::Isa isa);

}  // namespace paceline
