#include "worker/spec/draft_speculator.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "common/check.h"
#include "common/hash.h"
#include "worker/spec/draft_tree.h"
#include "worker/spec/drafted_sequence.h"
#include "worker/spec/drafter_table.h"
#include "worker/spec/plan_delay.h"

namespace paceline {
namespace {

constexpr int32_t kMaxTreeRows = 16;
constexpr size_t kTreeChains = 4;       // of the shelf
constexpr int32_t kAlternativeLen = 3;  // drafts of a chain that is not the tree's first
constexpr int32_t kNgramAlternatives = 3;
constexpr int32_t kLeastRemaining = 3;   // tokens to come; fewer do not pay for opening a session
constexpr int32_t kIndexPerStep = 1024;  // tokens entered into n-gram indices that lag behind
constexpr int32_t kLeastBranches = 2;    // fewer outcomes than these are a chain
constexpr int32_t kMaxWantLen = 32;

DraftMailboxLimits MailboxLimits(const DraftSpeculatorOptions& options) {
  DraftMailboxLimits limits;
  limits.vocab_size = options.vocab_size;
  return limits;
}

// Beginnings of prompts, so that sessions that share one meet at one drafter and its cache.
uint64_t PlacementKey(const SpecSequence& sequence) {
  const size_t len = std::min<size_t>(kPrefixChunk, sequence.prompt_len);
  return HashTokens(sequence.tokens.first(len), PrefixSeed(sequence.cache_salt));
}

// A chain as the branch that it makes of the outcome of `in_flight`; nothing where it ends there.
void AddBranch(std::span<const TokenId> chain, std::span<const TokenId> in_flight, int32_t count,
               std::vector<PlannedBranch>* branches) {
  size_t accepted = 0;
  while (accepted < std::min(chain.size(), in_flight.size()) &&
         chain[accepted] == in_flight[accepted]) {
    ++accepted;
  }
  if (chain.size() < accepted + 2) return;
  const auto rest = chain.subspan(accepted + 1);
  const auto tokens = rest.first(std::min<size_t>(rest.size(), count));
  branches->push_back({.accepted = static_cast<int32_t>(accepted),
                       .next = chain[accepted],
                       .tokens = {tokens.begin(), tokens.end()}});
}

int32_t LongestOf(const std::vector<PlannedBranch>& branches) {
  size_t most = 0;
  for (const PlannedBranch& b : branches) most = std::max(most, b.tokens.size());
  return static_cast<int32_t>(most);
}

}  // namespace

class DraftSpeculator::Impl {
 public:
  explicit Impl(DraftSpeculatorOptions options)
      : options_(options),
        mailbox_(MailboxLimits(options)),
        drafters_(options.drafter_patience),
        controller_(options.controller) {}

  void Begin(const SpecSequence& sequence);
  SpecProposal Propose(const SpecSequence& sequence, int32_t max_drafts, bool ahead);
  void Launched(const SpecSequence& sequence, std::span<const TokenId> in_flight);
  bool WantsToWait(const SpecSequence& sequence);
  void AwaitDrafts(const SpecStepInFlight& step);
  void Committed(const SpecSequence& sequence, const SpecOutcome& outcome);
  void End(const DraftSessionId& id);
  void Flush();
  void EndStep(const SpecStepTiming& timing);

  DrafterTable& drafters() { return drafters_; }
  DraftMailbox& mailbox() { return mailbox_; }
  const SpecCounters& counters() const { return published_; }
  const DraftController& controller() const { return controller_; }

 private:
  // Of the step that is being committed.
  struct StepSums {
    int32_t sequences = 0;
    int32_t draft_rows = 0;
    int32_t tokens = 0;
  };

  DraftedSequence* Find(const DraftSessionId& id);
  int32_t Wanted(const DraftedSequence& s) const;
  bool Remote(const DraftedSequence& s) const { return s.mode != DecodingMode::kNgram; }
  Drafter* DrafterOf(const DraftedSequence& s) {
    return s.remote.open() ? drafters_.Find(s.remote.link(), s.remote.incarnation()) : nullptr;
  }

