#include "tests/sim/hash_speculator.h"

#include <algorithm>

#include "common/hash.h"

namespace paceline {
namespace {

HashModelOptions Drafter(HashModelOptions target, double agreement) {
  target.agreement = agreement;
  return target;
}

}  // namespace

HashSpeculator::HashSpeculator(HashSpeculatorOptions options)
    : options_(std::move(options)),
      target_(options_.target),
      drafter_(Drafter(options_.target, options_.agreement)) {}

void HashSpeculator::Begin(const SpecSequence& sequence) {
  sessions_[sequence.id.session] = Session{.prefix = target_.Empty()};
}

uint64_t HashSpeculator::Prefix(Session* session, std::span<const TokenId> tokens) {
  for (; session->length < tokens.size(); ++session->length) {
    session->prefix = target_.Extend(session->prefix, tokens[session->length]);
  }
  return session->prefix;
}

TokenId HashSpeculator::Next(const HashModel& model, uint64_t prefix,
                             const std::vector<TokenId>& history,
                             const SpecSequence& sequence) const {
  return model.Sample(prefix, *sequence.sampling, sequence.sample, history, sequence.prompt_len)
      .token;
}

std::vector<TokenId> HashSpeculator::Draft(uint64_t prefix, std::vector<TokenId> history,
                                           const SpecSequence& sequence, int32_t count) const {
  std::vector<TokenId> drafts;
  while (static_cast<int32_t>(drafts.size()) < count) {
    const TokenId token = Next(drafter_, prefix, history, sequence);
    drafts.push_back(token);
    history.push_back(token);
    prefix = target_.Extend(prefix, token);
  }
  return drafts;
}

// What the step in flight will come to, and drafts behind it; wrong as often as the hit rate says.
PlannedBranch HashSpeculator::GuessOutcome(const Session& session, const SpecSequence& sequence,
                                           int32_t max_drafts) {
  std::vector<TokenId> in_flight = session.last.tokens;
  for (const PlannedBranch& b : session.last.branches) {
    if (b.accepted == session.accepted && b.next == sequence.tokens.back()) in_flight = b.tokens;
  }
  std::vector<TokenId> history(sequence.tokens.begin(), sequence.tokens.end());
  uint64_t prefix = session.prefix;
  PlannedBranch branch;
  for (size_t i = 0;; ++i) {
    branch.next = Next(target_, prefix, history, sequence);
    history.push_back(branch.next);
    prefix = target_.Extend(prefix, branch.next);
    if (i >= in_flight.size() || in_flight[i] != branch.next) break;
    ++branch.accepted;
  }
  branch.tokens = Draft(prefix, std::move(history), sequence, max_drafts);
  const double coin = static_cast<double>(Mix64(prefix) >> 11) * 0x1p-53;
  if (coin >= options_.hit_rate) branch.accepted += 1;  // an outcome that does not come
  return branch;
}

SpecProposal HashSpeculator::Propose(const SpecSequence& sequence, int32_t max_drafts, bool ahead) {
  max_drafts = std::min(max_drafts, options_.max_drafts);
  const auto it = sessions_.find(sequence.id.session);
  SpecProposal proposal;
  if (it == sessions_.end() || max_drafts <= 0) return proposal;
  Session& session = it->second;
  Prefix(&session, sequence.tokens);
  proposal.source = ProposalSource::kRemoteFull;
  if (ahead) {
    proposal.branches.push_back(GuessOutcome(session, sequence, max_drafts));
  } else {
    proposal.tokens = Draft(session.prefix, {sequence.tokens.begin(), sequence.tokens.end()},
                            sequence, max_drafts);
  }
  session.last = proposal;
  return proposal;
}

void HashSpeculator::Committed(const SpecSequence& sequence, const SpecOutcome& outcome) {
  const auto it = sessions_.find(outcome.id.session);
  if (it != sessions_.end()) it->second.accepted = outcome.accepted;
  drafted_ += outcome.drafted;
  accepted_ += outcome.accepted;
}

}  // namespace paceline
