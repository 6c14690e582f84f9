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

// Drafts what is known to come, spoilt at random.
class OracleSpeculator final : public Speculator {
 public:
  OracleSpeculator(const Outputs& truth, uint64_t seed, Counts* counts)
      : truth_(truth), rng_(seed), counts_(counts) {}

  void Begin(const SpecSequence&) override {}
  SpecProposal Propose(const SpecSequence& s, int32_t max_drafts, bool ahead) override {
    SpecProposal proposal;
    if (max_drafts == 0 || rng_() % 5 == 0) return proposal;
    const auto& output = truth_.at({s.sampling->seed, s.sample}).tokens;
    const std::vector<TokenId> rest(output.begin() + (s.tokens.size() - s.prompt_len),
                                    output.end());
    proposal.source = ProposalSource::kRemoteFull;
    if (ahead) {
      for (int32_t accepted = 0; accepted < 6; ++accepted) Branch(rest, accepted, &proposal);
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
    if (rng_() % 3 == 0) branch.tokens[rng_() % length] = static_cast<TokenId>(rng_() % 211);
    proposal->branches.push_back(std::move(branch));
  }

  const Outputs& truth_;
  std::mt19937_64 rng_;
  Counts* const counts_;
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
};

Outputs RunAll(const std::vector<GenerationRequest>& requests, const Arrangement& setup,
               std::unique_ptr<Speculator> speculator, Counts* counts) {
  auto runner = CpuRunner::Create(Model(), setup.runner);
  CHECK(runner.ok()) << runner.status().ToString();
  Outputs outputs;
  size_t finished = 0;
  Engine engine(setup.engine, *std::move(runner), std::move(speculator), SteadyClock::Get(), counts,
                [&](EngineOutput output) {
                  for (const auto& d : output.deltas) {
                    Output& o = outputs[{requests[d.request].sampling.seed, d.delta.sample}];
                    CHECK_EQ(static_cast<int32_t>(o.tokens.size()), d.delta.first_index);
                    o.tokens.insert(o.tokens.end(), d.delta.tokens.begin(), d.delta.tokens.end());
                    o.logprobs.insert(o.logprobs.end(), d.delta.logprobs.begin(),
                                      d.delta.logprobs.end());
                  }
                  for (const auto& f : output.finished) {
                    CHECK(f.status.ok()) << f.status.ToString();
                    ++finished;
                  }
                });
  size_t submitted = 0;
  while (finished < requests.size()) {
    while (submitted < requests.size() &&
           submitted - finished < static_cast<size_t>(setup.at_once)) {
      const absl::Status status = engine.Submit(submitted, requests[submitted]);
      CHECK(status.ok()) << status.ToString();
      ++submitted;
    }
    const auto stepped = engine.Step();
    CHECK(stepped.ok()) << stepped.status().ToString();
  }
  return outputs;
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
    Arrangement plain;
    plain.engine.prefix_cache = false;
    plain.engine.prefill_chunk = 512;
    plain.runner = {.threads = 1, .num_blocks = 512};
    plain.at_once = 1;
    const Outputs truth = RunAll(requests, plain, nullptr, nullptr);
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

}  // namespace
}  // namespace paceline
