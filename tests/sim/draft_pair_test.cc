// A target's speculation and a draft engine, face to face: both sides of the protocol as they are,
// over the hash model. While a step is in flight the drafter gets as many of its own steps as a
// real one would. The tokens are the model's own, and drafts come in time.
#include <atomic>
#include <condition_variable>
#include <functional>
#include <map>
#include <mutex>
#include <thread>

#include <gtest/gtest.h>

#include "tests/sim/hash_runner.h"
#include "worker/draft/draft_engine.h"
#include "worker/engine/engine.h"
#include "worker/spec/draft_speculator.h"

namespace paceline {
namespace {

class EngineLink final : public DraftLink {
 public:
  EngineLink(DraftEngine* drafter, DraftSpeculator* speculator) : drafter_(drafter) {
    id_ = std::make_shared<DraftLinkId>(0);
    target_ = drafter->AttachTarget([speculator, id = id_](DraftFrame frame) {
      speculator->mailbox().Deliver(*id, 1, std::move(frame));
    });
  }
  void SetId(DraftLinkId id) { *id_ = id; }
  const std::string& name() const override { return name_; }
  DraftLinkStatus status() const override {
    return {.state = DraftLinkState::kUp, .incarnation = 1};
  }
  bool Send(uint64_t, TargetFrame frame) override {
    drafter_->Deliver(target_, std::move(frame));
    return true;
  }

