// CpuRunner against plans made by hand: one request's tokens, logits and logprobs have the same
// bits however its steps are cut, whatever runs beside it.
#include "worker/runner/cpu_runner.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <random>

#include "common/check.h"
#include "gtest/gtest.h"
#include "worker/model/naive_model.h"
#include "worker/runner/plan_driver.h"

namespace paceline {
namespace {

using Sequence = PlanDriver::Sequence;

constexpr int32_t kVocab = 211;

std::shared_ptr<const CpuModel> Model() {
  static const auto model = RandomCpuModel(TinyConfig(), 22);
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

struct Rig {
  explicit Rig(CpuRunnerOptions options = {}) {
    if (options.num_blocks == 0) options.num_blocks = 256;
    if (options.threads == 0) options.threads = 2;
    options.logits_probe = [this](SlotId slot, int32_t position, std::span<const float> logits) {
      seen[{slot, position}].emplace_back(logits.begin(), logits.end());
    };
    auto made = CpuRunner::Create(Model(), options);
    CHECK(made.ok()) << made.status().ToString();
    runner = *std::move(made);
    driver = std::make_unique<PlanDriver>(*runner);
  }
  // Whether these logits were seen for a slot and position, bit for bit.
  bool Saw(SlotId slot, int32_t position, const std::vector<float>& logits) {
    return std::ranges::any_of(seen[{slot, position}], [&](const auto& s) {
      return std::memcmp(s.data(), logits.data(), logits.size() * sizeof(float)) == 0;
    });
  }
  std::map<std::pair<SlotId, int32_t>, std::vector<std::vector<float>>> seen;
  std::unique_ptr<CpuRunner> runner;
  std::unique_ptr<PlanDriver> driver;
};

// What a request gives alone: prompt in one span, one token a step, one thread.
struct Plain {
  std::vector<TokenId> output;
  std::vector<float> logprobs;
  std::vector<std::vector<std::pair<TokenId, float>>> top;
  std::vector<std::vector<float>> logits;  // per output token
};

Plain RunPlain(const std::vector<TokenId>& prompt, const SamplingParams& sampling,
               int32_t sample = 0) {
  Rig rig({.threads = 1});
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

class Temperatures : public ::testing::TestWithParam<float> {
 protected:
  void SetUp() override {
    prompt_ = Prompt(37, 1);
    sampling_ = Sampling(GetParam(), 48);
    plain_ = RunPlain(prompt_, sampling_);
    ASSERT_EQ(plain_.output.size(), 48u);
  }
  // The next `count` tokens that the request will emit, after those it has.
  std::vector<TokenId> Truth(const Sequence& s, int32_t count) const {
    const size_t done = s.output().size();
    std::vector<TokenId> tokens;
    for (size_t i = done; i < plain_.output.size() && count-- > 0; ++i) {
      tokens.push_back(plain_.output[i]);
    }
    return tokens;
  }
  std::vector<TokenId> prompt_;
  SamplingParams sampling_;
  Plain plain_;
};

TEST_P(Temperatures, TheNoiseIsTheSeedsAlone) {
  EXPECT_EQ(RunPlain(prompt_, sampling_).output, plain_.output);
  SamplingParams other = sampling_;
  other.seed = 100;
  EXPECT_EQ(RunPlain(prompt_, other).output == plain_.output, GetParam() == 0);
  EXPECT_EQ(RunPlain(prompt_, sampling_, 1).output == plain_.output, GetParam() == 0);
}

TEST_P(Temperatures, ChunkedAndBesideOthers) {
  for (int32_t chunk : {1, 5, 16, 36}) {
    Rig rig;
    Sequence& s = rig.driver->Start(prompt_, sampling_);
    std::vector<Sequence*> others;
    for (int i = 0; i < 6; ++i) {
      others.push_back(&rig.driver->Start(Prompt(3 + 11 * i, 50 + i), Sampling(1, 30 + i)));
    }
    for (int step = 0; !s.ended; ++step) {
      // Some before, some behind, all at different stages.
      for (int i = 0; i < 6; ++i) {
        Sequence& o = *others[i];
        if (i == 3) {
          if (s.kv < s.prompt_len) {
            rig.driver->Prefill(s, chunk);
          } else {
            rig.driver->Decode(s);
          }
        }
        if (o.ended || step < i) continue;
        if (o.kv < o.prompt_len) {
          rig.driver->Prefill(o, 4 + i);
        } else {
          rig.driver->Decode(o);
        }
      }
      rig.driver->Step();
    }
    ExpectEqual(rig, s, plain_);
  }
}

TEST_P(Temperatures, ChainsOfEveryQuality) {
  for (int32_t length = 0; length <= 8; ++length) {
    for (int32_t wrong_at = 0; wrong_at <= length; ++wrong_at) {
      Rig rig;
      Sequence& s = rig.driver->Start(prompt_, sampling_);
      rig.driver->Prefill(s);
      rig.driver->Step();
      while (!s.ended) {
        std::vector<TokenId> drafts = Truth(s, length);
        if (wrong_at < static_cast<int32_t>(drafts.size())) {
          drafts[wrong_at] = (drafts[wrong_at] + 1) % kVocab;
        }
        const auto right = std::min<int32_t>(wrong_at, static_cast<int32_t>(drafts.size()));
        rig.driver->Verify(s, drafts);
        rig.driver->Step();
        EXPECT_EQ(s.last.drafted, static_cast<int32_t>(drafts.size()));
        if (!s.ended) {
          EXPECT_EQ(s.last.accepted, right);
        }
        EXPECT_EQ(s.last.tokens.size(), static_cast<size_t>(s.last.accepted) + 1);
      }
      ExpectEqual(rig, s, plain_);
    }
  }
}

// Random trees with the truth somewhere in them; the accepted path's KV moves and later steps read
// it from there.
TEST_P(Temperatures, Trees) {
  std::mt19937_64 rng(5);
  for (int round = 0; round < 12; ++round) {
    Rig rig;
    Sequence& s = rig.driver->Start(prompt_, sampling_);
    rig.driver->Prefill(s);
    rig.driver->Step();
    int32_t accepted = 0;
    while (!s.ended) {
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
          parents.push_back(static_cast<int32_t>(rng() % (i + 1)) - 1);
          drafts.push_back(static_cast<TokenId>(rng() % kVocab));
        }
      }
      rig.driver->Verify(s, drafts, parents);
      rig.driver->Step();
      if (!s.ended) {
        EXPECT_GE(s.last.accepted, static_cast<int32_t>(depth));
      }
      accepted += s.last.accepted;
    }
    ExpectEqual(rig, s, plain_);
    EXPECT_GT(accepted, 15);
  }
}

TEST_P(Temperatures, LaunchedAhead) {
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

// Every other step is launched with branches for what the one in flight may give: the right one
// among wrong ones, or none that fits.
TEST_P(Temperatures, BranchesAreChosenByTheOutcome) {
  Rig rig;
  Sequence& s = rig.driver->Start(prompt_, sampling_);
  rig.driver->Prefill(s);
  rig.driver->Step();
  for (int round = 0; !s.ended; ++round) {
    const std::vector<TokenId> truth = Truth(s, 8);
    std::vector<TokenId> drafts(truth.begin(), truth.begin() + std::min<size_t>(2, truth.size()));
    if (round % 3 == 1 && drafts.size() == 2) drafts[1] = (drafts[1] + 7) % kVocab;
    const int32_t accepts = round % 3 == 1 ? 1 : 2;
    rig.driver->Verify(s, drafts);
    ASSERT_TRUE(rig.driver->Launch().ok());
    std::vector<PlannedBranch> branches = {{.accepted = 0, .next = 3, .tokens = {1, 2}}};
    const size_t next = static_cast<size_t>(accepts);
    const bool fits = round % 4 != 3 && truth.size() > next + 1;
    if (fits) {
      branches.push_back({.accepted = accepts,
                          .next = truth[next],
                          .tokens = {truth.begin() + accepts + 1,
                                     truth.begin() + std::min<size_t>(truth.size(), accepts + 4)}});
    }
    rig.driver->DecodeAhead(s, 3, branches);
    ASSERT_TRUE(rig.driver->Launch().ok());
    rig.driver->Wait();
    const bool ended = s.ended;
    rig.driver->Wait();
    if (ended) break;
    if (fits) {
      EXPECT_EQ(s.last.drafted, static_cast<int32_t>(branches[1].tokens.size()));
    }
    if (round % 4 == 3) {
      EXPECT_EQ(s.last.rows_run, 1);
    }
  }
  ExpectEqual(rig, s, plain_);
}

TEST_P(Temperatures, ParallelSamplesShareTheirPrompt) {
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

// A sequence that lost its slot and KV goes on elsewhere from its tokens.
TEST_P(Temperatures, RecomputedElsewhere) {
  Rig rig({.block_size = 32});
  std::vector<TokenId> tokens = prompt_;
  tokens.insert(tokens.end(), plain_.output.begin(), plain_.output.begin() + 19);
  Sequence& s = rig.driver->Start(tokens, sampling_);
  s.prompt_len = rig.driver->plan().binds[0].prompt_len = static_cast<int32_t>(prompt_.size());
  rig.driver->Prefill(s, 13);
  rig.driver->Step();
  rig.driver->Finish(s);
  EXPECT_EQ(s.output(), plain_.output);
}

TEST_P(Temperatures, PenaltiesSeeDraftsAsTheyWouldSeeTokens) {
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

INSTANTIATE_TEST_SUITE_P(All, Temperatures, ::testing::Values(0.0f, 0.7f, 1.0f));

// --- Ends ---

TEST(CpuRunnerTest, StopIdsEndTheSampleAndAreEmitted) {
  const auto prompt = Prompt(20, 3);
  SamplingParams p = Sampling(1, 60);
  const Plain plain = RunPlain(prompt, p);
  const size_t at = 9;
  p.stop_token_ids = {plain.output[at]};
  const size_t first =
      static_cast<size_t>(std::ranges::find(plain.output, plain.output[at]) - plain.output.begin());
  for (bool with_drafts : {false, true}) {
    Rig rig;
    Sequence& s = rig.driver->Start(prompt, p);
    rig.driver->Prefill(s);
    rig.driver->Step();
    while (!s.ended) {
      const size_t done = s.output().size();
      const auto drafts = std::span(plain.output).subspan(done, with_drafts ? 7 : 0);
      rig.driver->Verify(s, drafts);
      rig.driver->Step();
    }
    EXPECT_EQ(s.output(),
              std::vector<TokenId>(plain.output.begin(), plain.output.begin() + first + 1));
    // Nothing of it runs any more.
    rig.driver->Decode(s);
    rig.driver->Step();
    EXPECT_EQ(s.last.rows_run, 0);
    EXPECT_TRUE(s.last.tokens.empty());
    EXPECT_TRUE(s.last.ended);
  }
}

TEST(CpuRunnerTest, EosEndsUnlessIgnoredAndNotBelowMinTokens) {
  const auto prompt = Prompt(20, 3);
  SamplingParams p = Sampling(1, 30);
  p.logit_bias = {{0, 100.0f}};  // EOS at once
  EXPECT_EQ(RunPlain(prompt, p).output, std::vector<TokenId>(30, 0));
  p.ignore_eos = false;
  EXPECT_EQ(RunPlain(prompt, p).output, std::vector<TokenId>{0});
  p.min_tokens = 5;
  const auto output = RunPlain(prompt, p).output;
  ASSERT_EQ(output.size(), 6u);
  EXPECT_EQ(output.back(), 0);
  EXPECT_EQ(std::ranges::count(output, 0), 1);
  // The same where the tokens come as accepted drafts.
  Rig rig;
  Sequence& s = rig.driver->Start(prompt, p);
  rig.driver->Prefill(s);
  rig.driver->Step();
  rig.driver->Verify(s, std::span(output).subspan(1));
  rig.driver->Step();
  EXPECT_EQ(s.output(), output);
  EXPECT_TRUE(s.ended);
}

TEST(CpuRunnerTest, MaxTokensCutsAccepted) {
  const auto prompt = Prompt(20, 3);
  const Plain plain = RunPlain(prompt, Sampling(0, 20));
  Rig rig;
  Sequence& s = rig.driver->Start(prompt, Sampling(0, 4));
  rig.driver->Prefill(s);
  rig.driver->Step();
  rig.driver->Verify(s, std::span(plain.output).subspan(1, 8));
  rig.driver->Step();
  EXPECT_EQ(s.output(), std::vector<TokenId>(plain.output.begin(), plain.output.begin() + 4));
  EXPECT_TRUE(s.last.ended);
  EXPECT_EQ(s.last.accepted, 2);
}

TEST(CpuRunnerTest, ABindReplacesTheSlot) {
  const auto first = Prompt(33, 3);
  const auto second = Prompt(18, 4);
  const Plain plain = RunPlain(second, Sampling(1, 12));
  Rig rig;
  Sequence& s = rig.driver->Start(first, Sampling(1, 12));
  rig.driver->Finish(s);
  s.tokens = second;
  s.prompt_len = 18;
  s.kv = 0;
  s.ended = false;
  rig.driver->plan().binds.push_back(
      {.slot = s.slot, .sampling = s.sampling, .prompt_len = 18, .tokens = second});
  rig.driver->Finish(s);
  EXPECT_EQ(s.output(), plain.output);
}

TEST(CpuRunnerTest, CandidatesAndLogprobs) {
  Rig rig;
  const auto prompt = Prompt(20, 3);
  SamplingParams p = Sampling(1, 10);
  Sequence& s = rig.driver->Start(prompt, p);
  rig.driver->Prefill(s);
  rig.driver->last_sample_row().num_candidates = 4;
  rig.driver->Step();
  ASSERT_EQ(s.last.candidates.size(), 1u);
  ASSERT_EQ(s.last.candidates[0].size(), 4u);
  EXPECT_EQ(s.last.candidates[0][0], s.tokens.back());
  ASSERT_EQ(s.top.size(), 1u);
  EXPECT_EQ(s.top[0].size(), 3u);
  double total = 0;
  for (float l : rig.seen.begin()->second.at(0)) total += std::exp(l);
  const float expected =
      rig.seen.begin()->second.at(0)[s.tokens.back()] - static_cast<float>(std::log(total));
  EXPECT_NEAR(s.logprobs[0], expected, 1e-4);
  const std::vector<TokenId> drafts = {1, 2};
  rig.driver->Verify(s, drafts);
  for (SampleRow& row : rig.driver->plan().sample_rows) row.num_candidates = 2;
  rig.driver->Step();
  EXPECT_EQ(s.last.candidates.size(), 3u);
}

TEST(CpuRunnerTest, SyntheticTokensReplaceWhatWasSampled) {
  const SyntheticTokens truth(kVocab, Model()->config.eos_token_ids, SyntheticTokens::kTruth);
  Rig rig({.synthetic_acceptance = SyntheticTokens::kTruth});
  Sequence& s = rig.driver->Start(Prompt(9, 5), Sampling(1, 20));
  rig.driver->Finish(s);
  for (uint32_t i = 0; i < 20; ++i) {
    EXPECT_EQ(s.output()[i], truth.Truth({.seed = 99, .sample = 0, .position = 9 + i}));
  }
  EXPECT_TRUE(rig.runner->info().numerics_fingerprint.ends_with("-synthetic"));
}

TEST(CpuRunnerTest, AnEarlyExitHead) {
  Rig rig({.max_hidden_slots = 1});
  Sequence& s = rig.driver->Start(Prompt(20, 3), Sampling(0, 10));
  rig.driver->Prefill(s);
  rig.driver->plan().spans[0].layer_end = 2;
  rig.driver->plan().spans[0].hidden_out = 0;
  rig.driver->last_sample_row().head = Head::kExit;
  rig.driver->Step();
  EXPECT_EQ(s.output().size(), 1u);
  // The upper layers from what was saved, with the final head: as in one go.
  const Plain plain = RunPlain(Prompt(20, 3), Sampling(0, 10));
  s.tokens.resize(20);
  s.kv = 0;
  rig.driver->plan().binds.push_back(
      {.slot = s.slot, .sampling = s.sampling, .prompt_len = 20, .tokens = s.tokens});
  rig.driver->Prefill(s);
  rig.driver->plan().spans[0].layer_begin = 2;
  rig.driver->plan().spans[0].hidden_in = 0;
  rig.driver->Step();
  EXPECT_EQ(s.tokens.back(), plain.output[0]);
  EXPECT_TRUE(rig.Saw(s.slot, 20, plain.logits[0]));
}

TEST(CpuRunnerTest, AnEmptyPlanAndABindAlone) {
  Rig rig;
  rig.driver->Step();
  rig.driver->Start(Prompt(5, 1), Sampling(0, 3));
  rig.driver->Step();
}

// --- Mistakes of the host ---

struct Mistake {
  const char* name;
  std::function<void(StepPlan*)> make;
};

class CpuRunnerMistakes : public ::testing::TestWithParam<Mistake> {};

TEST_P(CpuRunnerMistakes, AreErrorsNotCrashes) {
  Rig rig;
  Sequence& a = rig.driver->Start(Prompt(20, 3), Sampling(0, 10));
  rig.driver->Prefill(a);
  rig.driver->Step();
  const std::vector<TokenId> drafts = {4, 5};
  rig.driver->Verify(a, drafts);
  GetParam().make(&rig.driver->plan());
  absl::Status status = rig.driver->Launch();
  if (status.ok()) status = rig.runner->Wait().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal) << status;
  EXPECT_NE(status.message().find("step 2"), std::string::npos) << status;
}

INSTANTIATE_TEST_SUITE_P(
    All, CpuRunnerMistakes,
    ::testing::ValuesIn(std::vector<Mistake>{
        {"UnboundSlot", [](StepPlan* p) { p->spans[0].slot = 9; }},
        {"SlotOutOfRange", [](StepPlan* p) { p->spans[0].slot = 64; }},
        {"TokenOutOfRange", [](StepPlan* p) { p->rows[1].token = kVocab; }},
        {"BlockOutOfRange", [](StepPlan* p) { p->block_tables[0] = 256; }},
        {"TableTooShort", [](StepPlan* p) { p->spans[0].table_len = 1; }},
        {"CopyOutOfRange",
         [](StepPlan* p) {
           p->copies.push_back({0, 256, 3});
         }},
        {"CopyTooLong",
         [](StepPlan* p) {
           p->copies.push_back({0, 1, 17});
         }},
        {"BindOutOfRange",
         [](StepPlan* p) {
           p->binds.push_back(
               {.slot = -1, .sampling = std::make_shared<SamplingParams>(), .tokens = {1}});
         }},
        {"BindWithoutParameters",
         [](StepPlan* p) { p->binds.push_back({.slot = 1, .tokens = {1}}); }},
        {"BindWithoutTokens",
         [](StepPlan* p) {
           p->binds.push_back({.slot = 1, .sampling = std::make_shared<SamplingParams>()});
         }},
        {"BindTokenOutOfRange",
         [](StepPlan* p) {
           p->binds.push_back(
               {.slot = 1, .sampling = std::make_shared<SamplingParams>(), .tokens = {-1}});
         }},
        {"SampleRowMissing", [](StepPlan* p) { p->sample_rows.pop_back(); }},
        {"SampleRowOfAnother", [](StepPlan* p) { p->sample_rows[1].slot = 1; }},
        {"SampleRowTwice", [](StepPlan* p) { p->sample_rows[2].row = 1; }},
        {"HeadLacking", [](StepPlan* p) { p->sample_rows[0].head = Head::kNarrow; }},
        {"LayersEmpty", [](StepPlan* p) { p->spans[0].layer_begin = 3; }},
        {"LayersBeyond", [](StepPlan* p) { p->spans[0].layer_end = 4; }},
        {"UpperLayersFromNothing", [](StepPlan* p) { p->spans[0].layer_begin = 1; }},
        {"HiddenSlotLacking", [](StepPlan* p) { p->spans[0].hidden_in = 0; }},
        {"HiddenOutLacking", [](StepPlan* p) { p->spans[0].hidden_out = 0; }},
        {"BaseAboveItsBound",
         [](StepPlan* p) {
           p->spans[0].from_slot = true;
           p->spans[0].context_len = 19;
         }},
        {"BranchTooLong",
         [](StepPlan* p) {
           p->spans[0].from_slot = true;
           for (TokenId v = 0; v < kVocab; ++v) {
             p->spans[0].branches.push_back({.accepted = 0, .next = v, .tokens = {1, 2, 3}});
           }
         }},
        {"BranchTokenOutOfRange",
         [](StepPlan* p) {
           p->spans[0].from_slot = true;
           for (TokenId v = 0; v < kVocab; ++v) {
             p->spans[0].branches.push_back({.accepted = 0, .next = v, .tokens = {kVocab}});
           }
         }},
    }),
    [](const auto& info) { return std::string(info.param.name); });

TEST(CpuRunnerTest, OptionsAreChecked) {
  const auto create = [](CpuRunnerOptions options) {
    return CpuRunner::Create(Model(), std::move(options)).status();
  };
  for (const CpuRunnerOptions& bad : std::vector<CpuRunnerOptions>{{.threads = -1},
                                                                   {.threads = 5000},
                                                                   {.kv_bytes = 100},
                                                                   {.num_blocks = -1},
                                                                   {.block_size = 8},
                                                                   {.max_slots = 0},
                                                                   {.max_context = 2000},
                                                                   {.max_hidden_slots = -2},
                                                                   {.synthetic_acceptance = -1}}) {
    const absl::Status status = create(bad);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  }
  EXPECT_TRUE(create({.kv_bytes = 1 << 20}).ok());
}

TEST(CpuRunnerTest, InfoSaysWhatItRuns) {
  Rig rig;
  const RunnerInfo& info = rig.runner->info();
  EXPECT_EQ(info.vocab_size, kVocab);
  EXPECT_EQ(info.num_layers, 3);
  EXPECT_EQ(info.max_context, 1024);
  EXPECT_EQ(info.num_blocks, 256);
  EXPECT_EQ(info.eos_token_ids, std::vector<TokenId>{0});
  EXPECT_TRUE(info.numerics_fingerprint.starts_with("cpu-")) << info.numerics_fingerprint;
  EXPECT_EQ(info.model_fingerprint, Model()->fingerprint);
}

}  // namespace
}  // namespace paceline
