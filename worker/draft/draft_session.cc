#include "worker/draft/draft_session.h"

#include <algorithm>
#include <utility>

#include "common/check.h"
#include "common/hash.h"

namespace paceline {
namespace {

int32_t SharedPrefix(std::span<const TokenId> a, std::span<const TokenId> b) {
  return static_cast<int32_t>(std::ranges::mismatch(a, b).in1 - a.begin());
}

// How many of the tokens behind the base this branch foresaw.
int32_t Foreseen(const DraftSession& s, const OutcomeBranch& branch,
                 std::span<const TokenId> tokens) {
  const auto count = static_cast<int32_t>(tokens.size());
  const std::span accepted = std::span(s.in_flight).first(branch.accepted);
  int32_t n = SharedPrefix(accepted, tokens);
  if (n < branch.accepted || n == count || tokens[n] != branch.next) return n;
  return n + 1 + SharedPrefix(branch.path->drafts, tokens.subspan(n + 1));
}

int32_t RankOf(std::span<const TokenId> candidates, TokenId token) {
  const auto it = std::ranges::find(candidates, token);
  return it == candidates.end() ? kNone : static_cast<int32_t>(it - candidates.begin());
}

// What the commit says of the trunk's candidates, position by position up to the first difference.
void ObserveTokens(DraftSession* s, std::span<const TokenId> tokens, GuessRanks* ranks) {
  const DraftPath& trunk = *s->trunk;
  for (size_t i = 0; i < tokens.size() && i < trunk.candidates.size(); ++i) {
    const int32_t rank = RankOf(trunk.candidates[i], tokens[i]);
    s->agreement.Observe(rank == 0);
    if (rank != 0) ranks->Observe(rank);
    if (i >= trunk.drafts.size() || trunk.drafts[i] != tokens[i]) return;
  }
}

// The path's tokens up to `start` are committed, `agreed` of them as it foresaw.
void MoveStart(DraftPath* path, int32_t start, bool agreed, int32_t agreed_len, DraftPool* pool) {
  const int32_t passed = std::min(start - path->start, static_cast<int32_t>(path->drafts.size()));
  const int32_t known = std::min(start - path->start, path->num_candidates());
  const bool at_end = agreed && start == path->len();
  path->start = start;
  if (agreed) {
    path->drafts.erase(path->drafts.begin(), path->drafts.begin() + passed);
    path->candidates.erase(path->candidates.begin(), path->candidates.begin() + known);
  } else {
    path->drafts.clear();
    path->candidates.clear();
    pool->Truncate(path, agreed_len);
    if (path->slot_len > agreed_len) path->slot_len = 0;
  }
  // An ended slot runs no more; that the target goes on shows that it should.
  if (path->ended && (!agreed || at_end)) {
    path->ended = false;
    path->slot_len = 0;
  }
}

// Cuts a chain behind the last draft that was the drafter's own choice.
void KeepOwnChoices(DraftPath* trunk, DraftPool* pool) {
  const auto drafts = static_cast<int32_t>(trunk->drafts.size());
  int32_t own = 0;
  while (own < drafts && own < trunk->num_candidates() &&
         trunk->drafts[own] == trunk->candidates[own].front()) {
    ++own;
  }
  trunk->candidates.resize(std::min(trunk->num_candidates(), own));
  if (own == drafts) return;
  trunk->drafts.resize(own);
  trunk->ended = false;
  pool->Truncate(trunk, trunk->len());
  trunk->slot_len = 0;
}

// The chain goes on behind all drafts in flight: that is the likeliest outcome, drafted already.
void BranchOff(DraftSession* s, DraftPool* pool) {
  std::unique_ptr<DraftPath> chain = std::move(s->trunk);
  const auto drafts = static_cast<int32_t>(s->in_flight.size());
  s->trunk = pool->Fork(*chain, std::min(chain->kv_len, chain->start + drafts));
  s->trunk->start = chain->start;
  s->trunk->drafts = s->in_flight;
  const int32_t known = std::min(chain->num_candidates(), drafts + 1);
  s->trunk->candidates.assign(chain->candidates.begin(), chain->candidates.begin() + known);

  const TokenId next = chain->drafts[drafts];
  chain->start += drafts + 1;
  chain->drafts.erase(chain->drafts.begin(), chain->drafts.begin() + drafts + 1);
  chain->candidates.erase(chain->candidates.begin(), chain->candidates.begin() + known);
  s->branches.push_back({.accepted = drafts, .next = next, .path = std::move(chain)});
}

// The trunk gets the drafts in flight, as far as outcomes are sought behind them.
void FollowFlight(DraftSession* s, DraftPool* pool) {
  DraftPath* trunk = s->trunk.get();
  const int32_t positions = OutcomePositions(*s);
  const auto goal = std::span(s->in_flight).first(std::max(0, positions - 1));
  const auto in_flight = static_cast<int32_t>(s->in_flight.size());
  const int32_t agreed = SharedPrefix(goal, trunk->drafts);
  const auto drafts = static_cast<int32_t>(trunk->drafts.size());
  const bool goes_on = positions == in_flight + 1 && agreed == in_flight && drafts > in_flight;
  if (goes_on && !IsStop(*s, trunk->drafts[in_flight])) return BranchOff(s, pool);
  if (agreed == drafts && drafts == static_cast<int32_t>(goal.size())) return;
  trunk->drafts.assign(goal.begin(), goal.end());
  trunk->candidates.resize(std::min(trunk->num_candidates(), agreed + 1));
  trunk->ended = false;
  if (agreed == drafts) return;  // only longer than before
  pool->Truncate(trunk, trunk->start + agreed);
  if (trunk->slot_len > trunk->start + agreed) trunk->slot_len = 0;
}

// Drafts that reach over what is verified help the next step, however few; without a verify in
// flight the target may be waiting for all that it asked for.
bool ChainIsUseful(const DraftSession& s, int32_t count) {
  const DraftPath& trunk = *s.trunk;
  if (count >= s.want_len || trunk.ended || trunk.len() >= s.limit) return true;
  return !s.in_flight.empty() && count >= static_cast<int32_t>(s.in_flight.size()) + 2;
}

std::optional<DraftProposal> MakeChain(DraftSession* s, bool at_commit) {
  const auto available = static_cast<int32_t>(s->trunk->drafts.size());
  const auto drafts = std::span(s->trunk->drafts).first(std::min(available, s->want_len));
  const auto count = static_cast<int32_t>(drafts.size());
  if (count <= s->sent || (!at_commit && !ChainIsUseful(*s, count))) return std::nullopt;
  if (SharedPrefix(drafts, s->in_flight) == count) return std::nullopt;  // all of it is verified
  s->sent = count;
  DraftProposal proposal;
  proposal.branches.push_back({.tokens = {drafts.begin(), drafts.end()}});
  return proposal;
}

std::optional<DraftProposal> MakeBranches(DraftSession* s) {
  DraftProposal proposal;
  proposal.kind = ProposalKind::kEnumerated;
  for (const OutcomeBranch& branch : s->branches) {
    const std::vector<TokenId>& drafts = branch.path->drafts;
    if (drafts.empty()) continue;
    const auto count = std::min(static_cast<int64_t>(drafts.size()), int64_t{s->want_len});
    proposal.branches.push_back({.accepted = branch.accepted,
                                 .next = branch.next,
                                 .tokens = {drafts.begin(), drafts.begin() + count}});
  }
  if (proposal.branches.empty()) return std::nullopt;
  return proposal;
}

}  // namespace

bool IsStop(const DraftSession& s, TokenId token) {
  return std::ranges::find(s.stop_ids, token) != s.stop_ids.end();
}

int32_t OutcomePositions(const DraftSession& s) {
  const auto stop =
      std::ranges::find_if(s.in_flight, [&](TokenId token) { return IsStop(s, token); });
  const int32_t reached = static_cast<int32_t>(stop - s.in_flight.begin());
  // The token behind an outcome needs room for one more.
  return std::max(0, std::min(reached, s.limit - 2 - s.base_len()) + 1);
}

TokenId PathToken(const DraftSession& s, const OutcomeBranch* branch, int32_t position) {
  const DraftPath& path = branch == nullptr ? *s.trunk : *branch->path;
  if (position >= path.start) return path.drafts[position - path.start];
  if (position < s.base_len()) return s.tokens[position];
  CHECK(branch != nullptr);
  const int32_t i = position - s.base_len();
  return i == branch->accepted ? branch->next : s.in_flight[i];
}

std::vector<TokenId> PathTokens(const DraftSession& s, const OutcomeBranch* branch, int32_t n) {
  std::vector<TokenId> tokens;
  tokens.reserve(n);
  tokens.assign(s.tokens.begin(), s.tokens.begin() + std::min(n, s.base_len()));
  for (int32_t i = s.base_len(); i < n; ++i) tokens.push_back(PathToken(s, branch, i));
  return tokens;
}

std::optional<DraftProposal> MakeProposal(DraftSession* s, bool at_commit) {
  if (s->want_len == 0 || !s->changed) return std::nullopt;
  auto proposal = s->enumerates() ? MakeBranches(s) : MakeChain(s, at_commit);
  if (!proposal.has_value()) return std::nullopt;
  s->changed = false;
  proposal->id = s->id;
  proposal->base_len = s->base_len();
  proposal->prefix_hash = s->hash;
  return proposal;
}

void DropBranches(DraftSession* s, DraftPool* pool) {
  for (OutcomeBranch& branch : s->branches) pool->Release(branch.path.get());
  s->branches.clear();
  s->outcomes.clear();
  s->ranked = false;
}

void ReleasePaths(DraftSession* s, DraftPool* pool) {
  for (OutcomeBranch& branch : s->branches) pool->Release(branch.path.get());
  s->branches.clear();
  s->outcomes.clear();
  pool->Release(s->trunk.get());
}

RebaseOutcome Rebase(DraftSession* s, std::span<const TokenId> new_tokens, DraftPool* pool,
                     GuessRanks* ranks) {
  RebaseOutcome outcome;
  outcome.enumerated = !s->branches.empty();
  ObserveTokens(s, new_tokens, ranks);
  const auto count = static_cast<int32_t>(new_tokens.size());
  int32_t agreed = SharedPrefix(s->trunk->drafts, new_tokens);
  if (!s->enumerates()) outcome.drafts_kept = agreed;
  OutcomeBranch* winner = nullptr;
  for (OutcomeBranch& branch : s->branches) {
    const int32_t foreseen = Foreseen(*s, branch, new_tokens);
    if (foreseen <= std::max(agreed, branch.accepted)) continue;
    agreed = foreseen;
    winner = &branch;
  }
  if (winner != nullptr) {
    outcome.hit = true;
    outcome.drafts_kept = agreed - winner->accepted - 1;
    std::swap(s->trunk, winner->path);
  }
  DropBranches(s, pool);

  const int32_t agreed_len = s->base_len() + agreed;
  s->hash = HashTokens(new_tokens, s->hash);
  s->tokens.insert(s->tokens.end(), new_tokens.begin(), new_tokens.end());
  MoveStart(s->trunk.get(), s->base_len(), agreed == count, agreed_len, pool);
  s->in_flight.clear();
  s->sent = 0;
  s->changed = !s->trunk->drafts.empty();
  return outcome;
}

void SetWants(DraftSession* s, std::vector<TokenId> in_flight, int32_t want_len,
              int32_t want_branches, DraftPool* pool) {
  const bool did_enumerate = s->enumerates();
  if (want_branches > s->want_branches) s->ranked = false;
  s->want_len = want_len;
  s->want_branches = want_branches;
  if (!s->enumerates()) {
    s->in_flight = std::move(in_flight);
    DropBranches(s, pool);
    if (did_enumerate) KeepOwnChoices(s->trunk.get(), pool);
    return;
  }
  if (did_enumerate && in_flight == s->in_flight && !s->branches.empty()) return;
  DropBranches(s, pool);
  s->in_flight = std::move(in_flight);
  FollowFlight(s, pool);
}

}  // namespace paceline
