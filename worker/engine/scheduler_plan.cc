// Building the plan: spans, rows and sample rows of the sequences that Schedule has chosen.
#include <algorithm>
#include <utility>

#include "common/check.h"
#include "worker/engine/scheduler.h"

namespace paceline {
namespace {

SpecSequence SpecOf(const Sequence& s) {
  const RequestState& request = *s.request;
  return SpecSequence{.id = s.draft_id,
                      .tokens = s.tokens,
                      .prompt_len = s.prompt_len,
                      .max_len = s.max_len,
                      .sample = s.sample,
                      .mode = request.request.decoding,
                      .strategy = request.request.draft_strategy,
                      .draft_len = request.request.draft_len,
                      .sampling = request.sampling.get(),
                      .priority = s.priority,
                      .cache_salt = request.request.cache_salt};
}

// Leading tokens that are ids of the model, at most `limit`: a proposal is not trusted.
int32_t Usable(const std::vector<TokenId>& tokens, int32_t limit, int32_t vocab_size) {
  const int32_t most = std::min(limit, static_cast<int32_t>(tokens.size()));
  int32_t n = 0;
  while (n < most && tokens[n] >= 0 && tokens[n] < vocab_size) ++n;
  return n;
}

// Cuts a host-known proposal down to its usable rows.
void CutDrafts(SpecProposal* p, int32_t max_drafts, int32_t vocab_size) {
  p->branches.clear();
  p->tokens.resize(Usable(p->tokens, max_drafts, vocab_size));
  if (p->parents.empty()) return;
  p->parents.resize(p->tokens.size(), kNone);
  for (int32_t i = 0; i < static_cast<int32_t>(p->parents.size()); ++i) {
    if (p->parents[i] >= kNone && p->parents[i] < i) continue;
    p->parents.resize(i);
    p->tokens.resize(i);
  }
}

void CutBranches(SpecProposal* p, int32_t max_drafts, int32_t vocab_size) {
  p->tokens.clear();
  p->parents.clear();
  for (PlannedBranch& b : p->branches) {
    b.tokens.resize(Usable(b.tokens, max_drafts, vocab_size));
  }
  std::erase_if(p->branches, [](const PlannedBranch& b) { return b.tokens.empty(); });
}

int32_t LongestBranch(const std::vector<PlannedBranch>& branches) {
  size_t most = 0;
  for (const PlannedBranch& b : branches) most = std::max(most, b.tokens.size());
  return static_cast<int32_t>(most);
}

bool IsChain(const std::vector<int32_t>& parents) {
  for (int32_t i = 0; i < static_cast<int32_t>(parents.size()); ++i) {
    if (parents[i] != i - 1) return false;
  }
  return true;
}

}  // namespace

SpecProposal Scheduler::ProposeDrafts(Sequence* s, int32_t max_drafts) {
  const bool ahead = s->in_flight();
  SpecProposal proposal = speculator_->Propose(SpecOf(*s), max_drafts, ahead);
  if (ahead) {
    CutBranches(&proposal, max_drafts, info_.vocab_size);
  } else {
    CutDrafts(&proposal, max_drafts, info_.vocab_size);
  }
  return proposal;
}

bool Scheduler::WaitsForDraft(const Sequence& s) const {
  return s.drafting && !s.in_flight() && speculator_->WantsToWait(SpecOf(s));
}

void Scheduler::TakeSlot(Sequence* s) {
  CHECK(!free_slots_.empty());
  s->slot = free_slots_.back();
  free_slots_.pop_back();
  s->state = SequenceState::kPrefill;
  s->chosen = s->ready = s->stuck = s->yields = false;
  running_.insert(std::ranges::upper_bound(running_, s, RanksBefore()), s);
  ++s->request->running;
  plan_.binds.push_back({.slot = s->slot,
                         .sampling = s->request->sampling,
                         .sample = s->sample,
                         .prompt_len = s->prompt_len,
                         .tokens = s->tokens});
}

// Appends a span with its rows, chained and without tokens; returns its index.
int32_t Scheduler::AddSpan(Sequence* s, SpanKind kind, int32_t context_len, int32_t num_rows) {
  Span& span = plan_.spans.emplace_back();
  span.slot = s->slot;
  span.kind = kind;
  span.row_begin = static_cast<int32_t>(plan_.rows.size());
  span.num_rows = num_rows;
  span.context_len = context_len;
  span.table_begin = static_cast<int32_t>(plan_.block_tables.size());
  span.table_len = (context_len + num_rows + info_.block_size - 1) / info_.block_size;
  CHECK_LE(span.table_len, static_cast<int64_t>(s->table.blocks.size()));
  plan_.block_tables.insert(plan_.block_tables.end(), s->table.blocks.begin(),
                            s->table.blocks.begin() + span.table_len);
  for (int32_t r = 0; r < num_rows; ++r) {
    plan_.rows.push_back({.position = context_len + r, .parent = r - 1});
  }
  return static_cast<int32_t>(plan_.spans.size()) - 1;
}

// The newest token, known or in flight, and the drafts behind it.
void Scheduler::AddDecodeSpan(Sequence* s, SpecProposal proposal) {
  const bool ahead = s->in_flight();
  const int32_t context = DecodeContext(*s);
  const int32_t drafts =
      ahead ? LongestBranch(proposal.branches) : static_cast<int32_t>(proposal.tokens.size());
  const int32_t num_rows = 1 + drafts;
  if (drafts > 0) CHECK(ReserveKv(s, context, context + num_rows));
  const int32_t index =
      AddSpan(s, drafts > 0 ? SpanKind::kVerify : SpanKind::kDecode, context, num_rows);
  Span& span = plan_.spans[index];
  span.accept = true;
  span.from_slot = ahead;
  for (int32_t r = 0; r < num_rows; ++r) {
    plan_.sample_rows.push_back({.row = span.row_begin + r, .slot = s->slot});
  }
  Row* rows = plan_.rows.data() + span.row_begin;
  if (ahead) {
    span.branches = std::move(proposal.branches);
  } else {
    CHECK_EQ(context, s->len() - 1);
    rows[0].token = s->tokens.back();
    for (int32_t i = 0; i < drafts; ++i) rows[i + 1].token = proposal.tokens[i];
    if (!proposal.parents.empty() && !IsChain(proposal.parents)) {
      span.mask = SpanMask::kTree;
      for (int32_t i = 0; i < drafts; ++i) {
        rows[i + 1].parent = proposal.parents[i] + 1;
        rows[i + 1].position = rows[rows[i + 1].parent].position + 1;
      }
    }
  }
  AddPart(s, {.span = index,
              .rows = num_rows,
              .written = 1,
              .drafts = drafts,
              .samples = true,
              .from_slot = ahead,
              .source = drafts > 0 ? proposal.source : ProposalSource::kNoProposal});
}

// The next rows of a prompt (and of output to recompute); the last one samples.
void Scheduler::AddPrefillSpan(Sequence* s, int32_t num_rows) {
  const int32_t context = s->planned_kv();
  const bool last = num_rows == s->prefill_left();
  const int32_t index = AddSpan(s, SpanKind::kPrefill, context, num_rows);
  Row* rows = plan_.rows.data() + plan_.spans[index].row_begin;
  for (int32_t r = 0; r < num_rows; ++r) rows[r].token = s->tokens[context + r];
  const Part part{
      .span = index, .rows = num_rows, .written = num_rows, .prefill = true, .samples = last};
  const size_t place = plan_flight_.parts.size();
  AddPart(s, part);
  if (!last) return;
  plan_.sample_rows.push_back(
      {.row = static_cast<int32_t>(plan_.rows.size()) - 1, .slot = s->slot});
  if (s->request->leader == s && AddFollowers(s, index)) {
    s->pending_fork = true;
    plan_flight_.parts[place].leads = true;
  }
}

// Samples without output of their own take their first token from the leader's last row; where
// slots are short they queue and prefill for themselves.
bool Scheduler::AddFollowers(Sequence* leader, int32_t span) {
  bool any = false;
  leader->request->leader = nullptr;
  for (const auto& sample : leader->request->samples) {
    Sequence* s = sample.get();
    if (s->state != SequenceState::kFollower) continue;
    s->tokens = leader->request->request.prompt;
    if (free_slots_.empty()) {
      s->state = SequenceState::kWaiting;
      waiting_.insert(s);
      continue;
    }
    any = true;
    TakeSlot(s);
    s->prefill_target = 0;
    s->pending_fork = true;
    plan_.sample_rows.push_back(
        {.row = static_cast<int32_t>(plan_.rows.size()) - 1, .slot = s->slot});
    AddPart(s, {.span = span, .prefill = true, .samples = true, .follows = true});
  }
  return any;
}

void Scheduler::AddPart(Sequence* s, const Part& part) {
  Part& added = plan_flight_.parts.emplace_back(part);
  added.sequence = s;
  added.epoch = s->draft_id.epoch;
  added.slot = s->slot;
  ++s->pending_steps;
  s->pending_rows += part.rows;
  s->pending_written += part.written;
  s->pending_drafts = part.drafts;
  s->pending_sample = part.samples;
  s->last_step = plan_.step;
  if (!part.follows) SetLive(s);
}

void Scheduler::Launched(TimePoint now) {
  CHECK(!plan_.empty());
  next_step_ = plan_.step + 1;
  Flight& flight = plan_flight_;
  flight.step = plan_.step;
  flight.launched = now;
  flight.rows = static_cast<int32_t>(plan_.rows.size());
  flight.context = 0;
  for (const Span& span : plan_.spans) flight.context += span.context_len + span.num_rows;
  bool prefill = false, decode = false, verify = false;
  for (const Span& span : plan_.spans) {
    prefill |= span.kind == SpanKind::kPrefill;
    decode |= span.kind != SpanKind::kPrefill;
    verify |= span.kind == SpanKind::kVerify;
  }
  flight.phase = prefill && decode ? StepPhase::kMixed
                 : prefill         ? StepPhase::kPrefill
                 : verify          ? StepPhase::kVerify
                                   : StepPhase::kDecode;
  for (const Part& part : flight.parts) {
    if (!part.prefill && part.sequence->drafting) TellInFlight(part);
  }
  speculator_->EndLaunch();
  flights_.push_back(std::move(plan_flight_));
  plan_flight_ = Flight{};
  if (!spare_flights_.empty()) {
    plan_flight_ = std::move(spare_flights_.back());
    spare_flights_.pop_back();
  }
}

// The drafts in flight, of a tree the path of first children.
void Scheduler::TellInFlight(const Part& part) {
  const Span& span = plan_.spans[part.span];
  in_flight_tokens_.clear();
  if (!part.from_slot) {
    for (int32_t at = 0, r = 1; r < span.num_rows; ++r) {
      const Row& row = plan_.rows[span.row_begin + r];
      if (row.parent != at) continue;
      in_flight_tokens_.push_back(row.token);
      at = r;
    }
  }
  speculator_->Launched(SpecOf(*part.sequence), in_flight_tokens_);
}

void Scheduler::BeginDrafting(Sequence* s) {
  if (s->request->request.decoding == DecodingMode::kPlain) return;
  s->drafting = true;
  speculator_->Begin(SpecOf(*s));
}

void Scheduler::EndDrafting(Sequence* s) {
  if (!s->drafting) return;
  s->drafting = false;
  speculator_->End(s->draft_id);
}

void Scheduler::CountDrafts(const Part& part, const SlotResult& result) {
  Sequence* s = part.sequence;
  if (result.drafted > 0) {
    s->request->usage.drafted_tokens += result.drafted;
    s->request->usage.accepted_tokens += result.accepted;
    probe_->Verified(part.source, result.drafted, result.accepted);
  }
  if (!s->drafting) return;
  SpecOutcome outcome;
  outcome.id = s->draft_id;
  outcome.source = result.drafted > 0 ? part.source : ProposalSource::kNoProposal;
  outcome.drafted = result.drafted;
  outcome.accepted = result.accepted;
  outcome.base_len = s->len();
  outcome.new_tokens = std::span(s->tokens).last(result.tokens.size());
  speculator_->Committed(SpecOf(*s), outcome);
}

}  // namespace paceline
