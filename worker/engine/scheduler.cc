// The phases of Schedule: who runs in the next step, and where its KV lies.
#include "worker/engine/scheduler.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"

namespace paceline {
namespace {

// Of the row budget, kept from decodes while a prompt waits: neither starves the other.
constexpr int32_t kPrefillShare = 4;

BlockManagerOptions PoolOptions(const EngineOptions& options, const RunnerInfo& info) {
  BlockManagerOptions pool;
  pool.num_blocks = info.num_blocks;
  pool.block_size = info.block_size;
  pool.prefix_cache = options.prefix_cache;
  pool.model_fingerprint = info.model_fingerprint;
  return pool;
}

EngineProbe* OrSilent(EngineProbe* probe) {
  static EngineProbe silent;
  return probe != nullptr ? probe : &silent;
}

Speculator* OrNone(Speculator* speculator) {
  static NoSpeculator none;
  return speculator != nullptr ? speculator : &none;
}

}  // namespace

Scheduler::Scheduler(const EngineOptions& options, const RunnerInfo& info, Speculator* speculator,
                     EngineProbe* probe)
    : options_(options),
      info_(info),
      speculator_(OrNone(speculator)),
      probe_(OrSilent(probe)),
      blocks_(PoolOptions(options, info)) {
  CHECK_GE(options_.max_batch_rows, 1);
  CHECK_GE(options_.prefill_chunk, 1);
  CHECK_GE(options_.max_drafts, 0);
  CHECK_GE(info_.max_slots, 1);
  for (SlotId slot = info_.max_slots - 1; slot >= 0; --slot) free_slots_.push_back(slot);
  result_of_slot_.assign(info_.max_slots, nullptr);
}

void Scheduler::Submit(RequestHandle handle, GenerationRequest request, TimePoint submitted) {
  auto owned = MakeRequestState(handle, std::move(request), info_, submitted);
  RequestState* state = owned.get();
  CHECK(requests_.emplace(handle, std::move(owned)).second) << "handle " << handle;
  ++num_queued_;
  next_deadline_ = std::min(next_deadline_, state->request.deadline);
  const uint64_t arrival = next_arrival_++;
  for (int32_t i = 0; i < static_cast<int32_t>(state->samples.size()); ++i) {
    Sequence* s = state->samples[i].get();
    s->arrival = arrival;
    s->draft_id.session = next_session_++;
    if (s->state == SequenceState::kWaiting) waiting_.insert(s);
    // Found to have ended, though the caller did not know.
    const bool told =
        state->request.resumed.empty() || state->request.resumed[i].finish != FinishReason::kNone;
    if (s->state != SequenceState::kDone || told) continue;
    SampleDelta delta{.sample = s->sample, .finish = s->finish};
    delta.first_index = static_cast<int32_t>(state->request.resumed[i].emitted.size());
    output_.deltas.push_back({.request = handle, .delta = std::move(delta)});
  }
  if (state->unfinished == 0) EndRequest(state, absl::OkStatus(), submitted);
}

void Scheduler::Cancel(RequestHandle handle, absl::StatusCode code) {
  if (requests_.contains(handle)) cancels_.emplace_back(handle, code);
}

void Scheduler::DropSession(const std::string& session_id) {
  blocks_.DropTag(session_id);
  sessions_changed_ = true;
}

const StepPlan& Scheduler::Schedule(TimePoint now) {
  CHECK_LT(num_in_flight(), 2);
  DropCancelled(now);
  DropExpired(now);
  if (flights_.empty()) ClearGraves();
  BeginPlan(now);
  PreemptForPriority(now);
  ChooseDecodes();
  MakeRoom();
  PlanDecodes();
  PlanPrefills(now);
  return plan_;
}

void Scheduler::DropCancelled(TimePoint now) {
  for (const auto& [handle, code] : std::exchange(cancels_, {})) {
    const auto it = requests_.find(handle);
    if (it == requests_.end()) continue;
    const char* why = code == absl::StatusCode::kDeadlineExceeded ? "deadline exceeded"
                                                                  : "cancelled by the caller";
    DropRequest(it->second.get(), absl::Status(code, why), now);
  }
}

void Scheduler::DropExpired(TimePoint now) {
  if (now < next_deadline_) return;
  std::vector<RequestState*> expired;
  next_deadline_ = kNoDeadline;
  for (const auto& [handle, state] : requests_) {
    if (state->request.deadline <= now) {
      expired.push_back(state.get());
    } else {
      next_deadline_ = std::min(next_deadline_, state->request.deadline);
    }
  }
  for (RequestState* state : expired) {
    const absl::Status status = absl::DeadlineExceededError(
        absl::StrCat("deadline exceeded after ", state->usage.output_tokens, " output tokens"));
    DropRequest(state, status, now);
  }
}

void Scheduler::BeginPlan(TimePoint now) {
  plan_.step = next_step_;
  plan_.binds.clear();
  plan_.copies.clear();
  plan_.spans.clear();
  plan_.rows.clear();
  plan_.sample_rows.clear();
  plan_.block_tables.clear();
  plan_flight_.parts.clear();
  for (Sequence* s : running_) s->chosen = s->ready = s->stuck = s->yields = false;
  short_of_blocks_ = false;
  blocks_.ExpireTags(now);
}

// --- Blocks ---

// Whether a launched plan names its blocks.
bool Scheduler::Busy(const Sequence& s) const {
  return std::max(s.last_step, s.request->copy_step) > done_step_;
}

// KV entries before its next decode row; an upper bound while a step is in flight. At or beyond
// max_len - 1 it would have ended, and no row runs.
int32_t Scheduler::DecodeContext(const Sequence& s) const {
  return s.in_flight() ? std::min(s.planned_kv(), s.max_len - 2) : s.kv_len;
}

int32_t Scheduler::BlocksFor(const Sequence& s, int32_t begin, int32_t end) const {
  const int32_t capacity = static_cast<int32_t>(s.table.blocks.size()) * info_.block_size;
  int32_t blocks = blocks_.BlocksNeeded(s.table, end);
  if (begin < capacity) blocks += blocks_.CopiesNeeded(s.table, begin, std::min(end, capacity));
  return blocks;
}

// Makes KV indices [begin, end) writable.
bool Scheduler::ReserveKv(Sequence* s, int32_t begin, int32_t end) {
  const int32_t capacity = static_cast<int32_t>(s->table.blocks.size()) * info_.block_size;
  if (!blocks_.Reserve(&s->table, end)) return false;
  if (begin >= capacity) return true;
  const size_t copies = plan_.copies.size();
  if (!blocks_.MakeWritable(&s->table, begin, std::min(end, capacity), &plan_.copies)) return false;
  if (plan_.copies.size() > copies) s->request->copy_step = plan_.step;
  return true;
}

// Reserves the next row of running_[index], preempting those that rank behind it. False: it sits
// this plan out, because nobody ranks behind it or because the victims are still in flight.
bool Scheduler::FindRoom(size_t index) {
  Sequence* s = running_[index];
  const int32_t begin = s->chosen ? DecodeContext(*s) : s->planned_kv();
  int32_t coming = 0;
  while (!ReserveKv(s, begin, begin + 1)) {
    short_of_blocks_ = true;
    size_t last = running_.size();
    while (last > index + 1 && running_[last - 1]->yields) --last;
    if (last == index + 1) return false;
    Sequence* victim = running_[last - 1];
    if (!Busy(*victim)) {
      Preempt(victim, PreemptReason::kKvPressure);
      continue;
    }
    victim->yields = true;
    coming += static_cast<int32_t>(victim->table.blocks.size());
    if (blocks_.num_available() + coming >= BlocksFor(*s, begin, begin + 1)) return false;
  }
  return true;
}

void Scheduler::Preempt(Sequence* s, PreemptReason reason) {
  probe_->Preempted(reason, s->kv_len);
  StopRunning(s);
  blocks_.Release(&s->table);
  s->kv_len = 0;
  s->state = SequenceState::kWaiting;
  ++s->draft_id.epoch;
  waiting_.insert(s);
}

// --- Admission ---

// Blocks that admitted prompts have yet to take.
int32_t Scheduler::OutstandingBlocks() const {
  int32_t blocks = 0;
  for (const Sequence* s : running_) {
    if (s->state == SequenceState::kPrefill) {
      blocks += blocks_.BlocksNeeded(s->table, s->prefill_target);
    }
  }
  return blocks;
}

// Blocks for a new prompt: what is neither promised nor soon needed by those that run, one each.
int32_t Scheduler::AdmissionRoom() const {
  return blocks_.num_available() - OutstandingBlocks() - static_cast<int32_t>(running_.size());
}

// With the prefix cache, samples that cannot share the leader's last row share its blocks.
bool Scheduler::WaitsForSibling(const Sequence& s) const {
  if (!options_.prefix_cache || s.request->running == 0) return false;
  return std::ranges::any_of(s.request->samples, [](const auto& other) {
    return other->state == SequenceState::kPrefill && other->kv_len < other->prompt_len;
  });
}

Sequence* Scheduler::FirstWaiting() const {
  for (Sequence* s : waiting_) {
    if (!WaitsForSibling(*s)) return s;
  }
  return nullptr;
}

bool Scheduler::Admit(Sequence* s, TimePoint now) {
  if (free_slots_.empty()) return false;
  const int32_t room = AdmissionRoom();
  if (s == blocked_ && room <= blocked_room_ && !running_.empty()) return false;
  blocked_ = nullptr;
  if (TryAdmit(s, now)) return true;
  blocked_ = s;
  blocked_room_ = room;
  return false;
}

bool Scheduler::TryAdmit(Sequence* s, TimePoint now) {
  if (free_slots_.empty()) return false;
  const int32_t cached = blocks_.MatchPrefix(s->tokens, s->request->request.cache_salt, &s->table);
  if (blocks_.BlocksNeeded(s->table, s->len()) > AdmissionRoom()) {
    blocks_.Release(&s->table);
    return false;
  }
  waiting_.erase(s);
  TakeSlot(s);
  s->kv_len = s->prefill_from = cached;
  s->prefill_target = s->len();
  s->prefill_start = now;
  RequestState* request = s->request;
  if (request->admitted) return true;
  request->admitted = true;
  --num_queued_;
  request->usage.cached_tokens = std::min(cached, s->prompt_len);
  request->usage.queue_time = now - request->submitted;
  probe_->QueueWait(request->usage.queue_time);
  return true;
}

// Whether preempting all of lower priority could admit it.
bool Scheduler::CanMakeWayFor(const Sequence& s) const {
  int64_t blocks = blocks_.num_available();
  for (const Sequence* r : running_) {
    if (r->priority < s.priority) blocks += static_cast<int64_t>(r->table.blocks.size());
  }
  return blocks_.BlocksNeeded(BlockTable{}, s.len()) <= blocks;
}

void Scheduler::PreemptForPriority(TimePoint now) {
  while (Sequence* head = FirstWaiting()) {
    if (running_.empty() || running_.back()->priority >= head->priority) return;
    if (!CanMakeWayFor(*head)) return;
    int32_t coming = 0;
    while (!TryAdmit(head, now)) {
      size_t last = running_.size();
      while (last > 0 && running_[last - 1]->yields) --last;
      if (last == 0 || running_[last - 1]->priority >= head->priority) return;
      Sequence* victim = running_[last - 1];
      if (!Busy(*victim)) {
        Preempt(victim, PreemptReason::kPriority);
        continue;
      }
      victim->yields = true;
      short_of_blocks_ = true;  // what comes is not for those that rank behind
      coming += static_cast<int32_t>(victim->table.blocks.size());
      if (AdmissionRoom() + coming >= blocks_.BlocksNeeded(BlockTable{}, head->len())) return;
    }
  }
}

// --- Decodes ---

// Those that may get a row of this step, in the order of their claims where the budget is short:
// of each priority first those that waited longest.
void Scheduler::ChooseDecodes() {
  decodes_.clear();
  const Sequence* first_waiting = FirstWaiting();
  bool prompts = first_waiting != nullptr && first_waiting != blocked_;
  waits_for_drafts_ = false;
  for (Sequence* s : running_) {
    if (!s->decodes()) {
      prompts = true;
    } else if (s->surely_ends() || s->pending_fork) {
      continue;
    } else if (WaitsForDraft(*s)) {
      waits_for_drafts_ = true;
    } else {
      decodes_.push_back(s);
    }
  }
  prefill_reserve_ = prompts ? options_.max_batch_rows / kPrefillShare : 0;
  decode_limit_ = std::max(1, options_.max_batch_rows - prefill_reserve_);
  if (static_cast<int32_t>(decodes_.size()) > decode_limit_) {
    std::ranges::stable_sort(decodes_, [](const Sequence* a, const Sequence* b) {
      return std::pair(-int64_t{a->priority}, a->last_step) <
             std::pair(-int64_t{b->priority}, b->last_step);
    });
  }
}

// One row's KV for everyone who gets rows. Who finds no room hands his row on: if all that were
// left waited for blocks of those without a row, nothing would ever run.
void Scheduler::MakeRoom() {
  int32_t ready = 0;
  int32_t chosen = 0;
  auto next = decodes_.begin();
  do {
    for (chosen = 0; next != decodes_.end() && ready + chosen < decode_limit_; ++next) {
      if (!(*next)->running()) continue;  // preempted meanwhile
      (*next)->chosen = true;
      ++chosen;
    }
    if (!MakeRoomInOrder(options_.max_batch_rows - ready - chosen)) return;
    ready = 0;
    for (const Sequence* s : running_) ready += s->chosen && s->ready;
  } while (chosen > 0);
}

// In rank order; not twice for the same. True if anybody found no room.
bool Scheduler::MakeRoomInOrder(int32_t prefill_rows) {
  bool stuck = false;
  for (size_t i = 0; i < running_.size(); ++i) {
    Sequence* s = running_[i];
    if (s->yields || s->ready || s->stuck) continue;
    if (!s->chosen) {
      if (s->prefill_left() == 0 || prefill_rows <= 0) continue;
      prefill_rows -= std::min(s->prefill_left(), options_.prefill_chunk);
    }
    s->ready = FindRoom(i);
    s->stuck = !s->ready;
    stuck |= s->stuck;
  }
  return stuck;
}

// Draft rows that the limits, the row budget and the pool allow behind its newest token.
int32_t Scheduler::MaxDrafts(const Sequence& s, int32_t rows_left, int32_t free_blocks) const {
  const int32_t context = DecodeContext(s);
  const int64_t slots =
      (static_cast<int64_t>(s.table.blocks.size()) + free_blocks) * info_.block_size;
  const int64_t most = std::min<int64_t>(
      {options_.max_drafts, rows_left, s.max_len - context - 2, slots - context - 1});
  return static_cast<int32_t>(std::max<int64_t>(0, most));
}

void Scheduler::PlanDecodes() {
  int32_t ready = 0;
  for (Sequence* s : running_) ready += s->chosen && s->ready;
  int32_t rows_left = options_.max_batch_rows - prefill_reserve_ - ready;
  const int32_t outstanding = OutstandingBlocks();
  for (Sequence* s : running_) {
    if (!s->chosen || !s->ready) continue;
    SpecProposal proposal;
    if (s->drafting) {
      const int32_t free_blocks = std::max(0, blocks_.num_available() - outstanding);
      const int32_t most = MaxDrafts(*s, rows_left, free_blocks);
      if (most > 0) proposal = ProposeDrafts(s, most);
    }
    const size_t rows = plan_.rows.size();
    AddDecodeSpan(s, std::move(proposal));
    rows_left -= static_cast<int32_t>(plan_.rows.size() - rows) - 1;
  }
}

// --- Prompts ---

// One chunk, or what of it fits. Returns its rows.
int32_t Scheduler::PlanPrefill(Sequence* s, int32_t rows_left) {
  const int64_t slots =
      (static_cast<int64_t>(s->table.blocks.size()) + blocks_.num_available()) * info_.block_size;
  const int32_t begin = s->planned_kv();
  const int32_t rows = static_cast<int32_t>(
      std::min<int64_t>({options_.prefill_chunk, s->prefill_left(), rows_left, slots - begin}));
  if (rows <= 0) return 0;
  CHECK(ReserveKv(s, begin, begin + rows));
  AddPrefillSpan(s, rows);
  return rows;
}

// Chunks of admitted prompts and admissions, merged in rank order.
void Scheduler::PlanPrefills(TimePoint now) {
  prefills_.clear();
  for (Sequence* s : running_) {
    if (s->prefill_left() > 0 && !s->yields) prefills_.push_back(s);
  }
  int32_t rows_left = options_.max_batch_rows - static_cast<int32_t>(plan_.rows.size());
  bool admits = !short_of_blocks_;
  for (size_t i = 0; rows_left > 0;) {
    Sequence* next = i < prefills_.size() ? prefills_[i] : nullptr;
    Sequence* newcomer = admits ? FirstWaiting() : nullptr;
    if (newcomer != nullptr && (next == nullptr || RanksBefore()(newcomer, next))) {
      admits = Admit(newcomer, now);
      if (admits) rows_left -= PlanPrefill(newcomer, rows_left);
    } else if (next != nullptr) {
      rows_left -= PlanPrefill(next, rows_left);
      ++i;
    } else {
      return;
    }
  }
}

}  // namespace paceline
