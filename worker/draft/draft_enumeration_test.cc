// Outcome enumeration over a hash model: which outcomes are drafted for, with what, and what is
// kept.
#include <map>
#include <set>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/sim/draft_engine_fixture.h"

namespace paceline {
namespace {

using testing::IsEmpty;
using testing::SizeIs;

constexpr int32_t kWant = 3;
constexpr int32_t kBranches = 12;

class DraftEnumerationTest : public DraftEngineFixture {
 protected:
  HashTarget::Session& NewSession(uint64_t id, SamplingParams sampling) {
    HashTarget::Session& s = target_->NewSession(id, 21, std::move(sampling));
    target_->Open(s);
    return s;
  }
  std::vector<TokenId> TruthBehind(const HashTarget::Session& s, int32_t offset, int32_t count) {
    const auto begin = s.truth.begin() + s.base_len + offset;
    return {begin, begin + count};
  }
  // Every branch has what the drafter draws behind its outcome, and no outcome comes twice.
  void ExpectBranches(const HashTarget::Session& s, const DraftProposal& p, int32_t want = kWant) {
    EXPECT_EQ(p.kind, ProposalKind::kEnumerated);
    EXPECT_EQ(p.base_len, s.base_len);
    EXPECT_EQ(p.prefix_hash, HashTokens(s.base()));
    std::set<std::pair<int32_t, TokenId>> outcomes;
    const auto in_flight = static_cast<int32_t>(s.in_flight.size());
    for (const DraftBranch& b : p.branches) {
      EXPECT_TRUE(outcomes.insert({b.accepted, b.next}).second);
      ASSERT_LE(b.accepted, in_flight);
      const bool draft = b.accepted < in_flight && b.next == s.in_flight[b.accepted];
      EXPECT_FALSE(draft) << "position " << b.accepted;
      std::vector<TokenId> tokens(s.base().begin(), s.base().end());
      tokens.insert(tokens.end(), s.in_flight.begin(), s.in_flight.begin() + b.accepted);
      tokens.push_back(b.next);
      EXPECT_EQ(b.tokens, Continue(*drafter_, s.open, tokens, want));
    }
  }
  // The branch that foresaw what the verify of in_flight yields, or null.
  static const DraftBranch* Foreseen(const HashTarget::Session& s) {
    if (s.proposals.empty() || s.proposals.back().base_len != s.base_len) return nullptr;
    const int32_t accepted = HashTarget::Verify(s);
    for (const DraftBranch& b : s.proposals.back().branches) {
      if (b.accepted == accepted && b.next == s.truth[s.base_len + accepted]) return &b;
    }
    return nullptr;
  }
};

TEST_F(DraftEnumerationTest, BranchesFollowTheirOutcomes) {
  for (float temperature : {0.0f, 1.0f}) {
    Start();
    HashTarget::Session& s = NewSession(7, Sampling(temperature));
    target_->Commit(s, 2, TruthBehind(s, 2, 3), kWant, kBranches);
    Settle();
    ASSERT_FALSE(s.proposals.empty());
    const DraftProposal& p = s.proposals.back();
    ExpectBranches(s, p);
    EXPECT_THAT(p.branches, SizeIs(kBranches));
    EXPECT_NE(Foreseen(s), nullptr);
    // Rejections are foreseen too, by the best candidates but the draft itself.
    std::map<int32_t, int32_t> per_position;
    for (const DraftBranch& b : p.branches) ++per_position[b.accepted];
    EXPECT_EQ(per_position.size(), 4u);
    EXPECT_EQ(engine_->counters().branches, uint64_t{kBranches});
  }
}

TEST_F(DraftEnumerationTest, ProposalsGrowStepByStep) {
  Start();
  HashTarget::Session& s = NewSession(7, Sampling(1));
  target_->Commit(s, 0, {}, kWant, 4);
  Settle();
  ASSERT_THAT(s.proposals, SizeIs(kWant));
  for (int32_t i = 0; i < kWant; ++i) {
    EXPECT_THAT(s.proposals[i].branches, SizeIs(4));
    ExpectBranches(s, s.proposals[i], i + 1);
  }
}

TEST_F(DraftEnumerationTest, AHitKeepsItsKv) {
  Start();
  HashTarget::Session& s = NewSession(7, Sampling(1));
  target_->Commit(s, 0, {}, kWant, 4);
  Settle();
  for (int32_t i = 0; i < 8; ++i) {
    const DraftBranch* hit = Foreseen(s);
    ASSERT_NE(hit, nullptr);
    const std::vector<TokenId> next = hit->tokens;
    const uint64_t rows = engine_->counters().rows;
    target_->Commit(s, HashTarget::Verify(s) + 1, next, kWant, 4);
    s.proposals.clear();
    Settle();
    // The last draft's row for what may follow it, and the rows of the branches.
    EXPECT_EQ(engine_->counters().rows - rows, 1u + 4 * kWant);
    ExpectBranches(s, s.proposals.back());
  }
  EXPECT_EQ(engine_->counters().branch_hits, 8u);
  EXPECT_EQ(engine_->counters().branch_misses, 0u);
}

// Whole requests as a target runs them: what foresaw the outcome is verified next, else nothing.
TEST_F(DraftEnumerationTest, WholeRequestsAtEveryAgreement) {
  for (double agreement : {1.0, 0.8, 0.4}) {
    for (int32_t run = 0; run < 6; ++run) {
      Start(RunnerOptions(agreement));
      HashTarget::Session& s = NewSession(run, Sampling(run % 2, 100));
      uint64_t hits = 0, commits = 0;
      target_->Commit(s, 1, {}, kWant, kBranches);
      while (!s.done()) {
        s.proposals.clear();
        Settle();
        if (!s.proposals.empty()) ExpectBranches(s, s.proposals.back());
        const bool enumerated = !s.proposals.empty();
        const DraftBranch* hit = Foreseen(s);
        std::vector<TokenId> next;
        if (hit != nullptr) next = hit->tokens;
        const int32_t count = HashTarget::Verify(s) + 1;
        target_->Commit(s, count, next, kWant, kBranches);
        if (s.done()) break;
        commits += enumerated ? 1 : 0;
        hits += hit != nullptr ? 1 : 0;
      }
      Settle();
      EXPECT_THAT(s.nacks, IsEmpty());
      const DraftEngineCounters counters = engine_->counters();
      EXPECT_LE(counters.branch_hits - hits, 1u);  // the last commit may be one
      EXPECT_LE(counters.branch_hits + counters.branch_misses - commits, 1u);
      // Behind the last positions there is no room for drafts.
      EXPECT_TRUE(agreement < 1 || counters.branch_misses <= 1);
    }
  }
}

// At temperature 0 a target's token is the drafter's own with probability a, and else hardly among
// its first guesses: the hit rate is that of whole acceptance.
TEST_F(DraftEnumerationTest, TheHitRateIsThatOfTheAgreement) {
  for (double agreement : {0.9, 0.7}) {
    int32_t hits = 0, total = 0, accepted = 0, drafted = 0;
    Start(RunnerOptions(agreement));
    for (int32_t run = 0; run < 40; ++run) {
      HashTarget::Session& s = NewSession(run * 8, Sampling(0, 100));
      target_->Commit(s, 1, {}, kWant, 4);
      for (int32_t step = 0; step < 20; ++step) {
        s.proposals.clear();
        Settle();
        const DraftBranch* hit = Foreseen(s);
        std::vector<TokenId> next;
        if (hit != nullptr) next = hit->tokens;
        if (!s.in_flight.empty()) {
          drafted += static_cast<int32_t>(s.in_flight.size());
          accepted += HashTarget::Verify(s);
          ++total;
          hits += hit != nullptr ? 1 : 0;
        }
        target_->Commit(s, HashTarget::Verify(s) + 1, next, kWant, 4);
      }
      target_->Close(s);
    }
    ASSERT_GT(total, 100);
    const double a = agreement;
    const double expected_accepted = (a + a * a + a * a * a) / 3;
    EXPECT_NEAR(double(accepted) / drafted, expected_accepted, 0.1) << agreement;
    // All accepted and the token behind them too; a rejection's token is one of 3 or 4 guesses of
    // 127 by chance.
    const double whole = a * a * a * a;
    EXPECT_NEAR(double(hits) / total, whole + (1 - whole) * 0.03, 0.1) << agreement;
  }
}

TEST_F(DraftEnumerationTest, ForeignDraftsInFlight) {
  Start(RunnerOptions(0.7));
  HashTarget::Session& s = NewSession(7, Sampling(1, 200));
  target_->Commit(s, 0, {}, kWant, kBranches);
  for (int32_t i = 0; i < 25; ++i) {
    s.proposals.clear();
    Settle();
    ExpectBranches(s, s.proposals.back());
    // The first is right, the others come from elsewhere.
    std::vector<TokenId> foreign = TruthBehind(s, 1, 1);
    for (int32_t k = 0; k < i % 5; ++k) foreign.push_back(1 + (17 * i + 5 * k) % 120);
    target_->Commit(s, 1, foreign, kWant, kBranches);
  }
}

TEST_F(DraftEnumerationTest, ALateProposalServesTheNextStepAtOnce) {
  Start();
  HashTarget::Session& s = NewSession(7, Sampling(1));
  target_->Commit(s, 0, {}, kWant, 4);
  Settle();
  // The target went on before it saw the proposal: a plain step is in flight.
  s.proposals.clear();
  target_->Commit(s, 1, {}, kWant, 4);
  ASSERT_TRUE(engine_->Step().ok());
  ASSERT_FALSE(s.proposals.empty());
  const DraftBranch& first = s.proposals.front().branches[0];
  EXPECT_THAT(s.proposals.front().branches, SizeIs(1));
  EXPECT_EQ(first.accepted, 0);
  EXPECT_EQ(first.next, s.truth[s.base_len]);
  EXPECT_EQ(first.tokens, TruthBehind(s, 1, kWant - 1));
  Settle();
  ExpectBranches(s, s.proposals.back());
}

TEST_F(DraftEnumerationTest, NothingFollowsAnEnd) {
  Start();
  // The second token behind the base ends the sample, says the drafter.
  SamplingParams sampling = Sampling(1);
  HashTarget::Session& plain = target_->NewSession(7, 21, sampling);
  sampling.stop_token_ids = {plain.truth[23]};
  HashTarget::Session& s = NewSession(7, sampling);
  const std::vector<TokenId> in_flight = {s.truth[21], s.truth[22], s.truth[23], 5};
  target_->Commit(s, 0, in_flight, kWant, 40);
  Settle();
  ASSERT_FALSE(s.proposals.empty());
  ExpectBranches(s, s.proposals.back());
  for (const DraftBranch& b : s.proposals.back().branches) {
    EXPECT_LE(b.accepted, 2);
    EXPECT_NE(b.next, sampling.stop_token_ids[0]);
  }
}

TEST_F(DraftEnumerationTest, NothingIsDraftedAtOrBeyondTheEnd) {
  Start();
  HashTarget::Session& s = NewSession(7, Sampling(1, 6));
  for (int32_t i = 0; i < 6; ++i) {
    s.proposals.clear();
    const int32_t left = 6 - i;
    target_->Commit(s, i == 0 ? 0 : 1, TruthBehind(s, i == 0 ? 0 : 1, std::min(3, left)), kWant,
                    kBranches);
    Settle();
    ASSERT_EQ(s.proposals.empty(), left < 2);
    if (left < 2) break;
    ExpectBranches(s, s.proposals.back());
    for (const DraftBranch& b : s.proposals.back().branches) {
      EXPECT_LE(b.accepted + 1 + static_cast<int32_t>(b.tokens.size()), left);
    }
  }
}

TEST_F(DraftEnumerationTest, FewSlotsAndFewBlocksCostBranchesOnly) {
  for (int32_t blocks : {512, 12}) {
    HashRunnerOptions runner = RunnerOptions();
    runner.max_slots = 3;
    runner.num_blocks = blocks;
    Start(runner);
    HashTarget::Session& s = NewSession(7, Sampling(1));
    for (int32_t i = 0; i < 6; ++i) {
      target_->Commit(s, i, TruthBehind(s, i, 2), kWant, kBranches);
      s.proposals.clear();
      Settle();
      if (s.proposals.empty()) continue;
      for (const DraftBranch& b : s.proposals.back().branches) EXPECT_FALSE(b.tokens.empty());
    }
    EXPECT_GT(engine_->counters().proposals, 0u);
  }
}

TEST_F(DraftEnumerationTest, LimitsOfTheEngineHold) {
  DraftEngineOptions options;
  options.max_branches = 5;
  options.max_candidates = 2;
  options.max_len = 2;
  options.max_batch_rows = 4;
  Start(RunnerOptions(), options);
  HashTarget::Session& s = NewSession(7, Sampling(1));
  target_->Commit(s, 0, TruthBehind(s, 0, 3), 30, 500);
  Settle();
  ASSERT_FALSE(s.proposals.empty());
  ExpectBranches(s, s.proposals.back(), 2);
  EXPECT_THAT(s.proposals.back().branches, SizeIs(5));
  EXPECT_LE(target_->load().rows_per_step, 4);
}

TEST_F(DraftEnumerationTest, ModesMayChangeAtEveryCommit) {
  Start(RunnerOptions(0.8));
  HashTarget::Session& s = NewSession(7, Sampling(1, 300));
  target_->Commit(s, 0, {}, kWant, 0);
  for (int32_t i = 0; i < 60; ++i) {
    s.proposals.clear();
    const int32_t branches = (i / 2) % 3 == 0 ? 0 : kBranches;
    target_->Commit(s, 1 + i % 3, TruthBehind(s, 1 + i % 3, i % 4), kWant + i % 2, branches);
    Settle();
    if (s.proposals.empty()) continue;
    const DraftProposal& p = s.proposals.back();
    if (branches > 0) {
      ExpectBranches(s, p, kWant + i % 2);
    } else {
      const auto& tokens = p.branches[0].tokens;
      EXPECT_EQ(tokens, Expected(s, static_cast<int32_t>(tokens.size())));
    }
  }
}

}  // namespace
}  // namespace paceline
