// The engine's edges: its thread, its callers' threads, its sink, its snapshot, its end.
#include "worker/engine/engine.h"

#include <atomic>
#include <condition_variable>
#include <map>
#include <mutex>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/sim/hash_runner.h"

namespace paceline {
namespace {

using testing::IsEmpty;
using testing::SizeIs;

HashRunnerOptions RunnerOptions() {
  HashRunnerOptions o;
  o.block_size = 4;
  o.num_blocks = 128;
  o.max_slots = 8;
  o.max_context = 300;
  return o;
}

GenerationRequest Request(int32_t prompt_len, int32_t max_tokens, uint64_t seed = 5) {
  GenerationRequest r;
  for (int32_t i = 0; i < prompt_len; ++i) r.prompt.push_back((3 + i * 7) % 128);
  r.sampling.seed = seed;
  r.sampling.max_tokens = max_tokens;
  r.sampling.ignore_eos = true;
  return r;
}

// What the sink has heard. Thread-safe.
class Ear {
 public:
  EngineSink sink() {
    return [this](EngineOutput output) {
      std::lock_guard lock(mutex_);
      for (auto& d : output.deltas) {
        EXPECT_FALSE(finished_.contains(d.request)) << "a delta behind the last word";
        auto& tokens = tokens_[{d.request, d.delta.sample}];
        EXPECT_EQ(d.delta.first_index, static_cast<int32_t>(tokens.size()));
        tokens.insert(tokens.end(), d.delta.tokens.begin(), d.delta.tokens.end());
      }
      for (auto& f : output.finished) {
        EXPECT_TRUE(finished_.emplace(f.request, f).second) << "a second last word";
      }
      heard_.notify_all();
    };
  }
  void WaitForFinished(size_t count) {
    std::unique_lock lock(mutex_);
    heard_.wait(lock, [&] { return finished_.size() >= count; });
  }
  void WaitForTokens(RequestHandle request) {
    std::unique_lock lock(mutex_);
    heard_.wait(lock, [&] { return !tokens_[{request, 0}].empty(); });
  }
  std::vector<TokenId> Tokens(RequestHandle request) {
    std::lock_guard lock(mutex_);
    return tokens_[{request, 0}];
  }
  absl::Status Status(RequestHandle request) {
    std::lock_guard lock(mutex_);
    return finished_.at(request).status;
  }
  size_t num_finished() {
    std::lock_guard lock(mutex_);
    return finished_.size();
  }

