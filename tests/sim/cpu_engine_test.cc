// The real model under the real engine: a request's tokens and logprobs are those it gets alone,
// plain and unchunked, whatever the engine does with it: batches, chunks, preemption, cached
// prefixes, parallel samples, drafts of any quality as chains and trees, steps launched ahead.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <random>

#include "common/check.h"
#include "gtest/gtest.h"
#include "worker/engine/engine.h"
#include "worker/engine/warm_up.h"
#include "worker/model/naive_model.h"
#include "worker/runner/cpu_runner.h"

namespace paceline {
namespace {

struct Output {
  std::vector<TokenId> tokens;
  std::vector<TokenLogprobs> logprobs;
  friend bool operator==(const Output&, const Output&) = default;
};
using Outputs = std::map<std::pair<uint64_t, int32_t>, Output>;  // by seed and sample

// That what a test arranges for really happens.
struct Counts final : public EngineProbe {
  void Preempted(PreemptReason, int32_t) override { ++preempted; }
  void RequestDone(const GenerationUsage& usage, bool) override { cached += usage.cached_tokens; }
  int64_t preempted = 0;
  int64_t cached = 0;
  int64_t drafted = 0;
  int64_t accepted = 0;
};

enum class Drafter { kMixed, kGood, kRandom, kDead };

// Knows what is to come: drafts it, spoils it at random, or is no use at all.
class OracleSpeculator final : public Speculator {
 public:
  OracleSpeculator(const Outputs& truth, uint64_t seed, Counts* counts,
                   Drafter drafter = Drafter::kMixed)
      : truth_(truth), rng_(seed), counts_(counts), drafter_(drafter) {}

  void Begin(const SpecSequence&) override {}
  SpecProposal Propose(const SpecSequence& s, int32_t max_drafts, bool ahead) override {
    SpecProposal proposal;
    if (drafter_ == Drafter::kDead || (drafter_ == Drafter::kMixed && rng_() % 5 == 0)) {
      return proposal;
    }
    const auto& output = truth_.at({s.sampling->seed, s.sample}).tokens;
    const std::vector<TokenId> rest(output.begin() + (s.tokens.size() - s.prompt_len),
                                    output.end());
    proposal.source = ProposalSource::kRemoteFull;
    if (ahead) {
      for (int32_t accepted = 0; accepted < 6; ++accepted) Branch(rest, accepted, &proposal);
      return proposal;
    }
    if (drafter_ != Drafter::kMixed) {
      const bool good = drafter_ == Drafter::kGood;
      const size_t most = good ? rest.size() - 1 : rest.size() + 8;  // the last one needs no draft
      for (size_t i = 0; i < std::min<size_t>(most, max_drafts); ++i) {
        proposal.tokens.push_back(good ? rest[i] : static_cast<TokenId>(rng_() % 211));
      }
      return proposal;
    }
    const bool tree = rng_() % 2 == 0;
    const auto count = static_cast<int32_t>(1 + rng_() % max_drafts);
    size_t depth = 0;
    int32_t path = kNone;
    for (int32_t i = 0; i < count; ++i) {
      const bool right = depth < rest.size() && rng_() % 4 != 0;
      proposal.tokens.push_back(right ? rest[depth++] : static_cast<TokenId>(rng_() % 211));
      if (tree) {
        proposal.parents.push_back(right ? path : static_cast<int32_t>(rng_() % (i + 1)) - 1);
        if (right) path = i;
      }
    }
    return proposal;
  }
  void Launched(const SpecSequence&, std::span<const TokenId>) override {}
  void Committed(const SpecSequence&, const SpecOutcome& outcome) override {
    counts_->drafted += outcome.drafted;
    counts_->accepted += outcome.accepted;
  }
  void End(const DraftSessionId&) override {}
  void EndStep(const SpecStepTiming&) override {}

 private:
  void Branch(const std::vector<TokenId>& rest, int32_t accepted, SpecProposal* proposal) {
    if (static_cast<size_t>(accepted) + 1 >= rest.size()) return;
    const auto from = rest.begin() + accepted;
    const auto length = std::min<size_t>(1 + rng_() % 4, rest.size() - accepted - 1);
    PlannedBranch branch{
        .accepted = accepted, .next = *from, .tokens = {from + 1, from + 1 + length}};
    if (drafter_ == Drafter::kRandom || (drafter_ == Drafter::kMixed && rng_() % 3 == 0)) {
      branch.tokens[rng_() % length] = static_cast<TokenId>(rng_() % 211);
    }
    proposal->branches.push_back(std::move(branch));
  }

