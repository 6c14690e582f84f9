// CudaRunner against plans made by hand: one request's tokens, logits and logprobs have the same
// bits however its steps are cut and whatever runs beside it; beside CpuRunner, greedy tokens are
// equal up to the first near-tie.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <random>

#include "common/check.h"
#include "gtest/gtest.h"
#include "kernels/cuda/device_buffers.h"
#include "worker/model/naive_model.h"
#include "worker/runner/cpu_runner.h"
#include "worker/runner/cuda_runner_cuda.h"
#include "worker/runner/plan_driver.h"

namespace paceline {
namespace {

using Sequence = PlanDriver::Sequence;

constexpr int32_t kVocab = 211;
constexpr uint64_t kModelSeed = 22;
constexpr int32_t kLength = kernels::kEmulated ? 16 : 48;  // of outputs

std::shared_ptr<const CudaModel> Model() {
  static const auto model = RandomCudaModel(TinyConfig(), kModelSeed).value();
  return model;
}

std::vector<TokenId> Prompt(int32_t length, uint64_t seed) {
  std::mt19937_64 rng(seed);
  std::vector<TokenId> tokens;
  for (int32_t i = 0; i < length; ++i) tokens.push_back(1 + static_cast<TokenId>(rng() % 210));
  return tokens;
}

SamplingParams Sampling(float temperature, int32_t max_tokens) {
  SamplingParams p;
  p.temperature = temperature;
  p.max_tokens = max_tokens;
  p.seed = 99;
  p.ignore_eos = true;
  p.top_logprobs = 3;
  return p;
}

using Seen = std::map<std::pair<SlotId, int32_t>, std::vector<std::vector<float>>>;

struct Rig {
  explicit Rig(CudaRunnerOptions options = {}) {
    if (options.num_blocks == 0) options.num_blocks = 256;
    options.partial_bytes = int64_t{1} << 20;
    options.logits_probe = [this](SlotId slot, int32_t position, std::span<const float> logits) {
      seen[{slot, position}].emplace_back(logits.begin(), logits.end());
    };
    const auto device = OpenCudaDevice();
    CHECK(device.ok()) << device.status().ToString();
    auto made = CudaRunner::Create(Model(), *device, options);
    CHECK(made.ok()) << made.status().ToString();
    runner = *std::move(made);
    driver = std::make_unique<PlanDriver>(*runner);
  }
  bool Saw(SlotId slot, int32_t position, const std::vector<float>& logits) {
    return std::ranges::any_of(seen[{slot, position}], [&](const auto& s) {
      return std::memcmp(s.data(), logits.data(), logits.size() * sizeof(float)) == 0;
    });
  }
  Seen seen;
  std::unique_ptr<CudaRunner> runner;
  std::unique_ptr<PlanDriver> driver;
};

// What a request gives alone: prompt in one span, one token a step.
struct Plain {
  std::vector<TokenId> output;
  std::vector<float> logprobs;
  std::vector<std::vector<std::pair<TokenId, float>>> top;
  std::vector<std::vector<float>> logits;  // per output token
};

Plain RunPlain(const std::vector<TokenId>& prompt, const SamplingParams& sampling,
               int32_t sample = 0) {
  Rig rig;
  Sequence& s = rig.driver->Start(prompt, sampling, sample);
  rig.driver->Finish(s);
  Plain plain{s.output(), s.logprobs, s.top, {}};
  for (size_t i = 0; i < plain.output.size(); ++i) {
    plain.logits.push_back(rig.seen[{s.slot, static_cast<int32_t>(prompt.size() + i)}].at(0));
  }
  return plain;
}

void ExpectEqual(Rig& rig, const Sequence& s, const Plain& plain) {
  EXPECT_EQ(s.output(), plain.output);
  EXPECT_EQ(s.logprobs, plain.logprobs);
  EXPECT_EQ(s.top, plain.top);
  for (size_t i = 0; i < plain.logits.size(); ++i) {
    EXPECT_TRUE(rig.Saw(s.slot, s.prompt_len + static_cast<int32_t>(i), plain.logits[i])) << i;
  }
}

class CudaTemperatures : public ::testing::TestWithParam<float> {
 protected:
  void SetUp() override {
    PACELINE_NEEDS_GPU();
    prompt_ = Prompt(37, 1);
    sampling_ = Sampling(GetParam(), kLength);
    plain_ = RunPlain(prompt_, sampling_);
    ASSERT_EQ(plain_.output.size(), static_cast<size_t>(kLength));
  }
  // The next `count` tokens that the request will emit, after those it has.
  std::vector<TokenId> Truth(const Sequence& s, int32_t count) const {
    std::vector<TokenId> tokens;
    for (size_t i = s.output().size(); i < plain_.output.size() && count-- > 0; ++i) {
      tokens.push_back(plain_.output[i]);
    }
    return tokens;
  }
  std::vector<TokenId> prompt_;
  SamplingParams sampling_;
  Plain plain_;
};

TEST_P(CudaTemperatures, TheNoiseIsTheSeedsAlone) {
  EXPECT_EQ(RunPlain(prompt_, sampling_).output, plain_.output);
  SamplingParams other = sampling_;
  other.seed = 100;
  EXPECT_EQ(RunPlain(prompt_, other).output == plain_.output, GetParam() == 0);
}

TEST_P(CudaTemperatures, ChunkedAndBesideOthers) {
  for (int32_t chunk : {5, 1, 36}) {
    if (kernels::kEmulated && chunk != 5) continue;
    Rig rig;
    Sequence& s = rig.driver->Start(prompt_, sampling_);
    std::vector<Sequence*> others;
    for (int i = 0; i < 6; ++i) {
      others.push_back(&rig.driver->Start(Prompt(3 + 11 * i, static_cast<uint64_t>(50 + i)),
                                          Sampling(1, 30 + i)));
    }
    for (int step = 0; !s.ended; ++step) {
      for (int i = 0; i < 6; ++i) {
        Sequence& o = *others[static_cast<size_t>(i)];
        if (i == 3) s.kv < s.prompt_len ? rig.driver->Prefill(s, chunk) : rig.driver->Decode(s);
        if (o.ended || step < i) continue;
        o.kv < o.prompt_len ? rig.driver->Prefill(o, 4 + i) : rig.driver->Decode(o);
      }
      rig.driver->Step();
    }
    ExpectEqual(rig, s, plain_);
  }
}

TEST_P(CudaTemperatures, ChainsOfEveryQuality) {
  for (int32_t length : {3, 1, 8}) {
    if (kernels::kEmulated && length != 3) continue;
    for (int32_t wrong_at : {0, 1, length}) {
      Rig rig;
      Sequence& s = rig.driver->Start(prompt_, sampling_);
      rig.driver->Prefill(s);
      rig.driver->Step();
      while (!s.ended) {
        std::vector<TokenId> drafts = Truth(s, length);
        const auto size = static_cast<int32_t>(drafts.size());
        if (wrong_at < size) {
          TokenId& wrong = drafts[static_cast<size_t>(wrong_at)];
          wrong = (wrong + 1) % kVocab;
        }
        rig.driver->Verify(s, drafts);
        rig.driver->Step();
        if (!s.ended) {
          EXPECT_EQ(s.last.accepted, std::min(wrong_at, size));
        }
      }
      ExpectEqual(rig, s, plain_);
    }
  }
}

// Random trees with the truth somewhere in them. A tree's rows lie at other KV indices than a
// chain's: results agree within rounding, so the comparison ends at a near-tie.
TEST_P(CudaTemperatures, Trees) {
  std::mt19937_64 rng(5);
  int32_t accepted = 0, compared = 0;
  for (int round = 0; round < 4; ++round) {
    Rig rig;
    Sequence& s = rig.driver->Start(prompt_, sampling_);
    rig.driver->Prefill(s);
    rig.driver->Step();
    bool same = true;
    while (!s.ended && same) {
      const std::vector<TokenId> truth = Truth(s, 6);
      std::vector<TokenId> drafts;
      std::vector<int32_t> parents;
      int32_t on_path = kNone;  // draft that ends the true path so far
      size_t depth = 0;
      for (int i = 0; i < 12; ++i) {
        if (rng() % 2 == 0 && depth < truth.size()) {
          parents.push_back(on_path);
          drafts.push_back(truth[depth++]);
          on_path = i;
        } else {
          parents.push_back(static_cast<int32_t>(rng() % static_cast<uint64_t>(i + 1)) - 1);
          drafts.push_back(static_cast<TokenId>(rng() % kVocab));
        }
      }
      rig.driver->Verify(s, drafts, parents);
      rig.driver->Step();
      accepted += s.last.accepted;
      const auto output = s.output();
      for (size_t i = 0; i < output.size(); ++i) same = same && output[i] == plain_.output[i];
    }
    compared += static_cast<int32_t>(s.output().size());
  }
  EXPECT_GT(accepted, kLength / 2);
  EXPECT_GT(compared, 2 * kLength);
}

TEST_P(CudaTemperatures, LaunchedAhead) {
  Rig rig;
  Sequence& s = rig.driver->Start(prompt_, sampling_);
  rig.driver->Prefill(s);
  ASSERT_TRUE(rig.driver->Launch().ok());
  while (!s.ended) {
    rig.driver->DecodeAhead(s, 1);
    ASSERT_TRUE(rig.driver->Launch().ok());
    rig.driver->DecodeAhead(s, 2);
    EXPECT_FALSE(rig.driver->Launch().ok());  // a third
    rig.driver->Wait();
  }
  const StepResult rest = rig.driver->Wait();  // launched before the end was known
  EXPECT_EQ(rest.slots[0].rows_run, 0);
  EXPECT_TRUE(rest.slots[0].ended);
  EXPECT_FALSE(rig.runner->Wait().ok());
  ExpectEqual(rig, s, plain_);
}

TEST_P(CudaTemperatures, ParallelSamplesShareTheirPrompt) {
  std::vector<Plain> plain;
  for (int32_t i = 0; i < 3; ++i) plain.push_back(RunPlain(prompt_, sampling_, i));
  Rig rig;
  std::vector<Sequence*> samples;
  for (int32_t i = 0; i < 3; ++i) samples.push_back(&rig.driver->Start(prompt_, sampling_, i));
  rig.driver->Prefill(*samples[0], 20);
  rig.driver->Step();
  rig.driver->Prefill(*samples[0]);
  rig.driver->Follow(*samples[1]);
  rig.driver->Follow(*samples[2]);
  rig.driver->Step();
  rig.driver->Fork(*samples[0], *samples[1]);
  rig.driver->Fork(*samples[0], *samples[2]);
  while (!samples[0]->ended) {
    for (Sequence* s : samples) rig.driver->Decode(*s);
    rig.driver->Step();
  }
  for (size_t i = 0; i < 3; ++i) ExpectEqual(rig, *samples[i], plain[i]);
}

TEST_P(CudaTemperatures, PenaltiesSeeDraftsAsTheyWouldSeeTokens) {
  SamplingParams p = sampling_;
  p.repetition_penalty = 1.3f;
  p.presence_penalty = 0.4f;
  p.frequency_penalty = 0.7f;
  p.logit_bias = {{5, 2.0f}, {6, -3.0f}};
  p.top_k = 40;
  p.top_p = 0.95f;
  p.min_p = 0.01f;
  const Plain plain = RunPlain(prompt_, p);
  EXPECT_NE(plain.output, plain_.output);
  Rig rig;
  Sequence& s = rig.driver->Start(prompt_, p);
  rig.driver->Prefill(s);
  rig.driver->Step();
  while (!s.ended) {
    const size_t done = s.output().size();
    const size_t end = std::min(done + 5, plain.output.size());
    rig.driver->Verify(s, std::span(plain.output).subspan(done, end - done));
    rig.driver->Step();
  }
  ExpectEqual(rig, s, plain);
}

INSTANTIATE_TEST_SUITE_P(All, CudaTemperatures, ::testing::Values(0.0f, 0.7f));

// The same requests on both backends: tokens equal up to the first near-tie of the CPU's logits.
TEST(CudaRunnerTest, AgreesWithTheCpuRunner) {
  PACELINE_NEEDS_GPU();
  int32_t compared = 0;
  for (uint64_t seed = 0; seed < (kernels::kEmulated ? 2 : 6); ++seed) {
    const auto prompt = Prompt(5 + 13 * static_cast<int32_t>(seed), seed + 60);
    const SamplingParams sampling = Sampling(0, kLength);
    Seen cpu_seen;
    CpuRunnerOptions options{.threads = 1, .num_blocks = 64};
    options.logits_probe = [&](SlotId slot, int32_t position, std::span<const float> logits) {
      cpu_seen[{slot, position}].emplace_back(logits.begin(), logits.end());
    };
    const auto cpu = CpuRunner::Create(RandomCpuModel(TinyConfig(), kModelSeed), options).value();
    PlanDriver cpu_driver(*cpu);
    Sequence& expected = cpu_driver.Start(prompt, sampling);
    cpu_driver.Finish(expected);
    Rig rig;
    EXPECT_EQ(rig.runner->info().model_fingerprint, cpu->info().model_fingerprint);
    Sequence& s = rig.driver->Start(prompt, sampling);
    rig.driver->Finish(s);
    for (size_t i = 0; i < s.output().size(); ++i) {
      const auto position = s.prompt_len + static_cast<int32_t>(i);
      std::vector<float> logits = cpu_seen[{expected.slot, position}].at(0);
      const std::vector<float>& got = rig.seen[{s.slot, position}].at(0);
      for (size_t v = 0; v < logits.size(); ++v) ASSERT_NEAR(got[v], logits[v], 0.15) << i;
      if (s.output()[i] != expected.output()[i]) {
        std::ranges::sort(logits, std::greater<>());
        EXPECT_LT(logits[0] - logits[1], 0.1) << "token " << i;
        break;
      }
      ++compared;
    }
  }
  EXPECT_GT(compared, kLength);
}

TEST(CudaRunnerTest, StopIdsCandidatesAndMinTokens) {
  PACELINE_NEEDS_GPU();
  const auto prompt = Prompt(20, 3);
  SamplingParams p = Sampling(1, 30);
  p.logit_bias = {{0, 100.0f}};  // EOS at once
  EXPECT_EQ(RunPlain(prompt, p).output, std::vector<TokenId>(30, 0));
  p.ignore_eos = false;
  EXPECT_EQ(RunPlain(prompt, p).output, std::vector<TokenId>{0});
  p.min_tokens = 5;
  const auto output = RunPlain(prompt, p).output;
  ASSERT_EQ(output.size(), 6u);
  EXPECT_EQ(std::ranges::count(output, 0), 1);
  Rig rig;
  Sequence& s = rig.driver->Start(prompt, Sampling(1, 10));
  rig.driver->Prefill(s);
  rig.driver->last_sample_row().num_candidates = 4;
  rig.driver->Step();
  ASSERT_EQ(s.last.candidates.size(), 1u);
  ASSERT_EQ(s.last.candidates[0].size(), 4u);
  EXPECT_EQ(s.last.candidates[0][0], s.tokens.back());
}

// More sample rows than one group of logits holds.
TEST(CudaRunnerTest, ManySequencesAtOnce) {
  PACELINE_NEEDS_GPU();
  Rig rig({.num_blocks = 512, .max_slots = 128, .max_batch_rows = 32});
  std::vector<Sequence*> all;
  for (int i = 0; i < 70; ++i) {
    all.push_back(
        &rig.driver->Start(Prompt(3 + i % 5, static_cast<uint64_t>(i % 5)), Sampling(0.7f, 3)));
    rig.driver->Prefill(*all.back());
  }
  rig.driver->Step();
  for (int step = 0; step < 2; ++step) {
    for (Sequence* s : all) rig.driver->Decode(*s);
    rig.driver->Step();
  }
  for (int i = 5; i < 70; ++i) {
    EXPECT_EQ(all[static_cast<size_t>(i)]->output(), all[static_cast<size_t>(i % 5)]->output());
  }
}

// Requests of mixed lengths that come, verify and go; what each emitted, with every row's logits.
struct Mixed {
  std::vector<std::vector<TokenId>> outputs;
  std::vector<std::vector<float>> logprobs;
  Seen seen;
  int64_t captured = 0, replayed = 0;
};
Mixed RunMixed(bool graphs, int32_t max_batch_rows) {
  Rig rig({.max_batch_rows = max_batch_rows, .graphs = graphs});
  std::vector<Sequence*> all;
  // The first is short; those after it replay what was captured for it, with other lengths.
  for (int i = 0; i < 6; ++i) {
    SamplingParams sampling = Sampling(i % 2 == 0 ? 0.0f : 0.8f, 10 + i);
    if (i == 2) sampling.logit_bias = {{5, 2.0f}, {9, -1.0f}};
    if (i == 3) sampling.frequency_penalty = 0.5f;
    all.push_back(
        &rig.driver->Start(Prompt(i == 4 ? 250 : 3 + 40 * i, static_cast<uint64_t>(i)), sampling));
    rig.driver->Prefill(*all.back());
    rig.driver->Step();
    for (int step = 0; step < 3 && !all.back()->ended; ++step) {  // alone
      rig.driver->Decode(*all.back());
      rig.driver->Step();
    }
  }
  for (int step = 0; std::ranges::any_of(all, [](const Sequence* s) { return !s->ended; });
       ++step) {
    for (size_t i = 0; i < all.size(); ++i) {
      Sequence& s = *all[i];
      if (s.ended) continue;
      if (i == 1 && step % 2 == 0) {
        rig.driver->Verify(s, std::vector<TokenId>{7, 8, 9});
      } else if (i == 5 && step % 3 == 0) {
        rig.driver->Verify(s, std::vector<TokenId>{7, 8, 9, 1}, std::vector<int32_t>{-1, -1, 0, 2});
      } else {
        rig.driver->Decode(s);
      }
    }
    rig.driver->Step();
  }
  Mixed mixed;
  for (const Sequence* s : all) {
    mixed.outputs.push_back(s->output());
    mixed.logprobs.push_back(s->logprobs);
  }
  mixed.seen = std::move(rig.seen);
  mixed.captured = rig.runner->graphs().captured();
  mixed.replayed = rig.runner->graphs().replayed();
  return mixed;
}

TEST(CudaRunnerTest, GraphsChangeNoBits) {
  PACELINE_NEEDS_GPU();
  const Mixed plain = RunMixed(false, 512);
  EXPECT_EQ(plain.captured + plain.replayed, 0);
  // Of few rows the batches that are wider than the workspace replace it, and the graphs with it.
  for (int32_t max_batch_rows : {512, 4}) {
    const Mixed mixed = RunMixed(true, max_batch_rows);
    EXPECT_GT(mixed.captured, 1);
    EXPECT_GT(mixed.replayed, 2 * mixed.captured);
    EXPECT_EQ(mixed.outputs, plain.outputs);
    EXPECT_EQ(mixed.logprobs, plain.logprobs);
    ASSERT_EQ(mixed.seen.size(), plain.seen.size());
    for (const auto& [where, rows] : plain.seen) {
      const auto& others = mixed.seen.at(where);
      ASSERT_EQ(others.size(), rows.size());
      for (size_t i = 0; i < rows.size(); ++i) {
        ASSERT_EQ(std::memcmp(others[i].data(), rows[i].data(), rows[i].size() * sizeof(float)), 0)
            << "slot " << where.first << ", position " << where.second;
      }
    }
  }
}

TEST(CudaRunnerTest, TheGraphUnusedForLongestGoes) {
  PACELINE_NEEDS_GPU();
  StepGraphs graphs;
  const CudaStream stream = CudaStream::Create().value();
  int32_t enqueued = 0;
  const auto run = [&](int32_t draws, int64_t memory) {
    enqueued = 0;
    const absl::Status status = graphs.Run(
        {.draws = draws}, memory,
        [&] {
          ++enqueued;
          return absl::OkStatus();
        },
        stream.get());
    ASSERT_TRUE(status.ok()) << status;
  };
  for (int round = 0; round < 2; ++round) {  // seen, captured
    for (int32_t draws = 1; draws <= StepGraphs::kMaxGraphs; ++draws) run(draws, 1);
  }
  EXPECT_EQ(graphs.captured(), StepGraphs::kMaxGraphs);
  run(1, 1);
  EXPECT_EQ(enqueued, 0);
  for (int i = 0; i < 2; ++i) run(1000, 1);  // takes the place of 2
  run(1, 1);
  EXPECT_EQ(enqueued, 0);
  run(2, 1);
  EXPECT_EQ(enqueued, 1);
  EXPECT_EQ(graphs.captured(), StepGraphs::kMaxGraphs + 1);
  run(3, 2);  // other memory: all go
  EXPECT_EQ(enqueued, 1);
  const absl::Status fails = graphs.Run(
      {.draws = 3}, 2, [] { return absl::InternalError("no"); }, stream.get());
  EXPECT_EQ(fails.message(), "no");
  run(3, 2);
  EXPECT_EQ(graphs.captured(), StepGraphs::kMaxGraphs + 2);
}

TEST(CudaRunnerTest, CountBuckets) {
  EXPECT_EQ(CountBucket(0), 0);
  int32_t last = 0, buckets = 0;
  for (int32_t count = 1; count <= 4096; ++count) {
    const int32_t bucket = CountBucket(count);
    ASSERT_GE(bucket, count);
    ASSERT_LE(bucket, count + std::max(1, count / 4));
    ASSERT_EQ(CountBucket(bucket), bucket);
    ASSERT_GE(bucket, last);
    buckets += bucket != last;
    last = bucket;
  }
  EXPECT_LE(buckets, 45);
}

TEST(CudaRunnerTest, AnEmptyPlanABindAloneAndMistakes) {
  PACELINE_NEEDS_GPU();
  Rig rig;
  rig.driver->Step();
  Sequence& s = rig.driver->Start(Prompt(5, 1), Sampling(0, 3));
  rig.driver->Step();
  rig.driver->Prefill(s);
  rig.driver->plan().rows[1].token = kVocab;
  const absl::Status status = rig.driver->Launch();
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal) << status;
}

TEST(CudaRunnerTest, OptionsAndMemoryAreChecked) {
  PACELINE_NEEDS_GPU();
  const CudaDevice device = OpenCudaDevice().value();
  const auto create = [&](const CudaRunnerOptions& options) {
    return CudaRunner::Create(Model(), device, options).status();
  };
  for (const CudaRunnerOptions& bad :
       std::vector<CudaRunnerOptions>{{.kv_bytes = 100},
                                      {.kv_bytes = -1},
                                      {.num_blocks = -1},
                                      {.block_size = 8},
                                      {.max_slots = 0},
                                      {.max_context = 2000},
                                      {.max_hidden_slots = -2},
                                      {.max_batch_rows = 0},
                                      {.synthetic_acceptance = -1}}) {
    const absl::Status status = create(bad);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  }
  const absl::Status short_of = create({.kv_bytes = int64_t{1} << 46});
  EXPECT_EQ(short_of.code(), absl::StatusCode::kResourceExhausted) << short_of;
  EXPECT_NE(short_of.message().find("--kv-bytes"), std::string::npos) << short_of;
  Rig rig;
  EXPECT_TRUE(rig.runner->info().numerics_fingerprint.starts_with("cuda-sm"));
  EXPECT_NE(rig.runner->memory_text().find("longest_context"), std::string::npos);
  EXPECT_EQ(rig.runner->memory_text().find("graphs=\"0.00 GiB\""), std::string::npos);
  Rig without({.graphs = false});
  EXPECT_NE(without.runner->memory_text().find("graphs=\"0.00 GiB\""), std::string::npos);
}

}  // namespace
}  // namespace paceline
