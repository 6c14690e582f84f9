// Chains, commits and the protocol's rules, over a hash model.
#include "worker/draft/draft_engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/sim/draft_engine_fixture.h"

namespace paceline {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::SizeIs;

constexpr int32_t kWant = 5;

class DraftEngineTest : public DraftEngineFixture {
 protected:
  // A session with a chain for its prompt.
  HashTarget::Session& StartOne(int32_t prompt_len = 21) {
    Start();
    HashTarget::Session& s = target_->NewSession(7, prompt_len, Sampling(1));
    target_->Open(s);
    target_->Commit(s, 0, {}, kWant);
    Settle();
    return s;
  }
  void ExpectNack(HashTarget::Session& s, DraftNackReason reason) {
    Settle();
    ASSERT_THAT(s.nacks, SizeIs(1));
    EXPECT_EQ(s.nacks[0].id, s.open.id);
    EXPECT_EQ(s.nacks[0].reason, reason);
    s.nacks.clear();
  }
  // The newest proposal is the whole chain for the session's base.
  void ExpectChain(const HashTarget::Session& s, int32_t count = kWant) {
    ASSERT_FALSE(s.proposals.empty());
    const DraftProposal& p = s.proposals.back();
    EXPECT_EQ(p.id, s.open.id);
    EXPECT_EQ(p.kind, ProposalKind::kChain);
    EXPECT_EQ(p.base_len, s.base_len);
    EXPECT_EQ(p.prefix_hash, HashTokens(s.base()));
    ASSERT_THAT(p.branches, SizeIs(1));
    EXPECT_EQ(p.branches[0].tokens, Expected(s, count));
  }
};

// --- Chains ---

TEST_F(DraftEngineTest, AChainHasTheTargetsTokens) {
  SamplingParams odd = Sampling(0.9f);
  odd.repetition_penalty = 1.3f;
  odd.presence_penalty = 0.5f;
  odd.frequency_penalty = 0.5f;
  odd.top_k = 20;
  odd.top_p = 0.9f;
  odd.logit_bias = {{3, 4.0f}};
  odd.stop_token_ids = {3};
  odd.min_tokens = 10;
  odd.top_logprobs = 3;
  for (const SamplingParams& sampling : {Sampling(0), Sampling(1), odd}) {
    Start();
    HashTarget::Session& s = target_->NewSession(7, 21, sampling);
    target_->Open(s);
    target_->Commit(s, 0, {}, kWant);
    Settle();
    ExpectChain(s);
    EXPECT_TRUE(std::ranges::equal(s.proposals.back().branches[0].tokens,
                                   std::span(s.truth).subspan(21, kWant)));
    EXPECT_THAT(s.nacks, IsEmpty());
  }
}

TEST_F(DraftEngineTest, ASampleOfItsOwnNoise) {
  Start();
  HashTarget::Session& s = target_->NewSession(7, 21, Sampling(1));
  const std::vector<TokenId> first = Expected(s, kWant);
  s.open.sample = 3;
  target_->Open(s);
  target_->Commit(s, 0, {}, kWant);
  Settle();
  ExpectChain(s);
  EXPECT_NE(s.proposals.back().branches[0].tokens, first);
}

TEST_F(DraftEngineTest, AnAgreeingCommitKeepsTheChain) {
  HashTarget::Session& s = StartOne();
  ExpectChain(s);
  const uint64_t rows = engine_->counters().rows;
  target_->Commit(s, 3, {}, kWant);
  s.proposals.clear();
  Settle();
  // What is left goes out at once, then the whole.
  ASSERT_THAT(s.proposals, SizeIs(2));
  EXPECT_EQ(s.proposals.front().base_len, 24);
  EXPECT_EQ(s.proposals.front().branches[0].tokens, Expected(s, 2));
  ExpectChain(s);
  EXPECT_EQ(engine_->counters().rows - rows, 3u);
  EXPECT_EQ(engine_->counters().chain_kept, 3u);
}

TEST_F(DraftEngineTest, ADisagreeingCommitKeepsWhatAgrees) {
  Start(RunnerOptions(0.5));
  HashTarget::Session& s = target_->NewSession(7, 21, Sampling(0, 200));
  target_->Open(s);
  target_->Commit(s, 0, {}, kWant);
  Settle();
  for (int32_t i = 0; i < 30; ++i) {
    ExpectChain(s);
    const std::vector<TokenId> chain = s.proposals.back().branches[0].tokens;
    const auto truth = s.truth.begin() + s.base_len;
    const auto agreed = static_cast<uint64_t>(
        std::mismatch(chain.begin(), chain.begin() + 3, truth).first - chain.begin());
    const uint64_t rows = engine_->counters().rows;
    target_->Commit(s, 3, {}, kWant);
    Settle();
    // Catch-up runs from the first difference, the newest token's row yields the first draft.
    const uint64_t needed = agreed == 3 ? 3 : 3 - agreed + kWant - 1;
    EXPECT_EQ(engine_->counters().rows - rows, needed);
  }
}

TEST_F(DraftEngineTest, DraftsThatReachOverAVerifyGoOutAsTheyCome) {
  HashTarget::Session& s = StartOne();
  const std::vector<TokenId> chain = s.proposals.back().branches[0].tokens;
  s.proposals.clear();
  // Three are verified; twelve in all are wanted.
  target_->Commit(s, 0, {chain.begin(), chain.begin() + 3}, 12);
  Settle();
  ExpectChain(s, 12);
  ASSERT_THAT(s.proposals, SizeIs(7));  // 6, 7, ... 12 drafts, and the 5 at the commit
  // What is verified already is not proposed again.
  target_->Commit(s, 10, {s.truth.begin() + 31, s.truth.begin() + 33}, 2);
  s.proposals.clear();
  Settle();
  EXPECT_THAT(s.proposals, IsEmpty());
}

TEST_F(DraftEngineTest, WholeRequestsAtEveryAgreement) {
  for (double agreement : {1.0, 0.7, 0.0}) {
    for (int32_t run = 0; run < 8; ++run) {
      Start(RunnerOptions(agreement));
      HashTarget::Session& s = target_->NewSession(run, 5 + 3 * run, Sampling(run % 2));
      target_->Open(s);
      std::vector<TokenId> chain;
      while (!s.done()) {
        target_->Commit(s, HashTarget::Verify(s) + 1, chain, kWant);
        s.proposals.clear();
        Settle();
        chain.clear();
        if (s.proposals.empty()) continue;
        chain = s.proposals.back().branches[0].tokens;
        EXPECT_EQ(s.proposals.back().base_len, s.base_len);
        EXPECT_EQ(chain, Expected(s, static_cast<int32_t>(chain.size())));
        EXPECT_LE(s.base_len + chain.size(), s.truth.size());
      }
      EXPECT_THAT(s.nacks, IsEmpty());
      target_->Close(s);
      Settle();
      EXPECT_EQ(engine_->counters().sessions, 0);
      EXPECT_EQ(engine_->kv().active_blocks, 0);
    }
  }
}

TEST_F(DraftEngineTest, NothingIsDraftedAtOrBeyondTheEnd) {
  Start();
  HashTarget::Session& s = target_->NewSession(7, 10, Sampling(1, 8));
  target_->Open(s);
  target_->Commit(s, 5, {}, kWant);
  Settle();
  ASSERT_FALSE(s.proposals.empty());
  EXPECT_EQ(s.proposals.back().branches[0].tokens, Expected(s, 3));
  s.proposals.clear();
  target_->Commit(s, 3, {}, kWant);
  Settle();
  EXPECT_THAT(s.proposals, IsEmpty());
  EXPECT_THAT(s.nacks, IsEmpty());
}

TEST_F(DraftEngineTest, AChainEndsAtAStopToken) {
  Start();
  SamplingParams sampling = Sampling(1);
  const HashModel model(HashModelOptions{});
  HashTarget::Session& plain = target_->NewSession(7, 21, sampling);
  sampling.stop_token_ids = {plain.truth[23]};
  HashTarget::Session& s = target_->NewSession(7, 21, sampling);
  target_->Open(s);
  target_->Commit(s, 0, {}, kWant);
  Settle();
  ASSERT_THAT(s.proposals, SizeIs(1));
  EXPECT_EQ(s.proposals[0].branches[0].tokens, Expected(s, kWant));
  EXPECT_THAT(s.proposals[0].branches[0].tokens, SizeIs(3));
  EXPECT_EQ(engine_->counters().rows, 23u);
}

TEST_F(DraftEngineTest, WithoutWantsItKeepsUpInSilence) {
  Start();
  HashTarget::Session& s = target_->NewSession(7, 40, Sampling(1));
  target_->Open(s);
  Settle();
  EXPECT_EQ(engine_->counters().rows, 39u);  // the newest token's row waits for somebody to ask
  target_->Commit(s, 5, {}, 0);
  Settle();
  EXPECT_EQ(engine_->counters().rows, 44u);
  EXPECT_THAT(s.proposals, IsEmpty());
  target_->Commit(s, 0, {}, kWant);
  Settle();
  ExpectChain(s);
  EXPECT_EQ(engine_->counters().rows, 44u + kWant);
}

TEST_F(DraftEngineTest, ALongPromptIsComputedInChunks) {
  DraftEngineOptions options;
  options.prefill_chunk = 16;
  options.max_batch_rows = 24;
  Start(RunnerOptions(), options);
  HashTarget::Session& s = target_->NewSession(7, 150, Sampling(1));
  target_->Open(s);
  target_->Commit(s, 0, {}, kWant);
  Settle();
  ExpectChain(s);
  EXPECT_EQ(engine_->counters().rows, 150u + kWant - 1);
  EXPECT_EQ(engine_->counters().steps, 10u + kWant - 1);
}

TEST_F(DraftEngineTest, SessionsOfOnePromptShareItsBlocks) {
  Start();
  for (uint64_t id : {8u, 9u, 10u}) {
    HashTarget::Session& s = target_->NewSession(id, 40, Sampling(1));
    target_->Open(s);
    target_->Commit(s, 0, {}, kWant);
    Settle();
    ExpectChain(s);
  }
  EXPECT_EQ(engine_->counters().rows, 40u + 4 + 2 * (4 + 4));
  // Another salt shares nothing.
  HashTarget::Session& s = target_->NewSession(11, 40, Sampling(1), "salt");
  target_->Open(s);
  target_->Commit(s, 0, {}, kWant);
  Settle();
  ExpectChain(s);
  EXPECT_EQ(engine_->counters().rows, 40u + 4 + 2 * (4 + 4) + 44);
}

// --- Commits that repeat, overtake or miss ---

TEST_F(DraftEngineTest, RepeatedAndLateCommitsChangeNothing) {
  HashTarget::Session& s = StartOne();
  const DraftCommit first = target_->Advance(s, 3, {}, kWant, 0);
  const DraftCommit second = target_->Advance(s, 2, {}, kWant, 0);
  target_->Deliver({.commits = {first, second, first, second}});
  Settle();
  ExpectChain(s);
  EXPECT_EQ(engine_->counters().stale, 1u);
  EXPECT_THAT(s.nacks, IsEmpty());
}

TEST_F(DraftEngineTest, ACommitWithMoreThanIsMissingClosesTheGap) {
  HashTarget::Session& s = StartOne();
  target_->Advance(s, 3, {}, kWant, 0);  // lost
  DraftCommit second = target_->Advance(s, 2, {}, kWant, 0);
  second.new_tokens.assign(s.truth.begin() + 20, s.truth.begin() + s.base_len);
  target_->Deliver({.commits = {second}});
  Settle();
  ExpectChain(s);
  EXPECT_THAT(s.nacks, IsEmpty());
}

TEST_F(DraftEngineTest, AGapAsksForSyncAndIsCaughtUp) {
  HashTarget::Session& s = StartOne();
  target_->Advance(s, 3, {}, kWant, 0);  // lost
  target_->Commit(s, 2, {}, kWant);
  Settle();
  ASSERT_THAT(s.nacks, SizeIs(1));
  EXPECT_EQ(s.nacks[0].have_len, 21);
  ExpectNack(s, DraftNackReason::kNeedSync);
  const uint64_t rows = engine_->counters().rows;
  ++s.open.id.epoch;
  target_->Open(s);
  target_->Commit(s, 0, {}, kWant);
  Settle();
  ExpectChain(s);
  // The chain's KV served, for as far as it reached.
  EXPECT_EQ(engine_->counters().rows - rows, kWant);
}

TEST_F(DraftEngineTest, AWrongHashOrTokenAsksForSync) {
  HashTarget::Session& s = StartOne();
  DraftCommit commit = target_->Advance(s, 3, {}, kWant, 0);
  DraftCommit wrong = commit;
  ++wrong.prefix_hash;
  target_->Deliver({.commits = {wrong}});
  ExpectNack(s, DraftNackReason::kNeedSync);
  wrong = commit;
  wrong.new_tokens[1] ^= 1;
  target_->Deliver({.commits = {wrong}});
  ExpectNack(s, DraftNackReason::kNeedSync);
  // Nothing was taken over.
  target_->Deliver({.commits = {commit}});
  Settle();
  ExpectChain(s);
}

TEST_F(DraftEngineTest, EpochsFenceWhatIsOld) {
  HashTarget::Session& s = StartOne();
  const DraftOpen old_open = s.open;
  const DraftCommit old_commit = target_->Advance(s, 1, {}, kWant, 0);
  ++s.open.id.epoch;
  target_->Open(s);
  target_->Commit(s, 0, {}, kWant);
  target_->Deliver({.opens = {old_open}, .commits = {old_commit}, .closes = {{old_commit.id}}});
  Settle();
  ExpectChain(s);
  EXPECT_EQ(engine_->counters().stale, 3u);
  EXPECT_EQ(engine_->counters().sessions, 1);
  // A commit of an epoch whose open was lost.
  ++s.open.id.epoch;
  target_->Commit(s, 1, {}, kWant);
  ExpectNack(s, DraftNackReason::kEvicted);
  EXPECT_EQ(engine_->counters().sessions, 0);
}

TEST_F(DraftEngineTest, EpochsWrapAround) {
  Start();
  HashTarget::Session& s = target_->NewSession(7, 21, Sampling(1));
  s.open.id.epoch = 0xffffffff;
  target_->Open(s);
  target_->Commit(s, 1, {}, kWant);
  s.open.id.epoch = 2;
  target_->Open(s);
  target_->Commit(s, 1, {}, kWant);
  Settle();
  ExpectChain(s);
  EXPECT_EQ(engine_->counters().stale, 0u);
  EXPECT_EQ(engine_->counters().sessions, 1);
}

TEST_F(DraftEngineTest, ARepeatedOpenDoesNotThrowBack) {
  HashTarget::Session& s = StartOne();
  const DraftOpen open = s.open;
  target_->Commit(s, 3, {}, kWant);
  target_->Deliver({.opens = {open}});
  Settle();
  ExpectChain(s);
  EXPECT_EQ(engine_->counters().stale, 1u);
}

// --- Refusals ---

TEST_F(DraftEngineTest, UnknownSessionsAreSaidToBeGone) {
  Start();
  HashTarget::Session& s = target_->NewSession(7, 21, Sampling(1));
  target_->Commit(s, 1, {}, kWant);
  ExpectNack(s, DraftNackReason::kEvicted);
  target_->Close(s);
  Settle();
  EXPECT_THAT(s.nacks, IsEmpty());
}

TEST_F(DraftEngineTest, NonsenseInAnOpenIsRefused) {
  Start();
  HashTarget::Session& s = target_->NewSession(7, 21, Sampling(1));
  const DraftOpen good = s.open;
  const std::vector<std::function<void(DraftOpen*)>> faults = {
      [](DraftOpen* o) { o->tokens.clear(); },
      [](DraftOpen* o) { o->tokens[4] = -1; },
      [](DraftOpen* o) { o->tokens[4] = 128; },
      [](DraftOpen* o) { o->prompt_len = 0; },
      [](DraftOpen* o) { o->prompt_len = 22; },
      [](DraftOpen* o) { o->max_len = 20; },
      [](DraftOpen* o) { o->sample = -1; },
      [](DraftOpen* o) { o->sampling.temperature = -1; },
      [](DraftOpen* o) { o->sampling.max_tokens = 0; },
      [](DraftOpen* o) { o->sampling.stop_token_ids = {128}; },
      [](DraftOpen* o) { o->cache_salt.assign(257, 'x'); },
  };
  for (const auto& fault : faults) {
    DraftOpen open = good;
    fault(&open);
    target_->Deliver({.opens = {open}});
    ExpectNack(s, DraftNackReason::kInvalid);
  }
  EXPECT_EQ(engine_->counters().invalid, faults.size());
  EXPECT_EQ(engine_->counters().sessions, 0);
}

TEST_F(DraftEngineTest, NonsenseInACommitClosesItsSessionAlone) {
  Start();
  HashTarget::Session& other = target_->NewSession(70, 21, Sampling(1));
  target_->Open(other);
  HashTarget::Session& s = target_->NewSession(7, 21, Sampling(1));
  const std::vector<std::function<void(DraftCommit*)>> faults = {
      [](DraftCommit* c) { c->base_len = -5; },
      [](DraftCommit* c) { c->base_len = 1 << 30; },
      [](DraftCommit* c) { c->new_tokens[0] = 128; },
      [](DraftCommit* c) { c->new_tokens.resize(40); },
      [](DraftCommit* c) {
        c->in_flight = {5, -7};
      },
      [](DraftCommit* c) { c->in_flight.assign(1000, 1); },
      [](DraftCommit* c) { c->want_len = -1; },
      [](DraftCommit* c) { c->want_branches = -1; },
  };
  for (const auto& fault : faults) {
    s.base_len = 21;
    target_->Open(s);
    DraftCommit commit = target_->Advance(s, 2, {}, kWant, 0);
    fault(&commit);
    target_->Deliver({.commits = {commit}});
    ExpectNack(s, DraftNackReason::kInvalid);
    EXPECT_EQ(engine_->counters().sessions, 1);
  }
  target_->Commit(other, 1, {}, kWant);
  Settle();
  ExpectChain(other);
}

TEST_F(DraftEngineTest, SessionsBeyondTheLimitsAreRefused) {
  DraftEngineOptions options;
  options.max_sessions = 5;
  options.max_sessions_per_target = 3;
  Start(RunnerOptions(), options);
  for (uint64_t id = 0; id < 5; ++id) target_->Open(target_->NewSession(id, 10, Sampling(1)));
  Settle();
  EXPECT_EQ(engine_->counters().sessions, 3);
  ExpectNack(target_->session(3), DraftNackReason::kOverloaded);
  ExpectNack(target_->session(4), DraftNackReason::kOverloaded);
  HashTarget second(engine_.get(), HashModel(HashModelOptions{}));
  for (uint64_t id = 0; id < 3; ++id) second.Open(second.NewSession(id, 10, Sampling(1)));
  Settle();
  EXPECT_EQ(engine_->counters().sessions, 5);
  EXPECT_THAT(second.session(2).nacks, SizeIs(1));
  // A known session may always be opened anew.
  ++target_->session(0).open.id.epoch;
  target_->Open(target_->session(0));
  Settle();
  EXPECT_THAT(target_->session(0).nacks, IsEmpty());
  // One that ends makes room.
  target_->Close(target_->session(0));
  target_->Open(target_->session(3));
  Settle();
  EXPECT_THAT(target_->session(3).nacks, IsEmpty());
}

TEST_F(DraftEngineTest, SessionsBeyondTheModelsContextAreRefused) {
  HashRunnerOptions runner = RunnerOptions();
  runner.max_context = 64;
  Start(runner);
  HashTarget::Session& s = target_->NewSession(7, 64, Sampling(1));
  target_->Open(s);
  ExpectNack(s, DraftNackReason::kEvicted);
  // And those that grow into it end there.
  HashTarget::Session& t = target_->NewSession(8, 60, Sampling(1));
  target_->Open(t);
  target_->Commit(t, 0, {}, kWant);
  Settle();
  EXPECT_EQ(t.proposals.back().branches[0].tokens, Expected(t, 4));
  target_->Commit(t, 4, {}, kWant);
  ExpectNack(t, DraftNackReason::kEvicted);
  EXPECT_EQ(engine_->counters().sessions, 0);
}

// --- Pressure, time, targets ---

TEST_F(DraftEngineTest, UnderPressureTheLeastRecentlyHeardLosesItsKv) {
  HashRunnerOptions runner = RunnerOptions();
  runner.num_blocks = 40;  // 160 slots
  Start(runner);
  for (uint64_t id : {8u, 16u, 24u}) {
    HashTarget::Session& s = target_->NewSession(id, 70, Sampling(1));
    target_->Open(s);
    target_->Commit(s, 0, {}, kWant);
    Settle();
    ExpectChain(s);
  }
  EXPECT_EQ(engine_->counters().evictions, 1u);
  EXPECT_EQ(engine_->counters().sessions, 3);
  // It comes back by catching up.
  HashTarget::Session& s = target_->session(8);
  target_->Commit(s, 7, {}, kWant);
  Settle();
  ExpectChain(s);
  EXPECT_THAT(s.nacks, IsEmpty());
  EXPECT_EQ(engine_->counters().evictions, 2u);
}

TEST_F(DraftEngineTest, WhoWaitsForRoomIsWokenByAnothersEnd) {
  HashRunnerOptions runner = RunnerOptions();
  runner.num_blocks = 40;  // 160 slots
  Start(runner);
  HashTarget::Session& waits = target_->NewSession(8, 100, Sampling(1));
  HashTarget::Session& first = target_->NewSession(16, 100, Sampling(1));
  first.open.priority = 1;
  for (HashTarget::Session* s : {&waits, &first}) {
    target_->Open(*s);
    target_->Commit(*s, 0, {}, kWant);
  }
  Settle();
  ExpectChain(first);
  EXPECT_THAT(waits.proposals, IsEmpty());
  target_->Close(first);
  Settle();
  ExpectChain(waits);  // without having been heard of
}

TEST_F(DraftEngineTest, MorePathsThanSlots) {
  HashRunnerOptions runner = RunnerOptions();
  runner.max_slots = 3;
  Start(runner);
  for (uint64_t id = 0; id < 10; ++id) {
    HashTarget::Session& s = target_->NewSession(id * 8, 10, Sampling(1));
    target_->Open(s);
    target_->Commit(s, 0, {}, kWant);
  }
  Settle();
  for (auto& [id, s] : target_->sessions()) ExpectChain(s);
}

TEST_F(DraftEngineTest, IdleSessionsExpire) {
  HashTarget::Session& s = StartOne();
  clock_.Advance(std::chrono::seconds(59));
  Settle();
  EXPECT_EQ(engine_->counters().sessions, 1);
  clock_.Advance(std::chrono::seconds(2));
  Settle();
  EXPECT_EQ(engine_->counters().sessions, 0);
  EXPECT_EQ(engine_->counters().expired, 1u);
  EXPECT_EQ(engine_->kv().active_blocks, 0);
  target_->Commit(s, 1, {}, kWant);
  ExpectNack(s, DraftNackReason::kEvicted);
}

TEST_F(DraftEngineTest, TargetsShareRowsFairly) {
  DraftEngineOptions options;
  options.max_batch_rows = 8;
  Start(RunnerOptions(), options);
  HashTarget small(engine_.get(), HashModel(HashModelOptions{}));
  for (uint64_t id = 0; id < 40; ++id) {
    HashTarget::Session& s = target_->NewSession(id * 8, 4, Sampling(1));
    target_->Open(s);
    target_->Commit(s, 0, {}, kWant);
  }
  HashTarget::Session& s = small.NewSession(1, 4, Sampling(1));
  small.Open(s);
  small.Commit(s, 0, {}, kWant);
  for (int32_t i = 0; i < kWant; ++i) ASSERT_TRUE(engine_->Step().ok());
  ExpectChain(s);  // as if it were alone
  Settle();
  for (auto& [id, other] : target_->sessions()) ExpectChain(other);
}

TEST_F(DraftEngineTest, ADetachedTargetLosesItsSessions) {
  HashTarget::Session& s = StartOne();
  {
    HashTarget second(engine_.get(), HashModel(HashModelOptions{}));
    second.Open(second.NewSession(7, 30, Sampling(1)));
    Settle();
    EXPECT_EQ(engine_->counters().sessions, 2);
  }
  Settle();
  EXPECT_EQ(engine_->counters().sessions, 1);
  target_->Commit(s, 1, {}, kWant);
  Settle();
  ExpectChain(s);
}

TEST_F(DraftEngineTest, LoadIsReportedWithFramesAndNowAndThen) {
  StartOne();
  EXPECT_EQ(target_->load().sessions, 1);
  EXPECT_EQ(target_->load().rows_per_step, 1);
  EXPECT_EQ(target_->load().free_blocks, engine_->load().free_blocks);
  const int32_t frames = target_->frames();
  ASSERT_TRUE(engine_->Step().ok());
  EXPECT_EQ(target_->frames(), frames);
  clock_.Advance(std::chrono::milliseconds(200));
  ASSERT_TRUE(engine_->Step().ok());
  EXPECT_EQ(target_->frames(), frames + 1);
}

TEST_F(DraftEngineTest, ARunnersFaultIsFinal) {
  HashTarget::Session& s = StartOne();
  ASSERT_THAT(s.proposals, SizeIs(1));
  struct Broken final : Runner {
    const RunnerInfo& info() const override { return information; }
    absl::Status Launch(const StepPlan&) override { return absl::InternalError("broken"); }
    absl::StatusOr<StepResult> Wait() override { return absl::InternalError("broken"); }
    RunnerInfo information;
  };
  auto broken = std::make_unique<Broken>();
  broken->information = engine_->runner_info();
  DraftEngine engine({}, std::move(broken), clock_);
  HashTarget target(&engine, HashModel(HashModelOptions{}));
  target.Open(target.NewSession(7, 30, Sampling(1)));
  EXPECT_EQ(engine.Step().status().message(), "broken");
  EXPECT_EQ(engine.Run().message(), "broken");
}

}  // namespace
}  // namespace paceline