  const Outputs& truth_;
  std::mt19937_64 rng_;
  Counts* const counts_;
  const Drafter drafter_;
};

std::shared_ptr<const CpuModel> Model() {
  static const auto model = RandomCpuModel(TinyConfig(), 31);
  return model;
}

// Prompts of every length, some with a common beginning; parameters of every kind.
std::vector<GenerationRequest> Requests(int32_t count, uint64_t seed) {
  std::mt19937_64 rng(seed);
  std::vector<TokenId> common;
  for (int i = 0; i < 40; ++i) common.push_back(1 + static_cast<TokenId>(rng() % 210));
  std::vector<GenerationRequest> requests;
  for (int32_t i = 0; i < count; ++i) {
    GenerationRequest r;
    r.request_id = std::to_string(i);
    if (i % 3 == 0) r.prompt = common;
    for (uint64_t n = 1 + rng() % 50; n > 0; --n) {
      r.prompt.push_back(1 + static_cast<TokenId>(rng() % 210));
    }
    r.sampling.seed = 1000 + static_cast<uint64_t>(i);
    r.sampling.temperature = static_cast<float>(i % 4) / 3;
    r.sampling.max_tokens = 5 + static_cast<int32_t>(rng() % 40);
    r.sampling.top_logprobs = i % 2 == 0 ? 2 : -1;
    if (i % 5 == 1) r.sampling.repetition_penalty = 1.2f;
    if (i % 5 == 2) r.sampling.top_p = 0.8f;
    if (i % 7 == 3) r.sampling.min_tokens = 4;
    r.num_samples = i % 6 == 4 ? 3 : 1;
    r.priority = static_cast<int32_t>(rng() % 3);
    requests.push_back(std::move(r));
  }
  return requests;
}

struct Arrangement {
  const char* name;
  EngineOptions engine;
  CpuRunnerOptions runner;
  bool drafts = false;
  int32_t at_once = 32;
  bool warm = false;
};

// An engine that serves lists of requests, one after the other.
class Server {
 public:
  Server(const Arrangement& setup, std::unique_ptr<Speculator> speculator, Counts* counts)
      : at_once_(static_cast<size_t>(setup.at_once)) {
    auto runner = CpuRunner::Create(Model(), setup.runner);
    CHECK(runner.ok()) << runner.status().ToString();
    if (setup.warm) {
      const absl::Status status = WarmUp(runner->get(), setup.engine, SteadyClock::Get());
      CHECK(status.ok()) << status.ToString();
    }
    engine_ = std::make_unique<Engine>(setup.engine, *std::move(runner), std::move(speculator),
                                       SteadyClock::Get(), counts,
                                       [this](EngineOutput output) { Take(output); });
  }

  // What comes behind that which they had emitted before.
  Outputs Run(const std::vector<GenerationRequest>& requests) {
    requests_ = &requests;
    outputs_.clear();
    finished_ = 0;
    size_t submitted = 0;
    while (finished_ < requests.size()) {
      for (; submitted < requests.size() && submitted - finished_ < at_once_; ++submitted) {
        const absl::Status status = engine_->Submit(submitted, requests[submitted]);
        CHECK(status.ok()) << status.ToString();
      }
      const auto stepped = engine_->Step();
      CHECK(stepped.ok()) << stepped.status().ToString();
    }
    return std::move(outputs_);
  }

 private:
  void Take(const EngineOutput& output) {
    for (const auto& d : output.deltas) {
      const GenerationRequest& request = (*requests_)[d.request];
      Output& o = outputs_[{request.sampling.seed, d.delta.sample}];
      size_t index = o.tokens.size();
      if (!request.resumed.empty()) index += request.resumed[d.delta.sample].emitted.size();
      CHECK_EQ(static_cast<size_t>(d.delta.first_index), index);
      o.tokens.insert(o.tokens.end(), d.delta.tokens.begin(), d.delta.tokens.end());
      o.logprobs.insert(o.logprobs.end(), d.delta.logprobs.begin(), d.delta.logprobs.end());
    }
    for (const auto& f : output.finished) {
      CHECK(f.status.ok()) << f.status.ToString();
      ++finished_;
    }
  }

