// The router's loop with ports and sinks that only take notes.
#include "router/service/router_loop.h"

#include <atomic>
#include <future>
#include <map>
#include <random>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace paceline {
namespace {

using ::testing::ElementsAre;
using ::testing::SizeIs;

constexpr Duration kPatience = std::chrono::seconds(20);

struct NotingPort final : WorkerPort {
  struct Frame {
    std::vector<AttemptHandle> submits, cancels;
  };
  void Submit(AttemptHandle handle, const GenerationRequest&) override {
    next.submits.push_back(handle);
  }
  void Cancel(AttemptHandle handle) override { next.cancels.push_back(handle); }
  void Flush() override { frames.push_back(std::exchange(next, {})); }

  Frame next;
  std::vector<Frame> frames;  // in turns; others look through RouterLoop::Read
};

struct NotingSink final : RequestSink {
  void OnDeliver(DeliverAction action) override {
    tokens.insert(tokens.end(), action.delta.tokens.begin(), action.delta.tokens.end());
  }
  void OnFinish(FinishAction action) override {
    ++finishes;
    finish.set_value(std::move(action));
  }
  FinishAction Await() {
    auto future = finish.get_future();
    if (future.wait_for(kPatience) == std::future_status::ready) return future.get();
    ADD_FAILURE() << "no OnFinish";
    return {};
  }
  std::string AwaitReason() {
    const FinishAction action = Await();
    return action.error ? action.error->reason : "";
  }

  std::vector<TokenId> tokens;
  std::atomic<int> finishes = 0;
  std::promise<FinishAction> finish;
};

ClientRequest NewRequest(const std::string& id, int32_t max_tokens = 2) {
  ClientRequest request;
  request.model = "m";
  request.generation.request_id = id;
  request.generation.prompt = {1, 2, 3};
  request.generation.sampling.max_tokens = max_tokens;
  return request;
}

class RouterLoopTest : public ::testing::Test {
 protected:
  void Relist(const std::vector<std::string>& addresses) {
    std::vector<WorkerAddress> list;
    for (const std::string& a : addresses) list.push_back({a});
    loop.Relist(list, [this](WorkerId id, const WorkerAddress&) {
      ++made;
      return ports[id] = std::make_shared<NotingPort>();
    });
  }
  static RouterLoop::Event Readiness(WorkerId id) {
    return [id](RouterCore& core, TimePoint now) {
      core.WorkerConnected(id, now);
      WorkerSnapshot snapshot;
      snapshot.model = "m";
      snapshot.ready = true;
      core.WorkerReported(id, snapshot, now);
    };
  }
  void Ready(WorkerId id) { loop.Post(Readiness(id)); }
  // Everything posted so far is done and flushed: a batch ends before the next one begins.
  void Sync() {
    for (int i = 0; i < 2; ++i) loop.Read([](const RouterCore&, TimePoint) {});
  }
  // Both tokens of a request of two, and its end.
  static RouterLoop::Event Serve(WorkerId id, AttemptHandle handle) {
    return [id, handle](RouterCore& core, TimePoint now) {
      core.WorkerDelta(id, handle, {.tokens = {7, 8}, .finish = FinishReason::kLength}, now);
      core.WorkerFinished(id, handle, absl::OkStatus(), {}, now);
    };
  }

