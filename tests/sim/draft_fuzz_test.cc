// The engine over the hash model with remote drafts from scripted drafters that are good, random,
// lying, silent, late, dying: the tokens of every request are those of the model alone, and no step
// goes without progress. Replay with PACELINE_TEST_SEED.
#include <cstdio>
#include <cstdlib>
#include <map>
#include <optional>
#include <random>

#include <gtest/gtest.h>

#include "tests/sim/hash_runner.h"
#include "tests/sim/scripted_drafter.h"
#include "worker/engine/engine.h"
#include "worker/spec/draft_speculator.h"

namespace paceline {
namespace {

struct Case {
  uint64_t seed = 0;
  HashRunnerOptions runner;
  EngineOptions engine;
  DraftSpeculatorOptions speculator;
  std::vector<ScriptedDrafterOptions> drafters;
  int32_t requests = 20;
  bool at_once = false;                  // submitted before the first step
  int32_t samples = 0;                   // of each request; 0 = at random
  std::optional<DecodingMode> decoding;  // of each request; none = at random
  double cancel = 0;
};

struct Outcome {
  SpecCounters counters;
  int64_t steps = 0;
};

class Run {
 public:
  explicit Run(const Case& setup) : case_(setup), rng_(setup.seed), model_(setup.runner.model) {
    auto runner = std::make_unique<HashRunner>(setup.runner);
    auto speculator = std::make_unique<DraftSpeculator>(setup.speculator);
    speculator_ = speculator.get();
    for (size_t i = 0; i < setup.drafters.size(); ++i) {
      auto drafter = std::make_shared<ScriptedDrafter>("drafter-" + std::to_string(i),
                                                       setup.drafters[i], setup.seed * 31 + i);
      const DraftLinkId id = speculator_->AddLink(drafter);
      drafter->SetDeliver([this, id](uint64_t incarnation, DraftFrame frame) {
        speculator_->mailbox().Deliver(id, incarnation, std::move(frame));
      });
      drafters_.push_back(std::move(drafter));
    }
    engine_ = std::make_unique<Engine>(setup.engine, std::move(runner), std::move(speculator),
                                       clock_, nullptr,
                                       [this](EngineOutput output) { Digest(std::move(output)); });
  }

  Outcome Go() {
    Outcome outcome;
    int32_t submitted = 0;
    int32_t idle = 0;
    while (finished_ < case_.requests) {
      while (submitted < case_.requests && (case_.at_once || rng_() % 3 == 0)) Submit(submitted++);
      if (submitted > 0 && Chance(case_.cancel)) {
        const RequestHandle handle = rng_() % submitted;
        cancelled_[handle] = true;
        engine_->Cancel(handle);
      }
      const int64_t tokens = tokens_;
      const int32_t finished = finished_;
      const absl::StatusOr<bool> worked = engine_->Step();
      if (!worked.ok()) {
        ADD_FAILURE() << worked.status().ToString();
        break;
      }
      ++outcome.steps;
      clock_.Advance(std::chrono::microseconds(100));
      for (const auto& drafter : drafters_) drafter->Tick();
      idle = tokens_ > tokens || finished_ > finished || finished_ == submitted ? 0 : idle + 1;
      if (idle > 300) {
        ADD_FAILURE() << "no progress at step " << outcome.steps;
        break;
      }
    }
    outcome.counters = speculator_->counters();
    Check();
    CheckQuiescent();
    return outcome;
  }
  DraftSpeculator& speculator() { return *speculator_; }
  std::vector<std::shared_ptr<ScriptedDrafter>>& drafters() { return drafters_; }

 private:
  bool Chance(double p) { return std::uniform_real_distribution<>(0, 1)(rng_) < p; }