  const size_t at_once_;
  const std::vector<GenerationRequest>* requests_ = nullptr;
  Outputs outputs_;
  size_t finished_ = 0;
  std::unique_ptr<Engine> engine_;
};

Outputs RunAll(const std::vector<GenerationRequest>& requests, const Arrangement& setup,
               std::unique_ptr<Speculator> speculator, Counts* counts) {
  return Server(setup, std::move(speculator), counts).Run(requests);
}

// Each request alone, plain and unchunked.
Outputs Alone(const std::vector<GenerationRequest>& requests) {
  Arrangement plain;
  plain.engine.prefix_cache = false;
  plain.engine.prefill_chunk = 512;
  plain.runner = {.threads = 1, .num_blocks = 512};
  plain.at_once = 1;
  return RunAll(requests, plain, nullptr, nullptr);
}

std::vector<Arrangement> Arrangements() {
  std::vector<Arrangement> setups;
  const auto add = [&](const char* name) -> Arrangement& {
    Arrangement& s = setups.emplace_back();
    s.name = name;
    s.engine.prefix_cache = false;
    s.runner = {.threads = 2, .num_blocks = 512, .max_slots = 40};
    return s;
  };
  add("batched");
  add("small_chunks").engine.prefill_chunk = 7;
  add("few_rows").engine.max_batch_rows = 16;
  add("cached").engine.prefix_cache = true;
  add("preempted").runner.num_blocks = 18;
  add("blocks_of_32").runner.block_size = 32;
  add("launched_ahead").engine.launch_ahead = true;
  add("drafts").drafts = true;
  Arrangement& ahead = add("drafts_ahead");
  ahead.drafts = ahead.engine.launch_ahead = true;
  Arrangement& all = add("everything");
  all.drafts = all.engine.launch_ahead = all.engine.prefix_cache = true;
  all.engine.prefill_chunk = 24;
  all.runner.num_blocks = 20;
  Arrangement& alone = add("drafts_alone");
  alone.drafts = true;
  alone.at_once = 1;
  return setups;
}

TEST(CpuEngineTest, TokensAreThoseOfTheRequestAlone) {
  const char* deep = std::getenv("PACELINE_TEST_DEPTH");
  const char* replay = std::getenv("PACELINE_TEST_SEED");
  const int rounds = deep != nullptr ? std::atoi(deep) : 3;
  uint64_t first = deep != nullptr ? std::random_device()() : 1;
  if (replay != nullptr) first = std::strtoull(replay, nullptr, 10);
  int64_t preempted = 0;
  for (int round = 0; round < rounds; ++round) {
    const uint64_t seed = first + static_cast<uint64_t>(round);
    std::printf("PACELINE_TEST_SEED=%llu\n", static_cast<unsigned long long>(seed));
    const auto requests = Requests(32, seed);
    const Outputs truth = Alone(requests);
    for (const Arrangement& setup : Arrangements()) {
      SCOPED_TRACE(setup.name);
      Counts counts;
      std::unique_ptr<Speculator> oracle;
      if (setup.drafts) oracle = std::make_unique<OracleSpeculator>(truth, seed, &counts);
      ASSERT_EQ(RunAll(requests, setup, std::move(oracle), &counts), truth);
      if (setup.drafts) {
        EXPECT_GT(counts.accepted, 100);
        EXPECT_GT(counts.drafted, counts.accepted);
      }
      EXPECT_EQ(counts.cached > 0, setup.engine.prefix_cache);
      preempted += counts.preempted;
    }
  }
  std::printf("preemptions: %lld\n", static_cast<long long>(preempted));
  EXPECT_GT(preempted, 0);
}

constexpr uint64_t kSeed = 77;

Arrangement Batched() {
  Arrangement setup;
  setup.engine.prefix_cache = false;
  setup.runner = {.threads = 2, .num_blocks = 512, .max_slots = 40};
  return setup;
}

bool Thin() { return std::getenv("PACELINE_SANITIZED") != nullptr; }

TEST(CpuEngineTest, EveryDraftLengthAndDrafter) {
  const auto requests = Requests(Thin() ? 8 : 32, kSeed);
  const Outputs truth = Alone(requests);
  for (int32_t drafts = 0; drafts <= 8; ++drafts) {
    if (Thin() && drafts % 3 != 0) continue;
    for (Drafter drafter : {Drafter::kGood, Drafter::kRandom, Drafter::kDead}) {
      for (bool ahead : {false, true}) {
        SCOPED_TRACE(testing::Message() << drafts << " drafts, drafter "
                                        << static_cast<int>(drafter) << (ahead ? ", ahead" : ""));
        Arrangement setup = Batched();
        setup.engine.max_drafts = drafts;
        setup.engine.launch_ahead = ahead;
        Counts counts;
        auto oracle = std::make_unique<OracleSpeculator>(truth, kSeed, &counts, drafter);
        ASSERT_EQ(RunAll(requests, setup, std::move(oracle), &counts), truth);
        EXPECT_EQ(counts.drafted > 0, drafts > 0 && drafter != Drafter::kDead);
        if (drafter == Drafter::kGood && !ahead) {
          EXPECT_EQ(counts.accepted, counts.drafted);
        }
      }
    }
  }
}

TEST(CpuEngineTest, EveryBatchAndChunkSize) {
  const auto requests = Requests(Thin() ? 8 : 32, kSeed + 1);
  const Outputs truth = Alone(requests);
  for (int32_t at_once : {1, 2, 3, 8, 16, 32}) {
    for (int32_t chunk : {1, 5, 64}) {
      if (Thin() && (at_once > 8 || chunk == 5)) continue;
      SCOPED_TRACE(testing::Message() << at_once << " at once, chunks of " << chunk);
      Arrangement setup = Batched();
      setup.at_once = at_once;
      setup.engine.prefill_chunk = chunk;
      setup.engine.launch_ahead = at_once % 2 == 0;
      ASSERT_EQ(RunAll(requests, setup, nullptr, nullptr), truth);
    }
  }
}

TEST(CpuEngineTest, AWarmCacheChangesNothing) {
  const auto requests = Requests(Thin() ? 8 : 32, kSeed + 2);
  const Outputs truth = Alone(requests);
  for (bool ahead : {false, true}) {
    Arrangement setup = Batched();
    setup.engine.prefix_cache = true;
    setup.engine.launch_ahead = ahead;
    Counts counts;
    Server server(setup, nullptr, &counts);
    ASSERT_EQ(server.Run(requests), truth);
    const int64_t cold = counts.cached;
    ASSERT_EQ(server.Run(requests), truth);
    EXPECT_GT(counts.cached - cold, cold);
  }
}

// A runner that is past its warm-up is as good as new, also in a pool that the warm-up filled.
TEST(CpuEngineTest, AWarmRunnerChangesNothing) {
  const auto requests = Requests(8, kSeed + 4);
  const Outputs truth = Alone(requests);
  for (const int32_t blocks : {18, 512}) {
    Arrangement setup = Batched();
    setup.warm = true;
    setup.runner.num_blocks = blocks;
    ASSERT_EQ(RunAll(requests, setup, nullptr, nullptr), truth);
  }
}

TEST(CpuEngineTest, AWarmUpFitsTheSmallestPool) {
  auto runner = CpuRunner::Create(Model(), {.threads = 1, .num_blocks = 1, .max_slots = 1});
  ASSERT_TRUE(runner.ok()) << runner.status();
  EXPECT_TRUE(WarmUp(runner->get(), {}, SteadyClock::Get()).ok());
}

// As a failover does it: prompt and what had been emitted come to another engine.
TEST(CpuEngineTest, ResumedRequestsContinueExactly) {
  auto requests = Requests(Thin() ? 8 : 32, kSeed + 3);
  const Outputs truth = Alone(requests);
  std::mt19937_64 rng(kSeed);
  Outputs rest;
  for (GenerationRequest& r : requests) {
    for (int32_t sample = 0; sample < r.num_samples; ++sample) {
      const Output& whole = truth.at({r.sampling.seed, sample});
      const auto emitted = static_cast<int64_t>(rng() % (whole.tokens.size() + 1));
      SampleProgress& progress = r.resumed.emplace_back();
      progress.emitted.assign(whole.tokens.begin(), whole.tokens.begin() + emitted);
      Output& o = rest[{r.sampling.seed, sample}];
      o.tokens.assign(whole.tokens.begin() + emitted, whole.tokens.end());
      if (whole.logprobs.empty()) continue;
      o.logprobs.assign(whole.logprobs.begin() + emitted, whole.logprobs.end());
    }
  }
  int64_t preempted = 0;
  for (bool drafts : {false, true}) {
    for (int32_t blocks : {10, 512}) {
      Arrangement setup = Batched();
      setup.at_once = 6;  // later ones of greater priority take the blocks of earlier ones
      setup.runner.num_blocks = blocks;
      setup.engine.launch_ahead = drafts;
      Counts counts;
      std::unique_ptr<Speculator> oracle;
      if (drafts) oracle = std::make_unique<OracleSpeculator>(truth, kSeed, &counts);
      ASSERT_EQ(RunAll(requests, setup, std::move(oracle), &counts), rest);
      preempted += counts.preempted;
    }
  }
  EXPECT_TRUE(preempted > 0 || Thin());
}

}  // namespace
}  // namespace paceline
