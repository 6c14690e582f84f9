#include "worker/draft/draft_planner.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "common/check.h"
#include "worker/draft/row_shares.h"

namespace paceline {
namespace {

// A gap of so few rows is closed among the drafts.
constexpr int32_t kShortGap = 8;
// Part of a target's rows that drafts leave to catch-up.
constexpr int32_t kCatchUpShare = 4;

}  // namespace

DraftPlanner::DraftPlanner(const DraftEngineOptions& options, const RunnerInfo& info,
                           DraftPool* pool, const DraftPace* pace, SessionTable* table,
                           DraftEngineCounters* counters)
    : options_(options),
      info_(info),
      pool_(pool),
      pace_(pace),
      table_(table),
      counters_(counters),
      num_candidates_(std::min({options.max_candidates, info.vocab_size, kMaxGuessRanks})) {
  CHECK_GT(options_.max_batch_rows, 0);
  CHECK_GT(options_.prefill_chunk, 0);
}

// --- What there is to do ---

// Rows from the KV's end to the `samples` rows from position `first` on.
DraftPlanner::Work DraftPlanner::WorkUpTo(const DraftPath& path, int32_t first, int32_t samples,
                                          bool appends) {
  Work work;
  work.begin = std::min(path.kv_len, first);
  work.appends = appends;
  // Behind a gap, one sampled row: the gap's rows are not sampled, and a span that accepts would
  // have to sample all.
  work.sampled = work.begin < first ? 1 : samples;
  work.end = first + work.sampled;
  return work;
}

DraftPlanner::Work DraftPlanner::TrunkWork(const DraftSession& s) const {
  const DraftPath& trunk = *s.trunk;
  if (s.base_len() >= s.limit) return {};
  if (s.enumerates()) {
    const int32_t missing = OutcomePositions(s) - trunk.num_candidates();
    if (missing > 0) {
      return WorkUpTo(trunk, trunk.start - 1 + trunk.num_candidates(), missing, false);
    }
  } else if (static_cast<int32_t>(trunk.drafts.size()) < s.want_len && !trunk.ended &&
             trunk.len() < s.limit) {
    return WorkUpTo(trunk, trunk.len() - 1, 1, true);
  }
  const int32_t newest = s.base_len() - 1;  // its row waits until somebody wants what follows
  return {.begin = trunk.kv_len, .end = std::max(trunk.kv_len, newest)};
}

DraftPlanner::Work DraftPlanner::BranchWork(const DraftSession& s,
                                            const OutcomeBranch& branch) const {
  const DraftPath& path = *branch.path;
  if (path.ended || path.len() >= s.limit ||
      static_cast<int32_t>(path.drafts.size()) >= s.want_len) {
    return {};
  }
  return WorkUpTo(path, path.len() - 1, 1, true);
}

bool DraftPlanner::IsShort(const Work& work) { return work.rows() - work.sampled <= kShortGap; }

void DraftPlanner::ChooseOutcomes(DraftSession* s, TimePoint now) {
  const DraftPath& trunk = *s->trunk;
  const int32_t positions = OutcomePositions(*s);
  if (!s->enumerates() || s->ranked || positions == 0) return;
  if (trunk.num_candidates() < positions - 1) return;
  const auto in_flight = static_cast<int32_t>(s->in_flight.size());
  std::vector<int32_t> draft_ranks;
  for (int32_t i = 0; i < std::min(positions, in_flight); ++i) {
    if (i == trunk.num_candidates()) return;  // the last position's draft is not ranked yet
    const auto& candidates = trunk.candidates[i];
    const auto it = std::ranges::find(candidates, s->in_flight[i]);
    draft_ranks.push_back(it == candidates.end() ? kNone
                                                 : static_cast<int32_t>(it - candidates.begin()));
  }
  s->outcomes = RankOutcomes(draft_ranks, positions > in_flight, s->agreement.value(),
                             table_->ranks(), num_candidates_, s->want_branches);
  const int32_t chosen = pace_->NumOutcomes({.interval = s->step,
                                             .left = s->heard_at + s->step - now,
                                             .positions = positions,
                                             .want_len = s->want_len,
                                             .sessions = table_->enumerating()},
                                            s->outcomes, s->agreement.value());
  counters_->outcomes_spared += s->outcomes.size() - static_cast<size_t>(chosen);
  s->outcomes.resize(chosen);
  s->ranked = true;
}

void DraftPlanner::ListDemands(TimePoint now) {
  demands_.clear();
  table_->SetEnumerating(static_cast<int32_t>(std::ranges::count_if(
      table_->active(), [](const DraftSession* s) { return s->want_len > 0; })));
  std::erase_if(table_->active(), [&](DraftSession* s) {
    ChooseOutcomes(s, now);
    Demand demand{.session = s};
    const Work trunk = TrunkWork(*s);
    (IsShort(trunk) ? demand.drafts : demand.catch_up) += trunk.rows();
    demand.drafts += static_cast<int32_t>(s->outcomes.size());
    for (const OutcomeBranch& branch : s->branches) demand.drafts += BranchWork(*s, branch).rows();
    demand.catch_up = std::min(demand.catch_up, options_.prefill_chunk);
    if (s->blocked || demand.drafts + demand.catch_up == 0) {
      s->active = false;
      return true;
    }
    demands_.push_back(demand);
    return false;
  });
  std::ranges::sort(demands_, {}, [](const Demand& d) {
    const DraftSession& s = *d.session;
    return std::tuple(s.target, -int64_t{s.priority}, s.want_len == 0, s.deadline, s.heard);
  });
}

// --- The plan ---

const StepPlan& DraftPlanner::Plan(TimePoint now) {
  plan_ = StepPlan{};
  plan_.step = next_step_;
  ++turn_;
  parts_.clear();
  sessions_.clear();
  ListDemands(now);
  // Demands of a target lie together.
  std::vector<std::span<const Demand>> targets;
  std::vector<int32_t> wanted;
  for (size_t begin = 0; begin < demands_.size();) {
    size_t end = begin;
    int64_t rows = 0;
    while (end < demands_.size() &&
           demands_[end].session->target == demands_[begin].session->target) {
      rows += demands_[end].drafts + demands_[end].catch_up;
      ++end;
    }
    targets.push_back(std::span(demands_).subspan(begin, end - begin));
    wanted.push_back(static_cast<int32_t>(std::min<int64_t>(rows, options_.max_batch_rows)));
    begin = end;
  }
  const std::vector<int32_t> shares = FairShares(wanted, options_.max_batch_rows);
  // Nobody is always the last to take slots and blocks.
  const size_t first = targets.empty() ? 0 : turn_ % targets.size();
  for (size_t i = 0; i < targets.size(); ++i) {
    const size_t t = (first + i) % targets.size();
    PlanTarget(targets[t], shares[t]);
  }
  if (!plan_.empty()) ++next_step_;
  return plan_;
}

void DraftPlanner::PlanTarget(std::span<const Demand> demands, int32_t rows) {
  int64_t catch_up = 0;
  for (const Demand& demand : demands) catch_up += demand.catch_up;
  const auto kept =
      static_cast<int32_t>(std::min<int64_t>(catch_up, (rows + kCatchUpShare - 1) / kCatchUpShare));
  int32_t left = rows - kept;
  for (const Demand& demand : demands) {
    if (demand.drafts > 0 && left > 0) left -= PlanDrafts(demand.session, left);
  }
  left += kept;
  for (const Demand& demand : demands) {
    if (demand.catch_up == 0 || left <= 0) continue;
    const int32_t most = std::min(left, options_.prefill_chunk);
    left -= PlanPath(demand.session, nullptr, TrunkWork(*demand.session), most);
  }
}

int32_t DraftPlanner::PlanDrafts(DraftSession* s, int32_t rows) {
  int32_t used = 0;
  if (const Work trunk = TrunkWork(*s); trunk.rows() > 0 && IsShort(trunk)) {
    used += PlanPath(s, nullptr, trunk, rows);
  }
  for (const OutcomeBranch& branch : s->branches) {
    if (used >= rows) break;
    used += PlanPath(s, &branch, BranchWork(*s, branch), rows - used);
  }
  return used + BeginBranches(s, rows - used);
}

// Begins branches for chosen outcomes whose next token is known.
int32_t DraftPlanner::BeginBranches(DraftSession* s, int32_t rows) {
  int32_t used = 0;
  std::erase_if(s->outcomes, [&](const Outcome& outcome) {
    const DraftPath& trunk = *s->trunk;
    if (outcome.accepted >= trunk.num_candidates() || used >= rows || s->blocked) {
      return false;
    }
    const auto& candidates = trunk.candidates[outcome.accepted];
    if (outcome.rank >= static_cast<int32_t>(candidates.size())) return true;
    const TokenId next = candidates[outcome.rank];
    const bool known = std::ranges::any_of(s->branches, [&](const OutcomeBranch& b) {
      return b.accepted == outcome.accepted && b.next == next;
    });
    if (known || IsStop(*s, next) ||
        static_cast<int32_t>(s->branches.size()) >= options_.max_branches) {
      return true;
    }
    const int32_t prefix = s->base_len() + outcome.accepted;
    if (trunk.kv_len < prefix) return false;
    OutcomeBranch branch{
        .accepted = outcome.accepted, .next = next, .path = pool_->Fork(trunk, prefix)};
    branch.path->start = prefix + 1;
    const int32_t planned = PlanPath(s, &branch, BranchWork(*s, branch), rows - used);
    if (planned == 0) {  // slots or blocks are short
      pool_->Release(branch.path.get());
      return false;
    }
    used += planned;
    s->branches.push_back(std::move(branch));
    ++counters_->branches;
    return true;
  });
  return used;
}

// At most `rows` rows of the work; returns how many were planned.
int32_t DraftPlanner::PlanPath(DraftSession* s, const OutcomeBranch* branch, Work work,
                               int32_t rows) {
  if (work.rows() <= 0 || rows <= 0 || s->blocked) return 0;
  DraftPath* path = branch == nullptr ? s->trunk.get() : branch->path.get();
  const int32_t first_sampled = work.end - work.sampled;
  if (path->kv_len == 0 && path->table.blocks.empty()) {
    StartPath(s, path);
    work.begin = std::min(path->kv_len, first_sampled);
    if (work.rows() == 0) return 0;
  }
  pool_->Truncate(path, work.begin);
  if (work.rows() > rows) {
    work.end = work.begin + rows;
    work.sampled = std::max(0, work.end - first_sampled);
  }
  const int32_t blocks = pool_->BlocksNeeded(*path, work.rows());
  if (!table_->MakeRoom(s, blocks, turn_) || !pool_->TakeSlot(path, turn_)) return 0;
  pool_->Reserve(path, work.rows(), &plan_.copies);
  AddSpan(s, branch, work);
  return work.rows();
}

// A path without KV takes what the prefix cache has of the committed tokens.
void DraftPlanner::StartPath(DraftSession* s, DraftPath* path) {
  path->kv_len = pool_->blocks().MatchPrefix(s->tokens, s->salt, &path->table);
  table_->HoldsKv(s);
}

void DraftPlanner::AddSpan(DraftSession* s, const OutcomeBranch* branch, const Work& work) {
  DraftPath* path = branch == nullptr ? s->trunk.get() : branch->path.get();
  const int32_t first_sampled = work.end - work.sampled;
  // The slot draws behind its newest token, which is that of the first sampled row. Without samples
  // anything does that the rows agree with.
  const int32_t slot_len = work.sampled > 0 ? first_sampled + 1 : std::max(1, path->slot_len);
  if (path->slot_len != slot_len) {
    plan_.binds.push_back({.slot = path->slot,
                           .sampling = s->sampling,
                           .sample = s->sample,
                           .prompt_len = std::min(s->prompt_len, slot_len),
                           .tokens = PathTokens(*s, branch, slot_len)});
    path->slot_len = slot_len;
  }
  const bool accepts = work.sampled > 1;
  if (accepts) CHECK_EQ(work.sampled, work.rows());
  Span& span = plan_.spans.emplace_back();
  span.slot = path->slot;
  span.kind = SpanKind::kPrefill;
  if (work.sampled == work.rows()) span.kind = accepts ? SpanKind::kVerify : SpanKind::kDecode;
  span.accept = accepts;
  span.row_begin = static_cast<int32_t>(plan_.rows.size());
  span.num_rows = work.rows();
  span.context_len = work.begin;
  span.table_begin = static_cast<int32_t>(plan_.block_tables.size());
  span.table_len = (work.end + info_.block_size - 1) / info_.block_size;
  const auto& blocks = path->table.blocks;
  plan_.block_tables.insert(plan_.block_tables.end(), blocks.begin(),
                            blocks.begin() + span.table_len);
  for (int32_t i = work.begin; i < work.end; ++i) {
    plan_.rows.push_back(
        {.token = PathToken(*s, branch, i), .position = i, .parent = i - work.begin - 1});
    if (i < first_sampled) continue;
    plan_.sample_rows.push_back({.row = static_cast<int32_t>(plan_.rows.size()) - 1,
                                 .slot = path->slot,
                                 .num_candidates = s->enumerates() ? num_candidates_ : 0});
  }
  s->planned = turn_;
  if (parts_.empty() || parts_.back().session != s) sessions_.push_back(s);
  parts_.push_back({.session = s, .path = path, .work = work});
}

// --- The result ---

void DraftPlanner::Digest(const StepResult& result) {
  CHECK_EQ(result.step, plan_.step);
  CHECK_EQ(result.slots.size(), parts_.size());
  for (const SlotResult& r : result.slots) {
    CHECK(r.span >= 0 && r.span < static_cast<int32_t>(parts_.size()));
    DigestPart(parts_[r.span], r);
  }
  for (DraftSession* s : sessions_) {
    DraftPath* trunk = s->trunk.get();
    const int32_t committed = std::min(trunk->kv_len, s->base_len());
    pool_->blocks().Publish(s->tokens, committed, s->salt, &trunk->table);
    pool_->blocks().SetLive(&trunk->table, committed);
  }
}

void DraftPlanner::DigestPart(const Part& part, const SlotResult& r) {
  DraftPath* path = part.path;
  const Work& work = part.work;
  CHECK_EQ(r.rows_run, work.rows()) << "slot " << r.slot;
  path->kv_len = work.end;
  counters_->rows += work.rows();
  (IsShort(work) ? counters_->draft_rows : counters_->prefill_rows) += work.rows();
  if (work.sampled == 0) return;
  CHECK(!r.tokens.empty());
  // Behind drafts that were made without candidates there is no place for more.
  if (!work.appends || path->num_candidates() == static_cast<int32_t>(path->drafts.size())) {
    path->candidates.insert(path->candidates.end(), r.candidates.begin(), r.candidates.end());
  }
  if (!work.appends) {
    path->slot_len = 0;  // what the slot has drawn need not be what is in flight
    return;
  }
  path->drafts.push_back(r.tokens.front());
  path->ended = r.ended;
  path->slot_len = r.ended ? 0 : path->len();
  part.session->changed = true;
}

}  // namespace paceline
