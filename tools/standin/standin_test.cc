// The stand-in pair through the CPU runner: the draft is accepted about as often as a trained one,
// and every token depends on the whole context.
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <map>

#include "common/check.h"
#include "gtest/gtest.h"
#include "worker/runner/cpu_runner.h"
#include "worker/runner/plan_driver.h"

namespace paceline {
namespace {

using Sequence = PlanDriver::Sequence;

struct Rig {
  explicit Rig(const std::string& name) {
    auto model = LoadCpuModel(std::string(PACELINE_STANDIN_DIR) + "/" + name);
    CHECK(model.ok()) << model.status().ToString();
    config = (*model)->config;
    CpuRunnerOptions options{.threads = 2, .num_blocks = 2048};
    options.logits_probe = [this](SlotId, int32_t, std::span<const float> row) {
      logits.assign(row.begin(), row.end());
    };
    auto made = CpuRunner::Create(*model, options);
    CHECK(made.ok()) << made.status().ToString();
    runner = *std::move(made);
    driver = std::make_unique<PlanDriver>(*runner);
  }
  ModelConfig config;
  std::vector<float> logits;
  std::unique_ptr<CpuRunner> runner;
  std::unique_ptr<PlanDriver> driver;
};

// Ids that follow each other in the model's own words.
std::vector<TokenId> SomePrompt(int32_t length, uint64_t seed) {
  Rig rig("target");
  SamplingParams p;
  p.seed = seed;
  p.max_tokens = length - 1;
  p.ignore_eos = true;
  Sequence& s = rig.driver->Start({static_cast<TokenId>(30 + seed)}, p);
  rig.driver->Finish(s);
  return s.tokens;
}

// The share of first drafts that equal the target's own token.
double Acceptance(float temperature) {
  int32_t right = 0, total = 0;
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    Rig target("target"), draft("draft");
    SamplingParams p;
    p.temperature = temperature;
    p.seed = seed;
    p.max_tokens = 150;
    p.ignore_eos = true;
    const std::vector<TokenId> prompt = SomePrompt(40, seed);
    Sequence& t = target.driver->Start(prompt, p);
    target.driver->Finish(t);
    Sequence& d = draft.driver->Start(prompt, p);
    draft.driver->Prefill(d);
    draft.driver->Step();
    for (const TokenId token : t.output()) {
      right += d.tokens.back() == token;
      ++total;
      // On along the target's tokens.
      d.tokens.back() = token;
      draft.driver->plan().binds.push_back(
          {.slot = d.slot, .sampling = d.sampling, .prompt_len = d.prompt_len, .tokens = d.tokens});
      draft.driver->Decode(d);
      draft.driver->Step();
    }
  }
  return static_cast<double>(right) / total;
}

TEST(StandinTest, DraftsAreAcceptedAboutAsOftenAsATrainedPairs) {
  const double greedy = Acceptance(0);
  const double sampled = Acceptance(1);
  std::printf("acceptance of first drafts: %.3f at T=0, %.3f at T=1\n", greedy, sampled);
  EXPECT_GT(greedy, 0.55);
  EXPECT_LT(greedy, 0.95);
  EXPECT_GT(sampled, 0.45);
  EXPECT_LT(sampled, 0.95);
}

// Chains drafted by the draft, verified by the target: the tokens of plain decoding, in fewer
// steps.
TEST(StandinTest, SpeculationChangesStepsAndNoTokens) {
  for (float temperature : {0.0f, 1.0f}) {
    SamplingParams p;
    p.temperature = temperature;
    p.seed = 7;
    p.max_tokens = 200;
    p.ignore_eos = true;
    const std::vector<TokenId> prompt = SomePrompt(33, 2);
    Rig plain("target"), target("target"), draft("draft");
    Sequence& expected = plain.driver->Start(prompt, p);
    plain.driver->Finish(expected);
    Sequence& t = target.driver->Start(prompt, p);
    target.driver->Prefill(t);
    target.driver->Step();
    Sequence& d = draft.driver->Start(prompt, p);
    draft.driver->Prefill(d);
    draft.driver->Step();
    int32_t steps = 1;
    while (!t.ended) {
      // The drafter goes on from the target's tokens; its KV of them may be stale by one step.
      d.tokens = t.tokens;
      d.kv = std::min(d.kv, t.prompt_len);
      draft.driver->plan().binds.push_back(
          {.slot = d.slot, .sampling = d.sampling, .prompt_len = d.prompt_len, .tokens = d.tokens});
      draft.driver->Prefill(d);
      draft.driver->Step();
      while (d.tokens.size() < t.tokens.size() + 4 && !d.ended) {
        draft.driver->Decode(d);
        draft.driver->Step();
      }
      target.driver->Verify(t, std::span(d.tokens).subspan(t.tokens.size()));
      target.driver->Step();
      ++steps;
    }
    EXPECT_EQ(t.tokens, expected.tokens);
    EXPECT_LT(steps, 120);
    std::printf("T=%.0f: 200 tokens in %d steps\n", temperature, steps);
  }
}

TEST(StandinTest, AnEarlyTokenMovesTheLogits) {
  std::vector<TokenId> prompt = SomePrompt(200, 3);
  std::vector<std::vector<float>> logits;
  for (int i = 0; i < 2; ++i) {
    Rig rig("target");
    prompt[2] = 40 + i;
    SamplingParams p;
    p.max_tokens = 5;
    rig.driver->Prefill(rig.driver->Start(prompt, p));
    rig.driver->Step();
    logits.push_back(rig.logits);
  }
  double square = 0;
  for (size_t v = 0; v < logits[0].size(); ++v) {
    square += std::pow(logits[0][v] - logits[1][v], 2);
  }
  const double moved = std::sqrt(square / static_cast<double>(logits[0].size()));
  std::printf("an early token of 200 moves a logit by %.4f\n", moved);
  EXPECT_GT(moved, 1e-3);
}

TEST(StandinTest, UsuallyRunsToLength) {
  int32_t ended_early = 0;
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    Rig rig("target");
    SamplingParams p;
    p.seed = seed;
    p.max_tokens = 200;
    Sequence& s = rig.driver->Start({static_cast<TokenId>(60 + seed), 61, 62}, p);
    rig.driver->Finish(s);
    ended_early += s.output().size() < 200;
  }
  EXPECT_LE(ended_early, 4);
}

TEST(StandinTest, IsSmall) {
  uintmax_t bytes = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(PACELINE_STANDIN_DIR)) {
    if (entry.is_regular_file()) bytes += entry.file_size();
  }
  EXPECT_LT(bytes, 3000000u);
}

}  // namespace
}  // namespace paceline
