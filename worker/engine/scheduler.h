// Decides what each step runs and digests what it did: continuous batching with chunked prefill
// under a row budget, admission in rank order (sequence.h), preemption by recompute, forks of
// parallel samples, drafts. No threads, and no clock but the argument.
//
// With a plan in flight (launch-ahead) sequences whose newest token is not known yet are planned
// from their slot; blocks of sequences that end meanwhile return to the pool when no launched plan
// names them.
#pragma once

#include <deque>
#include <memory>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "worker/engine/engine.h"
#include "worker/engine/request_state.h"
#include "worker/engine/sequence.h"

namespace paceline {

class Scheduler {
 public:
  // `speculator` and `probe` outlive the scheduler; null = none.
  Scheduler(const EngineOptions& options, const RunnerInfo& info, Speculator* speculator,
            EngineProbe* probe);

  // A request that ValidateRequest let pass, under a handle not in use.
  void Submit(RequestHandle handle, GenerationRequest request, TimePoint submitted);
  // Takes effect in the next Schedule; an unknown handle is ignored.
  void Cancel(RequestHandle handle, absl::StatusCode code);
  void DropSession(const std::string& session_id);

  // The next step; empty when nothing can run before the step in flight (if any) is read. The plan
  // is the scheduler's own and stands until the next call. At most two may be uncommitted.
  const StepPlan& Schedule(TimePoint now);
  // The non-empty plan of the last Schedule has been launched.
  void Launched(TimePoint now);
  // The result of the oldest launched plan.
  void Commit(const StepResult& result, TimePoint now);

  // Of the oldest launched plan.
  struct InFlight {
    TimePoint launched{};
    int32_t rows = 0;
    int64_t context = 0;
  };
  InFlight OldestInFlight() const {
    const Flight& flight = flights_.front();
    return {.launched = flight.launched, .rows = flight.rows, .context = flight.context};
  }

  // What has become public since the last call.
  EngineOutput TakeOutput();

  int32_t num_in_flight() const { return static_cast<int32_t>(flights_.size()); }
  bool idle() const { return requests_.empty() && flights_.empty(); }
  // Whether the last Schedule left decodes out because their drafts are being made.
  bool waits_for_drafts() const { return waits_for_drafts_; }
  // Requests of which no sample has been scheduled yet.
  int32_t num_queued() const { return num_queued_; }
  uint64_t output_tokens() const { return output_tokens_; }
  void FillSnapshot(EngineSnapshot* snapshot) const;
  // Whether sessions were tagged or dropped since the last call.
  bool TakeSessionsChanged() { return std::exchange(sessions_changed_, false); }

  BlockManager& blocks() { return blocks_; }
  // CHECKs that slots, blocks, lists and counts agree. For tests; O(blocks + sequences).
  void CheckInvariants() const;

 private:
  // A sequence's part in a launched plan.
  struct Part {
    Sequence* sequence = nullptr;
    SlotId slot = kNone;
    uint32_t epoch = 0;
    int32_t span = kNone;
    int32_t rows = 0;
    int32_t written = 0;
    int32_t drafts = 0;
    bool prefill = false;
    bool samples = false;
    bool from_slot = false;
    bool follows = false;  // has no span: its first token comes from its leader's last row
    bool leads = false;    // others follow it
    ProposalSource source = ProposalSource::kNoProposal;
  };
  struct Flight {
    uint64_t step = 0;
    StepPhase phase = StepPhase::kDecode;
    int32_t rows = 0;
    int64_t context = 0;  // tokens that its spans attend to
    TimePoint launched{};
    std::vector<Part> parts;
  };
  // What launched plans name of those that have gone: kept until `step` is done.
  struct Grave {
    uint64_t step = 0;
    BlockTable table;
    std::unique_ptr<RequestState> request;
  };

  // The phases of Schedule.
  void DropCancelled(TimePoint now);
  void DropExpired(TimePoint now);
  void BeginPlan(TimePoint now);
  void ChooseDecodes();
  void PreemptForPriority(TimePoint now);
  void MakeRoom();
  bool MakeRoomInOrder(int32_t prefill_rows);
  void PlanDecodes();
  void PlanPrefills(TimePoint now);

