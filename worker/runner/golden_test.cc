// A published checkpoint's greedy ids and logits, computed by others. Needs the model's files.
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <map>
#include <sstream>

#include "gtest/gtest.h"
#include "worker/model/naive_model.h"
#include "worker/runner/cpu_runner.h"
#include "worker/runner/plan_driver.h"

namespace paceline {
namespace {

struct Golden {
  std::vector<TokenId> prompt;
  std::vector<TokenId> output;
  std::vector<float> logits;  // of tokens 0..4, behind the prompt
};

template <typename T>
std::vector<T> Numbers(const std::string& text) {
  std::istringstream in(text);
  std::vector<T> numbers;
  for (T n; in >> n;) numbers.push_back(n);
  return numbers;
}

std::vector<Golden> ReadGolden(const std::string& path) {
  std::ifstream in(path);
  std::vector<Golden> goldens;
  for (std::string line; std::getline(in, line);) {
    const size_t colon = line.find(':');
    if (colon == std::string::npos || line[0] == '#') continue;
    const std::string key = line.substr(0, colon);
    const std::string rest = line.substr(colon + 1);
    if (key == "prompt_ids") goldens.push_back({.prompt = Numbers<TokenId>(rest)});
    if (key == "greedy_ids") goldens.back().output = Numbers<TokenId>(rest);
    if (key.starts_with("logits")) goldens.back().logits = Numbers<float>(rest);
  }
  return goldens;
}

class GoldenTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const char* dir = std::getenv("PACELINE_GOLDEN_MODEL");
    dir_ = dir != nullptr ? dir : "../shared/data/models/tinystories-656k";
    if (!std::ifstream(dir_ + "/golden_greedy.txt")) GTEST_SKIP() << dir_ << " is absent";
    goldens_ = ReadGolden(dir_ + "/golden_greedy.txt");
    ASSERT_EQ(goldens_.size(), 2u);
  }
  std::string dir_;
  std::vector<Golden> goldens_;
};

TEST_F(GoldenTest, NaiveModelGivesThePublishedIds) {
  const auto tensors = ModelTensors::Open(dir_);
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  const NaiveModel model(*LoadModelConfig(dir_), *tensors);
  for (const Golden& g : goldens_) {
    std::vector<TokenId> tokens = g.prompt;
    tokens.insert(tokens.end(), g.output.begin(), g.output.begin() + 12);
    const auto logits = model.Logits(tokens);
    const size_t last = g.prompt.size() - 1;
    for (size_t v = 0; v < g.logits.size(); ++v) {
      EXPECT_NEAR(logits[last][v], g.logits[v], 1e-3);
    }
    for (size_t i = 0; i < 12; ++i) {
      const auto& row = logits[last + i];
      EXPECT_EQ(std::max_element(row.begin(), row.end()) - row.begin(), g.output[i]);
    }
  }
}

// bf16 weights and activations against float32: each published id must be the best, or within
// rounding of it, when the published ids before it are given.
TEST_F(GoldenTest, RunnerGivesThePublishedIdsWithinRounding) {
  auto model = LoadCpuModel(dir_);
  ASSERT_TRUE(model.ok()) << model.status();
  std::vector<float> logits;
  CpuRunnerOptions options{.threads = 2, .num_blocks = 64};
  options.logits_probe = [&](SlotId, int32_t, std::span<const float> row) {
    logits.assign(row.begin(), row.end());
  };
  auto runner = CpuRunner::Create(*model, options);
  ASSERT_TRUE(runner.ok()) << runner.status();
  PlanDriver driver(**runner);
  int32_t exact = 0, total = 0;
  for (const Golden& g : goldens_) {
    const SamplingParams greedy{.temperature = 0, .max_tokens = 500};
    PlanDriver::Sequence& s = driver.Start(g.prompt, greedy);
    driver.Prefill(s);
    driver.Step();
    for (size_t v = 0; v < g.logits.size(); ++v) EXPECT_NEAR(logits[v], g.logits[v], 0.12);
    for (TokenId expected : g.output) {
      const float best = *std::max_element(logits.begin(), logits.end());
      EXPECT_GT(logits[expected], best - 0.2f) << "output " << total;
      exact += s.tokens.back() == expected;
      ++total;
      // On along the published ids.
      std::vector<TokenId> tokens(s.tokens.begin(), s.tokens.end() - 1);
      tokens.push_back(expected);
      driver.plan().binds.push_back(
          {.slot = s.slot, .sampling = s.sampling, .prompt_len = s.prompt_len, .tokens = tokens});
      s.tokens = tokens;
      driver.Decode(s);
      driver.Step();
    }
  }
  std::printf("equal ids: %d of %d\n", exact, total);
  EXPECT_GE(exact, total * 95 / 100);
}

}  // namespace
}  // namespace paceline
