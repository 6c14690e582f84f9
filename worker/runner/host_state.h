// What every runner does on the host around a device's work: checks a plan, keeps the slots, says
// what the decoder runs and what the sampler draws, and turns drawn tokens into results.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "kernels/cpu/kv_cache.h"
#include "kernels/cpu/sampler.h"
#include "worker/model/decoder_batch.h"
#include "worker/runner/runner.h"
#include "worker/runner/slot_state.h"

namespace paceline {

// Draft rows may lie beyond the last position that can be emitted.
inline constexpr int32_t kPositionSlack = 1024;

// Calls for one step: Check, Begin, FillBatch, ParamsOf of each draw, Finish. One thread.
class HostState {
 public:
  // A token to draw: a sample row that runs, of a slot that has not ended.
  struct Draw {
    int32_t row = 0;         // in the resolved step
    int32_t sample_row = 0;  // in the plan
  };
  // Copies of KV slots. Those of [group_begin[g], group_begin[g + 1]) go in order; groups touch no
  // slot that another writes.
  struct KvMoves {
    std::vector<kernels::KvSlotCopy> copies;
    std::vector<int32_t> group_begin = {0};
    void Clear();
    void EndGroup();  // of what was added since the last; none if that is nothing
  };

  // `backend` begins every message.
  HostState(std::string backend, RunnerInfo info, int32_t num_hidden_slots);

  const RunnerInfo& info() const { return info_; }
  int32_t max_position() const { return info_.max_context + kPositionSlack; }

  // INTERNAL, with the plan, when it breaks a rule.
  absl::Status Check(const StepPlan& plan) const;
  // Takes the binds and resolves a checked plan, which must stay until Finish. INTERNAL, with the
  // plan, when it does not fit the slots.
  absl::Status Begin(const StepPlan& plan);
  // The plan's copies of blocks, one group.
  void BlockCopies(KvMoves* moves) const;
  // Spans and rows that run. saved_rows(slot): rows that a saved-hidden slot holds.
  absl::Status FillBatch(const std::function<int32_t(int32_t)>& saved_rows, DecoderBatch* batch);
  // In sample-row order.
  const std::vector<Draw>& draws() const { return draws_; }
  SlotId SlotOf(const Draw& draw) const;
  // All but the logits. `path` gets the draft tokens between the slot's own and the row; slot and
  // path outlive the params.
  kernels::SampleParams ParamsOf(const Draw& draw, std::vector<int32_t>* path) const;
  // outputs: one per draw. Moves of accepted paths go to `moves`, a group per slot.
  StepResult Finish(std::span<kernels::SampleOutput> outputs, KvMoves* moves);

  absl::Status Fault(const std::string& what) const;  // with the plan in hand

 private:
  absl::Status FaultOf(const StepPlan& plan, const std::string& what) const;
  absl::Status CheckPlan(const StepPlan& plan) const;
  absl::Status CheckSpan(const Span& span) const;
  void ListDraws();
  void EmitSpan(const ResolvedSpan& run, std::span<kernels::SampleOutput> outputs, size_t* draw,
                StepResult* result, KvMoves* moves);
  void EmitAccepted(const ResolvedSpan& run, std::span<kernels::SampleOutput> outputs,
                    SlotResult* result, KvMoves* moves);
  void Emit(SlotState* slot, kernels::SampleOutput* output, SlotResult* result);

  const std::string backend_;
  const RunnerInfo info_;
  const PlanLimits limits_;
  const int32_t num_hidden_slots_;
  std::vector<SlotState> slots_;  // [max_slots]

  // Of the step in hand.
  const StepPlan* plan_ = nullptr;
  ResolvedStep step_;
  std::vector<int32_t> parents_;      // [rows] of tree spans
  std::vector<int32_t> span_of_row_;  // [rows]
  std::vector<Draw> draws_;
};

}  // namespace paceline
