// Targets come, speak and go on threads of their own while the engine runs on its.
#include <atomic>
#include <thread>

#include <gtest/gtest.h>

#include "common/hash.h"
#include "tests/sim/hash_runner.h"
#include "worker/draft/draft_engine.h"

namespace paceline {
namespace {

TargetFrame OpenAndAsk(uint64_t session, int32_t branches) {
  DraftOpen open;
  open.id = {session, 1};
  open.sampling.seed = session;
  open.sampling.max_tokens = 1000;
  open.prompt_len = 20;
  open.max_len = 1000;
  for (int32_t i = 0; i < 20; ++i) open.tokens.push_back(1 + i);
  const DraftCommit commit{.id = open.id,
                           .base_len = 20,
                           .prefix_hash = HashTokens(open.tokens),
                           .want_len = 3,
                           .want_branches = branches};
  return {.opens = {open}, .commits = {commit}};
}

TEST(DraftThreadsTest, TargetsComeAndGoWhileItRuns) {
  DraftEngine engine({}, std::make_unique<HashRunner>(HashRunnerOptions{}), SteadyClock::Get());
  absl::Status ended;
  std::thread loop([&] { ended = engine.Run(); });
  std::atomic<int64_t> proposals = 0;
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 3; ++t) {
    threads.emplace_back([&, t] {
      for (uint64_t round = 0; round < 40; ++round) {
        // Not atomic: the sink is never called at the same time as, nor after, Detach returns.
        int64_t received = 0;
        bool attached = true;
        std::atomic<bool> proposed = false;
        const DraftEngine::TargetId id = engine.AttachTarget([&](DraftFrame frame) {
          EXPECT_TRUE(attached);
          received += static_cast<int64_t>(frame.proposals.size());
          if (!frame.proposals.empty()) proposed = true;
        });
        for (uint64_t s = 0; s < 4; ++s) {
          engine.Deliver(id, OpenAndAsk(100 * t + s, s % 2 == 0 ? 0 : 6));
        }
        engine.Deliver(id, {.closes = {{{100 * t, 1}}}});
        // Some stay until they are served, others go at once.
        while (round % 4 == 0 && !proposed) std::this_thread::yield();
        engine.DetachTarget(id);
        attached = false;
        proposals += received;
        engine.Deliver(id, OpenAndAsk(1, 0));  // of no target any more
        EXPECT_GE(engine.load().sessions, 0);
        EXPECT_GE(engine.counters().opens, 0u);
        EXPECT_GE(engine.kv().free_blocks, 0);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  engine.Stop();
  loop.join();
  EXPECT_TRUE(ended.ok()) << ended;
  EXPECT_GE(proposals, 3 * 10);
  ASSERT_TRUE(engine.Step().ok());
  EXPECT_EQ(engine.counters().sessions, 0);
  engine.CheckQuiescent();
}

TEST(DraftThreadsTest, StopEndsAnIdleEngine) {
  DraftEngine engine({}, std::make_unique<HashRunner>(HashRunnerOptions{}), SteadyClock::Get());
  std::thread loop([&] { EXPECT_TRUE(engine.Run().ok()); });
  engine.Stop();
  loop.join();
}

}  // namespace
}  // namespace paceline
