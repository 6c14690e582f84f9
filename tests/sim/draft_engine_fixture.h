// For tests: a draft engine over a HashRunner, stepped by hand under a simulated clock, and a
// target.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include <gtest/gtest.h>

#include "tests/sim/hash_runner.h"
#include "tests/sim/hash_target.h"
#include "worker/draft/draft_engine.h"

namespace paceline {

class DraftEngineFixture : public testing::Test {
 protected:
  static SamplingParams Sampling(float temperature, int32_t max_tokens = 60) {
    SamplingParams params;
    params.temperature = temperature;
    params.seed = 11;
    params.max_tokens = max_tokens;
    params.ignore_eos = true;
    return params;
  }
  static HashRunnerOptions RunnerOptions(double agreement = 1) {
    HashRunnerOptions options;
    options.model.agreement = agreement;
    options.num_blocks = 512;
    options.block_size = 4;
    return options;
  }

  void Start(HashRunnerOptions runner = RunnerOptions(), DraftEngineOptions options = {}) {
    Finish();
    drafter_.emplace(runner.model);
    engine_ = std::make_unique<DraftEngine>(options, std::make_unique<HashRunner>(runner), clock_);
    target_ = std::make_unique<HashTarget>(engine_.get(), HashModel(HashModelOptions{}));
  }
  ~DraftEngineFixture() override { Finish(); }
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

  // What the drafter's model draws behind the session's base.
  std::vector<TokenId> Expected(const HashTarget::Session& s, int32_t count) {
    return Continue(*drafter_, s.open, {s.base().begin(), s.base().end()}, count);
  }

  ManualClock clock_;
  std::optional<HashModel> drafter_;
  std::unique_ptr<DraftEngine> engine_;
  std::unique_ptr<HashTarget> target_;
};

}  // namespace paceline
