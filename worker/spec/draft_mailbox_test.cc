#include "worker/spec/draft_mailbox.h"

#include <random>
#include <thread>

#include <gtest/gtest.h>

#include "common/hash.h"

namespace paceline {
namespace {

constexpr DraftLinkId kLink = 3;
constexpr uint64_t kIncarnation = 11;
constexpr DraftSessionId kId{.session = 5, .epoch = 2};

DraftMailboxLimits Limits() {
  DraftMailboxLimits limits;
  limits.vocab_size = 100;
  limits.max_tokens = 8;
  limits.max_branches = 4;
  limits.max_proposals_per_frame = 16;
  limits.max_waiting = 2;
  limits.remembered_bases = 3;
  return limits;
}

DraftProposal Chain(int32_t base_len, std::vector<TokenId> tokens, uint64_t hash = 0) {
  return {.id = kId,
          .base_len = base_len,
          .prefix_hash = hash != 0 ? hash : 1000u + static_cast<uint64_t>(base_len),
          .branches = {{.tokens = std::move(tokens)}}};
}

DraftProposal Enumerated(int32_t base_len, std::vector<DraftBranch> branches) {
  DraftProposal proposal = Chain(base_len, {});
  proposal.kind = ProposalKind::kEnumerated;
  proposal.branches = std::move(branches);
  return proposal;
}

// A session that was told bases 10 and 12.
class DraftMailboxTest : public testing::Test {
 protected:
  DraftMailboxTest() : mailbox_(Limits()) {
    mailbox_.Open(kId, kLink, kIncarnation);
    Tell(10);
    Tell(12);
  }
  void Tell(int32_t base_len, int32_t enough = 0) {
    mailbox_.Told(kId.session, base_len, 1000u + static_cast<uint64_t>(base_len), enough);
  }
  void Deliver(DraftProposal proposal, DraftLinkId link = kLink,
               uint64_t incarnation = kIncarnation) {
    DraftFrame frame;
    frame.proposals.push_back(std::move(proposal));
    mailbox_.Deliver(link, incarnation, std::move(frame));
  }
  DraftMail Take(uint64_t session = kId.session) {
    DraftMail mail;
    mailbox_.Take(session, &mail);
    return mail;
  }
  SpecCounters Counters() {
    SpecCounters counters;
    mailbox_.AddCountersTo(&counters);
    return counters;
  }
  // The proposal is dropped for this reason, and nothing else is counted.
  void ExpectDrop(DraftDrop reason, bool hostile) {
    const DraftMail mail = Take();
    EXPECT_TRUE(mail.proposals.empty());
    EXPECT_EQ(mail.quarantined, hostile);
    const SpecCounters n = Counters();
    EXPECT_EQ(n.proposals_received, 1u);
    EXPECT_EQ(n.quarantines, hostile ? 1u : 0u);
    for (size_t r = 0; r < n.drops.size(); ++r) {
      EXPECT_EQ(n.drops[r], r == static_cast<size_t>(reason) ? 1u : 0u) << "reason " << r;
    }
  }

