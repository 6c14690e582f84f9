// Digesting results: lengths, published blocks, deltas, ends.
#include <algorithm>
#include <utility>

#include "common/check.h"
#include "common/types/session_id.h"
#include "worker/engine/scheduler.h"

namespace paceline {
namespace {

std::vector<TokenLogprobs> LogprobsOf(const SlotResult& result) {
  std::vector<TokenLogprobs> logprobs(result.logprobs.size());
  for (size_t i = 0; i < logprobs.size(); ++i) {
    logprobs[i].logprob = result.logprobs[i];
    if (i >= result.top_logprobs.size()) continue;
    for (const auto& [token, logprob] : result.top_logprobs[i]) {
      logprobs[i].top.push_back({.token = token, .logprob = logprob});
    }
  }
  return logprobs;
}

}  // namespace

void Scheduler::Commit(const StepResult& result, TimePoint now) {
  CHECK(!flights_.empty());
  Flight flight = std::move(flights_.front());
  flights_.pop_front();
  CHECK_EQ(result.step, flight.step);
  done_step_ = flight.step;
  step_tokens_ = 0;
  for (const SlotResult& r : result.slots) {
    CHECK(r.slot >= 0 && r.slot < info_.max_slots) << "slot " << r.slot;
    result_of_slot_[r.slot] = &r;
  }
  for (const Part& part : flight.parts) {
    CHECK(result_of_slot_[part.slot] != nullptr) << "no result of slot " << part.slot;
    CommitPart(part, *result_of_slot_[part.slot], now);
  }
  for (const SlotResult& r : result.slots) result_of_slot_[r.slot] = nullptr;
  ClearGraves();
  ReportStep(flight, now);
  spare_flights_.push_back(std::move(flight));
}

void Scheduler::ReportStep(const Flight& flight, TimePoint now) {
  const Duration took = now - std::max(flight.launched, last_commit_);
  last_commit_ = now;
  const int32_t sequences = static_cast<int32_t>(flight.parts.size());
  probe_->StepDone(flight.phase, took, sequences, flight.rows, step_tokens_);
  speculator_->EndStep({.step = took,
                        .done = now,
                        .rows = flight.rows,
                        .context = flight.context,
                        .sequences = sequences});
}

void Scheduler::CommitPart(const Part& part, const SlotResult& result, TimePoint now) {
  Sequence* s = part.sequence;
  // Dropped, or ended in the step before: what its rows did is of no interest.
  if (s->state == SequenceState::kDone || s->draft_id.epoch != part.epoch) return;
  CHECK_EQ(result.span, part.span);
  --s->pending_steps;
  s->pending_rows -= part.rows;
  s->pending_written -= part.written;
  if (part.samples) s->pending_fork = false;  // not an earlier chunk of the leader's prompt
  if (!s->in_flight()) s->pending_sample = false;
  CHECK_EQ(!result.tokens.empty(), part.samples) << "slot " << result.slot;

  if (!part.prefill) {
    CHECK_EQ(result.context_len, s->kv_len) << "slot " << result.slot;
    s->kv_len += static_cast<int32_t>(result.tokens.size());
  } else if (!part.follows) {
    s->kv_len += part.rows;
  }
  s->tokens.insert(s->tokens.end(), result.tokens.begin(), result.tokens.end());
  if (part.samples) CHECK_EQ(s->kv_len, s->len() - 1) << "slot " << result.slot;
  blocks_.Publish(s->tokens, s->kv_len, s->request->request.cache_salt, &s->table);
  if (!s->in_flight()) blocks_.Shrink(&s->table, s->kv_len);
  SetLive(s);
  if (part.leads) ForkFollowers(*s);
  if (!part.samples) return;

  if (part.prefill && !part.follows) {
    probe_->PrefillDone(now - s->prefill_start, s->prefill_target - s->prefill_from);
  }
  Emit(s, result, now);
  if (part.prefill && s->finish == FinishReason::kNone) {
    s->state = SequenceState::kDecode;
    BeginDrafting(s);
  } else if (!part.prefill) {
    CountDrafts(part, result);
  }
  if (s->finish != FinishReason::kNone) FinishSequence(s, now);
}

// Committed entries, and those of committed tokens that plans in flight write: no drafts, which are
// waste until they are accepted. Near the sequence's end they may count rows that an end in flight
// will cancel: the table bounds them.
void Scheduler::SetLive(Sequence* s) {
  const int32_t capacity = static_cast<int32_t>(s->table.blocks.size()) * info_.block_size;
  blocks_.SetLive(&s->table, std::min(capacity, s->kv_len + s->pending_written));
}

// The leader's prompt is computed: those whose first token came from its last row share the blocks.
void Scheduler::ForkFollowers(const Sequence& leader) {
  for (const auto& sample : leader.request->samples) {
    if (sample.get() == &leader || !sample->pending_fork) continue;
    CHECK(sample->table.blocks.empty());
    sample->table = blocks_.Fork(leader.table);
    sample->kv_len = leader.kv_len;
  }
}

void Scheduler::Emit(Sequence* s, const SlotResult& result, TimePoint now) {
  RequestState* request = s->request;
  const int32_t count = static_cast<int32_t>(result.tokens.size());
  const int32_t first_index = s->len() - s->prompt_len - count;
  if (result.ended) {
    s->finish = FinishOf(s->tokens.back(), s->len() - s->prompt_len - 1, *request->sampling, info_);
    CHECK(s->finish != FinishReason::kNone)
        << "slot " << result.slot << " ended by token " << s->tokens.back();
  }
  request->usage.output_tokens += count;
  step_tokens_ += count;
  output_tokens_ += count;
  if (!request->first_token) {
    request->first_token = true;
    request->usage.first_token_time = now - request->submitted;
    probe_->FirstToken(request->usage.first_token_time);
  } else if (s->last_tokens != TimePoint{}) {
    probe_->NextTokens(now - s->last_tokens, count);
  }
  s->last_tokens = now;
  SampleDelta delta{.sample = s->sample,
                    .first_index = first_index,
                    .tokens = result.tokens,
                    .logprobs = LogprobsOf(result),
                    .finish = s->finish};
  output_.deltas.push_back({.request = request->handle, .delta = std::move(delta)});
}

// Gives up the slot and the place among those that run; the table stays.
void Scheduler::StopRunning(Sequence* s) {
  if (s->drafting) EndDrafting(s);
  const auto it = std::ranges::lower_bound(running_, s, RanksBefore());
  CHECK(it != running_.end() && *it == s);
  running_.erase(it);
  free_slots_.push_back(s->slot);
  s->slot = kNone;
  --s->request->running;
}

void Scheduler::FinishSequence(Sequence* s, TimePoint now) {
  RequestState* request = s->request;
  ReleaseSequence(s, now);
  if (--request->unfinished == 0) EndRequest(request, absl::OkStatus(), now);
}

void Scheduler::ReleaseSequence(Sequence* s, TimePoint now) {
  if (s->running()) {
    StopRunning(s);
    const std::string& session = s->request->request.session_id;
    if (!session.empty() && s->table.num_published > 0) {
      const auto ttl = SessionTimeToLive(session);
      blocks_.Tag(session, s->table, now + (ttl.has_value() ? *ttl : options_.session_ttl));
      sessions_changed_ = true;
    }
    if (Busy(*s)) {
      graves_.push_back({.step = std::max(s->last_step, s->request->copy_step),
                         .table = std::exchange(s->table, BlockTable{})});
    } else {
      blocks_.Release(&s->table);
    }
  } else if (s->state == SequenceState::kWaiting) {
    waiting_.erase(s);
  }
  s->state = SequenceState::kDone;
  blocked_ = nullptr;
}

void Scheduler::DropRequest(RequestState* request, absl::Status status, TimePoint now) {
  for (const auto& sample : request->samples) {
    if (sample->state != SequenceState::kDone) ReleaseSequence(sample.get(), now);
  }
  EndRequest(request, std::move(status), now);
}

// Its last word. Plans in flight may still point to its sequences.
void Scheduler::EndRequest(RequestState* request, absl::Status status, TimePoint now) {
  if (!request->admitted) --num_queued_;
  request->usage.total_time = now - request->submitted;
  probe_->RequestDone(request->usage, status.ok());
  output_.finished.push_back(
      {.request = request->handle, .status = std::move(status), .usage = request->usage});
  // The handle may be used again: a cancel is not for its next bearer.
  std::erase_if(cancels_, [&](const auto& cancel) { return cancel.first == request->handle; });
  const auto it = requests_.find(request->handle);
  graves_.push_back({.step = next_step_ - 1, .request = std::move(it->second)});
  requests_.erase(it);
}

void Scheduler::ClearGraves() {
  std::erase_if(graves_, [&](Grave& grave) {
    if (grave.step > done_step_) return false;
    blocks_.Release(&grave.table);
    return true;
  });
}

EngineOutput Scheduler::TakeOutput() { return std::exchange(output_, EngineOutput{}); }

void Scheduler::FillSnapshot(EngineSnapshot* snapshot) const {
  snapshot->running = static_cast<int32_t>(running_.size());
  snapshot->waiting = 0;
  snapshot->queued_prompt_tokens = 0;
  const RequestState* counted = nullptr;  // samples of a request are neighbours in rank
  for (const Sequence* s : waiting_) {
    snapshot->queued_prompt_tokens += s->len();
    if (s->request != counted && s->request->running == 0) ++snapshot->waiting;
    counted = s->request;
  }
  snapshot->kv = blocks_.occupancy();
  snapshot->num_blocks = info_.num_blocks;
  snapshot->block_size = info_.block_size;
  snapshot->live_slots = blocks_.live_slots();
  const int64_t slots = int64_t{snapshot->kv.active_blocks} * info_.block_size;
  snapshot->fragmentation =
      slots == 0 ? 0 : 1 - static_cast<double>(snapshot->live_slots) / static_cast<double>(slots);
  snapshot->kv_counters = blocks_.counters();
}

}  // namespace paceline
