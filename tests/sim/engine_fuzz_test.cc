// The whole engine over the hash model, arranged at random: batches, chunks, tiny pools that
// preempt, cached prefixes and salts, parallel samples, drafts as chains, trees and branches from
// speculators that are good or hostile, cancellation, deadlines, resumed requests, steps launched
// ahead. The hash model tells at once when a row saw anything but its own prefix; the outputs must
// be exact and no block may be lost.
//
// A failed run names its seed: replay it alone with PACELINE_TEST_SEED. PACELINE_TEST_RUNS makes
// the test longer, from a fresh seed.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <random>

#include <gtest/gtest.h>

#include "tests/sim/generation_book.h"
#include "tests/sim/hash_runner.h"
#include "tests/sim/hash_speculator.h"
#include "tests/sim/hostile_speculator.h"
#include "worker/engine/engine.h"

namespace paceline {
namespace {

struct Totals final : public EngineProbe {
  void Preempted(PreemptReason reason, int32_t) override { ++preempted[static_cast<int>(reason)]; }
  void Verified(ProposalSource, int32_t d, int32_t a) override {
    drafted += d;
    accepted += a;
  }
  int64_t preempted[2] = {};
  int64_t drafted = 0;
  int64_t accepted = 0;
  int64_t cached = 0;
  int64_t tokens = 0;
  int64_t copies = 0;
  int64_t cancelled = 0;
  int64_t trees = 0;
  int64_t branches = 0;
};

struct Case {
  HashRunnerOptions runner;
  EngineOptions engine;
  RandomRequestOptions requests;
  int32_t num_requests = 0;
  int32_t at_once = 0;
  int32_t cancel_in = 0;  // one step in so many; 0 = never
  bool deadlines = false;
  bool hostile = false;
  bool drafts = false;
  HashSpeculatorOptions speculator;
};

Case MakeCase(uint64_t seed) {
  std::mt19937_64 rng(seed);
  const auto below = [&](int32_t n) { return static_cast<int32_t>(rng() % n); };
  const auto one_of = [&](std::initializer_list<int32_t> values) {
    return values.begin()[below(static_cast<int32_t>(values.size()))];
  };
  Case c;
  c.runner.model.seed = seed;
  c.runner.model.vocab_size = one_of({3, 16, 64, 128});
  c.runner.model.eos_token_ids = {0};
  c.runner.block_size = one_of({1, 2, 4, 8, 16, 32, 64});
  c.requests.max_prompt = one_of({4, 30, 80});
  c.requests.max_tokens = one_of({4, 20, 50});
  c.requests.max_samples = one_of({1, 3, 8});
  c.requests.priorities = one_of({1, 3});
  c.runner.max_context = 160;
  const int32_t longest = c.requests.max_prompt + c.requests.max_tokens;
  const int32_t least = (longest + c.runner.block_size - 1) / c.runner.block_size;
  c.runner.num_blocks = least * one_of({1, 1, 2, 4, 20}) + below(4);
  c.runner.max_slots = one_of({1, 2, 5, 16, 40});
  if (below(2) == 0) c.runner.execute_at = HashRunnerOptions::ExecuteAt::kWait;
  c.engine.max_batch_rows = one_of({1, 2, 5, 16, 64, 256});
  c.engine.prefill_chunk = one_of({1, 3, 16, 64});
  c.engine.max_drafts = one_of({0, 1, 4, 8, 16});
  c.engine.launch_ahead = below(2) == 0;
  c.engine.prefix_cache = below(3) != 0;
  c.engine.session_ttl = std::chrono::milliseconds(one_of({1, 50, 10000}));
  c.num_requests = 4 + below(30);
  c.at_once = one_of({1, 4, 16, 64});
  c.cancel_in = one_of({0, 0, 10, 100});
  c.deadlines = below(4) == 0;
  c.drafts = below(4) != 0;
  c.hostile = below(2) == 0;
  c.speculator.target = c.runner.model;
  c.speculator.agreement = 0.1 * below(11);
  c.speculator.hit_rate = 0.1 * below(11);
  c.speculator.max_drafts = c.engine.max_drafts;
  return c;
}

class FuzzRun {
 public:
  FuzzRun(uint64_t seed, Totals* totals)
      : case_(MakeCase(seed)),
        rng_(~seed),
        totals_(totals),
        book_(case_.runner.model),
        requests_(case_.runner.model, case_.requests, seed) {
    case_.runner.clock = &clock_;
    case_.runner.step_time = std::chrono::microseconds(1000);
    std::unique_ptr<Speculator> speculator;
    if (case_.drafts && case_.hostile) {
      auto hostile = std::make_unique<HostileSpeculator>(case_.runner.model, seed);
      hostile_ = hostile.get();
      speculator = std::move(hostile);
    } else if (case_.drafts) {
      speculator = std::make_unique<HashSpeculator>(case_.speculator);
    }
    engine_ = std::make_unique<Engine>(case_.engine, std::make_unique<HashRunner>(case_.runner),
                                       std::move(speculator), clock_, totals,
                                       [this](EngineOutput output) { book_.Take(output); });
  }

