#include "worker/draft/session_table.h"

#include <algorithm>
#include <utility>

#include "common/check.h"
#include "common/hash.h"

namespace paceline {
namespace {

constexpr size_t kMaxSaltBytes = 256;
constexpr size_t kMaxInFlight = 256;  // drafts of one verify: more is nonsense
constexpr double kIntervalWeight = 0.2;

// The newest gap, smoothed with those before it.
Duration Smoothed(Duration average, Duration gap) {
  if (average == Duration{}) return gap;
  return average + Seconds(kIntervalWeight * ToSeconds(gap - average));
}

// Epochs wrap around.
bool Older(uint32_t a, uint32_t b) { return static_cast<int32_t>(a - b) < 0; }

// Calls use(block) for every block of every path, shared ones as often as they are shared.
template <typename Use>
void ForEachBlock(const DraftSession& s, Use use) {
  for (BlockId b : s.trunk->table.blocks) use(b);
  for (const OutcomeBranch& branch : s.branches) {
    for (BlockId b : branch.path->table.blocks) use(b);
  }
}

}  // namespace

size_t SessionTable::KeyHasher::operator()(const Key& key) const {
  return HashCombine(key.target, key.session);
}

SessionTable::SessionTable(const DraftEngineOptions& options, const RunnerInfo& info,
                           const DraftPace* pace, DraftPool* pool, DraftEngineCounters* counters,
                           DraftOutbox* outbox)
    : options_(options),
      info_(info),
      pace_(pace),
      pool_(pool),
      counters_(counters),
      outbox_(outbox),
      references_(info.num_blocks, 0) {}

SessionTable::~SessionTable() = default;

void SessionTable::Apply(TargetId target, TargetFrame frame, TimePoint now) {
  for (DraftOpen& open : frame.opens) Open(target, std::move(open), now);
  for (DraftCommit& commit : frame.commits) Commit(target, std::move(commit), now);
  for (const DraftClose& close : frame.closes) Close(target, close);
}

bool SessionTable::InVocab(std::span<const TokenId> tokens) const {
  return std::ranges::all_of(tokens, [&](TokenId t) { return t >= 0 && t < info_.vocab_size; });
}

void SessionTable::Nack(TargetId target, const DraftSessionId& id, DraftNackReason reason,
                        int32_t have_len) {
  ++counters_->nacks;
  if (reason == DraftNackReason::kInvalid) ++counters_->invalid;
  outbox_->Nack(target, {.id = id, .reason = reason, .have_len = have_len});
}

void SessionTable::Activate(DraftSession* s) {
  if (s->active) return;
  s->active = true;
  active_.push_back(s);
}

// The target is alive and cares for this session.
void SessionTable::Hear(DraftSession* s, TimePoint now) {
  const bool holds = holders_.erase({s->heard, s}) > 0;
  s->heard = next_heard_++;
  if (holds) holders_.insert({s->heard, s});
  if (s->heard_at != TimePoint{}) {
    s->interval = Smoothed(s->interval, now - s->heard_at);
  }
  s->heard_at = now;
  s->blocked = false;
  s->deadline = now + s->interval;
}

// --- Open ---

int32_t SessionTable::NumSessions(TargetId target) const {
  const auto it = per_target_.find(target);
  return it == per_target_.end() ? 0 : it->second;
}

// What could not be served, said to the target.
bool SessionTable::Refuses(TargetId target, const DraftOpen& open) {
  const auto size = static_cast<int64_t>(open.tokens.size());
  if (open.prompt_len < 1 || open.prompt_len > size || open.max_len < size || open.sample < 0 ||
      open.cache_salt.size() > kMaxSaltBytes || !InVocab(open.tokens) ||
      !ValidateSamplingParams(open.sampling, info_.vocab_size).ok()) {
    Nack(target, open.id, DraftNackReason::kInvalid);
    return true;
  }
  if (size >= info_.max_context || size >= int64_t{info_.num_blocks} * info_.block_size) {
    Nack(target, open.id, DraftNackReason::kEvicted);  // no place for it, now or later
    return true;
  }
  if (sessions_.contains({target, open.id.session}) ||
      (size_t(options_.max_sessions) > sessions_.size() &&
       NumSessions(target) < options_.max_sessions_per_target)) {
    return false;
  }
  Nack(target, open.id, DraftNackReason::kOverloaded);
  return true;
}

// A repeated open of what has gone on since.
bool SessionTable::AddsNothing(const DraftSession& s, const DraftOpen& open) const {
  return s.id == open.id && open.tokens.size() <= s.tokens.size() &&
         std::equal(open.tokens.begin(), open.tokens.end(), s.tokens.begin());
}

void SessionTable::Open(TargetId target, DraftOpen open, TimePoint now) {
  ++counters_->opens;
  const auto it = sessions_.find({target, open.id.session});
  if (it != sessions_.end()) {
    if (Older(open.id.epoch, it->second->id.epoch) || AddsNothing(*it->second, open)) {
      ++counters_->stale;
      return;
    }
  }
  if (Refuses(target, open)) {
    // The target has given up what was known before.
    if (it != sessions_.end()) Drop(it);
    return;
  }
  DraftSession* s = nullptr;
  if (it != sessions_.end()) {
    s = it->second.get();
  } else {
    auto& added = sessions_[{target, open.id.session}];
    added = std::make_unique<DraftSession>();
    s = added.get();
    s->target = target;
    ++per_target_[target];
  }
  Reset(s, std::move(open));
  Hear(s, now);
  Activate(s);
}

// Takes all that the open says; KV of tokens that are the same as before stays.
void SessionTable::Reset(DraftSession* s, DraftOpen open) {
  DropBranches(s, pool_);
  DraftPath* trunk = s->trunk.get();
  if (s->salt != open.cache_salt) {
    holders_.erase({s->heard, s});
    ReleasePaths(s, pool_);
  }
  const auto size = static_cast<int32_t>(open.tokens.size());
  std::vector<TokenId> known = std::move(s->tokens);
  known.insert(known.end(), trunk->drafts.begin(), trunk->drafts.end());
  const auto same =
      static_cast<int32_t>(std::ranges::mismatch(open.tokens, known).in1 - open.tokens.begin());
  trunk->drafts.clear();
  trunk->candidates.clear();
  trunk->ended = false;
  trunk->slot_len = 0;
  trunk->start = size;
  pool_->Truncate(trunk, same);

  s->id = open.id;
  s->sample = open.sample;
  s->prompt_len = open.prompt_len;
  s->max_len = open.max_len;
  const int64_t longest = int64_t{open.prompt_len} + open.sampling.max_tokens;
  s->limit = static_cast<int32_t>(std::min<int64_t>({open.max_len, longest, info_.max_context}));
  s->priority = open.priority;
  s->salt = std::move(open.cache_salt);
  s->hash = HashTokens(open.tokens);
  s->tokens = std::move(open.tokens);
  s->stop_ids = open.sampling.stop_token_ids;
  if (!open.sampling.ignore_eos) {
    s->stop_ids.insert(s->stop_ids.end(), info_.eos_token_ids.begin(), info_.eos_token_ids.end());
  }
  open.sampling.top_logprobs = -1;  // nobody reads them here
  s->sampling = std::make_shared<const SamplingParams>(std::move(open.sampling));
  s->in_flight.clear();
  s->want_len = s->want_branches = 0;
  s->sent = 0;
  s->changed = false;
}

// --- Commit ---

bool SessionTable::IsSound(const DraftSession& s, const DraftCommit& c) const {
  return c.base_len >= 1 && c.base_len <= s.max_len && c.want_len >= 0 && c.want_branches >= 0 &&
         c.new_tokens.size() <= static_cast<size_t>(c.base_len) &&
         c.in_flight.size() <= kMaxInFlight && InVocab(c.new_tokens) && InVocab(c.in_flight);
}

bool SessionTable::Continues(const DraftSession& s, const DraftCommit& c,
                             std::span<const TokenId>* added) const {
  const int32_t begin = c.base_len - static_cast<int32_t>(c.new_tokens.size());
  if (begin > s.base_len()) return false;
  const int32_t overlap = s.base_len() - begin;
  if (!std::equal(c.new_tokens.begin(), c.new_tokens.begin() + overlap, s.tokens.begin() + begin)) {
    return false;
  }
  *added = std::span(c.new_tokens).subspan(overlap);
  return HashTokens(*added, s.hash) == c.prefix_hash;
}

void SessionTable::Commit(TargetId target, DraftCommit commit, TimePoint now) {
  ++counters_->commits;
  const auto it = sessions_.find({target, commit.id.session});
  if (it == sessions_.end()) return Nack(target, commit.id, DraftNackReason::kEvicted);
  DraftSession* s = it->second.get();
  if (Older(commit.id.epoch, s->id.epoch)) {
    ++counters_->stale;
    return;
  }
  if (s->id.epoch != commit.id.epoch) {  // its open was lost
    Drop(it);
    return Nack(target, commit.id, DraftNackReason::kEvicted);
  }
  if (!IsSound(*s, commit)) {
    Drop(it);
    return Nack(target, commit.id, DraftNackReason::kInvalid);
  }
  if (commit.base_len < s->base_len()) {
    ++counters_->stale;
    return;
  }
  std::span<const TokenId> added;
  if (!Continues(*s, commit, &added)) {
    return Nack(target, commit.id, DraftNackReason::kNeedSync, s->base_len());
  }
  if (commit.base_len >= info_.max_context) {
    Drop(it);
    return Nack(target, commit.id, DraftNackReason::kEvicted);
  }
  Hear(s, now);
  if (!added.empty()) {
    const RebaseOutcome outcome = Rebase(s, added, pool_, &ranks_);
    if (s->grew_at != TimePoint{}) s->step = Smoothed(s->step, now - s->grew_at);
    s->grew_at = now;
    counters_->chain_kept += outcome.drafts_kept;
    if (outcome.enumerated) ++(outcome.hit ? counters_->branch_hits : counters_->branch_misses);
  }
  Want(s, std::move(commit));
  s->heard_now = true;
  Activate(s);
}

// An enumeration that would come too late is answered by a chain, which may reach over what is
// verified.
void SessionTable::Want(DraftSession* s, DraftCommit c) {
  const auto in_flight = static_cast<int32_t>(c.in_flight.size());
  int32_t branches = std::min(c.want_branches, options_.max_branches);
  if (c.want_len > 0 && branches > 0 &&
      !pace_->CanEnumerate(
          {.interval = s->step, .positions = in_flight + 1, .sessions = enumerating()})) {
    ++counters_->chains_instead;
    branches = 0;
    c.want_len += in_flight + 1;
  }
  SetWants(s, std::move(c.in_flight), std::min(c.want_len, options_.max_len), branches, pool_);
}

void SessionTable::Propose(DraftSession* s, bool at_commit) {
  std::optional<DraftProposal> proposal = MakeProposal(s, at_commit);
  if (!proposal.has_value()) return;
  ++counters_->proposals;
  outbox_->Propose(s->target, *std::move(proposal));
}

void SessionTable::ProposeHeard() {
  for (DraftSession* s : active_) {
    if (std::exchange(s->heard_now, false)) Propose(s, /*at_commit=*/true);
  }
}

// --- Ends ---

void SessionTable::Close(TargetId target, const DraftClose& close) {
  const auto it = sessions_.find({target, close.id.session});
  if (it == sessions_.end() || Older(close.id.epoch, it->second->id.epoch)) {
    ++counters_->stale;
    return;
  }
  Drop(it);
}

SessionTable::Sessions::iterator SessionTable::Drop(Sessions::iterator it) {
  DraftSession* s = it->second.get();
  if (holders_.erase({s->heard, s}) > 0) WakeBlocked();
  ReleasePaths(s, pool_);
  if (s->active) std::erase(active_, s);
  if (--per_target_[s->target] == 0) per_target_.erase(s->target);
  return sessions_.erase(it);
}

// There is room again, perhaps for one that waits for it.
void SessionTable::WakeBlocked() {
  if (!std::exchange(any_blocked_, false)) return;
  for (const auto& [key, s] : sessions_) {
    if (std::exchange(s->blocked, false)) Activate(s.get());
  }
}

void SessionTable::DropTarget(TargetId target) {
  for (auto it = sessions_.begin(); it != sessions_.end();) {
    it = it->first.target == target ? Drop(it) : std::next(it);
  }
}

void SessionTable::DropAll() {
  for (auto it = sessions_.begin(); it != sessions_.end();) it = Drop(it);
}

void SessionTable::Expire(TimePoint now) {
  for (auto it = sessions_.begin(); it != sessions_.end();) {
    const bool idle = now - it->second->heard_at >= options_.idle_timeout;
    counters_->expired += idle ? 1 : 0;
    it = idle ? Drop(it) : std::next(it);
  }
}

bool SessionTable::MakeRoom(DraftSession* session, int32_t blocks, uint64_t turn) {
  const BlockManager& pool = pool_->blocks();
  if (pool.num_available() >= blocks) return true;
  std::vector<DraftSession*> victims;
  bool later = false;
  for (const auto& [heard, s] : holders_) {
    if (heard >= session->heard) break;
    s->planned == turn ? void(later = true) : victims.push_back(s);
  }
  // Nobody is evicted in vain.
  if (pool.num_available() + NumFreedBy(victims) < blocks) {
    session->blocked = !later;
    any_blocked_ |= session->blocked;
    return false;
  }
  for (DraftSession* s : victims) {
    if (pool.num_available() >= blocks) break;
    ReleasePaths(s, pool_);
    s->blocked = any_blocked_ = true;  // to come back at once would evict others in turn
    ++counters_->evictions;
    holders_.erase({s->heard, s});
  }
  return true;
}

// Blocks to which only these sessions refer.
int32_t SessionTable::NumFreedBy(std::span<DraftSession* const> sessions) {
  int32_t freed = 0;
  for (const DraftSession* s : sessions) {
    ForEachBlock(*s, [&](BlockId b) {
      if (++references_[b] == pool_->blocks().ReferenceCount(b)) ++freed;
    });
  }
  for (const DraftSession* s : sessions) {
    ForEachBlock(*s, [&](BlockId b) { references_[b] = 0; });
  }
  return freed;
}

}  // namespace paceline
