// One session of one target, as the drafter knows it: the committed tokens, what the target wants,
// and the paths that follow them. Owned by the session table; engine thread.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "common/clock.h"
#include "worker/draft/draft_engine.h"
#include "worker/draft/draft_path.h"
#include "worker/draft/draft_pool.h"
#include "worker/draft/outcome_ranking.h"

namespace paceline {

// What follows one outcome of the step in flight.
struct OutcomeBranch {
  int32_t accepted = 0;
  TokenId next = 0;
  std::unique_ptr<DraftPath> path;  // starts behind `next`
};

struct DraftSession {
  DraftEngine::TargetId target = 0;
  DraftSessionId id;
  std::shared_ptr<const SamplingParams> sampling;
  int32_t sample = 0;
  int32_t prompt_len = 0;
  int32_t max_len = 0;  // the target's
  int32_t limit = 0;    // positions below it can be drafted
  int32_t priority = 0;
  std::string salt;
  std::vector<TokenId> stop_ids;  // tokens behind which there is nothing to draft

  std::vector<TokenId> tokens;  // committed
  uint64_t hash = 0;            // HashTokens of them
  std::vector<TokenId> in_flight;
  int32_t want_len = 0;
  int32_t want_branches = 0;

  // Starts behind the committed tokens. In a chain it holds the drafter's own choices; when
  // enumerating, the drafts in flight as far as outcomes are sought, and candidates one further.
  std::unique_ptr<DraftPath> trunk = std::make_unique<DraftPath>();
  std::vector<OutcomeBranch> branches;
  std::vector<Outcome> outcomes;  // chosen, no branch begun yet
  bool ranked = false;            // outcomes of this in_flight have been chosen
  Agreement agreement;

  int32_t sent = 0;        // tokens of this base in the newest proposal
  bool changed = false;    // there are drafts that were not sent
  bool heard_now = false;  // a commit came in this turn
  bool active = false;     // in the table's list of those with work
  bool blocked = false;    // blocks are short: rests until another ends or it is heard again
  uint64_t planned = 0;    // newest turn of the planner that gave it rows
  uint64_t heard = 0;      // order of the newest words of the target among all sessions
  TimePoint heard_at{};
  Duration interval{};   // between commits, smoothed
  TimePoint grew_at{};   // newest commit that brought tokens ...
  Duration step{};       // ... and the time between those, smoothed: the target's step
  TimePoint deadline{};  // when the next commit is expected

  int32_t base_len() const { return static_cast<int32_t>(tokens.size()); }
  bool enumerates() const { return want_len > 0 && want_branches > 0; }
};

struct RebaseOutcome {
  bool enumerated = false;  // branches had been drafted for this commit
  bool hit = false;         // one of them foresaw it
  int32_t drafts_kept = 0;  // own drafts that the commit confirmed
};

// The session's next tokens are committed. The path that foresaw most of them becomes the trunk,
// with its KV; all others are dropped.
RebaseOutcome Rebase(DraftSession* session, std::span<const TokenId> new_tokens, DraftPool* pool,
                     GuessRanks* ranks);

// What the target verifies behind the base, and what it wants. Keeps whatever still serves.
void SetWants(DraftSession* session, std::vector<TokenId> in_flight, int32_t want_len,
              int32_t want_branches, DraftPool* pool);

void DropBranches(DraftSession* session, DraftPool* pool);
// Gives back all KV and slots. What is known stays, and can be computed again.
void ReleasePaths(DraftSession* session, DraftPool* pool);

// Positions behind the base whose outcomes are sought: those of the drafts in flight that can be
// reached, and the one behind them. 0 = none.
int32_t OutcomePositions(const DraftSession& session);

// What is worth telling the target, and was not told yet. `at_commit`: the base is new, and what is
// left of a chain helps however short; else it waits until it has the length wanted.
std::optional<DraftProposal> MakeProposal(DraftSession* session, bool at_commit);

bool IsStop(const DraftSession& session, TokenId token);

// The first n tokens of a branch, or of the trunk if `branch` is null.
std::vector<TokenId> PathTokens(const DraftSession& session, const OutcomeBranch* branch,
                                int32_t n);
TokenId PathToken(const DraftSession& session, const OutcomeBranch* branch, int32_t position);

}  // namespace paceline