  void ReadMail(DraftedSequence* s, const SpecSequence& sequence);
  SpecProposal ProposeBest(DraftedSequence* s, const SpecSequence& sequence, int32_t count,
                           int32_t max_rows, bool ahead);
  SpecProposal ProposeRemote(DraftedSequence* s, const SpecSequence& sequence, int32_t count,
                             int32_t max_rows, bool ahead);
  SpecProposal ProposeNgram(DraftedSequence* s, const SpecSequence& sequence, int32_t count,
                            bool ahead);
  SpecProposal ProposeTree(DraftedSequence* s, const SpecSequence& sequence, int32_t count,
                           int32_t max_rows);
  std::span<const TokenId> InFlight(const DraftedSequence& s) const;
  FallbackReason WhyNone(DraftedSequence& s) const;
  int32_t CoverLen(const DraftedSequence& s, int32_t count) const;
  bool Index(DraftedSequence* s, std::span<const TokenId> tokens);

  void Tell(DraftedSequence* s, const SpecSequence& sequence, std::span<const TokenId> in_flight,
            bool ahead);
  RemoteSession::Want WantOf(const DraftedSequence& s, const SpecSequence& sequence,
                             const Drafter& drafter, int32_t verified, bool ahead) const;
  Drafter* KeepOpen(DraftedSequence* s, const SpecSequence& sequence);
  void CountLaunch(const DraftedSequence& s);
  void CountOutcome(const DraftFlight& flight, const SpecOutcome& outcome);
  DraftFlight TakeFlight(DraftedSequence* s, const SpecOutcome& outcome);
  void PlanLengths(const SpecStepTiming& timing);