 private:
  std::mutex mutex_;
  std::condition_variable heard_;
  std::map<std::pair<RequestHandle, int32_t>, std::vector<TokenId>> tokens_;
  std::map<RequestHandle, EngineOutput::Finished> finished_;
};

std::unique_ptr<Engine> MakeEngine(Ear* ear, EngineOptions options = {},
                                   std::unique_ptr<Runner> runner = nullptr,
                                   const Clock& clock = SteadyClock::Get()) {
  if (runner == nullptr) runner = std::make_unique<HashRunner>(RunnerOptions());
  return std::make_unique<Engine>(options, std::move(runner), nullptr, clock, nullptr, ear->sink());
}

void StepUntilIdle(Engine* engine) {
  while (true) {
    const absl::StatusOr<bool> worked = engine->Step();
    ASSERT_TRUE(worked.ok()) << worked.status();
    if (!*worked) return;
  }
}

// --- One thread ---

TEST(EngineTest, AStepWithoutWorkDoesNothing) {
  Ear ear;
  const auto engine = MakeEngine(&ear);
  EXPECT_FALSE(*engine->Step());
  EXPECT_EQ(engine->Snapshot().steps, 0u);
}

TEST(EngineTest, SubmitRefusesWithTheRightCode) {
  Ear ear;
  const auto engine = MakeEngine(&ear, {.max_waiting = 1});
  GenerationRequest bad = Request(0, 4);
  EXPECT_EQ(engine->Submit(1, bad).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(engine->Submit(1, Request(4, 4)).ok());  // the handle is still free
  EXPECT_EQ(engine->Submit(1, Request(4, 4)).code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(engine->Submit(2, Request(4, 4)).code(), absl::StatusCode::kResourceExhausted);
  ASSERT_TRUE(*engine->Step());
  EXPECT_TRUE(engine->Submit(2, Request(4, 4)).ok());
  engine->StartDrain();
  EXPECT_TRUE(engine->Snapshot().draining);
  EXPECT_EQ(engine->Submit(3, Request(4, 4)).code(), absl::StatusCode::kUnavailable);
  StepUntilIdle(engine.get());
  EXPECT_THAT(ear.Tokens(1), SizeIs(4));
  EXPECT_THAT(ear.Tokens(2), SizeIs(4));
}

TEST(EngineTest, AHandleMayBeUsedAgainBehindItsLastWord) {
  Ear first, second;
  Ear* ear = &first;
  Engine engine({}, std::make_unique<HashRunner>(RunnerOptions()), nullptr, SteadyClock::Get(),
                nullptr, [&](EngineOutput output) { ear->sink()(std::move(output)); });
  ASSERT_TRUE(engine.Submit(1, Request(4, 4)).ok());
  StepUntilIdle(&engine);
  engine.Cancel(1);  // late
  ear = &second;
  ASSERT_TRUE(engine.Submit(1, Request(4, 5)).ok());
  StepUntilIdle(&engine);
  EXPECT_TRUE(second.Status(1).ok());
  EXPECT_THAT(second.Tokens(1), SizeIs(5));
}

TEST(EngineTest, ACancelIsHeardInTheNextStep) {
  Ear ear;
  const auto engine = MakeEngine(&ear);
  ASSERT_TRUE(engine->Submit(1, Request(4, 100)).ok());
  ASSERT_TRUE(*engine->Step());
  engine->Cancel(1);
  engine->Cancel(77);
  ASSERT_TRUE(engine->Step().ok());
  EXPECT_EQ(ear.Status(1).code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(engine->Snapshot().running, 0);
  EXPECT_EQ(engine->Snapshot().kv.active_blocks, 0);
}

TEST(EngineTest, ACancelByDeadlineSaysSo) {
  Ear ear;
  const auto engine = MakeEngine(&ear);
  ASSERT_TRUE(engine->Submit(1, Request(4, 100)).ok());
  engine->Cancel(1, absl::StatusCode::kDeadlineExceeded);
  StepUntilIdle(engine.get());
  EXPECT_EQ(ear.Status(1).code(), absl::StatusCode::kDeadlineExceeded);
}

TEST(EngineTest, TheSnapshotFollowsADeadlineThatNothingElseFollows) {
  Ear ear;
  ManualClock clock;
  const auto engine = MakeEngine(&ear, {}, nullptr, clock);
  GenerationRequest r = Request(9, 50);
  r.deadline = clock.Now() + std::chrono::seconds(1);
  ASSERT_TRUE(engine->Submit(1, r).ok());
  ASSERT_TRUE(*engine->Step());
  EXPECT_EQ(engine->Snapshot().running, 1);
  clock.Advance(std::chrono::seconds(2));
  ASSERT_TRUE(engine->Step().ok());
  EXPECT_EQ(ear.Status(1).code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(engine->Snapshot().running, 0);
  EXPECT_EQ(engine->Snapshot().kv.active_blocks, 0);
}

TEST(EngineTest, TheSnapshotTellsSessionsAndPrefixes) {
  Ear ear;
  const auto engine = MakeEngine(&ear);
  GenerationRequest r = Request(130, 4);
  r.session_id = "s";
  const uint64_t epoch = engine->Snapshot().prefix_epoch;
  ASSERT_TRUE(engine->Submit(1, r).ok());
  StepUntilIdle(engine.get());
  const EngineSnapshot s = engine->Snapshot();
  EXPECT_NE(s.prefix_epoch, epoch);
  EXPECT_THAT(s.prefix_chunks, SizeIs(2));  // of 64 tokens
  EXPECT_EQ(s.kv.cached_blocks, 33);
  EXPECT_GT(s.steps, 0u);
  ASSERT_THAT(engine->Sessions(), SizeIs(1));
  EXPECT_EQ(engine->Sessions()[0].blocks, 33);
  engine->DropSession("s");
  StepUntilIdle(engine.get());
  EXPECT_THAT(engine->Sessions(), IsEmpty());
}

// --- Faults of the runner ---

class FailingRunner final : public Runner {
 public:
  FailingRunner(int32_t launches, int32_t waits)
      : inner_(RunnerOptions()), launches_(launches), waits_(waits) {}
  const RunnerInfo& info() const override { return inner_.info(); }
  absl::Status Launch(const StepPlan& plan) override {
    return launches_-- > 0 ? inner_.Launch(plan) : absl::InternalError("the device is gone");
  }
  absl::StatusOr<StepResult> Wait() override {
    if (waits_-- > 0) return inner_.Wait();
    return absl::InternalError("the device is gone");
  }

 private:
  HashRunner inner_;
  int32_t launches_;
  int32_t waits_;
};

TEST(EngineTest, AFaultOfTheRunnerIsFinal) {
  for (const bool at_launch : {true, false}) {
    for (const bool ahead : {true, false}) {
      Ear ear;
      const auto engine =
          MakeEngine(&ear, {.launch_ahead = ahead},
                     std::make_unique<FailingRunner>(at_launch ? 3 : 100, at_launch ? 100 : 3));
      ASSERT_TRUE(engine->Submit(1, Request(4, 50)).ok());
      const absl::Status ended = engine->Run();
      EXPECT_EQ(ended, absl::InternalError("the device is gone"));
      EXPECT_EQ(engine->Step().status(), ended);
      EXPECT_EQ(engine->Run(), ended);
      EXPECT_EQ(ear.num_finished(), 0u);  // the process ends; the router carries it elsewhere
    }
  }
}

// --- The loop on a thread of its own ---

TEST(EngineTest, RunsRequestsFromManyThreads) {
  for (const bool ahead : {false, true}) {
    constexpr int kThreads = 3;
    constexpr int kEach = 40;
    Ear ear;
    const auto engine = MakeEngine(&ear, {.launch_ahead = ahead});
    std::thread loop([&] { EXPECT_TRUE(engine->Run().ok()); });
    std::atomic<int> cancelled = 0;
    std::vector<std::thread> callers;
    for (int t = 0; t < kThreads; ++t) {
      callers.emplace_back([&, t] {
        for (int i = 0; i < kEach; ++i) {
          const auto handle = static_cast<RequestHandle>(t * kEach + i);
          while (true) {
            const absl::Status s = engine->Submit(handle, Request(1 + i, 1 + i % 7, handle));
            if (s.ok()) break;
            EXPECT_EQ(s.code(), absl::StatusCode::kResourceExhausted) << s;
          }
          EXPECT_LE(engine->Snapshot().kv.active_blocks, 128);
          if (i % 10 == 3) engine->Cancel(handle), ++cancelled;
          if (i % 10 == 4) engine->DropSession("s");
          engine->Sessions();
        }
      });
    }
    for (std::thread& c : callers) c.join();
    ear.WaitForFinished(kThreads * kEach);
    engine->Stop();
    loop.join();
    const HashModel model({});
    int ended_early = 0;
    for (int h = 0; h < kThreads * kEach; ++h) {
      const auto handle = static_cast<RequestHandle>(h);
      if (!ear.Status(handle).ok()) {
        EXPECT_EQ(ear.Status(handle).code(), absl::StatusCode::kCancelled);
        ++ended_early;
        continue;
      }
      const GenerationRequest r = Request(1 + h % kEach, 1 + h % kEach % 7, handle);
      EXPECT_EQ(ear.Tokens(handle), model.Generate(r.prompt, r.sampling, 0));
    }
    EXPECT_LE(ended_early, cancelled);
    EXPECT_EQ(engine->Snapshot().kv.active_blocks, 0);
  }
}

TEST(EngineTest, WakesFromSleepForARequestAndForStop) {
  Ear ear;
  const auto engine = MakeEngine(&ear);
  std::thread loop([&] { EXPECT_TRUE(engine->Run().ok()); });
  for (RequestHandle h = 0; h < 3; ++h) {
    ASSERT_TRUE(engine->Submit(h, Request(4, 3)).ok());
    ear.WaitForFinished(h + 1);
  }
  engine->Stop();
  loop.join();
}

TEST(EngineTest, StopLeavesRequestsUnfinishedButNoStepInFlight) {
  Ear ear;
  const auto engine = MakeEngine(&ear, {.launch_ahead = true});
  std::thread loop([&] { EXPECT_TRUE(engine->Run().ok()); });
  ASSERT_TRUE(engine->Submit(1, Request(4, 290)).ok());
  ear.WaitForTokens(1);
  engine->Stop();
  loop.join();
}

TEST(EngineTest, ADrainLetsThoseInFlightFinish) {
  Ear ear;
  const auto engine = MakeEngine(&ear);
  std::thread loop([&] { EXPECT_TRUE(engine->Run().ok()); });
  ASSERT_TRUE(engine->Submit(1, Request(4, 200)).ok());
  engine->StartDrain();
  EXPECT_EQ(engine->Submit(2, Request(4, 3)).code(), absl::StatusCode::kUnavailable);
  ear.WaitForFinished(1);
  EXPECT_TRUE(ear.Status(1).ok());
  EXPECT_THAT(ear.Tokens(1), SizeIs(200));
  engine->Stop();
  loop.join();
}

}  // namespace
}  // namespace paceline
