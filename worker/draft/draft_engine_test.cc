// Chains, commits and the protocol's rules, over a hash model.
#include "worker/draft/draft_engine.h"

#include <optional>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/sim/hash_runner.h"
#include "tests/sim/hash_target.h"

namespace paceline {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::SizeIs;

constexpr int32_t kWant = 4;

SamplingParams Sampling(float temperature, int32_t max_tokens = 60) {
  SamplingParams params;
  params.temperature = temperature;
  params.seed = 11;
  params.max_tokens = max_tokens;
  params.ignore_eos = true;
  return params;
}

HashRunnerOptions RunnerOptions(double agreement = 1) {
  HashRunnerOptions options;
  options.model.agreement = agreement;
  options.num_blocks = 512;
  options.block_size = 4;
  return options;
}

class DraftEngineTest : public testing::Test {
 protected:
  void Start(HashRunnerOptions runner = RunnerOptions(), DraftEngineOptions options = {}) {
    Finish();
    drafter_.emplace(runner.model);
    engine_ = std::make_unique<DraftEngine>(options, std::make_unique<HashRunner>(runner), clock_);
    target_ = std::make_unique<HashTarget>(engine_.get(), HashModel(HashModelOptions{}));
  }
  ~DraftEngineTest() override { Finish(); }
  void Finish() {
    target_.reset();
    if (engine_ != nullptr) engine_->CheckQuiescent();
    engine_.reset();
  }

  // Steps until there is nothing to do.
  void Settle() {
    for (int32_t i = 0; i < 10000; ++i) {
      const absl::StatusOr<bool> worked = engine_->Step();
      ASSERT_TRUE(worked.ok()) << worked.status();
      if (!*worked) return;
      clock_.Advance(std::chrono::milliseconds(1));
    }
    FAIL() << "the engine does not come to rest";
  }

  std::vector<TokenId> Expected(const HashTarget::Session& s, int32_t count) {
    return Continue(*drafter_, s.open, {s.base().begin(), s.base().end()}, count);
  }

  ManualClock clock_;
  std::optional<HashModel> drafter_;
  std::unique_ptr<DraftEngine> engine_;
  std::unique_ptr<HashTarget> target_;
};

TEST_F(DraftEngineTest, AChainHasTheTargetsTokens) {
  for (float temperature : {0.0f, 1.0f}) {
    Start();
    HashTarget::Session& s = target_->NewSession(7, 21, Sampling(temperature));
    target_->Open(s);
    target_->Commit(s, 0, {}, kWant);
    Settle();
    ASSERT_FALSE(s.proposals.empty());
    const DraftProposal& p = s.proposals.back();
    EXPECT_EQ(p.id, s.open.id);
    EXPECT_EQ(p.kind, ProposalKind::kChain);
    EXPECT_EQ(p.base_len, 21);
    EXPECT_EQ(p.prefix_hash, HashTokens(s.open.tokens));
    ASSERT_THAT(p.branches, SizeIs(1));
    // One more than wanted: the step in flight yields at least one.
    EXPECT_EQ(p.branches[0].tokens, Expected(s, kWant + 1));
    EXPECT_THAT(s.nacks, IsEmpty());
  }
}

TEST_F(DraftEngineTest, AnAgreeingCommitKeepsTheChain) {
  Start();
  HashTarget::Session& s = target_->NewSession(7, 21, Sampling(1));
  target_->Open(s);
  target_->Commit(s, 0, {}, kWant);
  Settle();
  const uint64_t rows = engine_->counters().rows;
  target_->Commit(s, 3, {}, kWant);
  s.proposals.clear();
  Settle();
  // What is left goes out at once, then the whole.
  ASSERT_GE(s.proposals.size(), 2u);
  EXPECT_EQ(s.proposals.front().base_len, 24);
  EXPECT_EQ(s.proposals.front().branches[0].tokens, Expected(s, 2));
  EXPECT_EQ(s.proposals.back().branches[0].tokens, Expected(s, kWant + 1));
  EXPECT_EQ(engine_->counters().rows - rows, 3u);
  EXPECT_EQ(engine_->counters().chain_kept, 3u);
}

TEST_F(DraftEngineTest, WholeRequestsFollowTheTargetWhateverTheAgreement) {
  for (double agreement : {1.0, 0.7, 0.0}) {
    for (int32_t run = 0; run < 8; ++run) {
      Start(RunnerOptions(agreement));
      HashTarget::Session& s = target_->NewSession(run, 5 + 3 * run, Sampling(run % 2));
      target_->Open(s);
      std::vector<TokenId> chain;
      while (!s.done()) {
        const int32_t accepted = HashTarget::Verify(s);
        target_->Commit(s, accepted + 1, chain, kWant);
        s.proposals.clear();
        Settle();
        chain.clear();
        if (s.proposals.empty()) continue;
        EXPECT_EQ(s.proposals.back().base_len, s.base_len);
        const auto& tokens = s.proposals.back().branches[0].tokens;
        EXPECT_EQ(tokens, Expected(s, static_cast<int32_t>(tokens.size())));
        EXPECT_LE(s.base_len + tokens.size(), s.truth.size());
        // The target verifies what came for its new base.
        const int32_t next = HashTarget::Verify(s) + 1;
        const std::vector<TokenId> truth(s.truth.begin() + s.base_len,
                                         s.truth.begin() + s.base_len + next);
        if (static_cast<int32_t>(tokens.size()) > next &&
            std::equal(truth.begin(), truth.end(), tokens.begin())) {
          chain.assign(tokens.begin() + next, tokens.end());
        }
      }
      EXPECT_THAT(s.nacks, IsEmpty());
      target_->Close(s);
      Settle();
      EXPECT_EQ(engine_->counters().sessions, 0);
      EXPECT_EQ(engine_->kv().active_blocks, 0);
    }
  }
}

}  // namespace
}  // namespace paceline
