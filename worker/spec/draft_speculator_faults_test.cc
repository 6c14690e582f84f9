// DraftSpeculator where drafters fail, refuse, drain or lie, and where sequences come and go.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "worker/spec/draft_speculator_fixture.h"

namespace paceline {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::SizeIs;

// --- Drafters that fail ---

TEST_F(DraftSpeculatorTest, WithoutADrafterStepsArePlain) {
  Start(0);
  Seq seq = New(1);
  Begin(seq);
  EXPECT_THAT(Step(&seq, {5}).tokens, IsEmpty());
  EXPECT_EQ(Fallbacks(FallbackReason::kNoLink), 1u);
  EXPECT_EQ(speculator_->counters().opens, 0u);
}

TEST_F(DraftSpeculatorTest, ADrafterThatComesLateIsUsed) {
  Start(0);
  Seq seq = New(1);
  Begin(seq);
  Step(&seq, {5});
  links_.push_back(std::make_shared<QueueLink>("late"));
  ids_.push_back(speculator_->AddLink(links_[0]));
  EndStep();
  Step(&seq, {6});
  const TargetFrame frame = links_[0]->TakeAll();
  ASSERT_THAT(frame.opens, SizeIs(1));
  EXPECT_THAT(frame.opens[0].tokens, ElementsAre(1, 2, 3, 4, 5));
}

TEST_F(DraftSpeculatorTest, DeathMovesTheSession) {
  Start(2);
  Seq seq = New(1);
  Begin(seq);
  const size_t dead = Sessions(0) == 1 ? 0 : 1;
  links_[dead]->now.state = DraftLinkState::kDown;
  EXPECT_THAT(Step(&seq, {5}).tokens, IsEmpty());  // seen when frames go out
  Step(&seq, {6});
  const TargetFrame frame = links_[1 - dead]->TakeAll();
  ASSERT_THAT(frame.opens, SizeIs(1));
  EXPECT_EQ(frame.opens[0].tokens.back(), 5);
  EXPECT_EQ(Sessions(dead), 0);
  EXPECT_EQ(Sessions(1 - dead), 1);
  EXPECT_EQ(speculator_->counters().opens, 2u);
  EXPECT_EQ(speculator_->counters().reopens, 1u);
  EXPECT_EQ(speculator_->counters().moves, 1u);
}

TEST_F(DraftSpeculatorTest, WhatHasArrivedOutlivesItsDrafter) {
  Start();
  Seq seq = New(1);
  Begin(seq);
  Deliver(Chain(LastCommit(), {5, 6, 7}));
  links_[0]->now.state = DraftLinkState::kDown;
  EXPECT_THAT(Step(&seq, {5}).tokens, ElementsAre(5, 6, 7));
  EXPECT_THAT(Step(&seq, {6}).tokens, ElementsAre(6, 7));
}

TEST_F(DraftSpeculatorTest, ANewStreamIsOpenedAnewAndTheOldOneIsNotHeard) {
  Start();
  Seq seq = New(1);
  Begin(seq);
  const DraftCommit old = LastCommit();
  links_[0]->Restart();
  Step(&seq, {5});
  Step(&seq, {6});
  const TargetFrame frame = links_[0]->TakeAll();
  ASSERT_THAT(frame.opens, SizeIs(1));
  EXPECT_GT(frame.opens[0].id.epoch, old.id.epoch);
  DraftFrame late;
  late.proposals.push_back(Chain(old, {5, 6, 7}));
  speculator_->mailbox().Deliver(ids_[0], 1, std::move(late));
  EXPECT_THAT(Step(&seq, {7}).tokens, IsEmpty());
  EXPECT_EQ(speculator_->counters().drops[static_cast<size_t>(DraftDrop::kIncarnation)], 1u);
  EXPECT_EQ(speculator_->counters().moves, 0u);
}

TEST_F(DraftSpeculatorTest, SilenceMovesTheSession) {
  Start(2);
  Seq seq = New(1);
  Begin(seq);
  const size_t silent = Sessions(0) == 1 ? 0 : 1;
  const DraftSessionId wire = LastCommit(silent).id;
  for (int i = 0; i < 24; ++i) Step(&seq, {5});
  EXPECT_EQ(Sessions(silent), 1) << "no 250 ms yet";
  for (int i = 0; i < 6; ++i) Step(&seq, {5});
  EXPECT_EQ(Sessions(silent), 0);
  EXPECT_EQ(Sessions(1 - silent), 1);
  const TargetFrame old = links_[silent]->TakeAll();
  ASSERT_THAT(old.closes, SizeIs(1));
  EXPECT_EQ(old.closes[0].id, wire);
  EXPECT_EQ(speculator_->counters().silences, 1u);
  EXPECT_EQ(speculator_->counters().moves, 1u);
  // The other answers, and keeps it.
  for (int i = 0; i < 100; ++i) {
    Deliver(Chain(LastCommit(1 - silent), {9}), 1 - silent);
    Step(&seq, {5});
  }
  EXPECT_EQ(Sessions(1 - silent), 1);
  EXPECT_THAT(links_[silent]->frames, IsEmpty());
}

TEST_F(DraftSpeculatorTest, ASilentDrafterWithoutAnotherIsTriedWithOneSession) {
  Start();
  Seq a = New(1), b = New(2);
  Begin(a);
  Begin(b);
  const auto step = [&] {
    for (Seq* seq : {&a, &b}) {
      const SpecProposal p = Propose(*seq);
      Launch(*seq, p.tokens);
      Commit(seq, p, {5}, /*end_step=*/false);
    }
    EndStep();
  };
  for (int i = 0; i < 40; ++i) step();
  EXPECT_EQ(speculator_->counters().silences, 1u);
  EXPECT_EQ(Sessions(0), 0);
  links_[0]->TakeAll();
  for (int i = 0; i < 16; ++i) step();
  EXPECT_THAT(links_[0]->frames, IsEmpty()) << "silence costs no traffic";
  for (int i = 0; i < 64; ++i) step();
  ASSERT_EQ(Sessions(0), 1);
  Deliver(Chain(LastCommit(), {9}));
  for (int i = 0; i < 3; ++i) step();
  EXPECT_EQ(Sessions(0), 2);
  EXPECT_EQ(speculator_->counters().silences, 1u);
}

TEST_F(DraftSpeculatorTest, ALongPromptTakesItsTime) {
  Start(2);
  Seq seq = New(1, Tokens(400, 3));
  Begin(seq);
  const size_t at = Sessions(0) == 1 ? 0 : 1;
  for (int i = 0; i < 60; ++i) Step(&seq, {5});
  EXPECT_EQ(Sessions(at), 1);
  for (int i = 0; i < 10; ++i) Step(&seq, {5});
  EXPECT_EQ(Sessions(at), 0);
}

TEST_F(DraftSpeculatorTest, WhoIsNotAskedIsNotSilent) {
  options_.controller.max_len = 0;
  Start();
  Seq seq = New(1);
  seq.mode = DecodingMode::kAuto;
  Begin(seq);
  for (int i = 0; i < 100; ++i) Step(&seq, {5});
  EXPECT_EQ(speculator_->counters().silences, 0u);
}

TEST_F(DraftSpeculatorTest, DrainingMovesTheSession) {
  Start(2);
  Seq seq = New(1);
  Begin(seq);
  const size_t from = Sessions(0) == 1 ? 0 : 1;
  const DraftSessionId wire = LastCommit(from).id;
  links_[from]->now.state = DraftLinkState::kDraining;
  EndStep();
  Step(&seq, {5});
  const TargetFrame old = links_[from]->TakeAll();
  ASSERT_THAT(old.closes, SizeIs(1));
  EXPECT_EQ(old.closes[0].id, wire);
  EXPECT_THAT(links_[1 - from]->TakeAll().opens, SizeIs(1));
  EXPECT_EQ(speculator_->counters().moves, 1u);
}

TEST_F(DraftSpeculatorTest, DrainingWithoutAnotherServesOn) {
  Start();
  Seq seq = New(1);
  Begin(seq);
  links_[0]->now.state = DraftLinkState::kDraining;
  Step(&seq, {5});
  links_[0]->TakeAll();
  Step(&seq, {5});
  const TargetFrame frame = links_[0]->TakeAll();
  EXPECT_THAT(frame.closes, IsEmpty());
  EXPECT_THAT(frame.commits, SizeIs(1)) << "it still works";
}

TEST_F(DraftSpeculatorTest, ARemovedLinkLosesItsSessions) {
  Start(2);
  Seq seq = New(1);
  Begin(seq);
  const size_t from = Sessions(0) == 1 ? 0 : 1;
  speculator_->RemoveLink(ids_[from]);
  EndStep();
  Step(&seq, {5});
  EXPECT_THAT(links_[1 - from]->TakeAll().opens, SizeIs(1));
  EXPECT_THAT(speculator_->SessionsByLink(), SizeIs(1));
}

TEST_F(DraftSpeculatorTest, AFrameThatCannotBeSentIsASessionToReopen) {
  Start();
  Seq seq = New(1);
  Begin(seq);
  Step(&seq, {5});
  const DraftSessionId wire = LastCommit().id;
  links_[0]->full = true;
  Step(&seq, {5});
  EXPECT_EQ(Sessions(0), 0);
  links_[0]->full = false;
  EXPECT_THAT(Step(&seq, {5}).tokens, IsEmpty());
  EXPECT_EQ(Fallbacks(FallbackReason::kNotOpen), 1u);
  for (int i = 0; i < 64; ++i) Step(&seq, {5});  // it does not keep up: leave it alone for a while
  const TargetFrame frame = links_[0]->TakeAll();
  ASSERT_THAT(frame.closes, SizeIs(1)) << "the stream lives: it must not keep what it had";
  EXPECT_EQ(frame.closes[0].id, wire);
  EXPECT_THAT(frame.opens, SizeIs(1));
}

TEST_F(DraftSpeculatorTest, ALostCommitIsMadeGoodByOpening) {
  Start();
  Seq seq = New(1);
  Begin(seq);
  const DraftSessionId wire = LastCommit().id;
  Step(&seq, {5});
  links_[0]->TakeAll();
  Nack(DraftNackReason::kNeedSync, wire);
  Step(&seq, {6});
  const TargetFrame frame = links_[0]->TakeAll();
  ASSERT_THAT(frame.opens, SizeIs(1));
  EXPECT_THAT(frame.opens[0].tokens, ElementsAre(1, 2, 3, 4, 5));
  EXPECT_GT(frame.opens[0].id.epoch, wire.epoch);
  EXPECT_EQ(speculator_->counters().nacks, 1u);
  EXPECT_EQ(Sessions(0), 1);
}

TEST_F(DraftSpeculatorTest, OneThatAlwaysNeedsSyncIsAskedLessAndLess) {
  Start();
  Seq seq = New(1);
  Begin(seq);
  for (int i = 0; i < 2000; ++i) {
    for (const DraftOpen& open : links_[0]->TakeAll().opens) {
      Nack(DraftNackReason::kNeedSync, open.id);
    }
    Step(&seq, {5});
    seq.tokens.resize(4);  // the text's length is of no interest
    if (i % 100 == 0) seq.tokens.assign({1, 2, 3, 4});
  }
  EXPECT_LE(speculator_->counters().opens, 14u);
}

TEST_F(DraftSpeculatorTest, AfterAnEvictionItComesBackLater) {
  Start();
  Seq seq = New(1);
  Begin(seq);
  Nack(DraftNackReason::kEvicted, LastCommit().id);
  for (int i = 0; i < 16; ++i) Step(&seq, {5});
  EXPECT_THAT(links_[0]->TakeAll().opens, IsEmpty());
  Step(&seq, {5});
  EXPECT_THAT(links_[0]->TakeAll().opens, SizeIs(1));
}

TEST_F(DraftSpeculatorTest, AnOverloadedDrafterIsLeftAloneForAnother) {
  Start(2);
  Seq seq = New(1);
  Begin(seq);
  const size_t busy = Sessions(0) == 1 ? 0 : 1;
  Nack(DraftNackReason::kOverloaded, LastCommit(busy).id, busy);
  Step(&seq, {5});
  EXPECT_THAT(links_[1 - busy]->TakeAll().opens, SizeIs(1));
  Seq next = New(2);
  Begin(next);
  EXPECT_THAT(links_[busy]->TakeAll().opens, IsEmpty());
}

TEST_F(DraftSpeculatorTest, InvalidIsQuarantineUntilTheNextEpoch) {
  Start();
  Seq seq = New(1);
  Begin(seq);
  Nack(DraftNackReason::kInvalid, LastCommit().id);
  for (int i = 0; i < 50; ++i) Step(&seq, {5});
  EXPECT_THAT(links_[0]->TakeAll().opens, IsEmpty());
  EXPECT_EQ(Fallbacks(FallbackReason::kQuarantined), 50u);
  EXPECT_EQ(speculator_->counters().quarantines, 1u);
  speculator_->End(seq.id);
  ++seq.id.epoch;
  Begin(seq);
  EXPECT_THAT(links_[0]->TakeAll().opens, SizeIs(1));
}

TEST_F(DraftSpeculatorTest, NonsenseIsQuarantineForItsSequenceOnly) {
  Start();
  Seq liar = New(1);
  Seq honest = New(2);
  Begin(liar);
  const DraftCommit first = LastCommit();
  Begin(honest);
  const DraftCommit second = LastCommit();
  Deliver(Chain(first, {100}));
  Deliver(Chain(second, {5, 6, 7}));
  EXPECT_THAT(Propose(liar).tokens, IsEmpty());
  EXPECT_THAT(Propose(honest).tokens, ElementsAre(5, 6, 7));
  EndStep();
  EXPECT_THAT(links_[0]->TakeAll().closes, SizeIs(1));
  EXPECT_EQ(Sessions(0), 1);
  EXPECT_EQ(speculator_->counters().quarantines, 1u);
  EXPECT_EQ(speculator_->counters().drops[static_cast<size_t>(DraftDrop::kTokenRange)], 1u);
}

// --- Lives of sequences ---

TEST_F(DraftSpeculatorTest, PreemptionEndsAndBeginsAnew) {
  Start();
  Seq seq = New(1);
  Begin(seq);
  const DraftCommit old = LastCommit();
  const SpecProposal p = Propose(seq);
  Launch(seq, p.tokens);
  speculator_->End(seq.id);  // proposals may be on their way
  EndStep();
  TargetFrame frame = links_[0]->TakeAll();
  ASSERT_THAT(frame.closes, SizeIs(1));
  EXPECT_EQ(frame.closes[0].id, old.id);
  EXPECT_EQ(Sessions(0), 0);
  EXPECT_EQ(speculator_->mailbox().num_slots(), 0u);
  ++seq.id.epoch;
  Begin(seq);
  frame = links_[0]->TakeAll();
  ASSERT_THAT(frame.opens, SizeIs(1));
  EXPECT_NE(frame.opens[0].id.epoch, old.id.epoch);
  Deliver(Chain(old, {5, 6, 7}));
  EXPECT_THAT(Step(&seq, {5}).tokens, IsEmpty());
  EXPECT_EQ(speculator_->counters().drops[static_cast<size_t>(DraftDrop::kEpoch)], 1u);
  EXPECT_EQ(speculator_->counters().reopens, 0u) << "the first of its epoch";
}

TEST_F(DraftSpeculatorTest, CallsForSequencesUnknown) {
  Start();
  Seq seq = New(1);
  EXPECT_THAT(Propose(seq).tokens, IsEmpty());
  EXPECT_FALSE(speculator_->WantsToWait(seq.Spec()));
  Launch(seq, {});
  Commit(&seq, {}, {5});
  speculator_->End(seq.id);
  EXPECT_EQ(speculator_->counters().steps_none, 0u);
}

TEST_F(DraftSpeculatorTest, OpensAreSpreadOverSteps) {
  options_.opens_per_step = 2;
  options_.open_tokens_per_step = 10;
  Start();
  std::vector<Seq> seqs;
  for (uint64_t i = 1; i <= 4; ++i) seqs.push_back(New(i));
  seqs.push_back(New(5, Tokens(50, 1)));  // alone it may be longer than the limit
  const auto launch = [&] {
    for (const Seq& seq : seqs) speculator_->Launched(seq.Spec(), {});
    speculator_->EndLaunch();
    for (Seq& seq : seqs) Commit(&seq, {}, {5}, false);
    EndStep();
    return links_[0]->TakeAll().opens.size();
  };
  for (const Seq& seq : seqs) speculator_->Begin(seq.Spec());
  EndStep();
  EXPECT_EQ(links_[0]->TakeAll().opens.size(), 2u);
  EXPECT_EQ(launch(), 2u);
  EXPECT_EQ(launch(), 1u);
  EXPECT_EQ(launch(), 0u);
}

TEST_F(DraftSpeculatorTest, ASequenceAboutToEndIsNotOpened) {
  Start();
  Seq seq = New(1);
  seq.max_len = 6;
  Begin(seq);
  EXPECT_THAT(links_[0]->frames, IsEmpty());
}

TEST_F(DraftSpeculatorTest, EqualPromptsMeet) {
  options_.opens_per_step = 100;
  Start(4);
  for (uint64_t i = 1; i <= 2; ++i) Begin(New(i));
  int places = 0;
  for (size_t l = 0; l < 4; ++l) places += Sessions(l) > 0;
  EXPECT_EQ(places, 1);
}

TEST_F(DraftSpeculatorTest, NoMoreRowsThanAllowed) {
  Start();
  Seq seq = New(1);
  Begin(seq);
  Deliver(Chain(LastCommit(), {5, 6, 7}));
  EXPECT_THAT(Propose(seq, false, 0).tokens, IsEmpty());
  const SpecProposal p = Propose(seq, false, 2);
  EXPECT_THAT(p.tokens, ElementsAre(5, 6));
  EXPECT_EQ(p.source, ProposalSource::kRemoteFull) << "all that there was room for";
}

}  // namespace
}  // namespace paceline