  void Submit(RequestHandle handle) {
    GenerationRequest request;
    request.request_id = std::to_string(handle);
    const size_t prompt_len = 1 + rng_() % 60;
    for (size_t i = 0; i < prompt_len; ++i) {
      request.prompt.push_back(static_cast<TokenId>(rng_() % 20));
    }
    SamplingParams& sampling = request.sampling;
    sampling.seed = rng_();
    sampling.max_tokens = 1 + static_cast<int32_t>(rng_() % 60);
    sampling.temperature = static_cast<float>(rng_() % 3) * 0.5f;
    if (rng_() % 4 == 0) sampling.top_p = 0.8f;
    if (rng_() % 4 == 0) sampling.repetition_penalty = 1.3f;
    if (rng_() % 4 == 0) sampling.frequency_penalty = 0.5f;
    if (rng_() % 4 == 0) sampling.logit_bias = {{5, 2.0f}};
    if (rng_() % 4 == 0) sampling.min_tokens = std::min(5, sampling.max_tokens);
    if (rng_() % 4 == 0) sampling.stop_token_ids = {7, 9};
    if (rng_() % 4 == 0) sampling.top_logprobs = 2;
    sampling.ignore_eos = rng_() % 2 == 0;
    request.num_samples = rng_() % 4 == 0 ? 3 : 1;
    if (case_.samples > 0) request.num_samples = case_.samples;
    request.priority = static_cast<int32_t>(rng_() % 2);
    request.cache_salt = rng_() % 5 == 0 ? "salt" : "";
    request.decoding = case_.decoding.value_or(static_cast<DecodingMode>(rng_() % 4));
    if (case_.decoding) {
      sampling.max_tokens = 60;
      sampling.ignore_eos = true;
      sampling.stop_token_ids.clear();
    }
    requests_[handle] = request;
    if (const absl::Status status = engine_->Submit(handle, request); !status.ok()) {
      ADD_FAILURE() << status.ToString();
    }
  }

  void Digest(EngineOutput output) {
    for (const EngineOutput::Delta& d : output.deltas) {
      std::vector<TokenId>& tokens = outputs_[{d.request, d.delta.sample}];
      EXPECT_EQ(static_cast<int32_t>(tokens.size()), d.delta.first_index);
      tokens.insert(tokens.end(), d.delta.tokens.begin(), d.delta.tokens.end());
      tokens_ += static_cast<int64_t>(d.delta.tokens.size());
    }
    for (const EngineOutput::Finished& f : output.finished) {
      ++finished_;
      EXPECT_TRUE(f.status.ok() || cancelled_[f.request]) << f.status.ToString();
      cut_[f.request] = !f.status.ok();
    }
  }

  void Check() {
    for (const auto& [handle, request] : requests_) {
      for (int32_t sample = 0; sample < request.num_samples; ++sample) {
        std::vector<TokenId> truth = model_.Generate(request.prompt, request.sampling, sample);
        const std::vector<TokenId>& got = outputs_[{handle, sample}];
        if (cut_[handle]) truth.resize(std::min(truth.size(), got.size()));
        EXPECT_EQ(got, truth) << "request " << handle << " sample " << sample;
      }
    }
  }

  // Nothing is left of sequences that have gone.
  void CheckQuiescent() {
    EXPECT_EQ(speculator_->mailbox().num_slots(), 0u);
    for (const auto& [name, sessions] : speculator_->SessionsByLink()) {
      EXPECT_EQ(sessions, 0) << name;
    }
  }

