// A Runner over a HashModel, for simulations and fuzzing. Its KV pool is real in what matters to
// the host: a slot holds what the row that wrote it was (token, position) and what that row had
// seen (the fold over its prefix), rows find their context only through the plan's block tables,
// and a row's next token follows from the slots it sees. So a stale or lost block, a wrong position
// or token, a missed copy-on-write or a block handed on too early changes tokens at once; by
// default it is also reported, with the plan, as the error of Launch or Wait.
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "common/clock.h"
#include "tests/sim/hash_model.h"
#include "worker/runner/runner.h"

namespace paceline {

struct HashRunnerOptions {
  HashModelOptions model;
  int32_t num_blocks = 256;
  int32_t block_size = 16;
  int32_t max_slots = 64;
  int32_t max_context = 4096;

  // When a plan takes effect. A correct host cannot tell the difference.
  enum class ExecuteAt { kLaunch, kWait };
  ExecuteAt execute_at = ExecuteAt::kLaunch;

  bool strict = true;            // broken KV is an error; else it only changes the tokens
  bool scan_all = true;          // check every visible slot; else the last two only (long contexts)
  ManualClock* clock = nullptr;  // moved by Wait, if given
  Duration step_time{};          // per plan with rows
  Duration row_time{};           // per row that ran
};

class HashRunner final : public Runner {
 public:
  explicit HashRunner(HashRunnerOptions options);

  const RunnerInfo& info() const override { return info_; }
  absl::Status Launch(const StepPlan& plan) override;
  absl::StatusOr<StepResult> Wait() override;

  const HashModel& model() const { return model_; }
  // The first sight of broken KV, with the plan; empty if none. For strict = false.
  const std::string& first_fault() const { return first_fault_; }
  int64_t num_faults() const { return num_faults_; }
  int64_t rows_run() const { return rows_run_; }
  int64_t max_rows() const { return max_rows_; }  // of one plan

 private:
  struct KvSlot {
    TokenId token = kNone;
    int32_t position = kNone;
    uint64_t prefix = 0;  // fold over the prefix that ends with this token, as its row saw it
  };
  struct SlotState {
    bool bound = false;
    std::shared_ptr<const SamplingParams> sampling;
    int32_t sample = 0;
    int32_t prompt_len = 0;
    std::vector<TokenId> tokens;
    int32_t last_accepted = 0;  // drafts accepted by the slot's newest step
    bool ended = false;
  };
  // Which sequences a plan lets touch a block.
  struct BlockUse {
    int64_t reader = kNobody;  // kMany: several
    int64_t writer = kNobody;
  };
  static constexpr int64_t kNobody = -1;
  static constexpr int64_t kMany = -2;
  static constexpr int64_t kCopies = -3;
  struct Flight {
    StepPlan plan;
    std::vector<std::pair<BlockId, BlockUse>> uses;
    StepResult result;
    int64_t rows = 0;
    bool done = false;
  };
  // A span as it really runs.
  struct Run {
    const Span* span = nullptr;
    const BlockId* table = nullptr;
    SlotState* slot = nullptr;
    int32_t context_len = 0;
    std::vector<Row> rows;           // rows that run
    std::vector<uint64_t> prefixes;  // [rows] fold that ends with the row
  };

  absl::Status CheckPlan(const StepPlan& plan) const;
  absl::Status CheckSpan(const StepPlan& plan, const Span& span) const;
  absl::Status ClaimBlocks(Flight* flight);
  absl::Status ClaimSpan(const StepPlan& plan, const Span& span);
  absl::Status Claim(BlockId block, int64_t sequence, bool writes);
  absl::Status CheckInFlight(const Flight& earlier, const Flight& later) const;
  absl::Status Execute(Flight* flight);
  void Bind(const SlotBind& bind);
  void Copy(const KvCopy& copy);
  void RunSpan(const StepPlan& plan, int32_t index, StepResult* result);
  void Resolve(const StepPlan& plan, Run* run);
  const PlannedBranch* MatchBranch(const Span& span) const;
  void CheckKnownTokens(const Run& run);
  uint64_t ReadContext(const Run& run);
  void RunRows(Run* run);
  std::vector<TokenId> History(const Run& run, const SlotState& slot, int32_t row) const;
  void EmitAccepted(const Run& run, int32_t num_candidates, SlotResult* result);
  void EmitRow(const Run& run, const SampleRow& wanted, SlotResult* result);
  void Emit(SlotState* slot, const HashSample& sample, SlotResult* result);
  KvSlot& At(const Run& run, int32_t index);
  void Fault(const std::string& what);

  HashRunnerOptions options_;
  HashModel model_;
  RunnerInfo info_;
  std::vector<KvSlot> kv_;          // [num_blocks][block_size]
  std::vector<SlotState> slots_;    // [max_slots]
  std::vector<int64_t> sequences_;  // [max_slots] number of the newest launched bind
  int64_t next_sequence_ = 0;
  std::vector<BlockUse> uses_;  // [num_blocks] of the plan being launched
  std::vector<BlockId> used_;   // its entries that are set
  std::deque<Flight> flights_;
  uint64_t last_step_ = 0;
  bool any_step_ = false;
  std::string step_fault_;
  std::string first_fault_;
  int64_t num_faults_ = 0;
  int64_t rows_run_ = 0;
  int64_t max_rows_ = 0;
};

}  // namespace paceline