  void Go() {
    int64_t before = -1;
    for (int32_t idle = 0; submitted_ < case_.num_requests || book_.num_open() > 0;) {
      SubmitSome();
      Disturb();
      const absl::StatusOr<bool> worked = engine_->Step();
      ASSERT_TRUE(worked.ok()) << worked.status().message();
      ASSERT_EQ(book_.fault(), "");
      const int64_t progress = book_.tokens() + book_.finished();
      idle = progress > before ? 0 : idle + 1;
      before = progress;
      ASSERT_LT(idle, 2000) << "no progress";
      if (!*worked) clock_.Advance(std::chrono::milliseconds(1));
    }
    Settle();
  }

 private:
  bool OneIn(int32_t n) { return n > 0 && rng_() % static_cast<uint64_t>(n) == 0; }

  void SubmitSome() {
    while (submitted_ < case_.num_requests &&
           static_cast<int32_t>(book_.num_open()) < case_.at_once && !OneIn(4)) {
      GenerationRequest request = requests_.Next();
      if (case_.deadlines && OneIn(2)) {
        request.deadline = clock_.Now() + std::chrono::microseconds(rng_() % 40'000);
      }
      const RequestHandle handle = submitted_++;
      book_.Submitted(handle, request);
      if (request.deadline != kNoDeadline) {
        book_.MayEnd(handle, absl::StatusCode::kDeadlineExceeded);
      }
      const absl::Status status = engine_->Submit(handle, std::move(request));
      ASSERT_TRUE(status.ok()) << status;
    }
  }

  void Disturb() {
    if (submitted_ > 0 && OneIn(case_.cancel_in)) {
      const RequestHandle handle = rng_() % static_cast<uint64_t>(submitted_);
      totals_->cancelled += book_.open(handle) ? 1 : 0;
      book_.MayEnd(handle, absl::StatusCode::kCancelled);
      engine_->Cancel(handle);
    }
    if (OneIn(50)) engine_->DropSession(requests_.AnySession());
  }

  // All blocks are free or cached once nothing runs.
  void Settle() {
    for (int i = 0; i < 3; ++i) ASSERT_TRUE(engine_->Step().ok());
    const EngineSnapshot s = engine_->Snapshot();
    EXPECT_EQ(s.kv.active_blocks, 0);
    EXPECT_EQ(s.kv.cached_blocks + s.kv.free_blocks, case_.runner.num_blocks);
    EXPECT_EQ(s.live_slots, 0);
    EXPECT_EQ(s.running, 0);
    EXPECT_EQ(s.waiting, 0);
    EXPECT_EQ(s.queued_prompt_tokens, 0);
    if (hostile_ != nullptr) {
      EXPECT_EQ(hostile_->fault(), "");
      EXPECT_EQ(hostile_->num_sessions(), 0u);
      totals_->trees += hostile_->trees();
      totals_->branches += hostile_->branches();
    }
    totals_->tokens += book_.tokens();
    totals_->cached += book_.cached_tokens();
    totals_->copies += static_cast<int64_t>(s.kv_counters.copies);
  }

  Case case_;
  std::mt19937_64 rng_;
  Totals* const totals_;
  ManualClock clock_;
  GenerationBook book_;
  RandomRequests requests_;
  HostileSpeculator* hostile_ = nullptr;
  std::unique_ptr<Engine> engine_;
  int32_t submitted_ = 0;
};

TEST(EngineFuzzTest, TokensAreThoseOfTheModelAlone) {
  const char* replay = std::getenv("PACELINE_TEST_SEED");
  const char* longer = std::getenv("PACELINE_TEST_RUNS");
  const bool thin = std::getenv("PACELINE_SANITIZED") != nullptr;
  const int64_t runs = replay != nullptr   ? 1
                       : longer != nullptr ? std::atoll(longer)
                       : thin              ? 60
                                           : 400;
  const uint64_t first = replay != nullptr   ? std::strtoull(replay, nullptr, 10)
                         : longer != nullptr ? std::random_device()()
                                             : 1;
  Totals totals;
  for (int64_t run = 0; run < runs; ++run) {
    const uint64_t seed = first + static_cast<uint64_t>(run);
    FuzzRun(seed, &totals).Go();
    if (HasFailure()) FAIL() << "replay with PACELINE_TEST_SEED=" << seed;
  }
  std::printf(
      "%lld tokens, %lld + %lld preemptions, %lld cached, %lld copies, %lld of %lld drafts, %lld "
      "trees, %lld branches, %lld cancelled\n",
      static_cast<long long>(totals.tokens), static_cast<long long>(totals.preempted[0]),
      static_cast<long long>(totals.preempted[1]), static_cast<long long>(totals.cached),
      static_cast<long long>(totals.copies), static_cast<long long>(totals.accepted),
      static_cast<long long>(totals.drafted), static_cast<long long>(totals.trees),
      static_cast<long long>(totals.branches), static_cast<long long>(totals.cancelled));
  if (replay != nullptr) return;
  EXPECT_GT(totals.preempted[0], 0);
  EXPECT_GT(totals.preempted[1], 0);
  EXPECT_GT(totals.cached, 0);
  EXPECT_GT(totals.copies, 0);
  EXPECT_GT(totals.accepted, 0);
  EXPECT_GT(totals.drafted, totals.accepted);
  EXPECT_GT(totals.trees, 0);
  EXPECT_GT(totals.branches, 0);
  EXPECT_GT(totals.cancelled, 0);
}

}  // namespace
}  // namespace paceline