 private:
  const std::string name_ = "drafter";
  DraftEngine* const drafter_;
  std::shared_ptr<DraftLinkId> id_;
  DraftEngine::TargetId target_ = 0;
};

struct Pair {
  DraftStrategy strategy = DraftStrategy::kEnumerate;
  bool ahead = false;
  bool planned_late = false;  // ahead: each plan waits for the drafts of the outcome in flight
  double agreement = 0.7;
  int32_t drafter_steps = 12;  // per step of the target
  int32_t requests = 4;
  float temperature = 1;
  DecodingMode decoding = DecodingMode::kDraft;
};

struct Figures {
  int64_t steps = 0;
  SpecCounters counters;
  // Per sequence and step; the first token comes with the prompt.
  double TokensPerStep(int32_t tokens) const {
    return tokens /
           static_cast<double>(counters.steps_none + counters.steps_full + counters.steps_partial);
  }
};

Figures RunPair(const Pair& pair) {
  ManualClock clock;
  HashRunnerOptions options;
  options.num_blocks = 2000;
  HashRunnerOptions draft_options = options;
  draft_options.model.agreement = pair.agreement;
  DraftEngine drafter({}, std::make_unique<HashRunner>(draft_options), clock);

  DraftSpeculatorOptions spec;
  spec.vocab_size = options.model.vocab_size;
  spec.strategy = pair.strategy;
  spec.draft_len = 3;
  spec.ngram = false;
  auto owned = std::make_unique<DraftSpeculator>(spec);
  DraftSpeculator* speculator = owned.get();
  auto link = std::make_shared<EngineLink>(&drafter, speculator);
  link->SetId(speculator->AddLink(link));

  std::map<std::pair<RequestHandle, int32_t>, std::vector<TokenId>> outputs;
  int32_t finished = 0;
  EngineOptions engine_options;
  engine_options.launch_ahead = pair.ahead;
  // The runner lets the drafter work while its step is in flight.
  class Beside final : public Runner {
   public:
    Beside(HashRunnerOptions options, std::function<void()> work)
        : runner_(options), work_(std::move(work)) {}
    const RunnerInfo& info() const override { return runner_.info(); }
    absl::Status Launch(const StepPlan& plan) override { return runner_.Launch(plan); }
    absl::StatusOr<StepResult> Wait() override {
      if (work_) work_();
      return runner_.Wait();
    }

   private:
    HashRunner runner_;
    std::function<void()> work_;
  };
  const auto work = [&] {
    for (int32_t i = 0; i < pair.drafter_steps; ++i) {
      const auto worked = drafter.Step();
      EXPECT_TRUE(worked.ok()) << worked.status().ToString();
      clock.Advance(std::chrono::microseconds(500));
    }
  };
  const std::function<void()> beside = pair.planned_late ? std::function<void()>() : work;
  Engine engine(engine_options, std::make_unique<Beside>(options, beside), std::move(owned), clock,
                nullptr, [&](EngineOutput output) {
                  for (const auto& d : output.deltas) {
                    auto& tokens = outputs[{d.request, d.delta.sample}];
                    tokens.insert(tokens.end(), d.delta.tokens.begin(), d.delta.tokens.end());
                  }
                  for (const auto& f : output.finished) {
                    EXPECT_TRUE(f.status.ok()) << f.status.ToString();
                    ++finished;
                  }
                });
  const HashModel model(options.model);
  std::vector<GenerationRequest> requests;
  for (int32_t r = 0; r < pair.requests; ++r) {
    GenerationRequest request;
    for (int32_t i = 0; i < 40 + r; ++i) request.prompt.push_back(1 + (i * 7 + r) % 100);
    request.sampling.seed = 100 + static_cast<uint64_t>(r);
    request.sampling.temperature = pair.temperature;
    request.sampling.max_tokens = 200;
    request.sampling.ignore_eos = true;
    request.decoding = pair.decoding;
    requests.push_back(request);
    EXPECT_TRUE(engine.Submit(r, request).ok());
  }
  Figures figures;
  while (finished < pair.requests && figures.steps < 5000) {
    if (pair.planned_late) work();
    const auto worked = engine.Step();
    EXPECT_TRUE(worked.ok()) << worked.status().ToString();
    if (!worked.ok()) break;
    ++figures.steps;
    if (pair.strategy == DraftStrategy::kSync) work();  // polls give it time too
  }
  figures.counters = speculator->counters();
  for (int32_t r = 0; r < pair.requests; ++r) {
    EXPECT_EQ((outputs[{r, 0}]), model.Generate(requests[r].prompt, requests[r].sampling, 0));
  }
  EXPECT_EQ(figures.counters.quarantines, 0u);
  EXPECT_EQ(figures.counters.nacks, 0u);
  return figures;
}

double TokensPerStep(const Pair& pair) {
  SCOPED_TRACE("strategy " + std::to_string(static_cast<int>(pair.strategy)) +
               (pair.ahead ? " ahead" : "") + " T " + std::to_string(pair.temperature));
  const double tokens = RunPair(pair).TokensPerStep(199 * pair.requests);
  constexpr const char* kNames[] = {"default", "chain", "enumerate", "sync"};
  std::printf("%s%s%s, T %g: %.2f tokens per step\n", kNames[static_cast<int>(pair.strategy)],
              pair.ahead ? ", ahead" : "", pair.planned_late ? ", planned late" : "",
              pair.temperature, tokens);
  return tokens;
}

TEST(DraftPairTest, DraftsComeInTime) {
  for (float temperature : {0.0f, 1.0f}) {
    const double chain =
        TokensPerStep({.strategy = DraftStrategy::kChain, .temperature = temperature});
    const double enumerate =
        TokensPerStep({.strategy = DraftStrategy::kEnumerate, .temperature = temperature});
    const double sync =
        TokensPerStep({.strategy = DraftStrategy::kSync, .temperature = temperature});
    EXPECT_GT(chain, 1.5);
    EXPECT_GT(enumerate, chain) << "outcomes that were foreseen need no second guess";
    EXPECT_GT(sync, enumerate) << "waiting never misses; it costs time, not steps";
  }
}

TEST(DraftPairTest, AlsoForStepsLaunchedAhead) {
  for (DraftStrategy strategy :
       {DraftStrategy::kChain, DraftStrategy::kEnumerate, DraftStrategy::kSync}) {
    EXPECT_GT(TokensPerStep({.strategy = strategy, .ahead = true}), 1.3);
  }
}

// A plan that is made as soon as the step before is launched cannot know the drafts for that step's
// outcome: the drafter has just been told of it. One made while it runs can.
TEST(DraftPairTest, OutcomesInFlightAreForeseenByPlansMadeLate) {
  const double early = TokensPerStep({.ahead = true});
  const double late = TokensPerStep({.ahead = true, .planned_late = true});
  EXPECT_GT(late, early + 0.2);
}

TEST(DraftPairTest, APerfectDrafterIsAlwaysBelieved) {
  const Figures figures = RunPair({.agreement = 1});
  const SpecCounters& n = figures.counters;
  EXPECT_GT(n.steps_full, 0.9 * static_cast<double>(n.wanted_remote));
  EXPECT_EQ(n.accepted, n.drafted);
  EXPECT_EQ(n.outcome_misses, 0u);
  EXPECT_LT(n.proposals_late, 0.02 * static_cast<double>(n.proposals_received));
}

TEST(DraftPairTest, ASlowDrafterIsNotWaitedFor) {
  for (int32_t drafter_steps : {0, 1, 2}) {
    const Figures figures = RunPair({.drafter_steps = drafter_steps});
    EXPECT_LE(figures.steps, 202);
  }
}

// A device: carries launched steps out on a thread of its own, each in its time.
class Device final : public Runner {
 public:
  Device(HashRunnerOptions options, Duration step_time)
      : runner_(options), info_(runner_.info()), step_time_(step_time) {
    info_.runs_beside = true;
    thread_ = std::thread([this] { Run(); });
  }
  ~Device() override {
    {
      std::lock_guard lock(mutex_);
      stopped_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }
  const RunnerInfo& info() const override { return info_; }
  absl::Status Launch(const StepPlan& plan) override {
    std::lock_guard lock(mutex_);
    changed_.notify_all();
    ++launched_;
    return runner_.Launch(plan);
  }
  absl::StatusOr<StepResult> Wait() override {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return done_ > 0; });
    --done_;
    return runner_.Wait();
  }

