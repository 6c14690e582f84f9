#include "tests/sim/scripted_drafter.h"

#include <algorithm>
#include <utility>

#include "common/hash.h"

namespace paceline {

bool ScriptedDrafter::Send(uint64_t incarnation, TargetFrame frame) {
  if (status_.state == DraftLinkState::kDown || incarnation != status_.incarnation) return false;
  if (Chance(options_.refuse_send)) return false;
  if (Chance(options_.lose)) return true;
  DraftFrame answer;
  for (DraftOpen& open : frame.opens) OnOpen(std::move(open), &answer);
  for (const DraftCommit& commit : frame.commits) OnCommit(commit, &answer);
  for (const DraftClose& close : frame.closes) {
    const auto it = sessions_.find(close.id.session);
    if (it != sessions_.end() && it->second.epoch == close.id.epoch) sessions_.erase(it);
  }
  answer.load = {.sessions = static_cast<int32_t>(sessions_.size())};
  const int32_t copies = Chance(options_.silent) ? 0 : Chance(options_.duplicate) ? 2 : 1;
  for (int32_t i = 0; i < copies; ++i) {
    std::uniform_int_distribution<int64_t> delay(options_.min_delay, options_.max_delay);
    answers_.emplace(now_ + delay(rng_), std::pair(incarnation, answer));
  }
  return true;
}

void ScriptedDrafter::Tick() {
  ++now_;
  while (!answers_.empty() && answers_.begin()->first <= now_) {
    auto [incarnation, frame] = std::move(answers_.begin()->second);
    answers_.erase(answers_.begin());
    deliver_(incarnation, std::move(frame));
  }
  if (status_.state == DraftLinkState::kDown) {
    if (Chance(options_.recover)) Recover();
  } else if (Chance(options_.die)) {
    Die();
  } else if (Chance(options_.drain)) {
    SetDraining(status_.state == DraftLinkState::kUp);
  }
}

// Answers on their way may still arrive, from a stream that is gone.
void ScriptedDrafter::Die() {
  status_.state = DraftLinkState::kDown;
  sessions_.clear();
}

void ScriptedDrafter::Recover() {
  status_.state = DraftLinkState::kUp;
  ++status_.incarnation;
}

void ScriptedDrafter::SetDraining(bool draining) {
  status_.state = draining ? DraftLinkState::kDraining : DraftLinkState::kUp;
}

void ScriptedDrafter::OnOpen(DraftOpen open, DraftFrame* answer) {
  if (static_cast<int32_t>(sessions_.size()) >= options_.max_sessions) {
    answer->nacks.push_back({.id = open.id, .reason = DraftNackReason::kOverloaded});
    return;
  }
  sessions_[open.id.session] = {.epoch = open.id.epoch,
                                .sampling = std::move(open.sampling),
                                .sample = open.sample,
                                .prompt_len = open.prompt_len,
                                .max_len = open.max_len,
                                .tokens = std::move(open.tokens)};
}

void ScriptedDrafter::OnCommit(const DraftCommit& commit, DraftFrame* answer) {
  const auto it = sessions_.find(commit.id.session);
  if (it == sessions_.end() || it->second.epoch != commit.id.epoch) {
    if (!Chance(options_.forget)) {
      answer->nacks.push_back({.id = commit.id, .reason = DraftNackReason::kEvicted});
    }
    return;
  }
  Session& session = it->second;
  const auto have = static_cast<int32_t>(session.tokens.size());
  const auto fresh = static_cast<int32_t>(commit.new_tokens.size());
  if (commit.base_len - fresh > have || commit.base_len < have) {
    answer->nacks.push_back(
        {.id = commit.id, .reason = DraftNackReason::kNeedSync, .have_len = have});
    return;
  }
  session.tokens.resize(commit.base_len - fresh);
  session.tokens.insert(session.tokens.end(), commit.new_tokens.begin(), commit.new_tokens.end());
  if (HashTokens(session.tokens) != commit.prefix_hash) {
    answer->nacks.push_back({.id = commit.id, .reason = DraftNackReason::kInvalid});
    sessions_.erase(it);
    return;
  }
  if (commit.want_len > 0) {
    DraftProposal proposal = Propose(session, commit);
    if (!proposal.branches.empty()) {
      ++proposals_;
      if (Chance(options_.garbage)) Spoil(&proposal);
      answer->proposals.push_back(std::move(proposal));
    }
  }
  if (Chance(options_.evict)) {
    answer->nacks.push_back({.id = commit.id, .reason = DraftNackReason::kEvicted});
    sessions_.erase(it);
  } else if (Chance(options_.forget)) {
    sessions_.erase(it);
  }
}

DraftProposal ScriptedDrafter::Propose(const Session& session, const DraftCommit& commit) {
  DraftProposal proposal{
      .id = commit.id, .base_len = commit.base_len, .prefix_hash = commit.prefix_hash};
  const int32_t len = std::min(commit.want_len, options_.max_len);
  const bool random = Chance(options_.random);
  const auto add = [&](int32_t accepted, TokenId next, std::vector<TokenId> tokens) {
    if (tokens.empty()) return;
    for (TokenId& token : tokens) {
      if (random) token = static_cast<TokenId>(rng_() % options_.model.vocab_size);
    }
    proposal.branches.push_back({.accepted = accepted, .next = next, .tokens = std::move(tokens)});
  };
  if (commit.want_branches == 0) {
    add(0, 0, Draft(session, session.tokens, len));
    return proposal;
  }
  proposal.kind = ProposalKind::kEnumerated;
  std::vector<TokenId> history = session.tokens;
  for (int32_t accepted = 0; accepted <= static_cast<int32_t>(commit.in_flight.size());
       ++accepted) {
    for (TokenId next : Guesses(session, history)) {
      if (static_cast<int32_t>(proposal.branches.size()) >= commit.want_branches) break;
      if (accepted < static_cast<int32_t>(commit.in_flight.size()) &&
          next == commit.in_flight[accepted]) {
        continue;
      }
      std::vector<TokenId> behind = history;
      behind.push_back(next);
      add(accepted, next, Draft(session, std::move(behind), len));
    }
    if (accepted < static_cast<int32_t>(commit.in_flight.size())) {
      history.push_back(commit.in_flight[accepted]);
    }
  }
  return proposal;
}

std::vector<TokenId> ScriptedDrafter::Draft(const Session& session, std::vector<TokenId> history,
                                            int32_t count) {
  std::vector<TokenId> drafts;
  uint64_t prefix = model_.Empty();
  for (TokenId token : history) prefix = model_.Extend(prefix, token);
  count = std::min(count, session.max_len - static_cast<int32_t>(history.size()));
  while (static_cast<int32_t>(drafts.size()) < count) {
    const TokenId token =
        model_.Sample(prefix, session.sampling, session.sample, history, session.prompt_len).token;
    drafts.push_back(token);
    history.push_back(token);
    prefix = model_.Extend(prefix, token);
  }
  return drafts;
}

std::vector<TokenId> ScriptedDrafter::Guesses(const Session& session,
                                              const std::vector<TokenId>& history) {
  uint64_t prefix = model_.Empty();
  for (TokenId token : history) prefix = model_.Extend(prefix, token);
  return model_
      .Sample(prefix, session.sampling, session.sample, history, session.prompt_len,
              options_.guesses)
      .candidates;
}

void ScriptedDrafter::Spoil(DraftProposal* proposal) {
  switch (rng_() % 6) {
    case 0:
      proposal->branches[0].tokens[0] = options_.model.vocab_size;
      break;
    case 1:
      proposal->branches[0].next = -1;
      break;
    case 2:
      proposal->prefix_hash += 1;
      break;
    case 3:
      proposal->base_len += 1;
      break;
    case 4:
      proposal->branches.clear();
      break;
    default:
      proposal->branches[0].tokens.resize(1000, 1);
      break;
  }
}

}  // namespace paceline
