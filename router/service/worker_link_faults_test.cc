// Links to workers that lie, hang or talk nonsense: it costs their session and nothing else.
#include <atomic>
#include <cstdlib>
#include <random>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/check.h"
#include "common/rpc/outbox.h"
#include "common/rpc/rpc_server.h"
#include "router/service/link_fixture.h"
#include "tests/sim/hash_worker.h"

namespace paceline {
namespace {

using testing::Eventually;
using testing::HashWorker;
using ::testing::HasSubstr;
using testing::LinkedRouter;
using testing::NewRequest;
using worker::v1::OpenStreamRequest;
using worker::v1::OpenStreamResponse;
using worker::v1::WatchStatusRequest;
using worker::v1::WatchStatusResponse;

WatchStatusResponse GoodReport() {
  WatchStatusResponse report;
  report.mutable_info()->set_role("target");
  report.mutable_info()->set_model("hash");
  report.set_ready(true);
  return report;
}

// Reports what it is given, once, and answers every submit with a scripted frame.
class LyingWorker final : public worker::v1::WorkerService::CallbackService {
 public:
  using Answer = std::function<OpenStreamResponse(const worker::v1::Submit&)>;

  // No answer: it does not even read.
  explicit LyingWorker(Answer answer, WatchStatusResponse report = GoodReport())
      : answer_(std::move(answer)), report_(std::move(report)) {
    auto server = RpcServer::Start("127.0.0.1:0", {{"paceline.worker.v1.WorkerService", this}});
    CHECK(server.ok()) << server.status().ToString();
    server_ = *std::move(server);
  }
  ~LyingWorker() override { server_->Shutdown(Duration::zero()); }

  const std::string& address() const { return server_->address(); }
  int streams() const { return streams_; }
  int submits() const { return submits_; }

  grpc::ServerBidiReactor<OpenStreamRequest, OpenStreamResponse>* OpenStream(
      grpc::CallbackServerContext*) override {
    ++streams_;
    return new Stream(this);
  }
  grpc::ServerWriteReactor<WatchStatusResponse>* WatchStatus(grpc::CallbackServerContext*,
                                                             const WatchStatusRequest*) override {
    return new Watch(report_);
  }

 private:
  class Stream final : public grpc::ServerBidiReactor<OpenStreamRequest, OpenStreamResponse> {
   public:
    explicit Stream(LyingWorker* worker) : worker_(worker) {
      if (worker_->answer_) StartRead(&request_);
    }
    void OnReadDone(bool ok) override {
      if (!ok) return outbox_.Abort(grpc::Status::OK);
      for (const auto& submit : request_.submits()) {
        ++worker_->submits_;
        OpenStreamResponse frame = worker_->answer_(submit);
        if (frame.ByteSizeLong() > 0) outbox_.Push(std::move(frame), 1);
      }
      StartRead(&request_);
    }
    void OnWriteDone(bool ok) override { outbox_.WriteDone(ok); }
    void OnCancel() override { outbox_.Abort(grpc::Status::CANCELLED); }
    void OnDone() override { delete this; }

   private:
    LyingWorker* const worker_;
    OpenStreamRequest request_;
    Outbox<OpenStreamResponse> outbox_{
        {.write = [this](const OpenStreamResponse* m) { StartWrite(m); },
         .finish = [this](const grpc::Status& s) { Finish(s); }},
        INT64_MAX};
  };
  class Watch final : public grpc::ServerWriteReactor<WatchStatusResponse> {
   public:
    explicit Watch(WatchStatusResponse report) : report_(std::move(report)) {
      StartWrite(&report_);
    }
    void OnCancel() override { Finish(grpc::Status::CANCELLED); }
    void OnDone() override { delete this; }

   private:
    const WatchStatusResponse report_;
  };