  bool Busy(const Sequence& s) const;
  int32_t DecodeContext(const Sequence& s) const;
  int32_t BlocksFor(const Sequence& s, int32_t begin, int32_t end) const;
  bool ReserveKv(Sequence* s, int32_t begin, int32_t end);
  bool FindRoom(size_t index);
  void Preempt(Sequence* s, PreemptReason reason);
  int32_t OutstandingBlocks() const;
  int32_t AdmissionRoom() const;
  bool Admit(Sequence* s, TimePoint now);
  bool TryAdmit(Sequence* s, TimePoint now);
  bool CanMakeWayFor(const Sequence& s) const;
  bool WaitsForSibling(const Sequence& s) const;
  Sequence* FirstWaiting() const;
  int32_t MaxDrafts(const Sequence& s, int32_t rows_left, int32_t free_blocks) const;
  int32_t PlanPrefill(Sequence* s, int32_t rows_left);

  // Building plan_ (scheduler_plan.cc).
  int32_t AddSpan(Sequence* s, SpanKind kind, int32_t context_len, int32_t num_rows);
  void AddDecodeSpan(Sequence* s, SpecProposal proposal);
  void AddPrefillSpan(Sequence* s, int32_t num_rows);
  bool AddFollowers(Sequence* leader, int32_t span);
  void AddPart(Sequence* s, const Part& part);
  void TakeSlot(Sequence* s);

  // Talking to the speculator.
  bool WaitsForDraft(const Sequence& s) const;
  SpecProposal ProposeDrafts(Sequence* s, int32_t max_drafts);
  void TellInFlight(const Part& part);
  void BeginDrafting(Sequence* s);
  void EndDrafting(Sequence* s);
  void CountDrafts(const Part& part, const SlotResult& result);

  // Digesting results (scheduler_commit.cc).
  void CommitPart(const Part& part, const SlotResult& result, TimePoint now);
  void SetLive(Sequence* s);
  void ForkFollowers(const Sequence& leader);
  void Emit(Sequence* s, const SlotResult& result, TimePoint now);
  void FinishSequence(Sequence* s, TimePoint now);
  void ReleaseSequence(Sequence* s, TimePoint now);
  void EndRequest(RequestState* request, absl::Status status, TimePoint now);
  void DropRequest(RequestState* request, absl::Status status, TimePoint now);
  void StopRunning(Sequence* s);
  void ClearGraves();
  void ReportStep(const Flight& flight, TimePoint now);

  void CheckRunning() const;
  void CheckRequests() const;

  const EngineOptions options_;
  const RunnerInfo info_;
  Speculator* const speculator_;
  EngineProbe* const probe_;
  BlockManager blocks_;

  std::unordered_map<RequestHandle, std::unique_ptr<RequestState>> requests_;
  std::vector<Sequence*> running_;            // in rank order; each holds a slot
  std::set<Sequence*, RanksBefore> waiting_;  // in rank order
  std::vector<SlotId> free_slots_;
  std::vector<std::pair<RequestHandle, absl::StatusCode>> cancels_;
  TimePoint next_deadline_ = kNoDeadline;  // no request's deadline is earlier
  int32_t num_queued_ = 0;
  uint64_t next_arrival_ = 1;
  uint64_t next_session_ = 1;

  StepPlan plan_;
  Flight plan_flight_;  // of plan_, until Launched
  std::deque<Flight> flights_;
  std::vector<Flight> spare_flights_;
  std::deque<Grave> graves_;
  uint64_t next_step_ = 1;
  uint64_t done_step_ = 0;

  // Of the Schedule in progress.
  std::vector<Sequence*> decodes_;
  std::vector<Sequence*> prefills_;
  int32_t prefill_reserve_ = 0;  // rows kept from decodes
  int32_t decode_limit_ = 1;     // decodes that may have a row
  bool short_of_blocks_ = false;
  bool waits_for_drafts_ = false;
  // The admission that failed last, and the room it found: not tried again until there is more.
  const Sequence* blocked_ = nullptr;
  int32_t blocked_room_ = 0;

  EngineOutput output_;
  TimePoint last_commit_{};
  int32_t step_tokens_ = 0;
  uint64_t output_tokens_ = 0;
  bool sessions_changed_ = false;
  std::vector<const SlotResult*> result_of_slot_;  // [max_slots], of the Commit in progress
  std::vector<TokenId> in_flight_tokens_;
};

}  // namespace paceline
