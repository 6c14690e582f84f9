// What DraftSpeculator proposes and asks for: chains, outcomes, steps ahead, trees, modes.
#include "worker/spec/draft_speculator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/hash.h"
#include "worker/spec/draft_speculator_fixture.h"

namespace paceline {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::SizeIs;

// --- Chains ---

TEST_F(DraftSpeculatorTest, OpensAndAsksAtOnce) {
  Start();
  Seq seq = New(7);
  seq.sampling.seed = 42;
  seq.salt = "tenant";
  Begin(seq);
  const TargetFrame frame = links_[0]->TakeAll();
  ASSERT_THAT(frame.opens, SizeIs(1));
  EXPECT_EQ(frame.opens[0].id.session, 7u);
  EXPECT_EQ(frame.opens[0].tokens, seq.tokens);
  EXPECT_EQ(frame.opens[0].prompt_len, 3);
  EXPECT_EQ(frame.opens[0].max_len, 1000);
  EXPECT_EQ(frame.opens[0].sampling.seed, 42u);
  EXPECT_EQ(frame.opens[0].cache_salt, "tenant");
  ASSERT_THAT(frame.commits, SizeIs(1));
  EXPECT_EQ(frame.commits[0].base_len, 4);
  EXPECT_THAT(frame.commits[0].new_tokens, IsEmpty());
  EXPECT_EQ(frame.commits[0].prefix_hash, HashTokens(seq.tokens));
  EXPECT_EQ(frame.commits[0].want_len, 3 + 1);  // and the token that the step itself yields
  EXPECT_EQ(frame.commits[0].want_branches, 0);
}

TEST_F(DraftSpeculatorTest, AChainFromBehindIsUsedAsFarAsItAgrees) {
  Start();
  Seq seq = New(1);
  Begin(seq);
  Deliver(Chain(LastCommit(), {5, 6, 7, 8}));
  EXPECT_THAT(Step(&seq, {5}).tokens, ElementsAre(5, 6, 7));  // only the first was right
  const SpecProposal next = Propose(seq);
  EXPECT_THAT(next.tokens, ElementsAre(6, 7, 8));
  EXPECT_EQ(next.source, ProposalSource::kRemoteFull);
  Launch(seq, next.tokens);
  // The drafter is told what is being verified, and all that was committed.
  const DraftCommit commit = LastCommit();
  EXPECT_EQ(commit.base_len, 5);
  EXPECT_THAT(commit.new_tokens, ElementsAre(5));
  EXPECT_THAT(commit.in_flight, ElementsAre(6, 7, 8));
  EXPECT_EQ(commit.prefix_hash, HashTokens(seq.tokens));
  EXPECT_EQ(commit.want_len, 3 + 3 + 1);
  Deliver(Chain(commit, {6, 7, 8, 9, 10, 11, 12}));
  Commit(&seq, next, {6, 7, 8, 9});
  EXPECT_THAT(Propose(seq).tokens, ElementsAre(10, 11, 12));
  const SpecCounters& n = speculator_->counters();
  EXPECT_EQ(n.drafts, 2u);
  EXPECT_EQ(n.drafted, 6u);
  EXPECT_EQ(n.accepted, 3u);
  EXPECT_EQ(n.drafted_at[2], 2u);
  EXPECT_EQ(n.accepted_at[0], 1u);
  EXPECT_EQ(n.accepted_at[2], 1u);
  EXPECT_EQ(n.accepted_at[3], 0u);
  EXPECT_EQ(n.steps_full, 2u);
  EXPECT_EQ(n.wanted_remote, 2u);
}

TEST_F(DraftSpeculatorTest, MissesAndLateness) {
  Start();
  Seq seq = New(1);
  Begin(seq);
  const DraftCommit first = LastCommit();
  EXPECT_THAT(Step(&seq, {5}).tokens, IsEmpty());
  EXPECT_EQ(Fallbacks(FallbackReason::kLate), 1u);
  Deliver(Chain(first, {9, 9}));  // the text goes on with 5
  EXPECT_THAT(Step(&seq, {6}).tokens, IsEmpty());
  EXPECT_EQ(Fallbacks(FallbackReason::kMiss), 1u);
  Deliver(Chain(first, {5, 6, 7}));  // late, and right
  const SpecProposal p = Step(&seq, {7, 8});
  EXPECT_THAT(p.tokens, ElementsAre(7));
  EXPECT_EQ(p.source, ProposalSource::kRemotePartial);
  const SpecCounters& n = speculator_->counters();
  EXPECT_EQ(n.proposals_received, 2u);
  EXPECT_EQ(n.proposals_late, 1u);
  EXPECT_EQ(n.proposals_stale, 1u);
  EXPECT_EQ(n.steps_none, 2u);
  EXPECT_EQ(n.steps_partial, 1u);
}

TEST_F(DraftSpeculatorTest, AMissIsCoveredByTheText) {
  options_.ngram = true;
  Start();
  Seq seq = New(1, {1, 2, 3, 4, 5, 1, 2});
  Begin(seq);
  const SpecProposal p = Step(&seq, {3, 4, 5, 1});
  EXPECT_EQ(p.source, ProposalSource::kNgram);
  EXPECT_THAT(p.tokens, ElementsAre(3, 4, 5));
  EXPECT_EQ(speculator_->counters().steps_ngram, 1u);
  EXPECT_EQ(Fallbacks(FallbackReason::kLate), 1u);
  EXPECT_EQ(speculator_->counters().accepted, 3u);
}

// --- Enumeration ---

TEST_F(DraftSpeculatorTest, TheBranchOfTheOutcomeIsTheNextDraft) {
  options_.strategy = DraftStrategy::kEnumerate;
  Start();
  Seq seq = New(1);
  Begin(seq);
  DraftCommit commit = LastCommit();
  EXPECT_EQ(commit.want_len, 3);
  EXPECT_EQ(commit.want_branches, 24);
  Deliver(Enumerated(commit, {{.next = 5, .tokens = {6, 7, 8}}, {.next = 9, .tokens = {9, 9, 9}}}));
  Step(&seq, {5});
  const SpecProposal p = Propose(seq);
  EXPECT_THAT(p.tokens, ElementsAre(6, 7, 8));
  Launch(seq, p.tokens);
  commit = LastCommit();
  EXPECT_THAT(commit.in_flight, ElementsAre(6, 7, 8));
  Deliver(Enumerated(commit, {{.accepted = 3, .next = 9, .tokens = {1, 1, 1}},
                              {.accepted = 1, .next = 20, .tokens = {21, 22, 23}}}));
  Commit(&seq, p, {6, 20});
  EXPECT_THAT(Step(&seq, {30}).tokens, ElementsAre(21, 22, 23));
  Deliver(Enumerated(LastCommit(), {{.next = 31, .tokens = {1}}}));
  EXPECT_THAT(Step(&seq, {32}).tokens, IsEmpty());
  EXPECT_EQ(speculator_->counters().outcome_hits, 2u);
  EXPECT_EQ(speculator_->counters().outcome_misses, 1u);
}

TEST_F(DraftSpeculatorTest, ARequestMayChooseStrategyAndLength) {
  options_.strategy = DraftStrategy::kChain;
  Start();
  Seq seq = New(1);
  seq.strategy = DraftStrategy::kEnumerate;
  seq.draft_len = 6;
  Begin(seq);
  const DraftCommit commit = LastCommit();
  EXPECT_EQ(commit.want_len, 6);
  EXPECT_EQ(commit.want_branches, 24);
  Seq other = New(2);
  Begin(other);
  EXPECT_EQ(LastCommit().want_branches, 0);
}

TEST_F(DraftSpeculatorTest, BranchesAreSharedOut) {
  options_.strategy = DraftStrategy::kEnumerate;
  options_.branch_rows = 32;
  Start();
  std::vector<Seq> seqs;
  for (uint64_t i = 1; i <= 4; ++i) seqs.push_back(New(i));
  for (const Seq& seq : seqs) Begin(seq);
  const auto step = [&] {
    for (const Seq& seq : seqs) speculator_->Launched(seq.Spec(), {});
    speculator_->EndLaunch();
    for (Seq& seq : seqs) Commit(&seq, {}, {5}, false);
    EndStep();
  };
  for (int i = 0; i < 3; ++i) step();
  links_[0]->TakeAll();
  step();
  for (const DraftCommit& commit : links_[0]->TakeAll().commits) {
    EXPECT_EQ(commit.want_branches, 8);
  }
  // Twenty-eight sessions of other targets: too little is left, and chains are asked for.
  DraftFrame frame;
  frame.load.sessions = 32;
  speculator_->mailbox().Deliver(ids_[0], 1, std::move(frame));
  step();
  links_[0]->TakeAll();
  step();
  for (const DraftCommit& commit : links_[0]->TakeAll().commits) {
    EXPECT_EQ(commit.want_branches, 0);
    EXPECT_EQ(commit.want_len, 4);
  }
}

// --- Launch-ahead ---

TEST_F(DraftSpeculatorTest, AheadABranchForEachOutcome) {
  options_.strategy = DraftStrategy::kEnumerate;
  Start();
  Seq seq = New(1);
  Begin(seq);
  Deliver(Enumerated(LastCommit(), {{.next = 5, .tokens = {6, 7, 8}}}));
  SpecProposal first = Step(&seq, {5});
  first = Propose(seq);
  Launch(seq, first.tokens);
  Deliver(Enumerated(LastCommit(), {{.accepted = 3, .next = 9, .tokens = {10, 11, 12, 13, 14}},
                                    {.accepted = 0, .next = 20, .tokens = {21}}}));
  // The step that verifies 6, 7, 8 is in flight.
  const SpecProposal ahead = Propose(seq, true);
  EXPECT_EQ(ahead.source, ProposalSource::kRemoteFull);
  EXPECT_THAT(ahead.tokens, IsEmpty());
  ASSERT_THAT(ahead.branches, SizeIs(2));
  EXPECT_EQ(ahead.branches[0].accepted, 3);
  EXPECT_EQ(ahead.branches[0].next, 9);
  EXPECT_THAT(ahead.branches[0].tokens, ElementsAre(10, 11, 12));
  EXPECT_EQ(ahead.branches[1].next, 20);
  Launch(seq, {});
  EXPECT_THAT(links_[0]->TakeAll().commits, IsEmpty()) << "its base is not known yet";
  // The first outcome tells which branch runs; the drafter hears of both at once.
  Commit(&seq, first, {6, 7, 8, 9});
  const DraftCommit commit = LastCommit();
  EXPECT_EQ(commit.base_len, static_cast<int32_t>(seq.tokens.size()));
  EXPECT_THAT(commit.in_flight, ElementsAre(10, 11, 12));
  EXPECT_EQ(commit.want_len, 3 + 1 + 3) << "one more outcome lies between";
  // The rest of the branch serves the step behind.
  const SpecProposal behind = Propose(seq, true);
  ASSERT_THAT(behind.branches, SizeIs(1));
  EXPECT_EQ(behind.branches[0].accepted, 3);
  EXPECT_EQ(behind.branches[0].next, 13);
  EXPECT_THAT(behind.branches[0].tokens, ElementsAre(14));
  EXPECT_EQ(behind.source, ProposalSource::kRemotePartial);
}

TEST_F(DraftSpeculatorTest, AheadOfAnUnmatchedBranchNothingIsInFlight) {
  Start();
  Seq seq = New(1);
  Begin(seq);
  Deliver(Chain(LastCommit(), {5, 6, 7, 8}));
  Launch(seq, {});
  const SpecProposal ahead = Propose(seq, true);
  ASSERT_THAT(ahead.branches, SizeIs(1));
  EXPECT_EQ(ahead.branches[0].next, 5);
  Launch(seq, {});
  links_[0]->TakeAll();
  Commit(&seq, {}, {9});
  EXPECT_THAT(LastCommit().in_flight, IsEmpty());
}

TEST_F(DraftSpeculatorTest, AStepLaunchedBeforeItBeganIsNotMistaken) {
  Start();
  Seq seq = New(1);
  Begin(seq);  // a plain step is in flight that nobody told of
  Deliver(Chain(LastCommit(), {5, 6, 7, 8, 9}));
  const SpecProposal ahead = Propose(seq, true);
  ASSERT_THAT(ahead.branches, SizeIs(1));
  EXPECT_THAT(ahead.branches[0].tokens, ElementsAre(6, 7, 8));
  Launch(seq, {});
  Commit(&seq, {}, {5});
  EXPECT_THAT(LastCommit().in_flight, ElementsAre(6, 7, 8));
  Commit(&seq, {.source = ProposalSource::kRemoteFull, .tokens = {6, 7, 8}}, {6, 7, 8, 9});
  EXPECT_EQ(speculator_->counters().accepted, 3u);
}

TEST_F(DraftSpeculatorTest, AheadTheTextCoversToo) {
  options_.ngram = true;
  Start(0);
  Seq seq = New(1, {1, 2, 3, 4, 5, 1, 2});
  Begin(seq);
  Launch(seq, {});
  const SpecProposal ahead = Propose(seq, true);
  EXPECT_EQ(ahead.source, ProposalSource::kNgram);
  ASSERT_THAT(ahead.branches, SizeIs(1));
  EXPECT_EQ(ahead.branches[0].accepted, 0);
  EXPECT_EQ(ahead.branches[0].next, 3);
  EXPECT_THAT(ahead.branches[0].tokens, ElementsAre(4, 5, 1));
}

// --- Trees ---

TEST_F(DraftSpeculatorTest, FewSequencesGetTrees) {
  options_.trees = true;
  options_.tree_sequences = 1;
  options_.ngram = true;
  Start();
  Seq seq = New(1, {1, 2, 8, 1, 2, 9, 1, 2});
  Begin(seq);
  Deliver(Enumerated(LastCommit(), {{.next = 5, .tokens = {6, 7}}, {.next = 8, .tokens = {1}}}));
  const SpecProposal p = Propose(seq);
  EXPECT_THAT(p.tokens, ElementsAre(5, 6, 7, 8, 1, 9, 1, 2));
  EXPECT_THAT(p.parents, ElementsAre(kNone, 0, 1, kNone, 3, kNone, 5, 6));
  EXPECT_EQ(p.source, ProposalSource::kRemoteFull);
  Launch(seq, {5, 6, 7});
  Commit(&seq, p, {5, 6, 7, 3});
  EXPECT_EQ(speculator_->counters().drafted, 8u);
  EXPECT_EQ(speculator_->counters().drafted_at[2], 1u);
  EXPECT_EQ(speculator_->counters().drafted_at[3], 0u) << "rows side by side are one position";
  Seq other = New(2);
  Begin(other);
  Deliver(Chain(LastCommit(), {5, 6}));
  EXPECT_THAT(Propose(other).parents, IsEmpty());
}

// --- Sync ---

TEST_F(DraftSpeculatorTest, SyncWaitsForThisVeryBase) {
  options_.strategy = DraftStrategy::kSync;
  Start();
  Seq seq = New(1);
  Begin(seq);
  const DraftCommit commit = LastCommit();
  EXPECT_EQ(commit.want_len, 3);
  EXPECT_TRUE(speculator_->WantsToWait(seq.Spec()));
  EndStep();
  Deliver(Chain(commit, {5, 6, 7}));
  EXPECT_FALSE(speculator_->WantsToWait(seq.Spec()));
  const SpecProposal p = Propose(seq);
  EXPECT_THAT(p.tokens, ElementsAre(5, 6, 7));
  Launch(seq, p.tokens);
  EXPECT_THAT(links_[0]->TakeAll().commits, IsEmpty()) << "a verify is nothing to draft for";
  Commit(&seq, p, {5, 9});
  EXPECT_EQ(LastCommit().base_len, 6);
  EXPECT_TRUE(speculator_->WantsToWait(seq.Spec()));
  EndStep();
  EXPECT_EQ(speculator_->counters().sync_waits, 2u);
}

TEST_F(DraftSpeculatorTest, SyncWaitsAreBounded) {
  options_.strategy = DraftStrategy::kSync;
  Start();
  Seq seq = New(1);
  Begin(seq);
  int steps = 0;
  for (; speculator_->WantsToWait(seq.Spec()); EndStep()) ASSERT_LT(++steps, 100);
  EXPECT_EQ(steps, options_.max_sync_waits);
  // And where nothing else runs, in polls.
  Launch(seq, {});
  Commit(&seq, {}, {5});
  int polls = 0;
  while (speculator_->WantsToWait(seq.Spec())) ASSERT_LT(++polls, 1000);
  EXPECT_EQ(polls, (options_.max_sync_waits - 1) * kPollsPerStep + 1);
}

TEST_F(DraftSpeculatorTest, SyncWaitsForNobodyWhoIsNotThere) {
  options_.strategy = DraftStrategy::kSync;
  Start();
  Seq seq = New(1);
  Begin(seq);
  links_[0]->now.state = DraftLinkState::kDown;
  EndStep();
  EXPECT_FALSE(speculator_->WantsToWait(seq.Spec()));
  Seq ngram = New(2);
  ngram.mode = DecodingMode::kNgram;
  Begin(ngram);
  EXPECT_FALSE(speculator_->WantsToWait(ngram.Spec()));
}

TEST_F(DraftSpeculatorTest, OtherModesNeverWait) {
  for (DraftStrategy strategy : {DraftStrategy::kChain, DraftStrategy::kEnumerate}) {
    options_.strategy = strategy;
    Start();
    Seq seq = New(1);
    Begin(seq);
    EXPECT_FALSE(speculator_->WantsToWait(seq.Spec()));
  }
}

// --- Modes of requests ---

TEST_F(DraftSpeculatorTest, PlainIsNeverTouched) {
  options_.ngram = true;
  Start();
  Seq seq = New(1, {1, 2, 3, 1, 2, 3, 1, 2});
  seq.mode = DecodingMode::kPlain;
  Begin(seq);
  EXPECT_EQ(Step(&seq, {3}).source, ProposalSource::kNoProposal);
  EXPECT_THAT(links_[0]->frames, IsEmpty());
}

TEST_F(DraftSpeculatorTest, NgramAsksNobody) {
  Start();
  Seq seq = New(1, {1, 2, 3, 1, 2});
  seq.mode = DecodingMode::kNgram;
  Begin(seq);
  EXPECT_THAT(Step(&seq, {3}).tokens, ElementsAre(3, 1, 2));
  EXPECT_THAT(links_[0]->frames, IsEmpty());
  EXPECT_EQ(Fallbacks(FallbackReason::kMode), 1u);
  EXPECT_EQ(speculator_->counters().wanted_remote, 0u);
}

TEST_F(DraftSpeculatorTest, AutoFollowsTheController) {
  options_.controller.cost_age = 1 << 20;
  Start();
  Seq seq = New(1);
  seq.mode = DecodingMode::kAuto;
  Begin(seq);
  // Wrong drafts all the time: the length falls to 0, and the drafter is asked for none.
  for (int i = 0; i < 400; ++i) {
    for (const DraftCommit& commit : links_[0]->TakeAll().commits) {
      if (commit.want_len > 0) Deliver(Chain(commit, {5, 99, 99, 99, 99, 99, 99, 99, 99}));
    }
    SpecProposal p = Propose(seq);
    Launch(seq, p.tokens);
    SpecStepTiming timing{.step = std::chrono::milliseconds(10), .sequences = 1};
    timing.rows = 1 + static_cast<int32_t>(p.tokens.size());
    timing.step += std::chrono::milliseconds(2) * timing.rows;
    Commit(&seq, p, {5}, false);
    speculator_->EndStep(timing);
  }
  EXPECT_THAT(Propose(seq).tokens, IsEmpty());
  EXPECT_GT(Fallbacks(FallbackReason::kController), 100u);
  Launch(seq, {});
  links_[0]->TakeAll();
  // It is kept up to date now and then only.
  int commits = 0;
  for (int i = 0; i < 64; ++i) {
    Step(&seq, {5});
    for (const DraftCommit& commit : links_[0]->TakeAll().commits) {
      ++commits;
      EXPECT_EQ(commit.want_len, 0);
      EXPECT_GE(commit.new_tokens.size(), 16u);
    }
  }
  EXPECT_GE(commits, 3);
  EXPECT_LE(commits, 4);
}

}  // namespace
}  // namespace paceline
