#include "tests/sim/hostile_speculator.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace paceline {

void HostileSpeculator::Expect(bool holds, const char* what) {
  if (!holds && fault_.empty()) fault_ = what;
}

HostileSpeculator::Session* HostileSpeculator::Find(const SpecSequence& sequence,
                                                    const char* call) {
  const auto it = sessions_.find(sequence.id.session);
  if (it == sessions_.end() || it->second.epoch != sequence.id.epoch) {
    if (fault_.empty()) fault_ = absl::StrCat(call, " of a session or epoch that has not begun");
    return nullptr;
  }
  return &it->second;
}

void HostileSpeculator::Begin(const SpecSequence& sequence) {
  Expect(!sessions_.contains(sequence.id.session), "Begin twice without End");
  const auto newest = newest_epoch_.find(sequence.id.session);
  Expect(newest == newest_epoch_.end() || newest->second < sequence.id.epoch,
         "Begin with an epoch that is not larger");
  Expect(sequence.mode != DecodingMode::kPlain, "Begin of a plain request");
  Expect(static_cast<int32_t>(sequence.tokens.size()) > sequence.prompt_len,
         "Begin before the first token");
  newest_epoch_[sequence.id.session] = sequence.id.epoch;
  sessions_[sequence.id.session] = {.epoch = sequence.id.epoch,
                                    .tokens = {sequence.tokens.begin(), sequence.tokens.end()}};
}

void HostileSpeculator::End(const DraftSessionId& id) {
  const auto it = sessions_.find(id.session);
  Expect(it != sessions_.end() && it->second.epoch == id.epoch, "End without Begin");
  sessions_.erase(id.session);
}

void HostileSpeculator::Launched(const SpecSequence& sequence, std::span<const TokenId>) {
  Session* session = Find(sequence, "Launched");
  if (session == nullptr) return;
  ++session->in_flight;
  Expect(session->in_flight <= 2, "a third step of a sequence launched");
}

void HostileSpeculator::Committed(const SpecSequence& sequence, const SpecOutcome& outcome) {
  Session* session = Find(sequence, "Committed");
  if (session == nullptr) return;
  // One step may have been launched before Begin, ahead of the first token.
  Expect(--session->in_flight >= -1, "Committed more than Launched");
  Expect(outcome.accepted <= outcome.drafted, "accepted more than drafted");
  Expect(static_cast<int32_t>(outcome.new_tokens.size()) == outcome.accepted + 1,
         "new tokens are the accepted drafts and one more");
  session->tokens.insert(session->tokens.end(), outcome.new_tokens.begin(),
                         outcome.new_tokens.end());
  Expect(std::ranges::equal(session->tokens, sequence.tokens), "Committed tokens have a gap");
  Expect(outcome.base_len == static_cast<int32_t>(session->tokens.size()), "base_len");
  drafted_ += outcome.drafted;
  accepted_ += outcome.accepted;
}

// What the target itself will say behind the committed tokens.
std::vector<TokenId> HostileSpeculator::Truth(const SpecSequence& sequence, int32_t count) const {
  std::vector<TokenId> history(sequence.tokens.begin(), sequence.tokens.end());
  uint64_t prefix = target_.Empty();
  for (TokenId t : history) prefix = target_.Extend(prefix, t);
  std::vector<TokenId> truth;
  while (static_cast<int32_t>(truth.size()) < count) {
    truth.push_back(
        target_.Sample(prefix, *sequence.sampling, sequence.sample, history, sequence.prompt_len)
            .token);
    history.push_back(truth.back());
    prefix = target_.Extend(prefix, truth.back());
  }
  return truth;
}

void HostileSpeculator::Spoil(std::vector<TokenId>* tokens) {
  if (tokens->empty()) return;
  TokenId& token = (*tokens)[Below(static_cast<int32_t>(tokens->size()))];
  switch (Below(4)) {
    case 0:
      token = target_.options().vocab_size + Below(100);
      break;
    case 1:
      token = -1 - Below(100);
      break;
    default:
      token = AnyToken();
  }
}

// The right path somewhere among wrong branches, in the order of depth or not.
void HostileSpeculator::MakeTree(const std::vector<TokenId>& truth, int32_t count,
                                 SpecProposal* proposal) {
  size_t depth = 0;
  int32_t path = kNone;
  for (int32_t i = 0; i < count; ++i) {
    const bool right = depth < truth.size() && Below(3) != 0;
    proposal->tokens.push_back(right ? truth[depth++] : AnyToken());
    proposal->parents.push_back(right ? path : Below(i + 1) - 1);
    if (right) path = i;
  }
  ++trees_;
}

// Branches for the outcomes of the step in flight, however many of its drafts it accepts.
void HostileSpeculator::MakeBranches(const std::vector<TokenId>& truth, int32_t max_drafts,
                                     SpecProposal* proposal) {
  const int32_t outcomes = static_cast<int32_t>(truth.size()) - max_drafts - 1;
  for (int32_t accepted = 0; accepted < outcomes; ++accepted) {
    if (Below(5) == 0) continue;
    const auto from = truth.begin() + accepted;
    PlannedBranch branch{.accepted = accepted, .next = *from};
    branch.tokens.assign(from + 1, from + 1 + Below(max_drafts + 1));
    if (Below(3) == 0) Spoil(&branch.tokens);
    if (Below(8) == 0) branch.next = Below(2) == 0 ? AnyToken() : -7;
    if (Below(8) == 0) branch.accepted = Below(40) - 10;
    if (Below(8) == 0) branch.tokens.resize(max_drafts + Below(50), 0);
    ++branches_;
    proposal->branches.push_back(branch);
    if (Below(8) == 0) proposal->branches.push_back(std::move(branch));
  }
  std::ranges::shuffle(proposal->branches, rng_);
}

SpecProposal HostileSpeculator::Propose(const SpecSequence& sequence, int32_t max_drafts,
                                        bool ahead) {
  SpecProposal proposal;
  Session* session = Find(sequence, "Propose");
  if (session == nullptr) return proposal;
  Expect(max_drafts >= 1, "Propose of no drafts");
  Expect(std::ranges::equal(session->tokens, sequence.tokens), "Propose's tokens have a gap");
  Expect(ahead ? session->in_flight <= 1 : session->in_flight <= 0, "Propose's `ahead`");
  if (Below(4) == 0) return proposal;
  proposal.source = static_cast<ProposalSource>(1 + Below(3));
  const bool confused = Below(16) == 0;  // answers what was not asked
  if (ahead != confused) {
    MakeBranches(Truth(sequence, 10 + max_drafts), max_drafts, &proposal);
    return proposal;
  }
  proposal.tokens = Truth(sequence, 1 + Below(max_drafts));
  switch (Below(8)) {
    case 0:
      Spoil(&proposal.tokens);
      break;
    case 1:  // too long
      for (int32_t n = Below(60); n > 0; --n) proposal.tokens.push_back(AnyToken());
      break;
    case 2:
      for (TokenId& token : proposal.tokens) token = AnyToken();
      break;
    case 3:  // parents that are none, too few or too many
      for (int32_t n = Below(12); n > 0; --n) proposal.parents.push_back(Below(8) - 3);
      break;
    case 4:
    case 5: {
      const std::vector<TokenId> truth = std::exchange(proposal.tokens, {});
      MakeTree(truth, 1 + Below(max_drafts + 3), &proposal);
      if (Below(6) == 0) Spoil(&proposal.tokens);
      break;
    }
    default:
      break;
  }
  return proposal;
}

}  // namespace paceline
