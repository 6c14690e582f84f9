// One request's logits have the same bits at every place it may run: alone or in a batch, its
// prompt in chunks of any size or behind a prefix that others computed, with drafts, recomputed, in
// a second turn. At widths where every path of the kernels has work.
#include <cstring>
#include <map>
#include <random>

#include "common/check.h"
#include "gtest/gtest.h"
#include "kernels/cuda/device_buffers.h"
#include "worker/model/naive_model.h"
#include "worker/runner/cuda_runner_cuda.h"
#include "worker/runner/plan_driver.h"

namespace paceline {
namespace {

using Sequence = PlanDriver::Sequence;
using kernels::kEmulated;

constexpr int32_t kPromptLength = kEmulated ? 70 : 2600;
constexpr int32_t kLength = kEmulated ? 6 : 24;  // of outputs
constexpr int32_t kCompanions = kEmulated ? 6 : 63;

ModelConfig Config(int32_t head_dim) {
  ModelConfig c = TinyConfig();
  c.head_dim = head_dim;
  c.num_heads = 8;
  c.hidden_size = kEmulated ? 64 : 1024;
  c.intermediate_size = kEmulated ? 96 : 2816;
  c.num_layers = 2;
  c.max_context = 8192;
  return c;
}

std::vector<TokenId> Tokens(int32_t length, uint64_t seed) {
  std::mt19937_64 rng(seed);
  std::vector<TokenId> tokens;
  for (int32_t i = 0; i < length; ++i) tokens.push_back(1 + static_cast<TokenId>(rng() % 210));
  return tokens;
}

SamplingParams Sampling(int32_t max_tokens) {
  SamplingParams p;
  p.temperature = 1;
  p.max_tokens = max_tokens;
  p.seed = 5;
  p.ignore_eos = true;
  return p;
}

class CudaDeterminism : public ::testing::TestWithParam<int32_t> {
 protected:
  struct Rig {
    explicit Rig(const std::shared_ptr<const CudaModel>& model) {
      CudaRunnerOptions options{.num_blocks = kEmulated ? 256 : 16384,
                                .max_slots = 256,
                                .max_batch_rows = kEmulated ? 256 : 4096,
                                .partial_bytes = int64_t{kEmulated ? 1 : 64} << 20};
      options.logits_probe = [this](SlotId slot, int32_t position, std::span<const float> logits) {
        seen[{slot, position}].emplace_back(logits.begin(), logits.end());
      };
      auto made = CudaRunner::Create(model, OpenCudaDevice().value(), options);
      CHECK(made.ok()) << made.status().ToString();
      runner = *std::move(made);
      driver = std::make_unique<PlanDriver>(*runner);
    }
    std::map<std::pair<SlotId, int32_t>, std::vector<std::vector<float>>> seen;
    std::unique_ptr<CudaRunner> runner;
    std::unique_ptr<PlanDriver> driver;
  };
  using Logits = std::map<int32_t, std::vector<float>>;  // by the position sampled

  void SetUp() override {
    PACELINE_NEEDS_GPU();
    model_ = RandomCudaModel(Config(GetParam()), 31).value();
    prompt_ = Tokens(kPromptLength, 1);
    Rig rig(model_);
    Sequence& s = rig.driver->Start(prompt_, Sampling(kLength));
    rig.driver->Finish(s);
    output_ = s.output();
    for (int32_t i = 0; i < kLength; ++i) {
      plain_[kPromptLength + i] = rig.seen[{s.slot, kPromptLength + i}].at(0);
    }
  }
  // Positions from `from` on; a draft that was refused leaves logits that nothing is compared with.
  void Compare(Rig& rig, const Sequence& s, int32_t from = kPromptLength) {
    EXPECT_EQ(s.output(), output_);
    for (const auto& [position, logits] : plain_) {
      if (position < from) continue;
      const auto& seen = rig.seen[{s.slot, position}];
      ASSERT_FALSE(seen.empty()) << position;
      ASSERT_EQ(std::memcmp(seen.back().data(), logits.data(), logits.size() * sizeof(float)), 0)
          << "position " << position;
    }
  }
  // Emitted tokens that a preempted or failed-over request brings along.
  Sequence& StartAgain(Rig& rig, int32_t emitted) {
    std::vector<TokenId> tokens = prompt_;
    tokens.insert(tokens.end(), output_.begin(), output_.begin() + emitted);
    Sequence& s = rig.driver->Start(tokens, Sampling(kLength));
    s.prompt_len = rig.driver->plan().binds.back().prompt_len = kPromptLength;
    return s;
  }

