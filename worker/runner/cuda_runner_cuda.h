// The Runner of the CUDA backend on one GPU. Launch enqueues a step's kernels on one stream and
// returns; the step before it is read back first, since its tokens decide what this one runs. Steps
// of decode and verify rows are CUDA graphs.
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
#include "kernels/cuda/sampler.h"
#include "worker/kv/kv_pool_cuda.h"
#include "worker/kv/staging_cuda.h"
#include "worker/model/cuda_decoder_cuda.h"
#include "worker/runner/host_state.h"
#include "worker/runner/runner.h"
#include "worker/runner/step_graphs_cuda.h"
#include "worker/runner/synthetic_tokens.h"

namespace paceline {

struct CudaRunnerOptions {
  int64_t kv_bytes = 0;    // of the KV pool, where num_blocks is 0; 0 = what the GPU has free
  int32_t num_blocks = 0;  // of the KV pool; 0 = as many as kv_bytes hold
  int32_t block_size = 16;
  int32_t max_slots = 64;
  int32_t max_context = 0;                    // positions; 0 = the model's, never more
  int32_t max_hidden_slots = 0;               // saved-hidden slots
  int32_t max_batch_rows = 512;               // more are possible, and cost an allocation
  int64_t partial_bytes = int64_t{64} << 20;  // of attention's partial results
  bool graphs = true;                         // changes speed, no bits
  double synthetic_acceptance = 0;            // as CpuRunnerOptions
  // For tests: sees the logits [vocab_size] of every sample row, with slot and position sampled.
  std::function<void(SlotId, int32_t, std::span<const float>)> logits_probe;
};

class CudaRunner final : public Runner {
 public:
  // INVALID_ARGUMENT naming option, value and limit; RESOURCE_EXHAUSTED saying what to change.
  static absl::StatusOr<std::unique_ptr<CudaRunner>> Create(std::shared_ptr<const CudaModel> model,
                                                            const CudaDevice& device,
                                                            CudaRunnerOptions options);
  ~CudaRunner() override;

  const RunnerInfo& info() const override { return host_.info(); }
  absl::Status Launch(const StepPlan& plan) override;
  absl::StatusOr<StepResult> Wait() override;

  // One line for the log: weights, workspace, graphs, KV and free memory, the longest context that
  // fits.
  const std::string& memory_text() const { return memory_text_; }
  const StepGraphs& graphs() const { return graphs_; }

 private:
  CudaRunner(std::shared_ptr<const CudaModel> model, CudaRunnerOptions options, RunnerInfo info,
             CudaStream stream, KvPoolCuda kv);
  absl::Status AllocateSampler();

  absl::Status Enqueue();
  absl::Status EnqueueBlockCopies();
  absl::Status EnqueueKernels();
  absl::Status StageDraws();
  bool PadDraws();
  absl::Status PrepareDraws();
  absl::Status RunKernels();
  void AddDraw(const HostState::Draw& draw, int32_t logits_row);
  void AddEdits(const kernels::SampleParams& params);
  absl::Status EnqueueGroup(size_t group);
  absl::Status Probe(size_t begin, size_t end);
  absl::Status CopySlots(const HostState::KvMoves& moves, StagingCuda* staging);
  // Reads back the step in flight, if there is one.
  absl::Status Complete();

  const std::shared_ptr<const CudaModel> model_;
  const CudaRunnerOptions options_;
  HostState host_;
  CudaStream stream_;
  KvPoolCuda kv_;
  std::unique_ptr<CudaDecoder> decoder_;
  std::optional<SyntheticTokens> synthetic_;
  std::string memory_text_;
  StepGraphs graphs_;
  std::deque<StepResult> results_;  // read back, not yet waited for

  // Sampler: of a group of rows, and of a step.
  DeviceMemory logits_, values_, scores_;  // [kHeadGroup, vocab]
  DeviceMemory sampler_workspace_;
  DeviceMemory drawn_;  // [draws] CudaSampleResult
  PinnedMemory drawn_host_;
  StagingCuda draw_staging_, copy_staging_, move_staging_;

  // Of the step in hand.
  bool in_flight_ = false;
  StepPlan plan_;
  DecoderBatch batch_;
  HostState::KvMoves moves_;
  std::vector<kernels::SampleParams> params_;  // [draws]
  std::vector<int32_t> path_;
  std::vector<kernels::CudaSampleRow> sample_rows_;  // [draws], more where they are padded
  std::vector<kernels::CudaSampleEdit> edits_;
  std::vector<int32_t> edit_of_;     // [vocab] index in edits_ of the draw in hand, or -1
  std::vector<int32_t> head_rows_;   // rows whose logits are needed, group after group
  std::vector<size_t> group_begin_;  // draws [group_begin_[g], group_begin_[g + 1])
  std::vector<int32_t> group_rows_;  // head rows of group g begin here
  std::optional<StepGraphs::Shape> graph_shape_;  // of a step that a graph can carry out
  StagingCuda::Place head_rows_at_ = 0, sample_rows_at_ = 0, edits_at_ = 0;
  std::vector<kernels::SampleOutput> outputs_;  // [draws]
};

// "cuda-sm<architecture>-bf16-kvbf16-tp1-s<sampler>-k<kernel build>".
std::string CudaNumericsFingerprint(int32_t compute_capability);

}  // namespace paceline