  std::map<WorkerId, std::shared_ptr<NotingPort>> ports;  // in turns
  int made = 0;
  RouterLoop loop{{}, nullptr, SteadyClock::Get()};
};

TEST_F(RouterLoopTest, ARequestGoesOutAndComesBack) {
  Relist({"a:1"});
  Ready(0);
  auto sink = std::make_shared<NotingSink>();
  const RequestKey key = loop.Start(NewRequest("r"), sink);
  Sync();
  ASSERT_THAT(ports[0]->frames, SizeIs(1));
  EXPECT_THAT(ports[0]->frames[0].submits, ElementsAre(MakeHandle(key, 1)));
  EXPECT_FALSE(loop.AwaitIdle(Duration::zero()));
  loop.Post(Serve(0, MakeHandle(key, 1)));
  const FinishAction finish = sink->Await();
  EXPECT_EQ(finish.key, key);
  EXPECT_FALSE(finish.error);
  EXPECT_THAT(sink->tokens, ElementsAre(7, 8));
  EXPECT_TRUE(loop.AwaitIdle(kPatience));
}

struct NotingProbe final : RequestProbe {
  void Overhead(OverheadStage stage, Duration spent) override { spans[stage].push_back(spent); }
  void RequestOverhead(Duration spent) override { requests.push_back(spent); }
  std::map<OverheadStage, std::vector<Duration>> spans;
  std::vector<Duration> requests;
};

// The way in counts from the client's call, the way out from the frame with the first tokens.
TEST_F(RouterLoopTest, ARequestsOwnTimeIsItsWayInAndItsFirstWayOut) {
  NotingProbe probe;
  RouterLoop timed({}, nullptr, SteadyClock::Get(), &probe);
  timed.Relist({{"a:1"}},
               [](WorkerId, const WorkerAddress&) { return std::make_shared<NotingPort>(); });
  timed.Post(Readiness(0));
  auto request = NewRequest("r", 3);
  request.received = SteadyClock::Get().Now() - std::chrono::seconds(100);
  const auto sink = std::make_shared<NotingSink>();
  const RequestKey key = timed.Start(std::move(request), sink);
  const auto frame = [&](int32_t index, FinishReason finish) {
    timed.QueueFrame(
        SteadyClock::Get().Now() - std::chrono::seconds(10), [=](RouterCore& core, TimePoint now) {
          core.WorkerDelta(0, MakeHandle(key, 1),
                           {.first_index = index, .tokens = {7}, .finish = finish}, now);
        });
    timed.RunQueued();
  };
  for (const int32_t index : {0, 1}) frame(index, FinishReason::kNone);
  frame(2, FinishReason::kLength);
  timed.Stop();
  EXPECT_THAT(probe.spans[OverheadStage::kRoute], SizeIs(1));
  EXPECT_THAT(probe.spans[OverheadStage::kForward], SizeIs(3));
  ASSERT_THAT(probe.requests, SizeIs(1));
  EXPECT_GE(probe.requests[0], std::chrono::seconds(110));
  EXPECT_LT(probe.requests[0], std::chrono::seconds(119));
}

TEST_F(RouterLoopTest, WhatComesTogetherGoesOutAsOneFrame) {
  Relist({"a:1"});
  Ready(0);
  std::promise<void> entered, gate;
  std::thread poster([&] {
    loop.Post([&](RouterCore&, TimePoint) {
      entered.set_value();
      gate.get_future().wait();
    });
  });
  entered.get_future().wait();  // what follows makes the next batch
  std::vector<std::shared_ptr<NotingSink>> sinks;
  std::vector<RequestKey> keys;
  for (int i = 0; i < 5; ++i) {
    sinks.push_back(std::make_shared<NotingSink>());
    keys.push_back(loop.Start(NewRequest("r" + std::to_string(i)), sinks.back()));
  }
  loop.CancelByClient(keys[2]);
  gate.set_value();
  poster.join();
  Sync();
  ASSERT_THAT(ports[0]->frames, SizeIs(1));
  EXPECT_THAT(ports[0]->frames[0].submits, SizeIs(5));
  EXPECT_THAT(ports[0]->frames[0].cancels, ElementsAre(MakeHandle(keys[2], 1)));
  EXPECT_EQ(sinks[2]->AwaitReason(), "CANCELLED");
}

TEST_F(RouterLoopTest, ServingFollowsTheWorkersAndTheDrain) {
  std::vector<bool> heard;
  loop.OnServingChanged([&](bool serving) { heard.push_back(serving); });
  Relist({"a:1", "b:1"});
  Ready(0);
  Sync();
  Ready(1);
  loop.Post([](RouterCore& core, TimePoint now) { core.WorkerLost(0, "gone", now); });
  Sync();
  loop.StartDrain();
  Sync();
  EXPECT_THAT(heard, ElementsAre(false, true, false));
  auto sink = std::make_shared<NotingSink>();
  loop.Start(NewRequest("late"), sink);
  EXPECT_EQ(sink->AwaitReason(), "DRAINING");
}

TEST_F(RouterLoopTest, TheClockWakesTheLoop) {
  RouterOptions options;
  options.failover_timeout = std::chrono::milliseconds(5);
  RouterLoop impatient(options, nullptr, SteadyClock::Get());
  impatient.Relist({{"a:1"}},
                   [](WorkerId, const WorkerAddress&) { return std::make_shared<NotingPort>(); });
  auto sink = std::make_shared<NotingSink>();
  impatient.Start(NewRequest("r"), sink);
  EXPECT_EQ(sink->AwaitReason(), "NO_WORKER");
}

TEST_F(RouterLoopTest, AbortEndsOneAndAbortAllTheRest) {
  Relist({"a:1"});
  Ready(0);
  auto a = std::make_shared<NotingSink>(), b = std::make_shared<NotingSink>(),
       c = std::make_shared<NotingSink>();
  const RequestKey key = loop.Start(NewRequest("a"), a);
  loop.Start(NewRequest("b"), b);
  loop.Start(NewRequest("c"), c);
  loop.Abort(key, ServingError::ClientTooSlow(9, 8));
  EXPECT_EQ(a->AwaitReason(), "CLIENT_TOO_SLOW");
  EXPECT_EQ(b->finishes, 0);
  loop.AbortAll(ServingError::Draining());
  EXPECT_EQ(b->AwaitReason(), "DRAINING");
  EXPECT_EQ(c->AwaitReason(), "DRAINING");
  EXPECT_TRUE(loop.AwaitIdle(kPatience));
}

TEST_F(RouterLoopTest, StopEndsWhatIsHeldAndLaterStarts) {
  Relist({"a:1"});
  Ready(0);
  auto held = std::make_shared<NotingSink>(), late = std::make_shared<NotingSink>();
  const RequestKey key = loop.Start(NewRequest("held"), held);
  loop.Stop();
  EXPECT_EQ(held->AwaitReason(), "DRAINING");
  EXPECT_THAT(ports[0]->frames.back().cancels, ElementsAre(MakeHandle(key, 1)));
  loop.Start(NewRequest("late"), late);
  EXPECT_EQ(late->AwaitReason(), "DRAINING");
  loop.Post([](RouterCore&, TimePoint) { FAIL() << "an event behind Stop"; });
  size_t requests = 9;
  loop.Read([&](const RouterCore& core, TimePoint) { requests = core.num_requests(); });
  EXPECT_EQ(requests, 0u);
  EXPECT_TRUE(loop.AwaitIdle(Duration::zero()));
  loop.Stop();
}

TEST_F(RouterLoopTest, APortGoesBehindTheLastRequestOfAWorkerThatHasLeft) {
  Relist({"a:1", "b:1"});
  Ready(0);
  auto sink = std::make_shared<NotingSink>();
  const RequestKey key = loop.Start(NewRequest("r"), sink);
  Relist({"b:1"});
  Sync();
  std::weak_ptr<NotingPort> port = ports[0];
  ports.clear();
  EXPECT_FALSE(port.expired());
  loop.Post(Serve(0, MakeHandle(key, 1)));
  EXPECT_FALSE(sink->Await().error);
  Sync();
  EXPECT_TRUE(port.expired());
  // Listed again, it is a new link of the same worker.
  EXPECT_EQ(made, 2);
  Relist({"a:1", "b:1"});
  Ready(0);
  auto again = std::make_shared<NotingSink>();
  loop.Start(NewRequest("again"), again);
  Sync();
  EXPECT_EQ(made, 3);
  ASSERT_THAT(ports[0]->frames, SizeIs(1));
}

TEST_F(RouterLoopTest, AWorkerThatComesBackInTimeKeepsItsPort) {
  Relist({"a:1"});
  Ready(0);
  auto sink = std::make_shared<NotingSink>();
  const RequestKey key = loop.Start(NewRequest("r"), sink);
  Relist({});
  Relist({"a:1"});
  loop.Post(Serve(0, MakeHandle(key, 1)));
  EXPECT_FALSE(sink->Await().error);
  Sync();
  EXPECT_EQ(made, 1);
  EXPECT_EQ(ports[0].use_count(), 2);
}

TEST_F(RouterLoopTest, WhoeverPostsTakesTheTurn) {
  const auto here = std::this_thread::get_id();
  std::vector<int> order;
  loop.Post([&](RouterCore&, TimePoint) {
    EXPECT_EQ(std::this_thread::get_id(), here);
    loop.Post([&](RouterCore&, TimePoint) { order.push_back(2); });  // behind this one
    order.push_back(1);
  });
  EXPECT_THAT(order, ElementsAre(1, 2));
}

TEST_F(RouterLoopTest, WhatIsQueuedWaitsForTheNextTurn) {
  std::vector<int> order;
  loop.Queue([&](RouterCore&, TimePoint) { order.push_back(1); });
  EXPECT_THAT(order, SizeIs(0));
  EXPECT_FALSE(loop.AwaitIdle(Duration::zero()));
  loop.Post([&](RouterCore&, TimePoint) { order.push_back(2); });
  EXPECT_THAT(order, ElementsAre(1, 2));
  loop.RunQueued();
  EXPECT_TRUE(loop.AwaitIdle(kPatience));
}

// An event that always posts another would keep its thread for ever.
TEST_F(RouterLoopTest, APosterHandsOverToTheLoopsThread) {
  const auto here = std::this_thread::get_id();
  std::atomic<bool> enough = false;
  std::promise<std::thread::id> last;
  std::function<void(RouterCore&, TimePoint)> again = [&](RouterCore&, TimePoint) {
    if (!enough) return loop.Post(again);
    last.set_value(std::this_thread::get_id());
  };
  loop.Post(again);
  enough = true;
  EXPECT_NE(last.get_future().get(), here);
  EXPECT_TRUE(loop.AwaitIdle(kPatience));
}

// Threads start, cancel and abort while workers answer, come and go.
TEST_F(RouterLoopTest, EveryRequestEndsExactlyOnce) {
  Relist({"a:1", "b:1"});
  Ready(0);
  Ready(1);
  std::vector<std::vector<std::shared_ptr<NotingSink>>> sinks(4);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      std::minstd_rand random(t);
      for (int i = 0; i < 200; ++i) {
        auto sink = std::make_shared<NotingSink>();
        sinks[t].push_back(sink);
        const RequestKey key =
            loop.Start(NewRequest(std::to_string(t) + "-" + std::to_string(i)), sink);
        switch (random() % 4) {
          case 0:
            loop.CancelByClient(key);
            break;
          case 1:
            loop.Abort(key, ServingError::Draining());
            break;
          case 2:
            loop.Post(Serve(random() % 2, MakeHandle(key, 1)));
            break;
          default:
            loop.Post([](RouterCore& core, TimePoint now) { core.WorkerLost(0, "gone", now); });
            Ready(0);
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  loop.Stop();
  for (const auto& of_thread : sinks) {
    for (const auto& sink : of_thread) EXPECT_EQ(sink->finishes, 1);
  }
}

}  // namespace
}  // namespace paceline
