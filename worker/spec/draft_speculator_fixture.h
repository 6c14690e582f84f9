// For tests of DraftSpeculator: the engine's calls by hand, over queues instead of streams.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "worker/spec/draft_speculator.h"
#include "worker/spec/queue_link.h"

namespace paceline {

using Tokens = std::vector<TokenId>;

struct Seq {
  DraftSessionId id;
  Tokens tokens;
  int32_t prompt_len = 0;
  int32_t max_len = 1000;
  DecodingMode mode = DecodingMode::kDraft;
  DraftStrategy strategy = DraftStrategy::kDefault;
  int32_t draft_len = 0;
  std::string salt;
  SamplingParams sampling;

  SpecSequence Spec() const {
    return {.id = id,
            .tokens = tokens,
            .prompt_len = prompt_len,
            .max_len = max_len,
            .mode = mode,
            .strategy = strategy,
            .draft_len = draft_len,
            .sampling = &sampling,
            .cache_salt = salt};
  }
};

class DraftSpeculatorTest : public testing::Test {
 protected:
  DraftSpeculatorTest() {
    options_.vocab_size = 100;
    options_.strategy = DraftStrategy::kChain;
    options_.draft_len = 3;
    options_.ngram = false;
  }
  // Called first by each test, when the options are set.
  void Start(int links = 1) {
    speculator_ = std::make_unique<DraftSpeculator>(options_);
    for (int i = 0; i < links; ++i) {
      links_.push_back(std::make_shared<QueueLink>("drafter-" + std::to_string(i)));
      ids_.push_back(speculator_->AddLink(links_.back()));
    }
    speculator_->EndLaunch();
  }

  Seq New(uint64_t session, Tokens tokens = {1, 2, 3, 4}) {
    Seq seq;
    seq.id = {.session = session, .epoch = 1};
    seq.prompt_len = static_cast<int32_t>(tokens.size()) - 1;
    seq.tokens = std::move(tokens);
    return seq;
  }
  void Begin(const Seq& seq) {
    speculator_->Begin(seq.Spec());
    EndStep();
  }
  SpecProposal Propose(const Seq& seq, bool ahead = false, int32_t max_drafts = 8) {
    return speculator_->Propose(seq.Spec(), max_drafts, ahead);
  }
  void Launch(const Seq& seq, const Tokens& in_flight) {
    speculator_->Launched(seq.Spec(), in_flight);
    speculator_->EndLaunch();
  }
  void Commit(Seq* seq, const SpecProposal& p, const Tokens& fresh, bool end_step = true) {
    seq->tokens.insert(seq->tokens.end(), fresh.begin(), fresh.end());
    SpecOutcome outcome;
    outcome.id = seq->id;
    outcome.source = p.source;
    outcome.drafted = static_cast<int32_t>(p.tokens.size());
    outcome.accepted = static_cast<int32_t>(fresh.size()) - 1;
    outcome.base_len = static_cast<int32_t>(seq->tokens.size());
    outcome.new_tokens = std::span(seq->tokens).last(fresh.size());
    speculator_->Committed(seq->Spec(), outcome);
    if (end_step) EndStep();
  }
  void EndStep() {
    constexpr Duration kStep = std::chrono::milliseconds(10);
    now_ += kStep;
    speculator_->EndStep({.step = kStep, .done = now_, .rows = 4, .sequences = 1});
  }
  // One step; returns what was verified.
  SpecProposal Step(Seq* seq, const Tokens& fresh) {
    SpecProposal p = Propose(*seq);
    Launch(*seq, p.tokens);
    Commit(seq, p, fresh);
    return p;
  }
  void Deliver(DraftProposal proposal, size_t link = 0) {
    DraftFrame frame;
    frame.proposals.push_back(std::move(proposal));
    speculator_->mailbox().Deliver(ids_[link], links_[link]->now.incarnation, std::move(frame));
  }
  void Nack(DraftNackReason reason, DraftSessionId wire, size_t link = 0) {
    DraftFrame frame;
    frame.nacks.push_back({.id = wire, .reason = reason});
    speculator_->mailbox().Deliver(ids_[link], links_[link]->now.incarnation, std::move(frame));
  }
  static DraftProposal Chain(const DraftCommit& commit, Tokens tokens) {
    return {.id = commit.id,
            .base_len = commit.base_len,
            .prefix_hash = commit.prefix_hash,
            .branches = {{.tokens = std::move(tokens)}}};
  }
  static DraftProposal Enumerated(const DraftCommit& commit, std::vector<DraftBranch> branches) {
    DraftProposal proposal = Chain(commit, {});
    proposal.kind = ProposalKind::kEnumerated;
    proposal.branches = std::move(branches);
    return proposal;
  }
  // The newest commit at a link; a failure if there is none.
  DraftCommit LastCommit(size_t link = 0) {
    const TargetFrame all = links_[link]->TakeAll();
    EXPECT_FALSE(all.commits.empty());
    return all.commits.empty() ? DraftCommit{} : all.commits.back();
  }
  uint64_t Fallbacks(FallbackReason reason) {
    return speculator_->counters().fallbacks[static_cast<size_t>(reason)];
  }
  int32_t Sessions(size_t link) { return speculator_->SessionsByLink()[link].second; }

  DraftSpeculatorOptions options_;
  TimePoint now_{};
  std::unique_ptr<DraftSpeculator> speculator_;
  std::vector<std::shared_ptr<QueueLink>> links_;
  std::vector<DraftLinkId> ids_;
};

}  // namespace paceline