  const DraftSpeculatorOptions options_;
  DraftMailbox mailbox_;
  DrafterTable drafters_;
  DraftController controller_;
  PlanDelay delay_;
  std::optional<double> delayed_;  // the newest plan was put off: share of drafts that came
  absl::flat_hash_map<uint64_t, std::unique_ptr<DraftedSequence>> by_session_;
  std::vector<DraftedSequence*> sequences_;  // in the order of Begin
  SpecCounters counting_;
  SpecCounters published_;
  uint64_t step_ = 0;
  uint32_t last_epoch_ = 0;  // on the wire
  StepSums sums_;
  int32_t opens_ = 0;  // of this step
  int32_t open_tokens_ = 0;
  int32_t indexed_ = 0;
  std::vector<DraftRequest*> requests_;
  std::vector<uint64_t> lost_;
};

// --- Sequences ---

DraftedSequence* DraftSpeculator::Impl::Find(const DraftSessionId& id) {
  const auto it = by_session_.find(id.session);
  return it == by_session_.end() ? nullptr : it->second.get();
}

void DraftSpeculator::Impl::Begin(const SpecSequence& sequence) {
  if (sequence.mode == DecodingMode::kPlain) return;
  End(sequence.id);  // a preemption that nobody reported
  auto owned = std::make_unique<DraftedSequence>(sequence.id);
  DraftedSequence* s = owned.get();
  s->mode = sequence.mode;
  s->strategy =
      sequence.strategy == DraftStrategy::kDefault ? options_.strategy : sequence.strategy;
  s->draft_len = sequence.draft_len > 0 ? sequence.draft_len : options_.draft_len;
  s->request = controller_.NewRequest(sequence.sampling->temperature);
  by_session_.emplace(sequence.id.session, std::move(owned));
  sequences_.push_back(s);
  Tell(s, sequence, {}, false);
}

void DraftSpeculator::Impl::End(const DraftSessionId& id) {
  const auto it = by_session_.find(id.session);
  if (it == by_session_.end()) return;
  DraftedSequence* s = it->second.get();
  s->remote.Close(DrafterOf(*s));
  if (s->remote.opened_before()) mailbox_.Close(id.session);
  std::erase(sequences_, s);
  by_session_.erase(it);
}

// Drafts to verify in the next step.
int32_t DraftSpeculator::Impl::Wanted(const DraftedSequence& s) const {
  switch (s.mode) {
    case DecodingMode::kAuto:
      return s.request.planned;
    case DecodingMode::kDraft:
    case DecodingMode::kNgram:
      return s.draft_len;
    case DecodingMode::kPlain:
      break;
  }
  return 0;
}

// --- Proposing ---

void DraftSpeculator::Impl::ReadMail(DraftedSequence* s, const SpecSequence& sequence) {
  const ProposalShelf::Passed passed =
      s->remote.Read(sequence.tokens, step_, DrafterOf(*s), &drafters_, &mailbox_);
  counting_.outcome_hits += passed.hits;
  counting_.outcome_misses += passed.misses;
  counting_.proposals_stale += passed.stale;
  if (s->remote.TakeInvalid()) ++counting_.quarantines;
}

// What the step in flight verifies for it, as far as that is known.
std::span<const TokenId> DraftSpeculator::Impl::InFlight(const DraftedSequence& s) const {
  if (s.flights.empty()) return {};
  return s.flights.back().drafts;
}

SpecProposal DraftSpeculator::Impl::Propose(const SpecSequence& sequence, int32_t max_drafts,
                                            bool ahead) {
  DraftedSequence* s = Find(sequence.id);
  if (s == nullptr || max_drafts <= 0) return {};
  s->planned = {};
  const int32_t count = std::min(Wanted(*s), max_drafts);
  if (Remote(*s)) ReadMail(s, sequence);
  s->remote_wanted = Remote(*s) && count > 0;
  counting_.planned += std::max(0, count);
  s->reason = Remote(*s) ? FallbackReason::kController : FallbackReason::kMode;
  SpecProposal proposal;
  if (s->mode == DecodingMode::kNgram) {
    proposal = ProposeNgram(s, sequence, count, ahead);
  } else if (s->remote_wanted) {
    proposal = ProposeBest(s, sequence, count, max_drafts, ahead);
  }
  s->planned.ahead = ahead;
  s->planned.source = proposal.source;
  if (ahead) s->planned.branches = proposal.branches;
  return proposal;
}

// The route that was planned for, or what the other one has.
SpecProposal DraftSpeculator::Impl::ProposeBest(DraftedSequence* s, const SpecSequence& sequence,
                                                int32_t count, int32_t max_rows, bool ahead) {
  const bool ngram_first = options_.ngram && s->request.ngram;
  SpecProposal proposal;
  if (ngram_first) proposal = ProposeNgram(s, sequence, count, ahead);
  if (proposal.source == ProposalSource::kNgram) {
    s->reason = s->remote.shelf().empty() ? WhyNone(*s) : FallbackReason::kController;
    return proposal;
  }
  proposal = ProposeRemote(s, sequence, ngram_first ? CoverLen(*s, count) : count, max_rows, ahead);
  if (proposal.source != ProposalSource::kNoProposal) return proposal;
  s->reason = WhyNone(*s);
  if (!options_.ngram || ngram_first) return proposal;
  return ProposeNgram(s, sequence, CoverLen(*s, count), ahead);
}

SpecProposal DraftSpeculator::Impl::ProposeRemote(DraftedSequence* s, const SpecSequence& sequence,
                                                  int32_t count, int32_t max_rows, bool ahead) {
  ProposalShelf& shelf = s->remote.shelf();
  SpecProposal proposal;
  if (shelf.empty() || count <= 0) return proposal;
  const int32_t len = static_cast<int32_t>(sequence.tokens.size());
  int32_t longest = 0;
  if (ahead) {
    proposal.branches = shelf.Ahead(len, InFlight(*s), count);
    longest = LongestOf(proposal.branches);
  } else if (options_.trees && static_cast<int32_t>(sequences_.size()) <= options_.tree_sequences) {
    proposal = ProposeTree(s, sequence, count, max_rows);
    longest = s->planned.depth;
  } else {
    proposal.tokens = shelf.Longest(len, count);
    longest = static_cast<int32_t>(proposal.tokens.size());
    s->planned.depth = longest;
  }
  if (longest == 0) return {};
  proposal.source = longest >= count ? ProposalSource::kRemoteFull : ProposalSource::kRemotePartial;
  return proposal;
}

// The drafter's chain first, then what else it foresaw and what the text itself suggests.
SpecProposal DraftSpeculator::Impl::ProposeTree(DraftedSequence* s, const SpecSequence& sequence,
                                                int32_t count, int32_t max_rows) {
  SpecProposal proposal;
  const int32_t len = static_cast<int32_t>(sequence.tokens.size());
  const auto chains = s->remote.shelf().Chains(len, count, kTreeChains);
  if (chains.empty()) return proposal;
  DraftTree tree(std::min(kMaxTreeRows, max_rows));
  for (const std::vector<TokenId>& chain : chains) {
    const bool first = &chain == &chains.front();
    tree.Add(std::span(chain).first(first ? chain.size()
                                          : std::min<size_t>(chain.size(), kAlternativeLen)));
  }
  s->planned.depth = static_cast<int32_t>(chains.front().size());
  if (options_.ngram && Index(s, sequence.tokens)) {
    tree.Add(s->ngram.Draft(std::min(count, kAlternativeLen)));
    for (TokenId token : s->ngram.Alternatives(kNgramAlternatives)) {
      tree.Add(std::span(&token, 1));
    }
  }
  proposal.tokens = tree.tokens();
  proposal.parents = tree.parents();
  s->planned.depth = std::max(s->planned.depth, tree.depth());
  return proposal;
}

SpecProposal DraftSpeculator::Impl::ProposeNgram(DraftedSequence* s, const SpecSequence& sequence,
                                                 int32_t count, bool ahead) {
  SpecProposal proposal;
  if (count <= 0 || !Index(s, sequence.tokens)) return proposal;
  if (ahead) {
    const std::span<const TokenId> in_flight = InFlight(*s);
    const auto most = static_cast<int32_t>(in_flight.size()) + 1 + count;
    AddBranch(s->ngram.Draft(most), in_flight, count, &proposal.branches);
    if (!in_flight.empty()) {
      std::vector<TokenId> chain(in_flight.begin(), in_flight.end());
      const std::vector<TokenId> behind = s->ngram.Draft(1 + count, in_flight);
      chain.insert(chain.end(), behind.begin(), behind.end());
      AddBranch(chain, in_flight, count, &proposal.branches);
    }
    if (proposal.branches.empty()) return proposal;
  } else {
    proposal.tokens = s->ngram.Draft(count);
    if (proposal.tokens.empty()) return proposal;
    s->planned.depth = static_cast<int32_t>(proposal.tokens.size());
  }
  proposal.source = ProposalSource::kNgram;
  return proposal;
}

// Enters what the index lacks; false while it lags behind a long prompt.
bool DraftSpeculator::Impl::Index(DraftedSequence* s, std::span<const TokenId> tokens) {
  const size_t known = s->ngram.tokens().size();
  if (known > tokens.size()) return false;
  const size_t budget = static_cast<size_t>(std::max(0, kIndexPerStep - indexed_));
  const auto fresh = tokens.subspan(known, std::min(tokens.size() - known, budget));
  s->ngram.Append(fresh);
  indexed_ += static_cast<int32_t>(fresh.size());
  return s->ngram.tokens().size() == tokens.size();
}

int32_t DraftSpeculator::Impl::CoverLen(const DraftedSequence& s, int32_t count) const {
  if (s.mode != DecodingMode::kAuto) return count;
  return std::min(count, controller_.CoverLen(s.request));
}

FallbackReason DraftSpeculator::Impl::WhyNone(DraftedSequence& s) const {
  if (!drafters_.AnyUp()) return FallbackReason::kNoLink;
  if (s.remote.quarantined()) return FallbackReason::kQuarantined;
  if (!s.remote.open()) return FallbackReason::kNotOpen;
  const ProposalShelf& shelf = s.remote.shelf();
  return shelf.newest_base() != kNone && shelf.newest_base() >= shelf.newest_told()
             ? FallbackReason::kMiss
             : FallbackReason::kLate;
}

// Strategy kSync sits steps out while the drafter works on this very base.
bool DraftSpeculator::Impl::WantsToWait(const SpecSequence& sequence) {
  DraftedSequence* s = Find(sequence.id);
  if (s == nullptr || s->strategy != DraftStrategy::kSync || !Remote(*s) || Wanted(*s) == 0)
    return false;
  ReadMail(s, sequence);
  const int32_t len = static_cast<int32_t>(sequence.tokens.size());
  if (DrafterOf(*s) == nullptr || !s->remote.Asked(len) || !s->remote.shelf().empty() ||
      s->remote.shelf().newest_base() >= len) {
    return false;
  }
  const bool fresh = s->wait_base != len;
  if (fresh) s->waits = 0;
  if (s->waits >= options_.max_sync_waits * kPollsPerStep) return false;
  // Asked again without a step between: the engine has nothing else to do.
  const bool poll = !fresh && s->wait_step == step_;
  s->waits += poll ? 1 : kPollsPerStep;
  s->wait_base = len;
  s->wait_step = step_;
  if (!poll) ++counting_.sync_waits;
  return true;
}

// The step in flight runs meanwhile: nothing stands still for a draft.
void DraftSpeculator::Impl::AwaitDrafts(const SpecStepInFlight& step) {
  if (delayed_) delay_.Observe(*std::exchange(delayed_, std::nullopt), step.waited);
  if (!mailbox_.awaits_answers()) return;
  const double takes = controller_.cost().Seconds(step.rows, step.context);
  const Duration longest = delay_.Longest(
      {.now = step.now, .started = step.started, .takes = Seconds(takes), .host = step.host});
  if (longest <= Duration::zero()) return;
  delayed_ = mailbox_.AwaitAnswers(longest);
  ++counting_.plans_delayed;
  counting_.plans_answered += *delayed_ >= 1 ? 1 : 0;
}

// --- Telling drafters ---

void DraftSpeculator::Impl::Tell(DraftedSequence* s, const SpecSequence& sequence,
                                 std::span<const TokenId> in_flight, bool ahead) {
  if (!Remote(*s)) return;
  Drafter* drafter = KeepOpen(s, sequence);
  if (drafter == nullptr) return mailbox_.AwaitNothing(s->session);
  const auto verified = static_cast<int32_t>(in_flight.size());
  s->remote.Tell(sequence.tokens, in_flight, WantOf(*s, sequence, *drafter, verified, ahead),
                 drafter, &mailbox_);
}

// What to ask for. A chain has to reach over the outcome of the step in flight, and a step launched
// ahead puts one more between question and use, unless plans are put off until the answer is there.
RemoteSession::Want DraftSpeculator::Impl::WantOf(const DraftedSequence& s,
                                                  const SpecSequence& sequence,
                                                  const Drafter& drafter, int32_t verified,
                                                  bool ahead) const {
  RemoteSession::Want want{.len = Wanted(s)};
  if (want.len == 0) return want;
  const int32_t room =
      sequence.max_len - static_cast<int32_t>(sequence.tokens.size()) - verified - 2;
  want.enough = std::clamp(room, 0, want.len);
  const bool late = ahead && counting_.plans_delayed > 0 && delay_.pays();
  if (ahead && !late) want.len += 1 + want.len;
  if (s.strategy == DraftStrategy::kEnumerate) {
    const int32_t others = std::max(0, drafter.load.sessions - drafter.sessions);
    const int32_t share = options_.branch_rows / std::max(1, drafter.asking + others);
    want.branches = std::min(options_.max_branches, share);
    if (want.branches < kLeastBranches) want.branches = 0;
  }
  if (want.branches == 0 && s.strategy != DraftStrategy::kSync) {
    want.len += verified + 1;
    if (want.enough > 0) want.enough += verified + 1;
  }
  want.len = std::min(want.len, kMaxWantLen);
  want.enough = std::min(want.enough, want.len);
  return want;
}

// The drafter that the session is open at, opening or moving it where that is due and allowed.
Drafter* DraftSpeculator::Impl::KeepOpen(DraftedSequence* s, const SpecSequence& sequence) {
  RemoteSession& remote = s->remote;
  if (remote.quarantined()) return nullptr;
  Drafter* at = DrafterOf(*s);
  if (at != nullptr && at->status.state == DraftLinkState::kUp && !at->silent) return at;
  if (at == nullptr) remote.Lose();
  if (at != nullptr && at->silent) {
    remote.Close(at);
    at = nullptr;
  }

  const auto len = static_cast<int32_t>(sequence.tokens.size());
  const bool allowed = step_ >= remote.reopen_at() && opens_ < options_.opens_per_step &&
                       (opens_ == 0 || open_tokens_ + len <= options_.open_tokens_per_step) &&
                       sequence.max_len - len >= kLeastRemaining;
  if (!allowed) return at;
  Drafter* to = drafters_.Pick(PlacementKey(sequence), step_);
  if (to == nullptr) return at;
  ++opens_;
  open_tokens_ += len;
  ++counting_.opens;
  if (remote.opened_before()) ++counting_.reopens;
  if (remote.opened_before() && remote.link() != to->id) ++counting_.moves;
  remote.Close(at);
  remote.Open(sequence, ++last_epoch_, to, &mailbox_);
  return to;
}

void DraftSpeculator::Impl::Launched(const SpecSequence& sequence,
                                     std::span<const TokenId> in_flight) {
  DraftedSequence* s = Find(sequence.id);
  if (s == nullptr) return;
  CountLaunch(*s);
  DraftFlight flight = std::exchange(s->planned, {});
  flight.committed = static_cast<int32_t>(sequence.tokens.size());
  flight.ahead |= !s->flights.empty();
  flight.drafts.assign(in_flight.begin(), in_flight.end());
  const bool ahead = flight.ahead;
  if (s->flights.size() >= 2) s->flights.pop_front();
  s->flights.push_back(std::move(flight));
  s->reason = FallbackReason::kController;
  s->remote_wanted = false;
  // A step launched ahead is told of when its base is known. Sync drafters know of no verify.
  if (!ahead && s->strategy != DraftStrategy::kSync) Tell(s, sequence, in_flight, false);
}

void DraftSpeculator::Impl::CountLaunch(const DraftedSequence& s) {
  if (s.remote_wanted) ++counting_.wanted_remote;
  switch (s.planned.source) {
    case ProposalSource::kNoProposal:
      ++counting_.steps_none;
      break;
    case ProposalSource::kRemoteFull:
      ++counting_.steps_full;
      return;
    case ProposalSource::kRemotePartial:
      ++counting_.steps_partial;
      return;
    case ProposalSource::kNgram:
      ++counting_.steps_ngram;
      break;
  }
  ++counting_.fallbacks[static_cast<size_t>(s.reason)];
}

// --- Outcomes ---

// The oldest launched step, if it is the one with this outcome: a step launched ahead before the
// sequence began was never told.
DraftFlight DraftSpeculator::Impl::TakeFlight(DraftedSequence* s, const SpecOutcome& outcome) {
  const int32_t before = outcome.base_len - static_cast<int32_t>(outcome.new_tokens.size());
  if (s->flights.empty()) return {};
  const DraftFlight& oldest = s->flights.front();
  if (oldest.ahead ? oldest.committed >= before : oldest.committed != before) return {};
  DraftFlight flight = std::move(s->flights.front());
  s->flights.pop_front();
  return flight;
}

void DraftSpeculator::Impl::Committed(const SpecSequence& sequence, const SpecOutcome& outcome) {
  DraftedSequence* s = Find(outcome.id);
  if (s == nullptr || outcome.new_tokens.empty()) return;
  const DraftFlight flight = TakeFlight(s, outcome);
  const bool gains = s->mode == DecodingMode::kAuto && !s->request.probe;
  ++sums_.sequences;
  sums_.draft_rows += gains ? outcome.drafted : 0;
  sums_.tokens += gains ? static_cast<int32_t>(outcome.new_tokens.size()) : 1;
  if (outcome.drafted > 0) {
    // Of a tree the longest path counts: its other rows are no further positions.
    const int32_t depth =
        flight.depth > 0 ? std::min(flight.depth, outcome.drafted) : outcome.drafted;
    CountOutcome(flight, outcome);
    controller_.Observe(&s->request, outcome.source, depth, outcome.accepted);
  }
  const auto len = static_cast<int32_t>(sequence.tokens.size());
  s->request.max_len = std::max(0, sequence.max_len - len - 1);
  if (!s->flights.empty()) {
    // Which branch of the step in flight runs is known now.
    DraftFlight& next = s->flights.front();
    const auto branch = std::ranges::find_if(next.branches, [&](const PlannedBranch& b) {
      return b.accepted == outcome.accepted && b.next == outcome.new_tokens.back();
    });
    if (next.ahead) next.drafts.clear();
    if (branch != next.branches.end()) next.drafts = std::move(branch->tokens);
    next.branches.clear();
    Tell(s, sequence, next.drafts, true);
  } else if (s->strategy == DraftStrategy::kSync) {
    Tell(s, sequence, {}, false);
  }
}

void DraftSpeculator::Impl::CountOutcome(const DraftFlight& flight, const SpecOutcome& outcome) {
  ++counting_.drafts;
  counting_.drafted += outcome.drafted;
  counting_.accepted += outcome.accepted;
  const int32_t depth =
      flight.depth > 0 ? std::min(flight.depth, outcome.drafted) : outcome.drafted;
  for (int32_t i = 0; i < std::min<int32_t>(depth, kSpecPositions); ++i) {
    ++counting_.drafted_at[i];
    if (i < outcome.accepted) ++counting_.accepted_at[i];
  }
}

// --- Ends of steps ---

void DraftSpeculator::Impl::Flush() {
  drafters_.Refresh(mailbox_);
  lost_.clear();
  drafters_.Flush(step_, &lost_);
  for (uint64_t session : lost_) {
    DraftedSequence* s = Find({.session = session});
    if (s != nullptr) s->remote.Close(DrafterOf(*s));
  }
}

void DraftSpeculator::Impl::PlanLengths(const SpecStepTiming& timing) {
  controller_.EndStep({.step = timing.step,
                       .rows = timing.rows,
                       .context = timing.context,
                       .sequences = sums_.sequences,
                       .draft_rows = sums_.draft_rows,
                       .tokens = sums_.tokens});
  sums_ = {};
  requests_.clear();
  for (DraftedSequence* s : sequences_) {
    if (s->mode != DecodingMode::kAuto) continue;
    s->request.ngram = !s->remote.open() || controller_.PrefersNgram(s->request);
    requests_.push_back(&s->request);
  }
  controller_.Plan(requests_);
}

void DraftSpeculator::Impl::EndStep(const SpecStepTiming& timing) {
  PlanLengths(timing);
  Flush();
  counting_.silences += drafters_.EndStep(step_, timing.done);
  ++step_;
  opens_ = open_tokens_ = indexed_ = 0;
  mailbox_.AddCountersTo(&counting_);
  counting_.probes = controller_.probes();
  counting_.gain = controller_.gain();
  counting_.engine_off = controller_.times_off();
  counting_.plans_overran = delay_.overruns();
  published_ = counting_;
}

// --- DraftSpeculator ---

DraftSpeculator::DraftSpeculator(DraftSpeculatorOptions options)
    : impl_(std::make_unique<Impl>(options)) {}

DraftSpeculator::~DraftSpeculator() = default;

DraftLinkId DraftSpeculator::AddLink(std::shared_ptr<DraftLink> link) {
  return impl_->drafters().Add(std::move(link));
}

void DraftSpeculator::RemoveLink(DraftLinkId id) { impl_->drafters().Remove(id); }

DraftMailbox& DraftSpeculator::mailbox() { return impl_->mailbox(); }

void DraftSpeculator::Begin(const SpecSequence& sequence) { impl_->Begin(sequence); }

SpecProposal DraftSpeculator::Propose(const SpecSequence& sequence, int32_t max_drafts,
                                      bool ahead) {
  return impl_->Propose(sequence, max_drafts, ahead);
}

void DraftSpeculator::Launched(const SpecSequence& sequence, std::span<const TokenId> in_flight) {
  impl_->Launched(sequence, in_flight);
}

void DraftSpeculator::EndLaunch() { impl_->Flush(); }

bool DraftSpeculator::WantsToWait(const SpecSequence& sequence) {
  return impl_->WantsToWait(sequence);
}

void DraftSpeculator::AwaitDrafts(const SpecStepInFlight& step) { impl_->AwaitDrafts(step); }

void DraftSpeculator::Committed(const SpecSequence& sequence, const SpecOutcome& outcome) {
  impl_->Committed(sequence, outcome);
}

void DraftSpeculator::End(const DraftSessionId& id) { impl_->End(id); }

void DraftSpeculator::EndStep(const SpecStepTiming& timing) { impl_->EndStep(timing); }

const SpecCounters& DraftSpeculator::counters() const { return impl_->counters(); }

const DraftController& DraftSpeculator::controller() const { return impl_->controller(); }

std::vector<std::pair<std::string, int32_t>> DraftSpeculator::SessionsByLink() const {
  std::vector<std::pair<std::string, int32_t>> sessions;
  for (const Drafter& drafter : impl_->drafters().drafters()) {
    sessions.emplace_back(drafter.link->name(), drafter.sessions);
  }
  return sessions;
}

}  // namespace paceline