  const Answer answer_;
  const WatchStatusResponse report_;
  std::atomic<int> streams_ = 0, submits_ = 0;
  std::unique_ptr<RpcServer> server_;
};

OpenStreamResponse NoAnswer(const worker::v1::Submit&) { return {}; }

// Comes back at once, however often.
WorkerLinksOptions Hasty() {
  WorkerLinksOptions options;
  options.link.last_backoff = options.link.first_backoff = std::chrono::milliseconds(2);
  return options;
}

std::vector<TokenId> Expected(const ClientRequest& request) {
  return HashWorker::Model().Generate(request.generation.prompt, request.generation.sampling, 0);
}

// Every frame that does not parse into values ends the session; the request goes elsewhere.
TEST(WorkerLinkFaults, MalformedFramesCostTheSessionOnly) {
  const std::vector<std::function<void(OpenStreamResponse*, uint64_t)>> faults = {
      [](auto* f, uint64_t h) {
        f->add_deltas()->set_handle(h);
        f->mutable_deltas(0)->set_sample(-1);
      },
      [](auto* f, uint64_t h) {
        f->add_deltas()->set_handle(h);
        f->mutable_deltas(0)->set_first_index(-7);
      },
      [](auto* f, uint64_t h) {
        f->add_deltas()->set_handle(h);
        f->mutable_deltas(0)->add_logprobs();
      },
      [](auto* f, uint64_t h) {
        f->add_deltas()->set_handle(h);
        f->mutable_deltas(0)->set_finish(static_cast<worker::v1::FinishReason>(77));
      },
      [](auto* f, uint64_t h) {
        f->add_finished()->set_handle(h);
        f->mutable_finished(0)->set_output_tokens(-1);
      },
      [](auto* f, uint64_t h) {
        f->add_finished()->set_handle(h);
        f->mutable_finished(0)->mutable_total_time()->set_nanos(2'000'000'000);
      },
      [](auto* f, uint64_t h) {  // one good part does not save a frame
        f->add_deltas()->set_handle(h);
        f->mutable_deltas(0)->add_tokens(1);
        f->add_finished()->set_handle(h);
        f->mutable_finished(0)->set_cached_tokens(-1);
      }};
  std::atomic<size_t> next = 0;
  LyingWorker liar([&](const worker::v1::Submit& submit) {
    OpenStreamResponse frame;
    faults[next++ % faults.size()](&frame, submit.handle());
    return frame;
  });
  HashWorker good;
  good.Run();
  LinkedRouter router({liar.address(), good.address()}, {}, {}, Hasty());
  for (uint64_t seed = 0; next < 2 * faults.size(); ++seed) {
    ASSERT_TRUE(router.AwaitReady(0) && router.AwaitReady(1));
    auto call = router.Start(NewRequest(seed));
    const FinishAction finish = call->Await();
    ASSERT_FALSE(finish.error) << finish.error->ToString();
    EXPECT_EQ(call->tokens(), Expected(NewRequest(seed)));
  }
  EXPECT_GT(liar.streams(), 7);
}

// What parses and is still wrong costs the attempt; the session stays.
TEST(WorkerLinkFaults, WrongTokensCostTheAttemptOnly) {
  LyingWorker liar([](const worker::v1::Submit& submit) {
    OpenStreamResponse frame;
    auto* delta = frame.add_deltas();
    delta->set_handle(submit.handle());
    delta->set_first_index(submit.handle() % 2 ? 5 : 0);
    delta->add_tokens(-3);
    frame.add_deltas()->set_handle(123456789);  // nobody's
    return frame;
  });
  HashWorker good;
  good.Run();
  LinkedRouter router({liar.address(), good.address()});
  for (uint64_t seed = 0; liar.submits() < 3; ++seed) {
    ASSERT_TRUE(router.AwaitReady(0) && router.AwaitReady(1));
    auto call = router.Start(NewRequest(seed));
    ASSERT_FALSE(call->Await().error);
    EXPECT_EQ(call->tokens(), Expected(NewRequest(seed)));
  }
  EXPECT_EQ(liar.streams(), 1);
}

TEST(WorkerLinkFaults, ALiarAloneIsATypedError) {
  LyingWorker liar([](const worker::v1::Submit& submit) {
    OpenStreamResponse frame;
    frame.add_deltas()->set_handle(submit.handle());
    frame.mutable_deltas(0)->set_sample(-1);
    return frame;
  });
  LinkedRouter router({liar.address()});
  ASSERT_TRUE(router.AwaitReady(0));
  const FinishAction finish = router.Start(NewRequest(1))->Await();
  ASSERT_TRUE(finish.error);
  EXPECT_EQ(finish.error->reason, "WORKER_LOST");
  EXPECT_GE(liar.streams(), 4);  // --max-attempts
}

TEST(WorkerLinkFaults, ASilentWorkerLosesItsRequests) {
  LyingWorker silent(NoAnswer);
  HashWorker good;
  good.Run();
  RouterOptions options;
  options.silence_timeout = std::chrono::milliseconds(50);
  LinkedRouter router({silent.address(), good.address()}, {}, options);
  ASSERT_TRUE(router.AwaitReady(0) && router.AwaitReady(1));
  for (uint64_t seed = 0; seed < 8; ++seed) {
    auto call = router.Start(NewRequest(seed));
    ASSERT_FALSE(call->Await().error);
    EXPECT_EQ(call->tokens(), Expected(NewRequest(seed)));
  }
  EXPECT_GE(silent.submits(), 1);
}

TEST(WorkerLinkFaults, ASilentWorkerIsNotReached) {
  LyingWorker silent(NoAnswer);
  WorkerLinksOptions options;
  options.link.silence = std::chrono::milliseconds(1);
  LinkedRouter router({silent.address()}, {}, {}, options);
  ASSERT_TRUE(router.AwaitReady(0));
  EXPECT_TRUE(Eventually([&] { return !router.links->Members()[0].reached; }));
  EXPECT_EQ(router.links->Members()[0].report.info().model(), "hash");
}

TEST(WorkerLinkFaults, AWorkerThatDoesNotReadLosesItsSession) {
  LyingWorker worker(nullptr);
  WorkerLinksOptions options;
  options.link.max_outbox_bytes = 100;
  LinkedRouter router({worker.address()}, {}, {}, options);
  ASSERT_TRUE(router.AwaitReady(0));
  std::vector<std::shared_ptr<testing::Call>> calls;
  const auto lost = [&] { return worker.streams() > 1; };
  for (uint64_t i = 0; i < 1000 && !lost(); ++i) {
    ClientRequest request = NewRequest(i);
    request.generation.prompt.assign(10'000, 1);
    calls.push_back(router.Start(std::move(request)));
    router.loop.Read([](const RouterCore&, TimePoint) {});  // a frame of its own
  }
  EXPECT_TRUE(Eventually(lost));
}

TEST(WorkerLinkFaults, ReportsThatMakeNoSenseAreNoReports) {
  std::vector<WatchStatusResponse> reports(6, GoodReport());
  reports[0].mutable_info()->set_role("draft");
  reports[1].clear_info();
  reports[2].set_running(-1);
  reports[3].mutable_info()->set_block_size(1 << 31);
  reports[4].set_tokens_per_second(std::numeric_limits<double>::quiet_NaN());
  reports[5].mutable_info()->set_model(std::string(1000, 'm'));
  for (const WatchStatusResponse& report : reports) {
    LyingWorker worker(NoAnswer, report);
    LinkedRouter router({worker.address()}, {}, {}, Hasty());
    ASSERT_TRUE(Eventually([&] { return worker.streams() > 2; }));  // tried again and again
    EXPECT_EQ(router.Of(0).State(), WorkerState::kUnreachable);
    EXPECT_FALSE(router.links->Members()[0].reached);
  }
}

TEST(WorkerLinkFaults, ATargetIsNoDraftWorker) {
  HashWorker target;
  LinkedRouter router({}, {target.address()});
  ASSERT_TRUE(router.links->AwaitTried(testing::kPatience));
  EXPECT_FALSE(router.links->Members()[0].reached);
}

TEST(WorkerLinkFaults, DraftWorkersAreWatched) {
  WatchStatusResponse report = GoodReport();
  report.mutable_info()->set_role("draft");
  report.set_draft_sessions(3);
  LyingWorker draft(NoAnswer, report);
  LinkedRouter router({}, {draft.address()});
  ASSERT_TRUE(Eventually([&] { return router.links->Members()[0].reached; }));
  EXPECT_EQ(router.links->Members()[0].report.draft_sessions(), 3);
  EXPECT_EQ(draft.streams(), 0);
}

// Frames with bytes changed at random: requests still end well, on the other worker.
TEST(WorkerLinkFaults, MutatedFramesNeverHurtTheRouter) {
  const char* replay = std::getenv("PACELINE_TEST_SEED");
  const uint64_t seed = replay ? std::strtoull(replay, nullptr, 10) : std::random_device{}();
  SCOPED_TRACE("PACELINE_TEST_SEED=" + std::to_string(seed));
  std::mt19937_64 random(seed);
  std::mutex mutex;
  LyingWorker liar([&](const worker::v1::Submit& submit) {
    std::lock_guard lock(mutex);
    OpenStreamResponse frame;
    auto* delta = frame.add_deltas();
    delta->set_handle(submit.handle());
    for (int i = 0; i < 3; ++i) delta->add_tokens(1 + i);
    delta->set_first_index(7);  // never what is expected
    auto* finished = frame.add_finished();
    finished->set_handle(submit.handle());
    finished->mutable_status()->set_code(8);
    finished->mutable_total_time()->set_seconds(1);
    std::string bytes = frame.SerializeAsString();
    for (int k = 1 + random() % 4; k > 0; --k) bytes[random() % bytes.size()] = random();
    OpenStreamResponse mutated;
    return mutated.ParseFromString(bytes) ? mutated : frame;
  });
  HashWorker good;
  good.Run();
  RouterOptions options;
  options.max_attempts = 1000;
  options.silence_timeout = std::chrono::milliseconds(20);
  LinkedRouter router({liar.address(), good.address()}, {}, options);
  ASSERT_TRUE(router.AwaitReady(0) && router.AwaitReady(1));
  for (uint64_t i = 0; i < 300; ++i) {
    auto call = router.Start(NewRequest(i));
    const FinishAction finish = call->Await();
    // A worker may say that a request is wrong, and is believed.
    if (finish.error) continue;
    EXPECT_EQ(call->tokens().size(), 20u);
  }
  EXPECT_GT(liar.submits(), 0);
}

}  // namespace
}  // namespace paceline