 private:
  void Run() {
    std::unique_lock lock(mutex_);
    while (true) {
      changed_.wait(lock, [this] { return launched_ > 0 || stopped_; });
      if (stopped_) return;
      --launched_;
      lock.unlock();
      std::this_thread::sleep_for(step_time_);
      lock.lock();
      ++done_;
      changed_.notify_all();
    }
  }

  HashRunner runner_;
  RunnerInfo info_;
  const Duration step_time_;
  std::mutex mutex_;
  std::condition_variable changed_;
  int launched_ = 0, done_ = 0;
  bool stopped_ = false;
  std::thread thread_;
};

// Engine, device and drafter on threads of their own: plans are put off for drafts while the step
// before runs, and the tokens stay the model's own.
TEST(DraftPairTest, PlansBehindARunningStepWaitForItsDrafts) {
  constexpr int32_t kRequests = 4;
  HashRunnerOptions options;
  options.num_blocks = 2000;
  HashRunnerOptions draft_options = options;
  draft_options.model.agreement = 0.7;
  DraftEngine drafter({}, std::make_unique<HashRunner>(draft_options), SteadyClock::Get());
  DraftSpeculatorOptions spec;
  spec.vocab_size = options.model.vocab_size;
  spec.draft_len = 3;
  spec.ngram = false;
  auto owned = std::make_unique<DraftSpeculator>(spec);
  DraftSpeculator* speculator = owned.get();
  auto link = std::make_shared<EngineLink>(&drafter, speculator);
  link->SetId(speculator->AddLink(link));
  std::map<RequestHandle, std::vector<TokenId>> outputs;
  std::atomic<int32_t> finished = 0;
  Engine engine({.launch_ahead = true},
                std::make_unique<Device>(options, std::chrono::milliseconds(4)), std::move(owned),
                SteadyClock::Get(), nullptr, [&](EngineOutput output) {
                  for (const auto& d : output.deltas) {
                    auto& tokens = outputs[d.request];
                    tokens.insert(tokens.end(), d.delta.tokens.begin(), d.delta.tokens.end());
                  }
                  finished += static_cast<int32_t>(output.finished.size());
                  if (finished == kRequests) engine.Stop();
                });
  std::vector<GenerationRequest> requests(kRequests);
  for (int32_t r = 0; r < kRequests; ++r) {
    GenerationRequest& request = requests[r];
    for (int32_t i = 0; i < 40; ++i) request.prompt.push_back(1 + (i * 7 + r) % 100);
    request.sampling.seed = 100 + static_cast<uint64_t>(r);
    request.sampling.max_tokens = 200;
    request.sampling.ignore_eos = true;
    request.decoding = DecodingMode::kDraft;
    ASSERT_TRUE(engine.Submit(r, request).ok());
  }
  std::thread drafting([&] { EXPECT_TRUE(drafter.Run().ok()); });
  EXPECT_TRUE(engine.Run().ok());
  drafter.Stop();
  drafting.join();
  const HashModel model(options.model);
  for (int32_t r = 0; r < kRequests; ++r) {
    EXPECT_EQ(outputs[r], model.Generate(requests[r].prompt, requests[r].sampling, 0));
  }
  const SpecCounters& n = speculator->counters();
  EXPECT_GT(n.plans_delayed, 0u);
  EXPECT_LE(n.plans_answered, n.plans_delayed);
  std::printf("put off %lu plans, all drafts in time %lu, too late %lu: %.2f tokens per step\n",
              n.plans_delayed, n.plans_answered, n.plans_overran,
              Figures{.counters = n}.TokensPerStep(199 * kRequests));
}

}  // namespace
}  // namespace paceline
