// Links to real worker services with a hash model behind them: streams, failover, reports, and what
// the cluster directory answers.
#include "router/service/worker_link.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "router/service/link_fixture.h"
#include "tests/sim/hash_worker.h"

namespace paceline {
namespace {

using testing::Call;
using testing::Eventually;
using testing::HashWorker;
using testing::LinkedRouter;
using testing::NewRequest;

std::vector<TokenId> Expected(const ClientRequest& request, int32_t sample = 0) {
  const GenerationRequest& g = request.generation;
  return HashWorker::Model().Generate(g.prompt, g.sampling, sample);
}

TEST(WorkerLink, StreamsCompleteOverTwoWorkers) {
  HashWorker a, b;
  a.Run();
  b.Run();
  LinkedRouter router({a.address(), b.address()});
  ASSERT_TRUE(router.AwaitReady(0) && router.AwaitReady(1));
  std::vector<std::shared_ptr<Call>> calls;
  for (uint64_t i = 0; i < 40; ++i) {
    ClientRequest request = NewRequest(i, 30);
    request.generation.num_samples = static_cast<int32_t>(1 + i % 3);
    calls.push_back(router.Start(std::move(request)));
  }
  for (uint64_t i = 0; i < 40; ++i) {
    const FinishAction finish = calls[i]->Await();
    ASSERT_FALSE(finish.error) << finish.error->ToString();
    EXPECT_EQ(finish.failovers, 0);
    EXPECT_FALSE(finish.fingerprint.empty());
    for (int32_t s = 0; s < static_cast<int32_t>(1 + i % 3); ++s) {
      EXPECT_EQ(calls[i]->tokens(s), Expected(NewRequest(i, 30), s));
    }
  }
  EXPECT_EQ(a.num_requests() + b.num_requests(), 0u);
  EXPECT_GT(a.Snapshot().steps, 0u);
  EXPECT_GT(b.Snapshot().steps, 0u);
}

TEST(WorkerLink, AWorkerKilledInMidStreamFailsOverWithTheSameTokens) {
  auto a = std::make_unique<HashWorker>(), b = std::make_unique<HashWorker>();
  LinkedRouter router({a->address(), b->address()});
  ASSERT_TRUE(router.AwaitReady(0) && router.AwaitReady(1));
  std::vector<std::shared_ptr<Call>> calls;
  for (uint64_t i = 0; i < 12; ++i) calls.push_back(router.Start(NewRequest(i, 60)));
  ASSERT_TRUE(Eventually([&] { return a->num_requests() + b->num_requests() == 12; }));
  ASSERT_GT(a->num_requests(), 0u);
  const size_t lost = a->num_requests();
  for (int i = 0; i < 20; ++i) {
    a->Step();
    b->Step();
  }
  ASSERT_TRUE(Eventually([&] {
    return std::all_of(calls.begin(), calls.end(),
                       [](const auto& call) { return call->tokens().size() >= 15; });
  }));
  a->Kill();
  ASSERT_TRUE(Eventually([&] { return b->num_requests() == 12; }));
  b->Run();
  size_t moved = 0;
  for (uint64_t i = 0; i < 12; ++i) {
    const FinishAction finish = calls[i]->Await();
    ASSERT_FALSE(finish.error) << finish.error->ToString();
    EXPECT_EQ(calls[i]->tokens(), Expected(NewRequest(i, 60)));
    EXPECT_TRUE(finish.exact);
    moved += finish.failovers;
  }
  EXPECT_EQ(moved, lost);
  EXPECT_EQ(router.Of(0).State(), WorkerState::kUnreachable);
}

struct OrderedCall final : RequestSink {
  explicit OrderedCall(std::vector<RequestKey>* order) : order(order) {}
  void OnDeliver(DeliverAction action) override { order->push_back(action.key); }
  void OnFinish(FinishAction) override {}
  std::vector<RequestKey>* const order;  // in turns
};

TEST(WorkerLink, FirstTokensOfAFrameGoFirst) {
  HashWorker worker;
  LinkedRouter router({worker.address()});
  ASSERT_TRUE(router.AwaitReady(0));
  std::vector<RequestKey> order;
  const auto delivered = [&] {
    std::vector<RequestKey> copy;
    router.loop.Read([&](const RouterCore&, TimePoint) { copy = order; });
    return copy;
  };
  const auto call = std::make_shared<OrderedCall>(&order);
  const RequestKey old = router.loop.Start(NewRequest(1, 3000), call);
  ASSERT_TRUE(Eventually([&] { return worker.num_requests() == 1; }));
  worker.Step();
  ASSERT_TRUE(Eventually([&] { return delivered() == std::vector<RequestKey>{old}; }));
  const RequestKey fresh = router.loop.Start(NewRequest(2, 3000), call);
  ASSERT_TRUE(Eventually([&] { return worker.num_requests() == 2; }));
  worker.Step();
  ASSERT_TRUE(Eventually([&] { return delivered().size() == 3; }));
  EXPECT_EQ(delivered(), (std::vector<RequestKey>{old, fresh, old}));
  router.loop.Stop();
}

TEST(WorkerLink, AClientsCancelReachesTheWorker) {
  HashWorker worker;
  LinkedRouter router({worker.address()});
  ASSERT_TRUE(router.AwaitReady(0));
  auto call = std::make_shared<Call>();
  const RequestKey key = router.loop.Start(NewRequest(1, 3000), call);
  ASSERT_TRUE(Eventually([&] { return worker.num_requests() == 1; }));
  worker.Step();
  worker.Run();
  router.loop.CancelByClient(key);
  EXPECT_EQ(call->Await().error->reason, "CANCELLED");
  EXPECT_TRUE(Eventually([&] { return worker.num_requests() == 0; }));
  EXPECT_LT(worker.Snapshot().steps, 3000u);
}

TEST(WorkerLink, ComesBackToARestartedWorker) {
  auto worker = std::make_unique<HashWorker>();
  const std::string address = worker->address();
  LinkedRouter router({address});
  ASSERT_TRUE(router.AwaitReady(0));
  for (uint64_t life = 0; life < 3; ++life) {
    worker.reset();
    ASSERT_TRUE(router.AwaitState(0, WorkerState::kUnreachable));
    auto call = router.Start(NewRequest(life));  // waits for a worker
    worker = std::make_unique<HashWorker>(address);
    worker->Run();
    ASSERT_FALSE(call->Await().error);
    EXPECT_EQ(call->tokens(), Expected(NewRequest(life)));
  }
}

TEST(WorkerLink, WaitsForAWorkerThatIsNotThereYet) {
  std::string address;
  { address = HashWorker().address(); }
  LinkedRouter router({address});
  EXPECT_TRUE(router.links->AwaitTried(testing::kPatience));
  EXPECT_FALSE(router.links->Members()[0].reached);
  HashWorker worker(address);
  worker.Run();
  auto call = router.Start(NewRequest(1));
  EXPECT_FALSE(call->Await().error);
}

TEST(WorkerLink, ReportsBringThePrefixes) {
  HashWorker worker;
  worker.Run();
  LinkedRouter router({worker.address()});
  ASSERT_TRUE(router.AwaitReady(0));
  EXPECT_EQ(router.Of(0).snapshot.tokenizer_fingerprint, "tok");
  EXPECT_EQ(router.Of(0).snapshot.vocab_size, 128);
  ClientRequest request = NewRequest(1, 200);
  const auto hashes = PrefixChunkHashes(
      [&] {
        auto tokens = request.generation.prompt;
        const auto output = Expected(request);
        tokens.insert(tokens.end(), output.begin(), output.end());
        return tokens;
      }(),
      "");
  ASSERT_FALSE(router.Start(request)->Await().error);
  const auto known = [&] {
    const Worker w = router.Of(0);
    return w.snapshot.prefixes != nullptr && w.snapshot.prefixes->contains(hashes[2]);
  };
  ASSERT_TRUE(Eventually(known));
  // They stay while reports without them come.
  const TimePoint then = router.Of(0).last_heard;
  ASSERT_TRUE(Eventually([&] { return router.Of(0).last_heard > then + Duration(1); }));
  EXPECT_TRUE(known());
}

TEST(WorkerLink, AWorkerThatHasLeftIsClosedBehindItsRequests) {
  HashWorker a, b;
  LinkedRouter router({a.address(), b.address()});
  ASSERT_TRUE(router.AwaitReady(0) && router.AwaitReady(1));
  std::vector<std::shared_ptr<Call>> calls;
  for (uint64_t i = 0; i < 6; ++i) calls.push_back(router.Start(NewRequest(i)));
  ASSERT_TRUE(Eventually([&] { return a.num_requests() + b.num_requests() == 6; }));
  ASSERT_GT(a.num_requests(), 0u);
  router.list->Set(std::vector<std::string>{b.address()});
  ASSERT_TRUE(Eventually([&] { return !router.Of(0).listed; }));
  EXPECT_EQ(router.links->Members().size(), 2u);
  a.Run();
  b.Run();
  for (auto& call : calls) EXPECT_EQ(call->Await().failovers, 0);
  EXPECT_TRUE(Eventually([&] { return router.links->Members().size() == 1; }));
  // An error of discovery keeps the list; back on the list, it serves again.
  router.list->Set(absl::UnavailableError("no name server"));
  router.list->Set(std::vector<std::string>{a.address()});
  ASSERT_TRUE(router.AwaitReady(0));
  EXPECT_FALSE(router.Start(NewRequest(9))->Await().error);
}

// ---- The cluster directory ----

TEST(WorkerLinks, MembersTellWhoIsReached) {
  HashWorker a;
  std::string gone;
  { gone = HashWorker().address(); }
  LinkedRouter router({gone, a.address()}, {gone});
  ASSERT_TRUE(router.AwaitReady(1));
  EXPECT_TRUE(router.links->AwaitTried(testing::kPatience));
  EXPECT_GT(router.links->last_listed_unix(), 1e9);
  const auto members = router.links->Members();
  ASSERT_EQ(members.size(), 3u);
  EXPECT_EQ(members[2].role, "draft");
  EXPECT_FALSE(members[2].reached);
  for (const auto& m : {members[0], members[1]}) {
    EXPECT_EQ(m.role, "target");
    EXPECT_EQ(m.reached, m.address == a.address());
    EXPECT_EQ(m.report.info().model(), m.reached ? "hash" : "");
    EXPECT_EQ(m.report.prefix_chunks_size(), 0);
  }
  a.Kill();
  EXPECT_TRUE(Eventually([&] {
    const auto now = router.links->Members();
    return !now[0].reached && !now[1].reached;
  }));
}

TEST(WorkerLinks, ADrainedWorkerGetsNoMoreRequests) {
  HashWorker a, b;
  a.Run();
  b.Run();
  LinkedRouter router({a.address(), b.address()});
  ASSERT_TRUE(router.AwaitReady(0) && router.AwaitReady(1));
  const auto drain = [&](const std::string& address) {
    std::promise<absl::Status> done;
    router.links->DrainWorker(address, std::chrono::seconds(5),
                              [&](absl::Status status) { done.set_value(std::move(status)); });
    return done.get_future().get();
  };
  EXPECT_EQ(drain("nowhere:1").code(), absl::StatusCode::kNotFound);
  ASSERT_TRUE(drain(a.address()).ok());
  EXPECT_TRUE(router.AwaitState(0, WorkerState::kDraining));
  const uint64_t steps = a.Snapshot().steps;
  for (uint64_t i = 0; i < 8; ++i) EXPECT_FALSE(router.Start(NewRequest(i))->Await().error);
  EXPECT_EQ(a.Snapshot().steps, steps);
  b.Kill();
  ASSERT_TRUE(router.AwaitState(1, WorkerState::kUnreachable));
  EXPECT_EQ(drain(b.address()).code(), absl::StatusCode::kUnavailable);
}

TEST(WorkerLinks, SessionsAreListedAndDeletedEverywhere) {
  HashWorker a, b;
  a.Run();
  b.Run();
  LinkedRouter router({a.address(), b.address()});
  const auto list = [&] {
    std::promise<std::vector<ClusterDirectory::SessionsAt>> done;
    router.links->ListSessions(std::chrono::seconds(5),
                               [&](auto answers) { done.set_value(std::move(answers)); });
    return done.get_future().get();
  };
  EXPECT_TRUE(list().size() <= 2u);
  ASSERT_TRUE(router.AwaitReady(0) && router.AwaitReady(1));
  std::vector<std::shared_ptr<Call>> calls;
  for (uint64_t i = 0; i < 6; ++i) {
    ClientRequest request = NewRequest(i, 60);
    request.generation.session_id = "s" + std::to_string(i);
    calls.push_back(router.Start(request));
  }
  for (auto& call : calls) EXPECT_FALSE(call->Await().error);
  const auto count = [&] {
    size_t sessions = 0;
    for (const auto& at : list()) {
      EXPECT_TRUE(at.error.ok()) << at.error;
      sessions += at.sessions.size();
    }
    return sessions;
  };
  ASSERT_EQ(list().size(), 2u);
  ASSERT_TRUE(Eventually([&] { return count() == 6; }));
  std::promise<absl::Status> deleted;
  router.links->DeleteSession("s3", std::chrono::seconds(5),
                              [&](absl::Status status) { deleted.set_value(status); });
  EXPECT_TRUE(deleted.get_future().get().ok());
  EXPECT_TRUE(Eventually([&] { return count() == 5; }));
}

}  // namespace
}  // namespace paceline