  const Case case_;
  std::mt19937_64 rng_;
  HashModel model_;
  ManualClock clock_;
  DraftSpeculator* speculator_ = nullptr;
  std::vector<std::shared_ptr<ScriptedDrafter>> drafters_;
  std::map<RequestHandle, GenerationRequest> requests_;
  std::map<RequestHandle, bool> cancelled_, cut_;
  std::map<std::pair<RequestHandle, int32_t>, std::vector<TokenId>> outputs_;
  int64_t tokens_ = 0;
  int32_t finished_ = 0;
  std::unique_ptr<Engine> engine_;
};

Case BaseCase(uint64_t seed) {
  Case c;
  c.seed = seed;
  c.runner.model.vocab_size = 40;
  c.runner.block_size = 4;
  c.runner.num_blocks = 400;
  c.runner.max_slots = 16;
  c.engine.max_batch_rows = 96;
  c.engine.prefill_chunk = 32;
  c.speculator.vocab_size = 40;
  return c;
}

ScriptedDrafterOptions Good(const Case& c, double agreement = 0.8) {
  ScriptedDrafterOptions options;
  options.model = c.runner.model;
  options.model.agreement = agreement;
  return options;
}

uint64_t Seed() {
  static const uint64_t seed = [] {
    const char* text = std::getenv("PACELINE_TEST_SEED");
    const uint64_t value =
        text != nullptr ? std::strtoull(text, nullptr, 10) : std::random_device()();
    std::printf("PACELINE_TEST_SEED=%llu\n", static_cast<unsigned long long>(value));
    return value;
  }();
  return seed;
}

Outcome Expect(const Case& setup) {
  Run run(setup);
  return run.Go();
}

// Every way to draft and to fail, at random.
Case RandomCase(uint64_t seed) {
  std::mt19937_64 rng(seed);
  const auto chance = [&](double p) { return std::uniform_real_distribution<>(0, 1)(rng) < p; };
  Case c = BaseCase(seed);
  c.speculator.strategy = static_cast<DraftStrategy>(1 + rng() % 3);
  c.speculator.trees = chance(0.3);
  c.speculator.tree_sequences = 64;
  c.speculator.ngram = chance(0.8);
  c.speculator.max_branches = 1 + static_cast<int32_t>(rng() % 24);
  c.speculator.opens_per_step = 1 + static_cast<int32_t>(rng() % 8);
  c.speculator.controller.first_probe = 8;
  c.engine.launch_ahead = chance(0.5);
  c.engine.max_drafts = 1 + static_cast<int32_t>(rng() % 16);
  c.engine.prefix_cache = chance(0.7);
  if (chance(0.4)) c.runner.num_blocks = 75;  // less than all want: preemptions
  if (chance(0.3)) c.engine.max_batch_rows = 12;
  if (chance(0.5)) c.runner.execute_at = HashRunnerOptions::ExecuteAt::kWait;
  if (chance(0.4)) c.cancel = 0.02;
  for (uint64_t n = rng() % 4; n > 0; --n) {
    ScriptedDrafterOptions d = Good(c, chance(0.5) ? 0.9 : 0.3);
    d.max_delay = static_cast<int32_t>(rng() % 5);
    d.min_delay = d.max_delay > 0 ? static_cast<int32_t>(rng() % d.max_delay) : 0;
    const double often = 0.3;
    const double seldom = 0.03;
    if (chance(0.2)) d.lose = often;
    if (chance(0.2)) d.silent = often;
    if (chance(0.1)) d.silent = 1;
    if (chance(0.3)) d.duplicate = often;
    if (chance(0.3)) d.garbage = seldom;
    if (chance(0.3)) d.random = often;
    if (chance(0.1)) d.random = 1;
    if (chance(0.3)) d.evict = seldom;
    if (chance(0.3)) d.forget = seldom;
    if (chance(0.2)) d.refuse_send = often;
    if (chance(0.3)) d.die = seldom;
    if (chance(0.3)) d.recover = 0.1;
    if (chance(0.3)) d.drain = seldom;
    if (chance(0.2)) d.max_sessions = 3;
    c.drafters.push_back(d);
  }
  return c;
}

TEST(DraftFuzzTest, NoDrafterChangesATokenOrStopsAStep) {
  const int runs = 150;
  SpecCounters sum;
  for (int i = 0; i < runs && !HasFailure(); ++i) {
    const uint64_t seed = Seed() + static_cast<uint64_t>(i);
    SCOPED_TRACE("run " + std::to_string(i) + ", PACELINE_TEST_SEED=" + std::to_string(seed));
    const SpecCounters n = Expect(RandomCase(seed)).counters;
    EXPECT_LE(n.accepted, n.drafted);
    uint64_t fallbacks = 0;
    for (uint64_t f : n.fallbacks) fallbacks += f;
    EXPECT_EQ(fallbacks, n.steps_none + n.steps_ngram);
    EXPECT_GE(n.wanted_remote, n.steps_full + n.steps_partial);
    EXPECT_LE(n.reopens, n.opens);
    sum.accepted += n.accepted;
    sum.steps_full += n.steps_full;
    sum.steps_partial += n.steps_partial;
    sum.steps_ngram += n.steps_ngram;
    sum.outcome_hits += n.outcome_hits;
    sum.reopens += n.reopens;
    sum.moves += n.moves;
    sum.quarantines += n.quarantines;
    sum.nacks += n.nacks;
    sum.proposals_late += n.proposals_late;
    sum.proposals_stale += n.proposals_stale;
    sum.sync_waits += n.sync_waits;
    for (size_t r = 0; r < n.drops.size(); ++r) sum.drops[r] += n.drops[r];
    for (size_t r = 0; r < n.fallbacks.size(); ++r) sum.fallbacks[r] += n.fallbacks[r];
  }
  // What the runs are there for has happened.
  EXPECT_GT(sum.accepted, 0u);
  EXPECT_GT(sum.steps_full, 0u);
  EXPECT_GT(sum.steps_partial, 0u);
  EXPECT_GT(sum.steps_ngram, 0u);
  EXPECT_GT(sum.outcome_hits, 0u);
  EXPECT_GT(sum.reopens, 0u);
  EXPECT_GT(sum.moves, 0u);
  EXPECT_GT(sum.quarantines, 0u);
  EXPECT_GT(sum.nacks, 0u);
  EXPECT_GT(sum.proposals_late, 0u);
  EXPECT_GT(sum.proposals_stale, 0u);
  EXPECT_GT(sum.sync_waits, 0u);
  for (size_t r = 0; r < sum.fallbacks.size(); ++r) {
    EXPECT_GT(sum.fallbacks[r], 0u) << "fallback reason " << r;
  }
}

// All at once, so that steps can be compared; each long enough for drafts to matter.
Case Batch(uint64_t seed) {
  Case c = BaseCase(seed);
  c.requests = 8;
  c.at_once = true;
  c.samples = 1;
  c.decoding = DecodingMode::kDraft;
  c.engine.max_drafts = 8;
  c.engine.max_batch_rows = 1024;  // drafts take no rows from prompts
  return c;
}

TEST(DraftFuzzTest, AGoodDrafterSavesSteps) {
  for (DraftStrategy strategy :
       {DraftStrategy::kChain, DraftStrategy::kEnumerate, DraftStrategy::kSync}) {
    for (bool ahead : {false, true}) {
      SCOPED_TRACE(std::string("strategy ") + std::to_string(static_cast<int>(strategy)) +
                   (ahead ? " ahead" : ""));
      Case c = Batch(Seed());
      c.speculator.strategy = strategy;
      c.speculator.ngram = false;
      c.engine.launch_ahead = ahead;
      const Outcome plain = Expect(c);
      c.drafters = {Good(c, 1.0), Good(c, 1.0)};
      const Outcome drafted = Expect(c);
      EXPECT_LT(drafted.steps, 0.5 * plain.steps);
      EXPECT_GT(drafted.counters.accepted, 0u);
      EXPECT_EQ(drafted.counters.accepted, drafted.counters.drafted);
      EXPECT_EQ(drafted.counters.outcome_misses, 0u);
      EXPECT_EQ(drafted.counters.nacks, 0u);
      EXPECT_EQ(drafted.counters.outcome_hits > 0, strategy == DraftStrategy::kEnumerate);
    }
  }
}

// Whatever the drafter does, no step is waited for: with the cost of rows left out, the batch is
// done in as many steps as without it, but for the few in which drafts took rows from a prompt.
TEST(DraftFuzzTest, NoDrafterCostsAStep) {
  for (DraftStrategy strategy : {DraftStrategy::kChain, DraftStrategy::kEnumerate}) {
    for (bool ahead : {false, true}) {
      Case c = Batch(Seed());
      c.speculator.strategy = strategy;
      c.engine.launch_ahead = ahead;
      c.speculator.ngram = false;
      const Outcome plain = Expect(c);
      std::vector<ScriptedDrafterOptions> bad(6, Good(c, 0.5));
      bad[0].silent = 1;
      bad[1].random = 1;
      bad[2].garbage = 0.5;
      bad[3].die = 0.2;
      bad[3].recover = 0.2;
      bad[4].min_delay = 3;
      bad[4].max_delay = 30;
      bad[5].refuse_send = 1;
      for (const ScriptedDrafterOptions& drafter : bad) {
        c.drafters = {drafter};
        EXPECT_LE(Expect(c).steps, plain.steps + plain.steps / 20);
      }
    }
  }
}

// The leader's prompt takes several chunks, and steps are launched before its first token is known.
TEST(DraftFuzzTest, SamplesForkFromAPromptOfSeveralChunks) {
  for (uint64_t i = 0; i < 10; ++i) {
    Case c = Batch(Seed() + i);
    c.engine.launch_ahead = true;
    c.engine.prefill_chunk = 5;
    c.samples = 3;
    c.runner.max_slots = 24;
    Expect(c);
  }
}

}  // namespace
}  // namespace paceline
