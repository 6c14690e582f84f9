// The draft engine over the real CPU backend: chains and branches are what the model generates
// alone.
#include <gtest/gtest.h>

#include "common/check.h"
#include "common/hash.h"
#include "worker/draft/draft_engine.h"
#include "worker/model/naive_model.h"
#include "worker/runner/cpu_runner.h"
#include "worker/runner/plan_driver.h"

namespace paceline {
namespace {

std::unique_ptr<CpuRunner> NewRunner() {
  static const auto model = RandomCpuModel(TinyConfig(), 21);
  auto runner = CpuRunner::Create(model, {.threads = 2, .num_blocks = 256});
  CHECK(runner.ok()) << runner.status().ToString();
  return *std::move(runner);
}

SamplingParams Sampling(float temperature) {
  SamplingParams sampling;
  sampling.temperature = temperature;
  sampling.seed = 99;
  sampling.max_tokens = 200;
  sampling.ignore_eos = true;
  return sampling;
}

// What the model generates behind the tokens, one at a time.
std::vector<TokenId> Plain(const std::vector<TokenId>& tokens, SamplingParams sampling,
                           int32_t count) {
  const auto runner = NewRunner();
  PlanDriver driver(*runner);
  sampling.max_tokens = count;
  PlanDriver::Sequence& s = driver.Start(tokens, sampling);
  driver.Finish(s);
  return s.output();
}

class DraftCpuTest : public testing::TestWithParam<float> {
 protected:
  DraftCpuTest() : engine_({}, NewRunner(), clock_) {
    target_ = engine_.AttachTarget([this](DraftFrame frame) {
      for (DraftProposal& p : frame.proposals) newest_ = std::move(p);
      EXPECT_TRUE(frame.nacks.empty());
    });
    for (int32_t i = 0; i < 37; ++i) tokens_.push_back(1 + (7 * i) % 200);
    engine_.Deliver(target_, {.opens = {{.id = id_,
                                         .sampling = Sampling(GetParam()),
                                         .prompt_len = 37,
                                         .max_len = 237,
                                         .tokens = tokens_}}});
  }
  ~DraftCpuTest() override { engine_.DetachTarget(target_); }

  void Commit(const std::vector<TokenId>& added, const std::vector<TokenId>& in_flight,
              int32_t want_len, int32_t want_branches) {
    tokens_.insert(tokens_.end(), added.begin(), added.end());
    engine_.Deliver(target_, {.commits = {{.id = id_,
                                           .base_len = static_cast<int32_t>(tokens_.size()),
                                           .new_tokens = added,
                                           .prefix_hash = HashTokens(tokens_),
                                           .in_flight = in_flight,
                                           .want_len = want_len,
                                           .want_branches = want_branches}}});
    for (int32_t i = 0; i < 1000; ++i) {
      const absl::StatusOr<bool> worked = engine_.Step();
      CHECK(worked.ok()) << worked.status().ToString();
      if (!*worked) return;
    }
    FAIL() << "the engine does not come to rest";
  }
  std::vector<TokenId> Behind(const std::vector<TokenId>& more, int32_t count) const {
    std::vector<TokenId> tokens = tokens_;
    tokens.insert(tokens.end(), more.begin(), more.end());
    return Plain(tokens, Sampling(GetParam()), count);
  }

  const DraftSessionId id_{5, 1};
  ManualClock clock_;
  DraftEngine engine_;
  DraftEngine::TargetId target_ = 0;
  std::vector<TokenId> tokens_;
  DraftProposal newest_;
};

TEST_P(DraftCpuTest, ChainsAreWhatTheModelGenerates) {
  Commit({}, {}, 6, 0);
  ASSERT_EQ(newest_.branches.size(), 1u);
  EXPECT_EQ(newest_.branches[0].tokens, Behind({}, 6));
  Commit(Behind({}, 2), {}, 6, 0);  // agrees
  EXPECT_EQ(newest_.branches[0].tokens, Behind({}, 6));
  Commit({3, 4, 5}, {}, 6, 0);  // does not
  EXPECT_EQ(newest_.branches[0].tokens, Behind({}, 6));
}

TEST_P(DraftCpuTest, BranchesAreWhatTheModelGenerates) {
  std::vector<TokenId> in_flight;
  for (int32_t round = 0; round < 5; ++round) {
    // Rounds in which the verify yields what a branch foresaw, and one in which it does not.
    std::vector<TokenId> added;
    if (round == 3) {
      added = {in_flight[0], 9};
      in_flight = {8, 7};
    } else if (round > 0) {
      const DraftBranch branch = newest_.branches[round % newest_.branches.size()];
      added.assign(in_flight.begin(), in_flight.begin() + branch.accepted);
      added.push_back(branch.next);
      in_flight = branch.tokens;
    }
    Commit(added, in_flight, 3, 10);
    EXPECT_EQ(newest_.base_len, static_cast<int32_t>(tokens_.size()));
    ASSERT_EQ(newest_.branches.size(), 10u);
    for (const DraftBranch& b : newest_.branches) {
      std::vector<TokenId> outcome(in_flight.begin(), in_flight.begin() + b.accepted);
      outcome.push_back(b.next);
      EXPECT_EQ(b.tokens, Behind(outcome, 3)) << "round " << round;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Temperatures, DraftCpuTest, testing::Values(0.0f, 1.0f));

}  // namespace
}  // namespace paceline