  std::shared_ptr<const CudaModel> model_;
  std::vector<TokenId> prompt_, output_;
  Logits plain_;
};

TEST_P(CudaDeterminism, ChunksOfEverySize) {
  for (int32_t chunk : {64, 100, 512, 2048}) {
    if (kEmulated && chunk > 64) continue;
    Rig rig(model_);
    Sequence& s = rig.driver->Start(prompt_, Sampling(kLength));
    while (s.kv < kPromptLength) {
      rig.driver->Prefill(s, kEmulated ? 33 : chunk);
      rig.driver->Step();
    }
    rig.driver->Finish(s);
    Compare(rig, s);
  }
}

// Companions prefill, decode and verify beside it, in another mixture each step.
TEST_P(CudaDeterminism, BatchesOfEverySize) {
  for (int32_t companions : {1, 6, 63}) {
    if (companions > kCompanions) continue;
    Rig rig(model_);
    std::mt19937_64 rng(static_cast<uint64_t>(companions));
    std::vector<Sequence*> others;
    for (int32_t i = 0; i < companions; ++i) {
      const auto length = 3 + static_cast<int32_t>(rng() % (kEmulated ? 40 : 700));
      others.push_back(&rig.driver->Start(Tokens(length, rng()), Sampling(1000)));
    }
    Sequence& s = rig.driver->Start(prompt_, Sampling(kLength));
    while (!s.ended) {
      for (int32_t i = 0; i < companions; ++i) {
        if (i == companions / 2) {
          s.kv < kPromptLength ? rig.driver->Prefill(s, kEmulated ? 20 : 1 + rng() % 900)
                               : rig.driver->Decode(s);
        }
        Sequence& o = *others[static_cast<size_t>(i)];
        if (o.kv < o.prompt_len) {
          rig.driver->Prefill(o, 1 + static_cast<int32_t>(rng() % 200));
        } else if (rng() % 3 == 0) {
          rig.driver->Verify(o, Tokens(1 + static_cast<int32_t>(rng() % 7), rng()));
        } else if (rng() % 3 != 0) {
          rig.driver->Decode(o);
        }
      }
      rig.driver->Step();
    }
    Compare(rig, s);
  }
}

TEST_P(CudaDeterminism, Drafts) {
  for (int32_t length : {1, 5, 15}) {
    if (kEmulated && length != 5) continue;
    for (bool good : {true, false}) {
      Rig rig(model_);
      Sequence& s = rig.driver->Start(prompt_, Sampling(kLength));
      rig.driver->Prefill(s);
      rig.driver->Step();
      while (!s.ended) {
        const size_t done = s.output().size();
        std::vector<TokenId> drafts(output_.begin() + static_cast<int64_t>(done), output_.end());
        drafts.resize(std::min<size_t>(drafts.size(), static_cast<size_t>(length)));
        if (!good) drafts.back() = (drafts.back() + 1) % 211;
        rig.driver->Verify(s, drafts);
        rig.driver->Step();
      }
      Compare(rig, s);
    }
  }
}

// Preempted, or carried on by another worker after a failure: the emitted tokens' KV comes by
// prefill.
TEST_P(CudaDeterminism, Recomputed) {
  for (int32_t emitted : {1, kLength / 2, kLength - 1}) {
    Rig rig(model_);
    Sequence& s = StartAgain(rig, emitted);
    rig.driver->Prefill(s, kPromptLength - 7);
    rig.driver->Step();
    rig.driver->Finish(s);
    Compare(rig, s, kPromptLength + emitted);
  }
}

// The prompt's whole blocks come from a sequence that computed them otherwise: in chunks, beside
// others.
TEST_P(CudaDeterminism, WarmPrefix) {
  Rig rig(model_);
  Sequence& first = rig.driver->Start(prompt_, Sampling(2));
  Sequence& other = rig.driver->Start(Tokens(40, 9), Sampling(2));
  rig.driver->Prefill(first, 50);
  rig.driver->Step();
  rig.driver->Prefill(other);
  rig.driver->Prefill(first);
  rig.driver->Step();
  Sequence& s = rig.driver->Start(prompt_, Sampling(kLength));
  s.kv = (kPromptLength - 1) / 16 * 16;
  s.blocks.assign(first.blocks.begin(), first.blocks.begin() + s.kv / 16);
  rig.driver->Finish(s);
  Compare(rig, s);
}

// A second turn reads the first one's KV, which decode steps and drafts wrote, or computes it anew.
TEST_P(CudaDeterminism, SecondTurn) {
  std::vector<TokenId> turn = prompt_;
  turn.insert(turn.end(), output_.begin(), output_.end());
  const std::vector<TokenId> more = Tokens(11, 3);
  turn.insert(turn.end(), more.begin(), more.end());
  Rig cold(model_);
  Sequence& expected = cold.driver->Start(turn, Sampling(4));
  cold.driver->Finish(expected);
  Rig warm(model_);
  Sequence& first = warm.driver->Start(prompt_, Sampling(kLength));
  warm.driver->Prefill(first);
  warm.driver->Step();
  warm.driver->Verify(first, std::span(output_).subspan(1, 3));
  warm.driver->Step();
  warm.driver->Finish(first);
  ASSERT_EQ(first.output(), output_);
  Sequence& s = warm.driver->Start(turn, Sampling(4));
  s.kv = first.kv / 16 * 16;
  s.blocks.assign(first.blocks.begin(), first.blocks.begin() + s.kv / 16);
  warm.driver->Finish(s);
  EXPECT_EQ(s.output(), expected.output());
  const auto begin = static_cast<int32_t>(turn.size());
  for (int32_t position = begin; position < begin + 4; ++position) {
    const auto& a = cold.seen[{expected.slot, position}].at(0);
    const auto& b = warm.seen[{s.slot, position}].at(0);
    EXPECT_EQ(std::memcmp(a.data(), b.data(), a.size() * sizeof(float)), 0) << position;
  }
}

INSTANTIATE_TEST_SUITE_P(HeadDim, CudaDeterminism, ::testing::Values(64, 128));

}  // namespace
}  // namespace paceline