  DraftMailbox mailbox_;
};

TEST_F(DraftMailboxTest, KeepsWhatIsRightInOrder) {
  Deliver(Chain(10, {1, 2, 3}));
  Deliver(Enumerated(12, {{.accepted = 1, .next = 4, .tokens = {5}}}));
  const DraftMail mail = Take();
  ASSERT_EQ(mail.proposals.size(), 2u);
  EXPECT_EQ(mail.proposals[0].base_len, 10);
  EXPECT_EQ(mail.proposals[1].branches[0].next, 4);
  EXPECT_FALSE(mail.nack.has_value());
  EXPECT_FALSE(mail.quarantined);
  EXPECT_TRUE(Take().proposals.empty());
  const SpecCounters n = Counters();
  EXPECT_EQ(n.proposals_received, 2u);
  EXPECT_EQ(n.proposals_late, 1u);
  EXPECT_EQ(Counters().proposals_received, 0u);  // taken
}

TEST_F(DraftMailboxTest, UnknownSession) {
  DraftProposal proposal = Chain(12, {1});
  proposal.id.session = 99;
  Deliver(proposal);
  ExpectDrop(DraftDrop::kUnknownSession, false);
}

TEST_F(DraftMailboxTest, ClosedSession) {
  mailbox_.Close(kId.session);
  EXPECT_EQ(mailbox_.num_slots(), 0u);
  Deliver(Chain(12, {1}));
  ExpectDrop(DraftDrop::kUnknownSession, false);
}

TEST_F(DraftMailboxTest, OtherEpoch) {
  for (uint32_t epoch : {1u, 3u}) {
    DraftProposal proposal = Chain(12, {1});
    proposal.id.epoch = epoch;
    Deliver(proposal);
    ExpectDrop(DraftDrop::kEpoch, false);
  }
}

TEST_F(DraftMailboxTest, OlderStream) {
  Deliver(Chain(12, {1}), kLink, kIncarnation - 1);
  ExpectDrop(DraftDrop::kIncarnation, false);
}

TEST_F(DraftMailboxTest, DrafterThatDoesNotServeTheSession) {
  Deliver(Chain(12, {1}), kLink + 1);
  ExpectDrop(DraftDrop::kIncarnation, false);
}

TEST_F(DraftMailboxTest, StaleBase) {
  Deliver(Chain(9, {1}));
  ExpectDrop(DraftDrop::kStaleBase, false);
}

TEST_F(DraftMailboxTest, BasesAreForgotten) {
  for (int32_t base : {13, 14, 15}) Tell(base);
  Deliver(Chain(12, {1}));
  ExpectDrop(DraftDrop::kStaleBase, false);
  Tell(14);  // no news
  Deliver(Chain(15, {1}));
  EXPECT_EQ(Take().proposals.size(), 1u);
}

TEST_F(DraftMailboxTest, BaseNeverTold) {
  Deliver(Chain(11, {1}));
  ExpectDrop(DraftDrop::kBadBase, true);
}

TEST_F(DraftMailboxTest, BaseOfTheFuture) {
  Deliver(Chain(13, {1}));
  ExpectDrop(DraftDrop::kBadBase, true);
}

TEST_F(DraftMailboxTest, NegativeBase) {
  Deliver(Chain(-1, {1}));
  ExpectDrop(DraftDrop::kBadBase, true);
}

TEST_F(DraftMailboxTest, OtherPrefix) {
  Deliver(Chain(12, {1}, 77));
  ExpectDrop(DraftDrop::kPrefixHash, true);
}

TEST_F(DraftMailboxTest, TokensOutOfRange) {
  for (TokenId bad : {-1, 100, 1 << 30}) {
    mailbox_.Open({.session = kId.session, .epoch = kId.epoch + 1}, kLink, kIncarnation);
    mailbox_.Open(kId, kLink, kIncarnation);
    Tell(12);
    Deliver(Chain(12, {1, bad}));
    ExpectDrop(DraftDrop::kTokenRange, true);
  }
}

TEST_F(DraftMailboxTest, NextOutOfRange) {
  Deliver(Enumerated(12, {{.accepted = 0, .next = 100, .tokens = {1}}}));
  ExpectDrop(DraftDrop::kTokenRange, true);
}

TEST_F(DraftMailboxTest, TheOutcomeOfAChainIsUnused) {
  DraftProposal proposal = Chain(12, {1});
  proposal.branches[0].next = -7;
  proposal.branches[0].accepted = -7;
  Deliver(proposal);
  EXPECT_EQ(Take().proposals.size(), 1u);
}

TEST_F(DraftMailboxTest, Sizes) {
  std::vector<DraftProposal> bad = {
      Chain(12, {}),
      Chain(12, std::vector<TokenId>(9, 1)),
      Enumerated(12, {}),
      Enumerated(12, std::vector<DraftBranch>(5, {.tokens = {1}})),
      Enumerated(12, {{.accepted = -1, .next = 1, .tokens = {1}}}),
      Enumerated(12, {{.accepted = 9, .next = 1, .tokens = {1}}}),
      Enumerated(12, {{.accepted = 1, .next = 1, .tokens = {}}}),
  };
  DraftProposal two_chains = Chain(12, {1});
  two_chains.branches.push_back({.tokens = {1}});
  bad.push_back(two_chains);
  DraftProposal other_kind = Chain(12, {1});
  other_kind.kind = static_cast<ProposalKind>(9);
  bad.push_back(other_kind);
  for (const DraftProposal& proposal : bad) {
    mailbox_.Open({.session = kId.session, .epoch = kId.epoch + 1}, kLink, kIncarnation);
    mailbox_.Open(kId, kLink, kIncarnation);
    Tell(12);
    Deliver(proposal);
    ExpectDrop(DraftDrop::kSize, true);
  }
}

TEST_F(DraftMailboxTest, QuarantineLastsUntilTheNextEpoch) {
  Deliver(Chain(12, {1, 2}));
  Deliver(Chain(12, {100}));
  EXPECT_TRUE(Take().proposals.empty()) << "what lay there is not trusted either";
  Counters();
  Deliver(Chain(12, {1}));
  EXPECT_TRUE(Take().proposals.empty());
  EXPECT_TRUE(Take().quarantined);
  const SpecCounters n = Counters();
  EXPECT_EQ(n.drops[static_cast<size_t>(DraftDrop::kQuarantined)], 1u);
  EXPECT_EQ(n.quarantines, 0u) << "once";
}

TEST_F(DraftMailboxTest, QuarantineOutlivesAChangeOfPlace) {
  Deliver(Chain(12, {100}));
  mailbox_.Open(kId, kLink + 1, 1);
  EXPECT_TRUE(Take().quarantined);
  mailbox_.Open({.session = kId.session, .epoch = kId.epoch + 1}, kLink + 1, 1);
  EXPECT_FALSE(Take().quarantined);
}

TEST_F(DraftMailboxTest, TheRestOfAFrameGoesOn) {
  constexpr DraftSessionId other{.session = 6, .epoch = 1};
  mailbox_.Open(other, kLink, kIncarnation);
  mailbox_.Told(other.session, 12, 1012);
  DraftFrame frame;
  frame.proposals.push_back(Chain(12, {100}));
  frame.proposals.push_back(Chain(12, {7}));
  frame.proposals.back().id = other;
  mailbox_.Deliver(kLink, kIncarnation, std::move(frame));
  EXPECT_TRUE(Take().quarantined);
  EXPECT_EQ(Take(other.session).proposals.size(), 1u);
}

TEST_F(DraftMailboxTest, FrameSize) {
  DraftFrame frame;
  frame.proposals.assign(20, Chain(12, {1}));
  mailbox_.Deliver(kLink, kIncarnation, std::move(frame));
  const SpecCounters n = Counters();
  EXPECT_EQ(n.proposals_received, 16u);
  EXPECT_EQ(n.drops[static_cast<size_t>(DraftDrop::kFrameSize)], 1u);
  EXPECT_EQ(Take().proposals.size(), 1u);
}

TEST_F(DraftMailboxTest, ALongerProposalReplacesAShorterOne) {
  Deliver(Chain(12, {1}));
  Deliver(Chain(12, {1, 2}));
  Deliver(Chain(12, {3}));
  Deliver(Enumerated(12, {{.accepted = 0, .next = 1, .tokens = {2}}}));
  const DraftMail mail = Take();
  ASSERT_EQ(mail.proposals.size(), 2u);
  EXPECT_EQ(mail.proposals[0].branches[0].tokens, (std::vector<TokenId>{1, 2}));
}

TEST_F(DraftMailboxTest, TheOldestBaseGoesFirst) {
  Tell(14);
  Deliver(Chain(12, {1}));
  Deliver(Chain(14, {1}));
  Deliver(Chain(10, {1}));  // older than both
  Deliver(Enumerated(14, {{.accepted = 0, .next = 1, .tokens = {2}}}));
  const DraftMail mail = Take();
  ASSERT_EQ(mail.proposals.size(), 2u);
  EXPECT_EQ(mail.proposals[0].base_len, 14);
  EXPECT_EQ(mail.proposals[1].base_len, 14);
}

TEST_F(DraftMailboxTest, TheNewestNack) {
  DraftFrame frame;
  frame.nacks.push_back({.id = kId, .reason = DraftNackReason::kOverloaded});
  frame.nacks.push_back({.id = kId, .reason = DraftNackReason::kNeedSync, .have_len = 4});
  frame.nacks.push_back({.id = {.session = kId.session, .epoch = 1}});
  mailbox_.Deliver(kLink, kIncarnation, std::move(frame));
  const DraftMail mail = Take();
  ASSERT_TRUE(mail.nack.has_value());
  EXPECT_EQ(mail.nack->reason, DraftNackReason::kNeedSync);
  EXPECT_EQ(mail.nack->have_len, 4);
  EXPECT_EQ(Counters().nacks, 3u);
  EXPECT_FALSE(Take().nack.has_value());
}

TEST_F(DraftMailboxTest, ANewEpochEmptiesTheSlot) {
  Deliver(Chain(12, {1}));
  mailbox_.Open({.session = kId.session, .epoch = kId.epoch + 1}, kLink, kIncarnation);
  EXPECT_TRUE(Take().proposals.empty());
  Deliver(Chain(12, {1}));
  EXPECT_TRUE(Take().proposals.empty());
}

TEST_F(DraftMailboxTest, Load) {
  EXPECT_EQ(mailbox_.load(kLink).sessions, 0);
  DraftFrame frame;
  frame.load = {.sessions = 7, .rows_per_step = -3, .step_micros = 900, .free_blocks = 12};
  mailbox_.Deliver(kLink, kIncarnation, frame);
  EXPECT_EQ(mailbox_.load(kLink).sessions, 7);
  EXPECT_EQ(mailbox_.load(kLink).rows_per_step, 0);  // nonsense
  mailbox_.Deliver(kLink, kIncarnation, DraftFrame{});
  EXPECT_EQ(mailbox_.load(kLink).sessions, 7);  // none was sent
  EXPECT_EQ(mailbox_.load(kLink + 1).sessions, 0);
}

// Receive threads against the engine thread; what is taken has been checked.
TEST(DraftMailboxThreadsTest, FramesOfAnythingFromManyThreads) {
  DraftMailbox mailbox(Limits());
  std::vector<std::thread> receivers;
  for (uint32_t t = 0; t < 3; ++t) {
    receivers.emplace_back([&mailbox, t] {
      std::mt19937 random(t);
      for (int i = 0; i < 3000; ++i) {
        DraftFrame frame;
        for (uint32_t n = random() % 4; n > 0; --n) {
          DraftProposal p = Chain(static_cast<int32_t>(random() % 40), {});
          p.id = {.session = random() % 4, .epoch = static_cast<uint32_t>(random() % 3)};
          p.kind = static_cast<ProposalKind>(random() % 2);
          p.branches.resize(random() % 6);
          for (DraftBranch& b : p.branches) {
            b.accepted = static_cast<int32_t>(random() % 4);
            b.next = static_cast<TokenId>(random() % 101);
            b.tokens.assign(random() % 9, static_cast<TokenId>(random() % 101));
          }
          frame.proposals.push_back(std::move(p));
        }
        if (random() % 8 == 0) frame.nacks.push_back({.id = {.session = random() % 4}});
        frame.load.sessions = static_cast<int32_t>(random() % 5);
        mailbox.Deliver(1 + random() % 2, 1 + random() % 2, std::move(frame));
      }
    });
  }
  std::mt19937 random(99);
  SpecCounters counters;
  DraftMail mail;
  for (int i = 0; i < 4000; ++i) {
    const uint64_t session = random() % 4;
    switch (random() % 6) {
      case 0:
        mailbox.Open({.session = session, .epoch = static_cast<uint32_t>(random() % 3)},
                     1 + random() % 2, 1 + random() % 2);
        break;
      case 1: {
        const auto base = static_cast<int32_t>(random() % 40);
        mailbox.Told(session, base, 1000u + static_cast<uint64_t>(base));
        break;
      }
      case 2:
        mailbox.Close(session);
        break;
      case 3:
        mailbox.AddCountersTo(&counters);
        mailbox.load(1);
        break;
      default:
        mailbox.Take(session, &mail);
        for (const DraftProposal& p : mail.proposals) {
          ASSERT_EQ(p.prefix_hash, 1000u + static_cast<uint64_t>(p.base_len));
          for (const DraftBranch& b : p.branches) {
            ASSERT_FALSE(b.tokens.empty());
            for (TokenId token : b.tokens) ASSERT_LT(token, 100);
          }
        }
    }
  }
  for (std::thread& t : receivers) t.join();
  mailbox.AddCountersTo(&counters);
  EXPECT_GT(counters.proposals_received, 0u);
}

TEST_F(DraftMailboxTest, AnswersAreAwaitedUntilTheyAreLongEnough) {
  constexpr Duration kNotAtAll{};
  EXPECT_EQ(mailbox_.AwaitAnswers(kNotAtAll), 1);  // nothing was asked
  Tell(14, 2);
  EXPECT_TRUE(mailbox_.awaits_answers());
  Deliver(Chain(12, {1, 2, 3}));  // of an older base
  Deliver(Enumerated(14, {{.accepted = 0, .next = 1, .tokens = {2}}}));
  EXPECT_EQ(mailbox_.AwaitAnswers(kNotAtAll), 0);
  Deliver(Enumerated(14, {{.accepted = 0, .next = 1, .tokens = {2, 3}}}));
  EXPECT_FALSE(mailbox_.awaits_answers());
  EXPECT_EQ(mailbox_.AwaitAnswers(kNotAtAll), 1);
}

TEST_F(DraftMailboxTest, AnAnswerEndsTheWait) {
  Tell(14, 1);
  std::thread drafter([this] { Deliver(Chain(14, {1})); });
  EXPECT_EQ(mailbox_.AwaitAnswers(std::chrono::minutes(1)), 1);
  drafter.join();
}

TEST_F(DraftMailboxTest, NothingIsAwaitedOfWhoWillNotAnswer) {
  const DraftSessionId other{.session = 6, .epoch = 1};
  mailbox_.Open(other, kLink, kIncarnation);
  mailbox_.Told(other.session, 10, 1, 3);
  Tell(14, 1);
  EXPECT_EQ(mailbox_.AwaitAnswers({}), 0);
  mailbox_.Close(other.session);
  Tell(16, 1);
  mailbox_.Deliver(kLink, kIncarnation, {.nacks = {{.id = kId}}});
  EXPECT_FALSE(mailbox_.awaits_answers());
  Tell(18, 1);
  mailbox_.AwaitNothing(kId.session);
  EXPECT_FALSE(mailbox_.awaits_answers());
  Tell(20, 1);
  Deliver(Chain(20, {-5}));  // quarantined
  EXPECT_FALSE(mailbox_.awaits_answers());
  Tell(22, 1);
  EXPECT_FALSE(mailbox_.awaits_answers());
}

}  // namespace
}  // namespace paceline
